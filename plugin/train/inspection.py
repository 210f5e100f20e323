"""What teacher and student expect at each token of the teacher's response to one clip."""

from dataclasses import dataclass
from typing import Any

import torch

from ..data.collator import ConversationRenderer, modality_inputs
from ..data.dataset import MEDIA_OF_MODALITY, ClipEncoder, Sample
from ..data.manifest import Clip
from ..data.samplers import SampleKey
from .losses import divergence
from .teacher import states_of

Expectation = list[tuple[str, float]]
"""Most probable tokens, each with its probability."""


@dataclass(frozen=True)
class Position:
    """A token of the response; what teacher and student expected in its place, and KL(teacher || student) in nats."""

    token: str
    teacher: Expectation
    student: Expectation
    kl: float


@dataclass(frozen=True)
class Comparison:
    """Teacher and student on one clip.

    `student_response` is what the student says itself to the same prompt.
    """

    clip: str
    modality: str
    prompt: str
    response: str
    student_response: str
    positions: list[Position]

    @property
    def kl(self) -> float:
        """Mean over the response, nats."""
        return sum(position.kl for position in self.positions) / len(self.positions)

    @property
    def agreement(self) -> float:
        """Share of positions at which both expect the same token most."""
        same = sum(position.teacher[0][0] == position.student[0][0] for position in self.positions)
        return same / len(self.positions)


@torch.no_grad()
def compare(
    model, processor, clip: Clip, prompt: str, modality: str, max_response_tokens: int, top: int
) -> Comparison:
    """Let the teacher answer a prompt about a clip's picture, and the student read its answer.

    Args:
        model, processor: a VAEmotionLLM; its frozen visual modality is the teacher.
        clip: with sound and picture.
        prompt: the question.
        modality: "audio" or "av", what the student is given.
        max_response_tokens: longest answer.
        top: tokens that are told at each position.

    Raises:
        InputError: the clip's files cannot be used.
    """
    encoder = ClipEncoder(processor, processor.num_frames, processor.max_audio_s)
    media = {medium: encoder.encode(clip, medium) for medium in MEDIA_OF_MODALITY["av"]}
    sample = Sample(SampleKey(0, 0, 0), clip, media)
    renderer = ConversationRenderer(processor)

    def inputs_of(modality: str, response: list[int] | None) -> dict[str, Any]:
        inputs = modality_inputs(
            processor, renderer, [sample], modality, [prompt], None if response is None else [response]
        )
        return {name: tensor.to(model.device) for name, tensor in inputs.items()}

    said = {}
    for who, seen in (("teacher", "visual"), ("student", modality)):
        inputs = inputs_of(seen, None)
        generated = model.generate(
            **inputs, use_adapter=False, do_sample=False, num_beams=1, max_new_tokens=max_response_tokens
        )
        said[who] = generated[0, inputs["input_ids"].shape[1] :].tolist()
    states = {
        who: model(**inputs_of(seen, said["teacher"]), use_adapter=False, response_fn=states_of).response
        for who, seen in (("teacher", "visual"), ("student", modality))
    }  # (N, D) each
    head = model.get_output_embeddings()
    kl = divergence(states["teacher"], states["student"], head)["divergence"].tolist()
    best = {who: torch.softmax(head(found).float(), -1).topk(top) for who, found in states.items()}
    words = {
        who: [
            [(processor.tokenizer.decode([token]), p) for token, p in zip(tokens, chances)]
            for tokens, chances in zip(found.indices.tolist(), found.values.tolist())
        ]
        for who, found in best.items()
    }
    tokens = [processor.tokenizer.decode([token]) for token in said["teacher"]]
    text = {who: processor.tokenizer.decode(ids, skip_special_tokens=True) for who, ids in said.items()}
    positions = [Position(*found) for found in zip(tokens, words["teacher"], words["student"], kl)]
    return Comparison(clip.id, modality, prompt, text["teacher"], text["student"], positions)
