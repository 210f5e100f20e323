"""`vaemotionllm push`: uploads a saved model to the Hub."""

import argparse
import sys

DESCRIPTION = """upload a saved model to the Hub: weights, config, processor, code, model card, reproducibility.json

The folder is checked before anything is sent, and all files appear in one commit: until it is made, whoever loads the
repository gets what was there before. A run that broke off goes on with the same command. Checkpoints, optimizer
states, logs and pickle files never go out, nor paths of this machine in configs. A README.md in DIR is the model card;
else one is made from the run, and takes the place of one on the Hub. To record logits, the model runs on the CPU in
float32: 4 bytes of memory a parameter. The token is that of `hf auth login`, or HF_TOKEN.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
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
        help="evaluation for the card: lmms-eval's --output_path, or a demo's folder (default: the demo's own)",
    )
    parser.add_argument("--license", metavar="ID", help="licence of the model, as the Hub writes it: apache-2.0, ...")
    parser.add_argument(
        "--no-recording", action="store_true", help="do not run the model to record logits for `vaemotionllm verify`"
    )
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="longest silence of the Hub (default: 120 seconds)"
    )


def run(args: argparse.Namespace) -> int:
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
        results_path=args.results,
        license=args.license,
        recorded=not args.no_recording,
        dry_run=args.dry_run,
        timeout_s=args.timeout,
    )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    size = f"{len(done.files)} files, {sum(done.files.values()) / 1e6:.1f} MB"
    if args.dry_run:
        print("\n".join(f"{name}  {bytes_:,}" for name, bytes_ in done.files.items()))
        print(f"would go to {args.repo}{f' at {args.revision}' if args.revision else ''}: {size}")
        if args.show_card:
            print(f"\n{done.card}", end="")
    else:
        print(f"{done.url}: {size}")
    return 0
