"""The benchmark's items beside results: where they are found, and whether they are those that were asked.

Media need not be there, unlike for an evaluation: a report can be made from result files and a file of items alone.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..benchmark import schema
from ..benchmark.prompts import options_of
from ..nano import select
from ..utils import InputError
from .artemo import items_sha256
from .leaderboard_pins import metadata_of
from .leaderboard_scores import ASKED_ONCE, CIRCULAR_TASKS, outcomes_of
from .task_samples import Evaluation


@dataclass(frozen=True)
class BenchmarkRows:
    """A benchmark's folder and its items as they stand in its file, by id; media paths are relative to the folder."""

    folder: Path
    items: dict[str, dict]

    @property
    def art_forms(self) -> dict[str, str | None]:
        return {name: item.get("art_form") for name, item in self.items.items()}


def find_rows(evaluations: Sequence[Evaluation], given: str | None) -> tuple[BenchmarkRows | None, str]:
    """The benchmark that was asked, or None and why it is not at hand.

    Args:
        evaluations: those of the report, of the same items.
        given: `--benchmark`; else the folder that a results file names counts, then ARTEMO_DATASET.

    Raises:
        InputError: `given` cannot be read, or is not the benchmark that was asked.
    """
    if given is not None:
        rows = read_rows(select.find(given))
        if reason := other_than(rows, evaluations):
            raise InputError(f"--benchmark {given} is not the benchmark that was asked: {reason}.")
        return rows, ""
    named = [metadata_of(evaluation).get("benchmark_folder") for evaluation in evaluations]
    named.append(os.environ.get(select.VARIABLE))
    reasons = []
    for name in dict.fromkeys(str(name) for name in named if name):
        try:
            rows = read_rows(select.find(name))
        except InputError as error:
            reasons.append(str(error))
            continue
        reason = other_than(rows, evaluations)
        if not reason:
            return rows, ""
        reasons.append(f"{name} is not the benchmark that was asked: {reason}")
    return None, "; ".join(reason.rstrip(".") for reason in reasons) or "the result files name no benchmark folder"


def read_rows(folder: Path) -> BenchmarkRows:
    """The items of a benchmark folder, by id, without a look at their media.

    Raises:
        InputError: the folder is no benchmark, or a line of it no item.
    """
    folder, _ = schema.open_folder(folder)
    items: dict[str, dict] = {}
    for number, row in schema.enumerate_rows(folder):
        if isinstance(row, InputError):
            raise row
        if not isinstance(row, dict) or any(row.get(column) is None for column in schema.REQUIRED):
            raise InputError(f"{schema.where_of(folder, number)}: no item; run `vaemotionllm benchmark validate`.")
        items[row["id"]] = row
    return BenchmarkRows(folder, items)


def other_than(rows: BenchmarkRows, evaluations: Sequence[Evaluation]) -> str:
    """What tells that these are not the items that were asked; "" where nothing does.

    Older results do not state the hash of the items, so answers, options and questions are compared too. Where results
    state different revisions, of which the report has a notice, one of them has to be this one.
    """
    for evaluation in evaluations:
        for task in evaluation.tasks:
            if reason := _other_items(rows, evaluation, task):
                return reason
    stated = {str(of["benchmark_sha256"]) for e in evaluations if (of := metadata_of(e)).get("benchmark_sha256")}
    if stated and (found := items_sha256(rows.folder)) not in stated:
        return f"the hash of its items is {found[:16]} and not {' or '.join(of[:16] for of in sorted(stated))}"
    return ""


def _other_items(rows: BenchmarkRows, evaluation: Evaluation, task: str) -> str:
    """`other_than` of one task; "" for a task without options or whose items are pairs of the benchmark's."""
    if task not in {*ASKED_ONCE, *CIRCULAR_TASKS.values()}:
        return ""
    outcomes = {o.item_id: o for o in outcomes_of(evaluation, task)} if task in ASKED_ONCE else {}
    for name, asked in evaluation.tasks[task].rows.items():
        item = rows.items.get(name)
        if item is None:
            return f"it has no item {name!r} of {task}"
        outcome = outcomes.get(name)
        if outcome and (item["answer"], tuple(item["options"])) != (outcome.answer, outcome.options):
            return f"the item {name!r} of {task} has another answer or other options there"
        try:
            options = options_of(asked[0]["input"])
        except ValueError as error:
            return f"the item {name!r} of {task}: {error}"
        if sorted(options) != sorted(item["options"]):
            return f"the item {name!r} of {task} has other options there"
        if item["question"] not in asked[0]["input"]:
            return f"the item {name!r} of {task} has another question there"
    return ""
