"""Share of padding with and without batches of equal length, and the loss of a packed batch against the padded one.

    python benchmarks/padding.py [--clips 4000]

Lengths as they are in practice: audio of 3 to 30 s (log-normal, median 9 s) at 12.5 audio tokens a second, prompts of
20 to 60 tokens, responses of 8 to 128 tokens (log-normal, median 40), images of 256 or videos of 1,024 visual tokens.
The real sampler and collator's rule make the batches: 4 clips a micro-batch, 8 ranks, 4 accumulations, half of the
steps with audio alone and half with both. Goals: at most 3% padding; packed and padded losses equal within 1e-5.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import against_goals, last_line, machine, quiet, table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # the builders of small models and media

GOALS = {"padding": 0.03, "packed_loss_difference": 1e-5}
BATCH, RANKS, ACCUMULATION = 4, 8, 4
MODALITIES = {"audio": 0.5, "av": 0.5}


def realistic_rows(count: int, rng: np.random.Generator) -> tuple[dict[str, list[dict]], list[str]]:
    """Rows of a teacher cache, two responses a clip, and the kind of each clip's visual."""
    rows, groups = {}, []
    for i in range(count):
        groups.append("video" if rng.random() < 0.7 else "image")
        seconds = float(np.clip(rng.lognormal(np.log(9), 0.6), 3, 30))
        rows[str(i)] = [
            {
                "audio_tokens": int(seconds * 12.5) + 2, "visual_tokens": 1024 if groups[-1] == "video" else 256,
                "text_tokens": int(rng.integers(20, 61)),
                "tokens": [0] * int(np.clip(rng.lognormal(np.log(40), 0.6), 8, 128)),
            }
            for _ in range(2)
        ]  # fmt: skip
    return rows, groups


def padding_share(rows: dict[str, list[dict]], groups: list[str], grouped: bool) -> float:
    """Padding among all positions of an epoch's micro-batches of all ranks."""
    from vaemotionllm.data.collator import Stage1Collator
    from vaemotionllm.data.samplers import ScheduledBatchSampler

    collator = Stage1Collator(None, rows, MODALITIES, seed=0)

    def length_of(index: int, epoch: int, step: int) -> int:
        return collator.length_of(str(index), epoch, index, step)

    positions = tokens = 0
    for rank in range(RANKS):
        options = {"length_of": length_of} if grouped else {}
        for batch in ScheduledBatchSampler(groups, BATCH, ACCUMULATION, RANKS, rank, 0, **options):
            lengths = [length_of(key.index, key.epoch, key.step) for key in batch]
            positions, tokens = positions + len(lengths) * max(lengths), tokens + sum(lengths)
    return 1 - tokens / positions


def packed_loss_difference() -> float:
    """Largest difference of the loss over batches of a real model, packed and padded."""
    from media_files import write_world
    from training import make_model, stage1_values

    from vaemotionllm.config_file import build_config
    from vaemotionllm.data.samplers import SampleKey
    from vaemotionllm.train.config import Stage1Config
    from vaemotionllm.train.data import Stage1Data
    from vaemotionllm.train.losses import divergence
    from vaemotionllm.train.model import load_model
    from vaemotionllm.train.teacher import states_of

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        values = stage1_values(make_model(folder / "m"), write_world(folder / "w", clips=8), folder / "run")
        (folder / "run").mkdir()
        config = build_config(Stage1Config, values)
        data = Stage1Data(config)
        model, processor = load_model(config)
        data.prepare(model, processor)
        dataset, collator, _ = data.batches(model, processor)
        differences = []
        for step in range(6):
            batch = collator([dataset[SampleKey((4 * step + i) % len(dataset), 0, step)] for i in range(4)])
            losses = []
            for packing in (False, True):
                with torch.no_grad():
                    options = {"use_adapter": False, "packing": packing}
                    teacher = model(**batch["teacher"], **options, response_fn=states_of).response
                    student = model(**batch["student"], **options, response_fn=states_of).response
                    losses.append(
                        divergence(teacher, student, model.get_output_embeddings())["divergence_loss"].item()
                    )
            differences.append(abs(losses[0] - losses[1]))
    return max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4000)
    args = parser.parse_args()
    quiet()
    print(machine())
    rows, groups = realistic_rows(args.clips, np.random.default_rng(0))
    plain, grouped = (padding_share(rows, groups, grouped) for grouped in (False, True))
    measured = {"padding": grouped, "packed_loss_difference": packed_loss_difference()}
    table(["batches", "padding"], [["shuffled", f"{plain:.1%}"], ["of equal length", f"{grouped:.1%}"]])
    against_goals(measured, GOALS)
    last_line(measured | {"padding_shuffled": plain})


if __name__ == "__main__":
    main()
