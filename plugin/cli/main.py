"""Entry point of `vaemotionllm`: finds the command's file, runs it, turns bad input into exit code 2."""

import argparse
import importlib
import sys

from .. import __version__
from ..utils import InputError, bound_spinning

# Command -> one line for --help. Each names a module in this folder ("-" as "_") with `add_arguments(parser)` and
# `run(args)`, unless `SHARED` has it.
COMMANDS = {
    "init": "add an audio encoder to a vision-language model: the untrained model that stage 1 trains",
    "cache-teacher": "query the teacher of stage 1 once, so that training need not run it in each step",
    "plan": "what a stage-1 run will need: parameters, memory, FLOPs, clips a second, disk",
    "instructions": "make chat samples of a manifest's labels, to be looked at, edited and trained on in stage 2",
    "train": "train stage 1 (VG-Align) or stage 2 (EmoAdapter) from a YAML config",
    "export": "make a model folder from a checkpoint of a training run",
    "push": "upload a saved model to the Hub, with its card and hashes, in one commit",
    "inspect": "show what teacher and student expect at each token of a clip's response",
    "predict": "predict which emotion images, audio and videos express, for each modality",
    "calibrate": "fit the confidence of the predictions, on labelled clips that were not trained on",
    "verify": "check a model, of a folder or of the Hub: hashes, format, recorded outputs and answers",
    "nano": "build the embedded default: the procedural art world, its benchmark and its backbone",
    "benchmark": "show, check, build, upload or compare what the lmms-eval tasks `artemo` read",
    "evaluate-emotion": "score the Supervisor's predictions for a benchmark's clips, under each modality",
    "report": "report on models by their lmms-eval results, on a demo, or on means over the seeds of demos",
    "ablation": "train the nano model with and without each of its parts, over seeds, and compare",
    "demo": "run everything on the nano world: backbone, both stages, lmms-eval, report",
}

# Command -> (module, function that adds arguments, function that runs it).
SHARED = {
    "init": ("train", "add_init_arguments", "run_init"),
    "cache-teacher": ("train", "add_cache_teacher_arguments", "run_cache_teacher"),
    "plan": ("train", "add_plan_arguments", "run_plan"),
    "instructions": ("train", "add_instructions_arguments", "run_instructions"),
    "train": ("train", "add_train_arguments", "run_train"),
    "export": ("train", "add_export_arguments", "run_export"),
    "inspect": ("train", "add_inspect_arguments", "run_inspect"),
    "nano": ("benchmark", "add_nano_arguments", "run_nano"),
    "push": ("hub", "add_push_arguments", "run_push"),
    "verify": ("hub", "add_verify_arguments", "run_verify"),
    "predict": ("emotion", "add_predict_arguments", "run_predict"),
    "calibrate": ("emotion", "add_calibrate_arguments", "run_calibrate"),
    "evaluate-emotion": ("emotion", "add_evaluate_arguments", "run_evaluate"),
    "ablation": ("demo", "add_ablation_arguments", "run_ablation"),
}


# What a user can mend: bad input, and paths that cannot be used.
USER_ERRORS = (InputError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def one_line(error: Exception) -> str:
    """One line about one of `USER_ERRORS`."""
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}; name a path that can be used."
    return str(error)


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    bound_spinning()
    parser = argparse.ArgumentParser(prog="vaemotionllm", description="A vision-language model that hears.")
    parser.add_argument("--version", action="version", version=f"vaemotionllm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        # Only the chosen command's module is imported, so that --help stays fast.
        if argv and argv[0] == name:
            _functions(name)[0](sub)
    args = parser.parse_args(argv)
    try:
        return _functions(args.command)[1](args) or 0
    except USER_ERRORS as error:
        print(f"vaemotionllm {args.command}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vaemotionllm {args.command}: interrupted.", file=sys.stderr)
        return 130  # as a shell says of a program that Ctrl-C ended


def _functions(command: str):
    """The two functions of a command: one adds its arguments, the other runs it."""
    module, add, run = SHARED.get(command, (command.replace("-", "_"), "add_arguments", "run"))
    found = importlib.import_module(f"{__package__}.{module}")
    return getattr(found, add), getattr(found, run)


if __name__ == "__main__":
    sys.exit(main())
