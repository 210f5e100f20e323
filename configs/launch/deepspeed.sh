#!/usr/bin/env bash
# Training on the nodes of a hostfile, by the deepspeed launcher over ssh. Run it on one of the nodes:
#
#   HOSTFILE=hostfile bash deepspeed.sh --config stage1_qwen2_5_vl_7b manifest=... output_dir=... deepspeed=zero2
#
# Every node needs the same environment and sees output_dir under the same path. With --dry-run as the first word, or
# DRY_RUN=1, it prints the command and starts nothing. HOSTFILE (default: hostfile here) and MASTER_PORT can be set.
set -euo pipefail

dry_run=${DRY_RUN:-}
if [[ ${1:-} == --dry-run ]]; then
    dry_run=1
    shift
fi
hostfile=${HOSTFILE:-hostfile}
if [[ ! -f $hostfile ]]; then
    echo "deepspeed.sh: error: no hostfile at '$hostfile'; write one with a line 'NODE slots=GPUS' for each node." >&2
    exit 2
fi

launch=(
    deepspeed --hostfile "$hostfile" --master_port "${MASTER_PORT:-29500}" --module vaemotionllm.cli.train "$@"
)

if [[ -n $dry_run ]]; then
    printf '%q ' "${launch[@]}"
    echo
    exit 0
fi
exec "${launch[@]}"
