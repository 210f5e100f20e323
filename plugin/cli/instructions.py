"""`vaemotionllm instructions`: chat samples made of a manifest's labels, to be looked at and trained on."""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError

DESCRIPTION = """make chat samples of a manifest's labels, in the messages format

  vaemotionllm instructions --manifest clips/manifest.jsonl --instructions art --out samples.jsonl

The file can be looked at, edited and translated; stage 2 trains on it with `instructions: samples.jsonl`. The same
arguments give the same file.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--manifest", required=True, help="clip manifest, .jsonl or .parquet")
    parser.add_argument(
        "--instructions", default="art", metavar="NAME_OR_FILE", help="templates: `art`, a YAML file, or `nano` (art)"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the .jsonl file to write")
    parser.add_argument(
        "--samples-per-clip",
        type=int,
        default=2,
        metavar="N",
        help="samples of each clip on each of its modalities (2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of wordings (0)")
    parser.add_argument(
        "--modalities", nargs="+", choices=MODALITIES, default=MODALITIES, help="modalities to ask on (all)"
    )
    parser.add_argument("--split", default="train", help="split of the manifest (train)")


def run(args: argparse.Namespace) -> int:
    if args.samples_per_clip < 1:
        raise InputError(f"--samples-per-clip is {args.samples_per_clip}; at least 1 is needed.")
    if args.out.suffix != ".jsonl":
        raise InputError(f"--out is {args.out}; stage 2 knows a file of samples by the ending .jsonl.")
    if args.out.exists():
        raise InputError(f"--out {args.out} exists, perhaps edited by hand; name a new file or remove it.")
    from ..data.manifest import read_manifest, write_manifest
    from ..train.instructions import emotion_of
    from ..train.samples import make_samples
    from ..train.stage2_data import checked_instructions, modalities_of_clips

    source = checked_instructions(args.instructions)
    clips = read_manifest(args.manifest, args.split, source.needed)
    modalities = modalities_of_clips(clips, dict.fromkeys(args.modalities, 1.0))
    source.check(clips, modalities)
    emotions = {clip.id: emotion_of(clip) or "(no emotion)" for clip in clips}
    counts = {"kind": Counter(), "emotion": Counter()}

    def counted() -> Iterator[dict]:
        root = Path(args.manifest).absolute().parent
        for sample in make_samples(source, clips, modalities, args.samples_per_clip, args.seed, root):
            counts["kind"][sample["kind"], sample["modality"]] += 1
            counts["emotion"][emotions[sample["clip_id"]], sample["modality"]] += 1
            yield sample

    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(args.out, counted())
    print("\n\n".join(table(name, found) for name, found in counts.items()))
    print(f"\n{args.out}: {counts['kind'].total()} samples of {len(clips)} clips")
    return 0


def table(name: str, counts: Counter) -> str:
    """Counts by (row, modality) for people, the largest rows first."""
    modalities = [modality for modality in MODALITIES if any(found == modality for _, found in counts)]
    sums = Counter()
    for (row, _), count in counts.items():
        sums[row] += count
    rows = [(name, *modalities, "all")]
    rows += [
        (row, *(str(counts[row, modality]) for modality in modalities), str(total))
        for row, total in sorted(sums.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    rows.append(
        ("all", *(str(sum(counts[row, modality] for row in sums)) for modality in modalities), str(sums.total()))
    )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    )
