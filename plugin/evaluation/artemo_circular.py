"""Circular evaluation: a question counts as answered only when it is right under every rotation of its options.

A model that prefers a position, or guesses, falls: with n options a guess is right n times in a row with 1 / n^n.
Reference: Liu et al., 2023, "MMBench: Is Your Multi-modal Model an All-around Player?" (CircularEval); that the
benchmark offers it as tasks of its own is our choice.
"""

from collections.abc import Callable, Sequence

from ..benchmark import prompts
from ..benchmark.intervals import accuracy_interval
from . import artemo


def documents(aspect: str, modality: str) -> Callable:
    """The `process_docs` of one cell: for each item one document a rotation, the item's own order first."""

    def process_docs(dataset):
        rows = []
        for item in artemo.items_of(aspect, modality):
            options = list(item.options)
            for shift in range(len(options)):
                rotated = options[shift:] + options[:shift]
                rows.append(
                    artemo.document(
                        item, id=f"{item.id}+{shift}", item_id=item.id, rotations=len(options), options=rotated
                    )
                )
        return artemo.dataset_of(rows)

    return process_docs


def process_results(doc: dict, results: Sequence[str]) -> dict:
    """Scores of one answer under one rotation; the item is put together again in the aggregation."""
    predicted = prompts.parse_choice(results[0], doc["options"])
    correct = float(predicted == doc["answer"])
    # "correct" and not "accuracy", lmms-eval's score_key: its standard error would take rotations for items.
    value = {
        "item_id": doc["item_id"], "clip_id": doc["clip_id"], "rotations": doc["rotations"], "correct": correct
    }  # fmt: skip
    return {
        "circular_accuracy": value,
        "accuracy": correct,
        **artemo.not_answered(results[0], predicted),
        "ci95_low": value,
        "ci95_high": value,
    }


def by_item(values: Sequence[dict]) -> tuple[list[str], list[float]]:
    """Clips and scores (1.0 where every rotation is right, else 0.0) of the items whose rotations were all asked.

    With `--limit` the last item can lack some; it is left out, since nobody knows whether it is right.
    """
    asked: dict[str, list[dict]] = {}
    for value in values:
        asked.setdefault(value["item_id"], []).append(value)
    whole = [group for group in asked.values() if len(group) == group[0]["rotations"]]
    return [group[0]["clip_id"] for group in whole], [min(value["correct"] for value in group) for group in whole]


def circular_accuracy(values: Sequence[dict]) -> float:
    """Share of the items that are right under every rotation; NaN where `--limit` left no whole item."""
    _, scores = by_item(values)
    return sum(scores) / len(scores) if scores else float("nan")


def interval(values: Sequence[dict]) -> tuple[float, float]:
    """95% interval of the circular accuracy, see `accuracy_interval`."""
    clips, scores = by_item(values)
    return accuracy_interval(clips, scores)[1] if scores else (float("nan"), float("nan"))


def ci95_low(values: Sequence[dict]) -> float:
    return interval(values)[0]


def ci95_high(values: Sequence[dict]) -> float:
    return interval(values)[1]
