"""`vaemotionllm verify`: whether a model is what it says it is: hashes, format, recorded outputs and answers."""

import argparse
import dataclasses
import json
from pathlib import Path

from ..utils import InputError

DESCRIPTION = """check a model, of a folder or of the Hub, against what was recorded of it

  vaemotionllm verify org/name --revision v1
  vaemotionllm verify runs/demo/stage2 --record

Hashes and format are looked at before anything is loaded, and no code of the model runs. Then its processor and its
weights are given the recorded inputs, and what they give is compared within tolerances by dtype and attention backend.
Exit code 0: all that was checked agrees; 1: something does not; 2: bad input.
"""
SHOWN = {"agrees": "agrees", "disagrees": "DISAGREES", "not checked": "not checked"}
WORDS = {"agrees": "agree", "disagrees": "disagree", "not checked": "not checked"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="NAME_OR_DIR", help="a model folder, or OWNER/NAME on the Hub")
    parser.add_argument("--revision", metavar="REVISION", help="branch, tag or commit on the Hub")
    parser.add_argument("--dtype", metavar="DTYPE", help="float32, float16 or bfloat16; default: float32 on a CPU")
    parser.add_argument(
        "--attn-implementation", metavar="NAME", help="eager, sdpa, flash_attention_2, ...; default: the library's"
    )
    parser.add_argument("--device", help="cuda:0, cpu, ...; default: the first GPU, or the CPU where there is none")
    parser.add_argument("--evaluation", action="store_true", help="ask the recorded questions of the benchmark again")
    parser.add_argument(
        "--benchmark", metavar="NAME_OR_DIR", help="the benchmark for --evaluation; default: the one in force"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="questions a batch (default 8)")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the model's own code, not this package's"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--record", action="store_true", help="record the outputs of a folder's model into it, and end"
    )
    parser.add_argument(
        "--record-evaluation", metavar="RESULTS", help="record answers from lmms-eval's --output_path too, and end"
    )


def run(args: argparse.Namespace) -> int:
    if args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}; at least 1 is needed.")
    if args.benchmark and not args.evaluation:
        raise InputError("--benchmark is read with --evaluation alone; give both.")
    if args.record or args.record_evaluation:
        return _record(args)
    from ..hub.download import locate
    from ..hub.verification import verify

    source = locate(args.name, args.revision)
    if args.evaluation:
        from ..hub.recorded_evaluation import prepare, rerun

        # Before minutes of other checks: a benchmark that is missing is bad input.
        questions = prepare(source.folder, args.benchmark)
    found = verify(
        source.folder, args.dtype, args.attn_implementation, args.device, args.trust_remote_code, source.left
    )
    checks = [*found.checks]
    if args.evaluation:
        checks += rerun(source.folder, questions, found, args.device, args.batch_size)
    agrees = all(check.result != "disagrees" for check in checks)
    if args.json:
        about = {"model": args.name, "commit": source.commit, **found.facts, "agrees": agrees}
        print(json.dumps({**about, "checks": [dataclasses.asdict(check) for check in checks]}, indent=2))
        return 0 if agrees else 1
    for line in (*_head(args.name, source.commit, found.facts), "", *table(checks), ""):
        print(line)
    results = [check.result for check in checks]
    print(", ".join(f"{results.count(result)} {word}" for result, word in WORDS.items()) + ".")
    return 0 if agrees else 1


def _record(args: argparse.Namespace) -> int:
    folder = Path(args.name).expanduser()
    from ..hub.folder_checks import check_is_model

    check_is_model(folder)
    if args.record:
        from ..hub.recording import record

        record(folder)
        print(f"{folder}: recorded. Another run of `vaemotionllm verify {folder}` compares with it.")
    if args.record_evaluation:
        from ..hub.recorded_evaluation import record_evaluation

        counts = record_evaluation(folder, Path(args.record_evaluation))
        print(f"{folder}: recorded {sum(counts.values())} answers of {len(counts)} tasks.")
    return 0


def _head(name: str, commit: str | None, facts: dict) -> list[str]:
    lines = [f"{name}, commit {commit}" if commit else name]
    if "dtype" in facts:
        lines.append(_run("run here", facts))
    if "recorded" in facts:
        of = facts["recorded"]
        versions = ", ".join(f"{package} {number}" for package, number in of.get("versions", {}).items())
        lines.append(f"{_run('recorded', of)} by {versions}")
    return lines


def _run(verb: str, of: dict) -> str:
    return f"{verb} in {of.get('dtype')} with {of.get('attn_implementation')} attention on {of.get('device')}"


def table(checks) -> list[str]:
    """One line a check, and one below it for each note."""
    width = max(len(check.name) for check in checks)
    lines = [f"{'check':{width}}  {'result':12} {'difference':>10}  {'tolerance':>9}".rstrip()]
    for check in checks:
        numbers = [("" if value is None else f"{value:.2g}") for value in (check.difference, check.tolerance)]
        counted = f"  {check.count[0]} of {check.count[1]}" if check.count else ""
        line = f"{check.name:{width}}  {SHOWN[check.result]:12} {numbers[0]:>10}  {numbers[1]:>9}{counted}"
        lines += [line.rstrip(), *(f"{'':{width}}  {note}" for note in check.notes)]
    return lines
