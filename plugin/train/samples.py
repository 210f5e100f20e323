"""Instructions as a file of chat samples, to be looked at, edited or translated before they are trained on."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import MEDIA_OF_MODALITY
from ..data.manifest import Clip, media_of, read_chat, text_of
from ..data.samplers import seeded_random
from ..model.configuration_vaemotionllm import MODALITIES
from ..utils import InputError
from .instructions import Instruction, InstructionSource

# How often another draw is tried where a clip already has the very question and answer on a modality.
_TRIES = 20


def make_samples(
    source: InstructionSource,
    clips: Sequence[Clip],
    modalities: Mapping[str, Sequence[str]],
    per_modality: int,
    seed: int,
    root: str | os.PathLike,
) -> Iterator[dict[str, Any]]:
    """Chat samples of clips: a function of its arguments, and of each clip apart from the others.

    Args:
        source: draws the instructions.
        clips: the clips.
        modalities: clip id -> the modalities that it is asked on.
        per_modality: samples of each clip on each modality. They differ as long as the source has other words.
        seed: of the draws.
        root: folder that media paths are written relative to.

    Yields:
        {"id", "clip_id", "modality", "kind", "messages"}, the last in the messages format: the user's turn with
        media and text, and the assistant's. Media that the manifest embeds have no path.
    """
    for clip in clips:
        for modality in modalities[clip.id]:
            seen: set[Instruction] = set()
            for number in range(per_modality):
                for attempt in range(_TRIES):
                    rng = seeded_random(seed, "sample", clip.id, modality, number, attempt)
                    instruction = source(rng, clip, modality)
                    if instruction not in seen:
                        break
                seen.add(instruction)
                user = [*_media_parts(clip, modality, root), {"type": "text", "text": instruction.prompt}]
                answer = [{"type": "text", "text": instruction.answer}]
                yield {
                    "id": f"{clip.id}-{modality}-{number}",
                    "clip_id": clip.id,
                    "modality": modality,
                    "kind": instruction.kind,
                    "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}],
                }


class SampledInstructions:
    """A file of chat samples: for a clip, on a step's modality, one of its samples of that modality.

    Media come from the manifest by `clip_id`; the parts of the messages only say which modality is meant.

    Args:
        file: see `make_samples` for its lines.

    Raises:
        InputError: naming the line.
    """

    needed: tuple[str, ...] = ()

    def __init__(self, file: str | os.PathLike):
        self.file = Path(file)
        self.samples: dict[tuple[str, str], list[Instruction]] = {}
        self.lines: dict[str, str] = {}  # clip id -> where it is first named
        for where, row in read_chat(self.file):
            clip_id, modality, instruction = _parse_sample(row, where)
            self.samples.setdefault((clip_id, modality), []).append(instruction)
            self.lines.setdefault(clip_id, where)

    def __call__(self, rng: np.random.Generator, clip: Clip, modality: str) -> Instruction:
        found = self.samples[clip.id, modality]
        return found[int(rng.integers(len(found)))]

    def check(self, clips: Sequence[Clip], modalities: Mapping[str, Sequence[str]]) -> None:
        ids = {clip.id for clip in clips}
        for clip_id, where in self.lines.items():
            if clip_id not in ids:
                raise InputError(
                    f"{where}: `clip_id` is {clip_id!r}, which is no clip of the manifest's split. Remove the line, "
                    "or name the manifest and the split that the samples were made of."
                )
        for clip in clips:
            for modality in modalities[clip.id]:
                if (clip.id, modality) not in self.samples:
                    has = ", ".join(name for name in MODALITIES if (clip.id, name) in self.samples)
                    raise InputError(
                        f"{self.file} has no sample of clip {clip.id!r} for the modality {modality} (found: "
                        f"{has or 'none'}), and config field `modalities` takes it. Add one, or set the "
                        "modality's weight to 0."
                    )

    def prompts(self) -> Iterator[tuple[str, str]]:
        for (clip_id, modality), samples in self.samples.items():
            for sample in samples:
                yield f"{self.file}, clip {clip_id!r}, modality {modality}", sample.prompt


def _parse_sample(row: dict[str, Any], where: str) -> tuple[str, str, Instruction]:
    for name in ("clip_id", "modality"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise InputError(f"{where}: `{name}` is {row.get(name)!r}; a text is needed.")
    modality, messages = row["modality"], row["messages"]
    if modality not in MODALITIES:
        raise InputError(f"{where}: `modality` is {modality!r}; allowed are {', '.join(MODALITIES)}.")
    if [message["role"] for message in messages] != ["user", "assistant"]:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"{where}: the roles are {roles}; one turn of the user and one of the assistant are needed.")
    parts = messages[0]["content"]
    kinds = ["audio" if part["type"] == "audio" else "visual" for part in media_of(messages)]
    if sorted(kinds) != sorted(MEDIA_OF_MODALITY[modality]):
        raise InputError(
            f"{where}: the user's media are {', '.join(part['type'] for part in media_of(messages)) or 'none'}, and "
            f"the modality {modality} has {' and '.join(MEDIA_OF_MODALITY[modality])}."
        )
    if any(part["type"] == "text" for part in parts[: len(kinds)]):
        raise InputError(f"{where}: text stands before a medium; the media come first.")
    return (
        row["clip_id"],
        modality,
        Instruction(str(row.get("kind", "sample")), text_of(messages[0]), text_of(messages[1])),
    )


def _media_parts(clip: Clip, modality: str, root: str | os.PathLike) -> list[dict[str, str]]:
    parts = []
    for medium in MEDIA_OF_MODALITY[modality]:
        kind = "audio" if medium == "audio" else clip.visual
        source = clip.audio if medium == "audio" else clip.video if clip.video is not None else clip.image
        parts.append(
            {"type": str(kind)} | ({"path": os.path.relpath(source, root)} if isinstance(source, str) else {})
        )
    return parts
