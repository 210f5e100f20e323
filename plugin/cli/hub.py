"""`vaemotionllm push` and `verify`: a model on the Hub, uploaded, and checked against what was recorded of it."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from ..model.inputs import folder_or_hub_name

SHOWN = {"agrees": "agrees", "disagrees": "DISAGREES", "not checked": "not checked"}


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """The folder is checked before anything is sent, and all files appear in one commit. After a
    failure run the same command again. Checkpoints, optimizer states, logs and pickle files never go out, nor local
    paths in configs. A README.md in DIR is the model card; else one is made from the run and its evaluation. To record
    logits, the model runs on the CPU in float32: 4 bytes of memory a parameter. The token is that of `hf auth login`,
    or HF_TOKEN."""
    add = parser.add_argument
    add("folder", metavar="DIR", help="a saved model, such as the output_dir of a finished run")
    add("--repo", required=True, metavar="OWNER/NAME", help="the model on the Hub; made where missing")
    add("--private", action="store_true", help="make it private, where it is made")
    add("--revision", metavar="BRANCH", help="push to this branch; made where missing (default: main)")
    add("--message", metavar="TEXT", help="message of the commit")
    add("--dry-run", action="store_true", help="list what would go out, send nothing (a backbone may be fetched)")
    add("--show-card", action="store_true", help="with --dry-run: print the model card as well")
    add("--audio-only", action="store_true", help="leave out the backbone's weights: loading fetches them by name")
    add("--backbone", metavar="NAME", help="with --audio-only: the backbone, if the config has no name")
    add("--backbone-revision", metavar="REV", help="with --audio-only: its commit")
    add("--results", metavar="PATH", help="for the card: lmms-eval's --output_path, or a demo's folder")
    add("--license", metavar="ID", help="licence of the model, as the Hub writes it: apache-2.0, ...")
    add("--no-recording", dest="recorded", action="store_false", help="record no logits for `vaemotionllm verify`")


def run_push(args: argparse.Namespace) -> None:
    from ..hub.push import push

    others = ("command", "show_card")
    done = push(**{name: value for name, value in vars(args).items() if name not in others})
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print_pushed(done, args.dry_run)
    if args.dry_run and args.show_card:
        print(f"\n{done.card}", end="")


def print_pushed(done, dry_run: bool) -> None:
    """Where the files of a model or a benchmark are, or would go to."""
    size = f"{len(done.files)} files, {done.size / 1e6:.1f} MB"
    if not dry_run:
        print(f"{done.url}: {size}")
        return
    print("\n".join(f"{name}  {num_bytes:,}" for name, num_bytes in done.files.items()))
    print(f"would go to {done.repo}: {size}")


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """Hashes and format are looked at before anything is loaded, and no code of the model runs. Then
    its processor and its weights are given the recorded inputs, and the outputs are compared within a tolerance by
    dtype. Exit code 0: all that was checked agrees; 1: something does not; 2: bad input."""
    add = parser.add_argument
    add("name", metavar="NAME_OR_DIR", help="a model folder, or OWNER/NAME on the Hub")
    add("--revision", metavar="REVISION", help="branch, tag or commit on the Hub")
    add("--dtype", metavar="DTYPE", help="float32, float16 or bfloat16; default: float32 on a CPU")
    add("--attn-implementation", metavar="NAME", help="eager, sdpa, flash_attention_2, ...; default: the library's")
    add("--device", help="cuda:0, cpu, ...; default: the first GPU, or the CPU where there is none")
    add("--json", action="store_true", help="print one JSON object")
    add("--record", action="store_true", help="record the outputs of a folder's model into it, and end")


def run_verify(args: argparse.Namespace) -> int:
    name = folder_or_hub_name(args.name)
    from ..hub.push import download
    from ..hub.verify import record, verify

    if args.record:
        record(Path(name))
        print(f"{args.name}: recorded. Another run of `vaemotionllm verify {args.name}` compares with it.")
        return 0
    folder, commit = download(name, args.revision)
    checks, run = verify(folder, args.dtype, args.attn_implementation, args.device)
    agrees = all(check.result != "disagrees" for check in checks)
    if args.json:
        about = {"model": args.name, "commit": commit, **run, "agrees": agrees}
        print(json.dumps({**about, "checks": [dataclasses.asdict(check) for check in checks]}, indent=2))
        return 0 if agrees else 1
    print(f"{args.name}, commit {commit}" if commit else args.name)
    for title, of in (("run here", run), ("recorded", run.get("recorded", {}))):
        if "dtype" in of:
            versions = ", ".join(f"{name} {number}" for name, number in of.get("versions", {}).items())
            by = f" by {versions}" if versions else ""
            print(f"{title} in {of['dtype']} with {of['attn_implementation']} attention on {of['device']}{by}")
    width = max(len(check.name) for check in checks)
    print(f"\n{'check':{width}}  {'result':12} {'difference':>10}  {'tolerance':>9}")
    for check in checks:
        numbers = ["" if value is None else f"{value:.2g}" for value in (check.difference, check.tolerance)]
        print(f"{check.name:{width}}  {SHOWN[check.result]:12} {numbers[0]:>10}  {numbers[1]:>9}".rstrip())
        for note in check.notes:
            print(f"{'':{width}}  {note}")
    results = [check.result for check in checks]
    print("\n" + ", ".join(f"{results.count(result)} {result.removesuffix('s')}" for result in SHOWN) + ".")
    return 0 if agrees else 1
