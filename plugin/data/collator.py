"""Collators: samples to model inputs, with the response tokens marked by a mask."""

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..utils import InputError
from .dataset import MEDIA_OF_MODALITY, Failure, Sample, modality_of_media
from .manifest import total_of
from .samplers import modality_of_step, seeded_random

Batch = dict[str, Any]

_KEPT_TEXTS = 20_000


class ConversationRenderer:
    """Renders one-turn conversations to text, each kind once: a template costs more than a small model's step."""

    def __init__(self, processor):
        self.processor = processor
        self.answer_ids = functools.lru_cache(_KEPT_TEXTS)(self._answer_ids)
        self._prompt_of = functools.lru_cache(_KEPT_TEXTS)(self._prompt)

    def prompt(self, kinds: Sequence[str], text: str) -> str:
        """The user's turn with media of these kinds ("image", "video", "audio") and the opening of the answer."""
        return self._prompt_of(tuple(kinds), text)

    def _prompt(self, kinds: tuple[str, ...], text: str) -> str:
        content = [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]
        return self._render([{"role": "user", "content": content}], add_generation_prompt=True)

    def _answer_ids(self, text: str) -> list[int]:
        """Token ids of the assistant's answer, up to and with the token that ends its turn."""
        question = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        opening = self._render([question], add_generation_prompt=True)
        whole = self._render([question, answer])
        tokenizer = self.processor.tokenizer
        end = tokenizer.eos_token
        # Templates end a turn with the end token and often a line feed, which generation never reaches.
        tail = whole[len(opening) :] if whole.startswith(opening) else text + end
        tail = tail[: tail.index(end) + len(end)] if end in tail else text + end
        return tokenizer(tail, add_special_tokens=False)["input_ids"]

    def _render(self, messages: list[dict[str, Any]], **options: bool) -> str:
        return self.processor.apply_chat_template([messages], tokenize=False, **options)[0]


def build_inputs(
    processor,
    texts: Sequence[str],
    media: Sequence[Any],
    responses: Sequence[Sequence[int]] | None = None,
) -> dict[str, torch.Tensor]:
    """Model inputs of rendered prompts, each followed by its response's tokens.

    Without responses prompts are padded on the left, for generation. With them each row is
    `[prompt | response | pad]`, so a batch is as wide as its longest row.

    Args:
        processor: a `VAEmotionLLMProcessor`.
        texts: B rendered prompts with placeholders.
        media: `MediaFeatures` of all texts, in the order of the placeholders.
        responses: B lists of token ids; None for generation.

    Returns:
        the processor's tensors; with responses also `response_mask` (B, T) bool, True on the responses' tokens.
    """
    inputs = dict(processor.assemble(texts, media, padding_side="left"))
    return inputs if responses is None else with_responses(processor, inputs, responses)


def with_responses(processor, inputs: Mapping[str, Any], responses: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Inputs of prompts, padded on the left, with the responses behind them, see `build_inputs`."""
    inputs = dict(inputs)
    prompts = inputs["attention_mask"].bool()  # (B, P)
    inputs["response_mask"] = torch.zeros_like(prompts)
    # What stands behind the prompts, by tensor: the response's tokens are attended to, and are no medium.
    tails = [torch.tensor(response, dtype=inputs["input_ids"].dtype) for response in responses]
    ones, zeros = [torch.ones_like(tail) for tail in tails], [torch.zeros_like(tail) for tail in tails]
    added = {"input_ids": tails, "attention_mask": ones, "response_mask": ones, "mm_token_type_ids": zeros}
    padding = {"input_ids": processor.tokenizer.pad_token_id or 0}
    for name in added.keys() & inputs.keys():
        heads = [row[keep] for row, keep in zip(inputs[name], prompts)]
        rows = [torch.cat([head, tail.to(head.dtype)]) for head, tail in zip(heads, added[name])]
        inputs[name] = pad_sequence(rows, batch_first=True, padding_value=padding.get(name, 0))  # (B, T)
    return inputs


def modality_inputs(processor, renderer, samples, modality, prompts, responses) -> dict[str, torch.Tensor]:
    """Inputs of samples that all take one modality."""
    texts, media = [], []
    for sample, prompt in zip(samples, prompts):
        features = [sample.media[medium] for medium in MEDIA_OF_MODALITY[modality]]
        texts.append(renderer.prompt([feature.kind for feature in features], prompt))
        media += features
    return build_inputs(processor, texts, media, responses)


class Stage1Collator:
    """Inputs of student and teacher for the same responses.

    Args:
        processor: a `VAEmotionLLMProcessor`.
        responses: clip id -> the teacher's rows, see `train.teacher`.
        student_modalities: weight of each student modality.
        seed: of the choice of modality and response.
        states: gives a row's cached states (R, D); None where the teacher runs in each step.

    A batch is {"modality", "ids", "student", and "teacher" (its inputs) or "teacher_states" (N, D)}. The
    teacher takes the visual, the student the step's modality.
    """

    def __init__(
        self,
        processor,
        responses: Mapping[str, Sequence[dict[str, Any]]],
        student_modalities: dict[str, float],
        seed: int,
        states: Callable[[dict[str, Any]], torch.Tensor] | None = None,
    ):
        self.processor, self.responses = processor, responses
        self.student_modalities, self.seed, self.states = student_modalities, seed, states
        self.renderer = ConversationRenderer(processor)

    def __call__(self, samples: Sequence[Sample | Failure]) -> Batch:
        if failure := first_failure(samples):
            return failure
        modality = self.modality_of(samples[0].key.step)
        rows = [self.row_of(sample.clip.id, sample.key.epoch, sample.key.index) for sample in samples]
        prompts, tokens = [row["prompt"] for row in rows], [row["tokens"] for row in rows]
        batch: Batch = {
            "modality": modality,
            "ids": [sample.clip.id for sample in samples],
            "student": modality_inputs(self.processor, self.renderer, samples, modality, prompts, tokens),
        }
        if self.states is None:
            batch["teacher"] = modality_inputs(self.processor, self.renderer, samples, "visual", prompts, tokens)
        else:
            try:
                batch["teacher_states"] = torch.cat([self.states(row) for row in rows])  # (N, D)
            except InputError as error:
                return {"error": str(error)}
        return batch

    def modality_of(self, step: int) -> str:
        return modality_of_step(self.seed, step, self.student_modalities)

    def row_of(self, clip_id: str, epoch: int, index: int) -> dict[str, Any]:
        """The response that a clip has in an epoch."""
        options = self.responses[clip_id]
        return options[int(seeded_random(self.seed, "response", epoch, index).integers(len(options)))]

    def length_of(self, clip_id: str, epoch: int, index: int, step: int) -> int:
        """Tokens of the student's input for a clip in a step."""
        row = self.row_of(clip_id, epoch, index)
        visual = row["visual_tokens"] if self.modality_of(step) == "av" else 0
        return row["text_tokens"] + len(row["tokens"]) + row["audio_tokens"] + visual


class Stage2Collator:
    """Instruction inputs with labels for the Supervisor.

    Args:
        processor: a `VAEmotionLLMProcessor`.
        instruction: (random generator, clip, modality) -> an instruction with `prompt` and `answer`.
        seed: of the choice of instruction.
        repeats: whether clips come more than once in an epoch: an instruction is then drawn for each step, and not
            for each epoch.
        emotion_labels: names of the K emotions, in the model's order.
        media_token_ids: what no answer may hold.

    The samples of a batch carry the media of one modality, which is the batch's.

    A batch is {"modality", "ids", "inputs", "valence" (B,), "arousal" (B,), "emotion" (B, K) distributions}; labels
    are NaN where a clip has none.
    """

    def __init__(
        self,
        processor,
        instruction: Callable,
        seed: int,
        repeats: bool = False,
        emotion_labels: Sequence[str] = (),
        media_token_ids: Sequence[int] = (),
    ):
        self.processor, self.instruction, self.seed, self.repeats = processor, instruction, seed, repeats
        self.emotion_labels, self.media_token_ids = list(emotion_labels), media_token_ids
        self.renderer = ConversationRenderer(processor)

    def __call__(self, samples: Sequence[Sample | Failure]) -> Batch:
        if failure := first_failure(samples):
            return failure
        modality = modality_of_media(samples[0].media)
        drawn = [self._draw(sample, modality) for sample in samples]
        prompts = [instruction.prompt for instruction in drawn]
        tokens = [self.renderer.answer_ids(instruction.answer) for instruction in drawn]
        for sample, ids in zip(samples, tokens):
            if found := placeholder_in(ids, self.media_token_ids, self.processor.tokenizer):
                return {"error": f"clip {sample.clip.id!r}: its answer holds {found}, which stands for a medium."}
        return {
            "modality": modality,
            "ids": [s.clip.id for s in samples],
            "inputs": modality_inputs(self.processor, self.renderer, samples, modality, prompts, tokens),
            "valence": _labels([s.clip.valence for s in samples]),
            "arousal": _labels([s.clip.arousal for s in samples]),
            "emotion": torch.stack([emotion_target(s.clip.emotion, self.emotion_labels) for s in samples]),
        }

    def _draw(self, sample: Sample, modality: str):
        key = sample.key
        turn = key.step if self.repeats else key.epoch
        return self.instruction(seeded_random(self.seed, "instruction", turn, key.index), sample.clip, modality)


def emotion_target(emotion: str | Mapping[str, float] | None, labels: Sequence[str]) -> torch.Tensor:
    """(K,) float32: a clip's emotion as a distribution over the labels, NaN where it has none.

    Raises:
        InputError: an emotion that is not among the labels, or shares that are no distribution.
    """
    if emotion is None or not labels:
        return torch.full((len(labels),), float("nan"))
    shares = {emotion: 1.0} if isinstance(emotion, str) else emotion
    for name in shares:
        if name not in labels:
            raise InputError(f"emotion {name!r} is not among `emotion_labels`: {', '.join(labels)}.")
    # In the range of float32, in which shares of 1e-50 would all be 0: by a power of two, which changes no digit.
    _, exponent = math.frexp(total_of(shares, "a clip"))
    target = torch.tensor([math.ldexp(shares.get(label, 0.0), -exponent) for label in labels])
    return target / target.sum()


def placeholder_in(tokens: Sequence[int], media_token_ids: Collection[int], tokenizer) -> str | None:
    """The first token of a response that stands for a medium or frames one; None where it is text alone."""
    return next((tokenizer.convert_ids_to_tokens(token) for token in tokens if token in media_token_ids), None)


def first_failure(samples: Sequence[Any]) -> Batch | None:
    """{"error": message} where a sample could not be made; the trainer raises it as an InputError."""
    for sample in samples:
        if isinstance(sample, Failure):
            return {"error": sample.message}
    return None


def _labels(values: Sequence[float | None]) -> torch.Tensor:
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float32)
