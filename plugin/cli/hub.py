"""`vaemotionllm push` and `verify`: a model on the Hub, uploaded, and checked against what was recorded of it."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

PUSH = """upload a saved model to the Hub: weights, config, processor, code, model card, reproducibility.json

The folder is checked before anything is sent, and all files appear in one commit: until it is made, whoever loads the
repository gets what was there before. After a failure run the same command again. Checkpoints, optimizer states, logs
and pickle files never go out, nor local paths in configs. A README.md in DIR is the model card; else one is made from
the run and its evaluation, and takes the place of one on the Hub. To record logits, the model runs on the CPU in
float32: 4 bytes of memory a parameter. The token is that of `hf auth login`, or HF_TOKEN.
"""
VERIFY = """check a model, of a folder or of the Hub, against what was recorded of it

  vaemotionllm verify org/name --revision v1
  vaemotionllm verify runs/demo/stage2 --record

Hashes and format are looked at before anything is loaded, and no code of the model runs. Then its processor and its
weights are given the recorded inputs, and the outputs are compared within a tolerance by dtype. Exit code 0: all that
was checked agrees; 1: something does not; 2: bad input.
"""
SHOWN = {"agrees": "agrees", "disagrees": "DISAGREES", "not checked": "not checked"}


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = PUSH
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", metavar="DIR", help="a saved model, such as the output_dir of a finished run")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the model on the Hub; made where missing")
    parser.add_argument("--private", action="store_true", help="make it private, where it is made")
    parser.add_argument("--revision", metavar="BRANCH", help="push to this branch; made where missing (default: main)")
    parser.add_argument("--message", metavar="TEXT", help="message of the commit")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check, and list what would go out; connect to nothing (with --audio-only a backbone may be fetched)",
    )
    parser.add_argument("--show-card", action="store_true", help="with --dry-run: print the model card as well")
    parser.add_argument(
        "--audio-only",
        action="store_true",
        help="leave out the weights of the backbone: loading fetches them by its name and revision",
    )
    parser.add_argument(
        "--backbone", metavar="NAME", help="with --audio-only: the backbone, if the config has no name"
    )
    parser.add_argument("--backbone-revision", metavar="REV", help="with --audio-only: its commit")
    parser.add_argument(
        "--results",
        metavar="PATH",
        help="evaluation for the card: lmms-eval's --output_path, or a demo's folder",
    )
    parser.add_argument("--license", metavar="ID", help="licence of the model, as the Hub writes it: apache-2.0, ...")
    parser.add_argument(
        "--no-recording", action="store_true", help="do not run the model to record logits for `vaemotionllm verify`"
    )


def run_push(args: argparse.Namespace) -> int:
    from ..hub.push import push

    done = push(
        args.folder,
        args.repo,
        private=args.private,
        revision=args.revision,
        message=args.message,
        audio_only=args.audio_only,
        backbone=args.backbone,
        backbone_revision=args.backbone_revision,
        results=args.results,
        license=args.license,
        recorded=not args.no_recording,
        dry_run=args.dry_run,
    )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    size = f"{len(done.files)} files, {done.size / 1e6:.1f} MB"
    if not args.dry_run:
        print(f"{done.url}: {size}")
        return 0
    print("\n".join(f"{name}  {bytes_:,}" for name, bytes_ in done.files.items()))
    print(f"would go to {args.repo}{f' at {args.revision}' if args.revision else ''}: {size}")
    if args.show_card:
        print(f"\n{done.card}", end="")
    return 0


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = VERIFY
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="NAME_OR_DIR", help="a model folder, or OWNER/NAME on the Hub")
    parser.add_argument("--revision", metavar="REVISION", help="branch, tag or commit on the Hub")
    parser.add_argument("--dtype", metavar="DTYPE", help="float32, float16 or bfloat16; default: float32 on a CPU")
    parser.add_argument(
        "--attn-implementation", metavar="NAME", help="eager, sdpa, flash_attention_2, ...; default: the library's"
    )
    parser.add_argument("--device", help="cuda:0, cpu, ...; default: the first GPU, or the CPU where there is none")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--record", action="store_true", help="record the outputs of a folder's model into it, and end"
    )


def run_verify(args: argparse.Namespace) -> int:
    from ..hub.push import download
    from ..hub.verify import record, verify

    if args.record:
        record(Path(args.name).expanduser())
        print(f"{args.name}: recorded. Another run of `vaemotionllm verify {args.name}` compares with it.")
        return 0
    folder, commit = download(args.name, args.revision)
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
    print("\n".join(("", *table(checks), "")))
    results = [check.result for check in checks]
    print(", ".join(f"{results.count(result)} {result.removesuffix('s')}" for result in SHOWN) + ".")
    return 0 if agrees else 1


def table(checks: Sequence) -> list[str]:
    """One line a check, and one below it for each note."""
    width = max(len(check.name) for check in checks)
    lines = [f"{'check':{width}}  {'result':12} {'difference':>10}  {'tolerance':>9}"]
    for check in checks:
        numbers = ["" if value is None else f"{value:.2g}" for value in (check.difference, check.tolerance)]
        lines.append(f"{check.name:{width}}  {SHOWN[check.result]:12} {numbers[0]:>10}  {numbers[1]:>9}".rstrip())
        lines += [f"{'':{width}}  {note}" for note in check.notes]
    return lines
