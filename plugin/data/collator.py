"""Collators: samples to model inputs, with the response tokens marked by a mask."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..utils import InputError
from .dataset import GENERAL, MEDIA_OF_MODALITY, Failure, GeneralSample, Sample, modality_of_media
from .manifest import Messages
from .samplers import modality_of_step, seeded_random

Batch = dict[str, Any]


class ConversationRenderer:
    """Renders one-turn conversations to text, each kind once: a template costs more than a small model's step."""

    def __init__(self, processor, limit: int = 20_000):
        self.processor, self.limit = processor, limit
        self._prompts: dict[tuple, str] = {}
        self._answers: dict[str, list[int]] = {}

    def prompt(self, kinds: Sequence[str], text: str) -> str:
        """The user's turn with media of these kinds ("image", "video", "audio") and the opening of the answer."""
        content = [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]
        return self._kept(
            self._prompts, (*kinds, text), lambda: self.conversation([{"role": "user", "content": content}])
        )

    def conversation(self, messages: Messages) -> str:
        """All turns up to the answer, and its opening."""
        return self.processor.apply_chat_template([messages], tokenize=False, add_generation_prompt=True)[0]

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of the assistant's answer, up to and with the token that ends its turn."""
        return self._kept(self._answers, text, lambda: self._render_answer(text))

    def _kept(self, cache: dict, key: Any, render: Callable[[], Any]) -> Any:
        if key in cache:
            return cache[key]
        rendered = render()
        if len(cache) < self.limit:
            cache[key] = rendered
        return rendered

    def _render_answer(self, text: str) -> list[int]:
        question = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        opening = self.conversation([question])
        [whole] = self.processor.apply_chat_template([[question, answer]], tokenize=False)
        tokenizer = self.processor.tokenizer
        end = tokenizer.eos_token
        # Templates end a turn with the end token and often a line feed, which generation never reaches.
        tail = whole[len(opening) :] if whole.startswith(opening) else text + end
        tail = tail[: tail.index(end) + len(end)] if end in tail else text + end
        return tokenizer(tail, add_special_tokens=False)["input_ids"]


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
    if responses is None:
        return inputs
    prompts = inputs["attention_mask"].bool()  # (B, P)
    tails = [torch.tensor(response, dtype=inputs["input_ids"].dtype) for response in responses]
    pad_id = processor.tokenizer.pad_token_id or 0

    def joined(name: str, tail_of: Callable[[torch.Tensor], torch.Tensor], padding: int = 0) -> torch.Tensor:
        heads = [row[keep] for row, keep in zip(inputs[name], prompts)]
        rows = [torch.cat([head, tail_of(tail).to(head.dtype)]) for head, tail in zip(heads, tails)]
        return pad_sequence(rows, batch_first=True, padding_value=padding)  # (B, T)

    inputs["response_mask"] = pad_sequence(
        [torch.arange(len(tail) + int(keep.sum())) >= keep.sum() for tail, keep in zip(tails, prompts)],
        batch_first=True,
    )
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = joined("mm_token_type_ids", torch.zeros_like)
    inputs["input_ids"] = joined("input_ids", lambda tail: tail, pad_id)
    inputs["attention_mask"] = joined("attention_mask", torch.ones_like)
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
        responses: clip id -> the teacher's rows (see `train.teacher`) with their `weight`.
        student_modalities: weight of each student modality.
        seed: of the choice of modality and response.
        states: gives a row's cached states (R, D); None where the teacher runs in each step.

    A batch is {"modality", "ids", "student", and "teacher" (its inputs) or "teacher_states" (N, D)}; "weights" and
    "kinds" (of prompts) are lists of B; "positions" (N,) int64 is the position of each response token, row by row, in
    its response. The teacher takes the visual, the student the step's modality.
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
            "kinds": [row["kind"] for row in rows],
            "weights": [row["weight"] for row in rows],
            "positions": torch.tensor([n for row in rows for n in range(len(row["tokens"]))]),
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

    The samples of a batch carry the media of one modality, which is the batch's; general samples have their own.

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
    ):
        self.processor, self.instruction, self.seed, self.repeats = processor, instruction, seed, repeats
        self.emotion_labels = list(emotion_labels)
        self.renderer = ConversationRenderer(processor)

    def __call__(self, samples: Sequence[Sample | GeneralSample | Failure]) -> Batch:
        if failure := first_failure(samples):
            return failure
        if isinstance(samples[0], GeneralSample):
            modality, inputs = GENERAL, self._general_inputs(samples)
        else:
            modality = modality_of_media(samples[0].media)
            drawn = [self._draw(sample, modality) for sample in samples]
            prompts = [instruction.prompt for instruction in drawn]
            tokens = [self.renderer.answer_ids(instruction.answer) for instruction in drawn]
            inputs = modality_inputs(self.processor, self.renderer, samples, modality, prompts, tokens)
        return {
            "modality": modality,
            "ids": [s.clip.id for s in samples],
            "inputs": inputs,
            "valence": _labels([s.clip.valence for s in samples]),
            "arousal": _labels([s.clip.arousal for s in samples]),
            "emotion": torch.stack([emotion_target(s.clip.emotion, self.emotion_labels) for s in samples]),
        }

    def _draw(self, sample: Sample, modality: str):
        key = sample.key
        turn = key.step if self.repeats else key.epoch
        return self.instruction(seeded_random(self.seed, "instruction", turn, key.index), sample.clip, modality)

    def _general_inputs(self, samples: Sequence[GeneralSample]) -> dict[str, torch.Tensor]:
        texts = [self.renderer.conversation(sample.messages[:-1]) for sample in samples]
        media = [features for sample in samples for features in sample.media]
        return build_inputs(self.processor, texts, media, [self.renderer.answer_ids(s.answer) for s in samples])


def emotion_target(emotion: str | Mapping[str, float] | None, labels: Sequence[str]) -> torch.Tensor:
    """(K,) float32: a clip's emotion as a distribution over the labels, NaN where it has none.

    Raises:
        InputError: an emotion that is not among the labels.
    """
    if emotion is None or not labels:
        return torch.full((len(labels),), float("nan"))
    shares = {emotion: 1.0} if isinstance(emotion, str) else emotion
    for name in shares:
        if name not in labels:
            raise InputError(f"emotion {name!r} is not among `emotion_labels`: {', '.join(labels)}.")
    target = torch.tensor([shares.get(label, 0.0) for label in labels])
    return target / target.sum()


def first_failure(samples: Sequence[Any]) -> Batch | None:
    """{"error": message} where a sample could not be made; the trainer raises it as an InputError."""
    for sample in samples:
        if isinstance(sample, Failure):
            return {"error": sample.message}
    return None


def _labels(values: Sequence[float | None]) -> torch.Tensor:
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float32)
