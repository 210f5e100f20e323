"""The task `artemo_conflict`: sight and sound of opposite emotion; which of the two is followed. See
`vaemotionllm.benchmark.controls` for the items."""

from collections.abc import Sequence

from ..benchmark import prompts
from ..benchmark.intervals import accuracy_interval
from . import artemo


def documents(dataset):
    """The `process_docs`: picture of one clip, sound of another; `answer` is the sight's emotion."""
    return artemo.dataset_of(
        [
            artemo.document(
                pair.visual,
                id=pair.id,
                options=list(pair.options),
                audio=pair.audio.audio,
                sound_clip_id=pair.audio.clip_id,
                sound_answer=pair.audio.answer,
            )
            for pair in artemo.conflicts()
        ]
    )


def doc_to_target(doc: dict) -> str:
    """Both letters, since neither is right."""
    letters = [prompts.letter_of(doc["options"], doc[name]) for name in ("answer", "sound_answer")]
    return "sight {}, sound {}".format(*letters)


def process_results(doc: dict, results: Sequence[str]) -> dict:
    """What one answer follows. The five shares sum to 1; `neither` is another option, `unparsable` none, `missing` a
    question that was not asked.

    `ci95_low` and `ci95_high` are those of `follows_sight`; the clip of an item is the one that is seen.
    """
    predicted = prompts.parse_choice(results[0], doc["options"])
    followed = {
        "follows_sight": predicted == doc["answer"],
        "follows_sound": predicted == doc["sound_answer"],
        "neither": predicted not in (doc["answer"], doc["sound_answer"], None),
        **artemo.not_answered(results[0], predicted),
    }
    shares = {name: float(value) for name, value in followed.items()}
    clustered = {"follows_sight": shares["follows_sight"], "clip_id": doc["clip_id"], "item_id": doc["id"]}
    return {**shares, "ci95_low": clustered, "ci95_high": clustered}


def interval(values: Sequence[dict]) -> tuple[float, float]:
    """95% interval of the share that follows sight, see `accuracy_interval`."""
    return accuracy_interval([value["clip_id"] for value in values], [value["follows_sight"] for value in values])[1]


def ci95_low(values: Sequence[dict]) -> float:
    return interval(values)[0]


def ci95_high(values: Sequence[dict]) -> float:
    return interval(values)[1]
