"""`vaemotionllm inspect`: what teacher and student expect at each token, side by side."""

import argparse
import dataclasses
import json

from ..utils import InputError

DESCRIPTION = """show a clip's teacher (it sees) and student (it hears) side by side

The teacher answers the prompt about the picture; at each token of its answer the most probable tokens of both are
shown, and KL(teacher || student) in nats.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", required=True, metavar="DIR_OR_NAME", help="a VAEmotionLLM, as stage 1 saved it")
    parser.add_argument("--manifest", required=True, help="clip manifest, .jsonl or .parquet")
    parser.add_argument("--split", default="train", help="split of the clip (default train)")
    parser.add_argument("--id", help="id of the clip (default: the split's first)")
    parser.add_argument("--prompt", default="Describe this and the emotion that it expresses.", help="the question")
    parser.add_argument("--modality", default="audio", choices=("audio", "av"), help="what the student is given")
    parser.add_argument("--top", type=int, default=3, help="tokens shown at each position (default 3)")
    parser.add_argument("--max-response-tokens", type=int, default=32, help="longest answer (default 32)")
    parser.add_argument("--device", default=None, help="default: the accelerator, where there is one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    for name in ("top", "max_response_tokens"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}; at least 1 is needed.")
    from ..data.manifest import read_manifest

    clips = {clip.id: clip for clip in read_manifest(args.manifest, args.split, ("audio", "visual"))}
    if args.id is not None and args.id not in clips:
        first = next(iter(clips))
        raise InputError(f"--id {args.id} is not in split {args.split} of {args.manifest}; the first is {first}.")
    clip = clips[args.id] if args.id is not None else next(iter(clips.values()))

    from ..model.loading import check_model_folder, load_model, load_processor
    from ..train.inspection import compare

    check_model_folder(args.model)
    model, processor = load_model(args.model, args.device), load_processor(args.model)
    found = compare(model, processor, clip, args.prompt, args.modality, args.max_response_tokens, args.top)
    if args.json:
        print(json.dumps(dataclasses.asdict(found) | {"kl": found.kl, "agreement": found.agreement}))
    else:
        print(describe(found))
    return 0


def describe(found) -> str:
    """A table for people."""
    rows = [("token", "teacher expects", "student expects", "KL")]
    for position in found.positions:
        rows.append((repr(position.token), _words(position.teacher), _words(position.student), f"{position.kl:.3f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"clip {found.clip}, student modality {found.modality}: {found.prompt}",
        f"teacher: {found.response}",
        f"student: {found.student_response}",
        "",
        *("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]) for row in rows),
        "",
        f"mean KL {found.kl:.3f} nats; both expect the same token most at {found.agreement:.0%} of the positions",
    ]
    return "\n".join(lines)


def _words(expectation) -> str:
    return " ".join(f"{token!r} {share:.2f}" for token, share in expectation)
