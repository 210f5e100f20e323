"""Runs a training in which the ranks' batches hold different media in one step, against what the sampler promises.

    torchrun --nproc_per_node 2 mixed_ranks.py --values VALUES.json

Rank 0 gets pictures, rank 1 a picture and a film in each batch; in stage 2 the ranks also take different paths. What a
rank's batches held is written to `output_dir/../media.RANK.json`.
"""

import argparse
import json
import os
from pathlib import Path

from vaemotionllm.cli.train import leave_ranks
from vaemotionllm.config_file import build_config
from vaemotionllm.data import collator, samplers
from vaemotionllm.train import data
from vaemotionllm.train.config import CONFIGS
from vaemotionllm.train.run import run

RANK = int(os.environ.get("RANK", "0"))


def mix_batches() -> None:
    in_order = samplers.ScheduledBatchSampler.__iter__

    def __iter__(self):
        pictures, films = self.members
        for number, keys in enumerate(in_order(self)):
            pools = (pictures, pictures) if self.rank == 0 else (pictures, films)
            yield [
                samplers.SampleKey(int(pools[place % 2][number % len(pools[place % 2])]), key.epoch, key.step)
                for place, key in enumerate(keys)
            ]

    samplers.ScheduledBatchSampler.__iter__ = __iter__


def mix_paths() -> None:
    def modality_of_step(seed, step, weights, possible):
        return sorted(weights)[(step + RANK) % len(weights)]

    data.modality_of_step = modality_of_step


def record_batches(file: Path, made: list) -> None:
    assemble = collator.build_inputs

    def build_inputs(processor, texts, media, responses=None):
        inputs = assemble(processor, texts, media, responses)
        if responses is not None:  # else the teacher generates, and ranks share that out in another way
            made.append(sorted(name for name in inputs if name.startswith(("pixel_values", "input_features"))))
            file.write_text(json.dumps(made))
        return inputs

    collator.build_inputs = build_inputs


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--values", type=Path)
    values = json.loads(parser.parse_args().values.read_text())
    mix_batches()
    if values["stage"] == 2:
        mix_paths()
    record_batches(Path(values["output_dir"]).parent / f"media.{RANK}.json", [])
    run(build_config(CONFIGS[values["stage"]], values))
    leave_ranks()
