#!/usr/bin/env bash
# Training on the nodes of a SLURM job: one task a node, in which torchrun starts a rank for each GPU.
#
#   sbatch --nodes 4 slurm.sh --config stage1_qwen2_5_vl_7b manifest=... output_dir=...
#
# A job that was requeued goes on from the run's last checkpoint. With --dry-run as the first word, or DRY_RUN=1, it
# prints the command and starts nothing. GPUS_PER_NODE, HEAD_NODE and MASTER_PORT override what SLURM says.
#SBATCH --job-name=vaemotionllm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

dry_run=${DRY_RUN:-}
if [[ ${1:-} == --dry-run ]]; then
    dry_run=1
    shift
fi
for name in SLURM_JOB_ID SLURM_JOB_NODELIST SLURM_NNODES; do
    if [[ -z ${!name:-} ]]; then
        echo "slurm.sh: error: $name is not set; start it by sbatch, or within salloc." >&2
        exit 2
    fi
done
gpus=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}
if [[ -z $gpus ]]; then
    echo "slurm.sh: error: SLURM_GPUS_ON_NODE is not set; ask for --gpus-per-node, or set GPUS_PER_NODE." >&2
    exit 2
fi
head_node=${HEAD_NODE:-}
if [[ -z $head_node ]]; then
    nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    head_node=${nodes%%$'\n'*}
fi
# Jobs that share a node must not share a port.
port=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}

launch=(
    srun --nodes "$SLURM_NNODES" --ntasks "$SLURM_NNODES" --ntasks-per-node 1 --kill-on-bad-exit=1
    # srun does not take it over from sbatch.
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task "$SLURM_CPUS_PER_TASK"}
    torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$gpus" --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID"
    --rdzv-endpoint "$head_node:$port" --module vaemotionllm.cli.train "$@"
)

if [[ -n $dry_run ]]; then
    printf '%q ' "${launch[@]}"
    echo
    exit 0
fi
exec "${launch[@]}"
