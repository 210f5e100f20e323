"""What is written while a run goes on: `metrics.jsonl`, one line a logged step."""

import json
import os
import time
from pathlib import Path

from transformers import TrainerCallback

from ..utils import reported_writing


class MetricsFile(TrainerCallback):
    """Appends every log of the trainer to a JSONL file: step, loss terms by name, learning_rate, grad_norm, wall_s.

    When a run goes on from a checkpoint, lines of later steps are cut off first, and `wall_s` counts on.
    """

    def __init__(self, path: Path):
        self.path = path
        self.started, self.earlier_s = time.monotonic(), 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.earlier_s = time.monotonic(), 0.0
        if not state.is_world_process_zero:
            return
        rows = [row for row in read_metrics(self.path) if row["step"] <= state.global_step]
        if rows:
            self.earlier_s = rows[-1].get("wall_s", 0.0)
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(temporary, self.path)

    def on_log(self, args, state, control, logs=None, **kwargs):
        # The last log of a run holds its summary and no loss of a step.
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        wall_s = round(self.earlier_s + time.monotonic() - self.started, 3)
        row = {"step": state.global_step, **logs, "wall_s": wall_s}
        with reported_writing(self.path), open(self.path, "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


class EpochOfSampler(TrainerCallback):
    """Tells the batch sampler which epoch begins, computed from the step alone."""

    def __init__(self, sampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(state.global_step // self.sampler.steps_per_epoch)


def read_metrics(path: Path) -> list[dict]:
    """Rows of a metrics file; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.endswith("\n")]
