"""Entry point of `vaemotionllm`: finds the command's file, runs it, turns bad input into exit code 2."""

import argparse
import importlib
import os
import sys

from .. import __version__
from ..utils import InputError, RankError, Terminated, bound_spinning

# Command -> (module in this folder, one line for --help). The module has a function that adds the command's arguments
# and one that runs it, see `functions_of`.
COMMANDS = {
    "init": ("train", "add an audio encoder to a vision-language model: the untrained model that stage 1 trains"),
    "cache-teacher": ("train", "query the teacher of stage 1 once, so that training need not run it in each step"),
    "plan": (
        "train",
        "what a stage-1 run will need: parameters, memory by engine, FLOPs, clips a second, disk",
    ),
    "train": ("train", "train stage 1 (VG-Align) or stage 2 (EmoAdapter) from a YAML config"),
    "export": ("train", "make a model folder that from_pretrained loads from a checkpoint of a training run"),
    "inspect": ("train", "show a clip's teacher (given the visual) and student (given audio) side by side"),
    "predict": ("emotion", "predict which emotion images, audio and videos express, for each modality"),
    "calibrate": ("emotion", "fit the confidence of the predictions, on labelled clips that were not trained on"),
    "evaluate-emotion": ("emotion", "score the Supervisor's predictions for a benchmark's clips, under each modality"),
    "push": ("hub", "upload a saved model to the Hub, with its card and hashes, in one commit"),
    "verify": ("hub", "check a model, of a folder or of the Hub, against what was recorded of it"),
    "nano": ("benchmark", "build the embedded default: the procedural art world, its benchmark and its backbone"),
    "benchmark": ("benchmark", "show, check, build, upload or compare what the lmms-eval tasks `artemo` read"),
    "report": ("demo", "report on models by their lmms-eval results, on a demo, or on means over seeds of demos"),
    "demo": ("demo", "run everything on the nano world: backbone, both stages, lmms-eval, report"),
    "ablation": ("demo", "train the nano model with and without each of its parts, over seeds, and compare"),
}

# What a user can mend: bad input, and paths that cannot be used.
USER_ERRORS = (InputError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def functions_of(command: str):
    """The two functions of a command: one adds its arguments, the other runs it."""
    module = importlib.import_module(f"{__package__}.{COMMANDS[command][0]}")
    name = command.replace("-", "_")
    return getattr(module, f"add_{name}_arguments"), getattr(module, f"run_{name}")


def _report(command: str, error: Exception) -> None:
    """Print one of `USER_ERRORS` as one line. Rank 0 reports what all ranks met, each rank what it met alone."""
    text = (
        f"{error.strerror}: {error.filename}; name a path that can be used." if isinstance(error, OSError) else error
    )
    if (rank := os.environ.get("RANK", "0")) == "0":
        print(f"vaemotionllm {command}: error: {text}", file=sys.stderr)
    elif isinstance(error, RankError):
        print(f"vaemotionllm {command}: error on rank {rank}: {text}", file=sys.stderr)


def _is_setting(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    bound_spinning()
    parser = argparse.ArgumentParser(prog="vaemotionllm", description="A vision-language model that hears.")
    parser.add_argument("--version", action="version", version=f"vaemotionllm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        # Only the chosen command's module is imported, so that --help stays fast.
        if argv and argv[0] == name:
            functions_of(name)[0](sub)
            for word in filter(_is_setting, argv):
                flag = f"--{word.partition('=')[0].replace('_', '-')}"
                if flag in sub._option_string_actions:
                    sub.error(f"{word} is a flag of this command: write {flag} {word.partition('=')[2]}")
    args, rest = parser.parse_known_args(argv)
    overrides = getattr(args, "overrides", None)
    if overrides is not None:  # argparse takes them from one place of the line alone
        overrides += [word for word in rest if _is_setting(word)]
        rest = [word for word in rest if not _is_setting(word)]
    if rest:
        if overrides is not None and rest[0].startswith("--"):
            name = rest[0].lstrip("-").partition("=")[0].replace("-", "_")
            rest.append(f"(a config's fields are written {name}=VALUE)")
        parser.error(f"{args.command}: unrecognized arguments: {' '.join(rest)}")
    try:
        return functions_of(args.command)[1](args) or 0
    except USER_ERRORS as error:
        _report(args.command, error)
        return 2
    except Terminated as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"vaemotionllm {args.command}: {stopped}", file=sys.stderr)
        return 143  # as a shell says of a program that SIGTERM ended
    except KeyboardInterrupt:
        print(f"vaemotionllm {args.command}: interrupted.", file=sys.stderr)
        return 130  # as a shell says of a program that Ctrl-C ended


if __name__ == "__main__":
    sys.exit(main())
