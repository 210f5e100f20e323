"""Collators: samples to model inputs, with the response tokens marked by a mask."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .dataset import MODALITIES_OF_PATH, Failure, Sample
from .samplers import path_of_step, seeded_random

Batch = dict[str, Any]


class ConversationRenderer:
    """Renders one-turn conversations to text, each kind once: a template costs more than a small model's step."""

    def __init__(self, processor, limit: int = 20_000):
        self.processor, self.limit = processor, limit
        self._prompts: dict[tuple, str] = {}
        self._answers: dict[str, list[int]] = {}

    def prompt(self, kinds: Sequence[str], text: str) -> str:
        """The user's turn with media of these kinds ("image", "video", "audio") and the opening of the answer."""
        key = (*kinds, text)
        if key not in self._prompts:
            content = [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]
            rendered = self.processor.apply_chat_template(
                [[{"role": "user", "content": content}]], tokenize=False, add_generation_prompt=True
            )[0]
            if len(self._prompts) < self.limit:
                self._prompts[key] = rendered
            return rendered
        return self._prompts[key]

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of the assistant's answer, up to and with the token that ends its turn."""
        if text not in self._answers:
            ids = self._render_answer(text)
            if len(self._answers) < self.limit:
                self._answers[text] = ids
            return ids
        return self._answers[text]

    def _render_answer(self, text: str) -> list[int]:
        question = {"role": "user", "content": [{"type": "text", "text": "?"}]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        render = self.processor.apply_chat_template
        opening = render([[question]], tokenize=False, add_generation_prompt=True)[0]
        whole = render([[question, answer]], tokenize=False, add_generation_prompt=False)[0]
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

    Prompts are padded on the left and responses on the right, so all responses of a batch start in one column:
    `[pad .. prompt | response .. pad]`.

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
    width = max(len(response) for response in responses)
    pad_id = processor.tokenizer.pad_token_id or 0
    ids = torch.full((len(responses), width), pad_id, dtype=inputs["input_ids"].dtype)  # (B, R)
    mask = torch.zeros(len(responses), width, dtype=torch.bool)
    for row, response in enumerate(responses):
        ids[row, : len(response)] = torch.tensor(response, dtype=ids.dtype)
        mask[row, : len(response)] = True
    prompt_width = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)  # (B, P + R)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask.to(inputs["attention_mask"].dtype)], dim=1)
    inputs["response_mask"] = torch.cat([torch.zeros(len(responses), prompt_width, dtype=torch.bool), mask], dim=1)
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat([types, types.new_zeros(len(responses), width)], dim=1)
    return inputs


def path_inputs(processor, renderer, samples, path, prompts, responses) -> dict[str, torch.Tensor]:
    """Inputs of samples that all take one path."""
    texts, media = [], []
    for sample, prompt in zip(samples, prompts):
        features = [sample.media[modality] for modality in MODALITIES_OF_PATH[path]]
        texts.append(renderer.prompt([feature.kind for feature in features], prompt))
        media += features
    return build_inputs(processor, texts, media, responses)


class Stage1Collator:
    """Teacher and student inputs for the same responses.

    Args:
        processor: a `VAEmotionLLMProcessor`.
        responses: clip id -> [(prompt, token ids)], the teacher's own responses.
        student_paths: weight of each student path.
        seed: of the choice of path and response.

    A batch is {"path", "teacher", "student"}; the teacher sees, the student takes the step's path.
    """

    def __init__(
        self,
        processor,
        responses: Mapping[str, Sequence[tuple[str, list[int]]]],
        student_paths: dict[str, float],
        seed: int,
    ):
        self.processor, self.responses = processor, responses
        self.student_paths, self.seed = student_paths, seed
        self.renderer = ConversationRenderer(processor)

    def __call__(self, samples: Sequence[Sample | Failure]) -> Batch:
        if failure := first_failure(samples):
            return failure
        path = path_of_step(self.seed, samples[0].key.step, self.student_paths)
        chosen = [self._choose(sample) for sample in samples]
        prompts = [prompt for prompt, _ in chosen]
        tokens = [ids for _, ids in chosen]
        return {
            "path": path,
            "teacher": path_inputs(self.processor, self.renderer, samples, "visual", prompts, tokens),
            "student": path_inputs(self.processor, self.renderer, samples, path, prompts, tokens),
        }

    def _choose(self, sample: Sample) -> tuple[str, list[int]]:
        options = self.responses[sample.clip.id]
        rng = seeded_random(self.seed, "response", sample.key.epoch, sample.key.index)
        return options[int(rng.integers(len(options)))]


class Stage2Collator:
    """Instruction inputs with labels for the Supervisor.

    Args:
        processor: a `VAEmotionLLMProcessor`.
        instruction: (random generator, clip) -> (prompt, answer).
        paths: weight of each path.
        seed: of the choice of path and instruction.

    A batch is {"path", "inputs", "valence" (B,), "arousal" (B,)}; labels are NaN where a clip has none.
    """

    def __init__(self, processor, instruction: Callable, paths: dict[str, float], seed: int):
        self.processor, self.instruction, self.paths, self.seed = processor, instruction, paths, seed
        self.renderer = ConversationRenderer(processor)

    def __call__(self, samples: Sequence[Sample | Failure]) -> Batch:
        if failure := first_failure(samples):
            return failure
        path = path_of_step(self.seed, samples[0].key.step, self.paths)
        pairs = [
            self.instruction(seeded_random(self.seed, "instruction", s.key.epoch, s.key.index), s.clip)
            for s in samples
        ]
        prompts = [prompt for prompt, _ in pairs]
        tokens = [self.renderer.answer_ids(answer) for _, answer in pairs]
        return {
            "path": path,
            "inputs": path_inputs(self.processor, self.renderer, samples, path, prompts, tokens),
            "valence": _labels([s.clip.valence for s in samples]),
            "arousal": _labels([s.clip.arousal for s in samples]),
        }


def first_failure(samples: Sequence[Sample | Failure]) -> Batch | None:
    """{"error": message} where a sample could not be made; the trainer raises it as an InputError."""
    for sample in samples:
        if isinstance(sample, Failure):
            return {"error": sample.message}
    return None


def _labels(values: Sequence[float | None]) -> torch.Tensor:
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float32)
