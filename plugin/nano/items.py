"""Benchmark items of the nano world: content and emotion questions about the same clips under three modalities."""

import numpy as np

from ..model.configuration_vaemotionllm import MODALITIES
from .language import CHOICES

NUM_OPTIONS = 4
LICENSE = "CC0-1.0"
SOURCE = "vaemotionllm nano world"


def _options(rng, answer: str, labels, position: int) -> list[str]:
    others = [label for label in labels if label != answer]
    options = [str(label) for label in rng.choice(others, NUM_OPTIONS - 1, replace=False)]
    options.insert(position, answer)
    return options


def benchmark_items(rows: list[dict], seed: int) -> list[dict]:
    """Items of the clips in `rows` (manifest rows whose media paths are relative to the benchmark folder).

    Options and answer positions are drawn once a clip and aspect, so the three modalities are compared on the same
    questions; each position holds the answer equally often (to within one item).
    """
    items = []
    for aspect_number, (aspect, (question, labels)) in enumerate(CHOICES.items()):
        rng = np.random.default_rng((seed, 77, aspect_number))
        positions = rng.permutation(np.arange(len(rows)) % NUM_OPTIONS)
        for row, position in zip(rows, positions):
            options = _options(rng, row[aspect], labels, int(position))
            for modality in MODALITIES:
                items.append(
                    {
                        "id": f"{row['id']}-{aspect}-{modality}",
                        "clip_id": row["id"],
                        "modality": modality,
                        "aspect": aspect,
                        "question": question,
                        "options": options,
                        "answer": row[aspect],
                        "audio": row["audio"] if modality != "visual" else None,
                        "image": row.get("image") if modality != "audio" else None,
                        "video": row.get("video") if modality != "audio" else None,
                        "valence": row["valence"],
                        "arousal": row["arousal"],
                        "emotion_distribution": None,
                        "art_form": row["art_form"],
                        "license": row["license"],
                        "source": row["source"],
                    }
                )
    return items
