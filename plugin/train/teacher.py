"""The teacher of stage 1: its responses to the visual, its states at them, scores of how far it can be trusted.

Its responses and states are constant, so they are made once. Rows of `responses.jsonl`, one a clip and slot:

    id, slot, kind, prompt, response, tokens    the prompt, and the teacher's answer as text and token ids
    empty                                       whether it is nothing but its end
    visual_hash, audio_hash                     of the files: what it was given, and the audio that belongs to it
    text_tokens, visual_tokens, audio_tokens    lengths, for batches of clips that are equally long
    scores                                      see below
    shard                                       where the post-norm hidden states (len(tokens), D) are, in a cache

Scores (the paper names none: all are ours):

    entropy      mean entropy of the teacher's next-token distributions at its response, nats: high where it guesses
    grounding    mean KL of what it expects with and without the visual, nats: near 0 where the response could have
                 been given blind, so that it describes nothing of the visual
    audio_dbfs   level of the audio, root mean square over full scale, dB: low where there is silence
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from ..data.collator import ConversationRenderer, modality_inputs
from ..data.dataset import MEDIA_OF_MODALITY, ClipDataset, ClipEncoder, Failure, Sample
from ..data.manifest import Clip
from ..data.samplers import SampleKey, seeded_random
from ..model.audio_projector import num_placeholders
from ..utils import ClipError, InputError
from .chunked_divergence import entropy
from .instructions import Prompt, PromptSource
from .losses import divergence
from .teacher_cache import (
    RESPONSES,
    Key,
    Row,
    ShardStore,
    audio_hash,
    broken_shards,
    header_of,
    processor_hash,
    read_rows,
    row_key,
    visual_hash,
    weights_hash,
)

_FORMAT = 2
SILENCE_DBFS = -120.0
"""What digital silence scores: below the noise of 16 bits."""


def teacher_header(model, processor, source: PromptSource, config, states: bool) -> dict[str, Any]:
    """What the teacher's rows depend on, for the header of their file. Each row has the hashes of its clip's files.

    Args:
        model, processor: of the run.
        source: of the prompts.
        config: `Stage1Config`.
        states: whether the teacher's states are kept.
    """
    fields = ("num_frames", "max_response_tokens", "teacher_temperature", "teacher_top_p", "teacher_seed")
    return header_of({
        "format": _FORMAT,
        "backbone": weights_hash(model.vlm, model.vlm.config),
        "preprocessing": processor_hash(processor),
        "prompts": header_of({"prompts": source.identity})["hash"],
        **{name: getattr(config, name) for name in fields},
        "states": states,
    })  # fmt: skip


def generate_responses(
    model, processor, dataset: ClipDataset, source: PromptSource, config, folder: Path, states: bool
) -> list[Row]:
    """Rows of all clips of the data set; what is not in `folder` yet is made, shared among the ranks.

    Args:
        model, processor, dataset, source: what the teacher is and is given.
        config: `Stage1Config`.
        folder: of the rows.
        states: whether the teacher's states are kept.

    Raises:
        InputError: the folder holds rows of another backbone, of other prompts or settings (both hashes are named), or
            cannot be written; a clip cannot be decoded, or its prompt does not fit the backbone's context.
    """
    header = teacher_header(model, processor, source, config, states)
    store = ShardStore(folder, header, config.process_index)
    todo = list(missing_rows(store.rows, dataset.clips, config))[config.process_index :: config.world_size]
    teacher, size = Teacher(model, processor, dataset, source, config, states), config.generation_batch_size
    with tqdm(total=len(todo), desc="teacher", disable=config.disable_tqdm or config.process_index > 0) as bar:
        for begin in range(0, len(todo), size):
            store.add(teacher.answer(todo[begin : begin + size]))
            bar.update(min(size, len(todo) - begin))
    wanted = {clip.id for clip in dataset.clips}
    return [row for row in store.close() if row["id"] in wanted and row["slot"] < config.responses_per_clip]


def missing_rows(rows: Mapping[Key, Row], clips: Sequence[Clip], config) -> dict[tuple[int, int], str]:
    """(clip number, slot) of what is to be made, and why."""
    missing = {}
    for index, clip in enumerate(clips):
        files = {"visual_hash": visual_hash(clip), "audio_hash": audio_hash(clip)}
        for slot in range(config.responses_per_clip):
            row = rows.get((clip.id, slot))
            if row is None:
                missing[index, slot] = "is not there"
            elif not files.items() <= row.items():
                missing[index, slot] = "is of other files"
            elif not set(config.teacher_scores) <= row["scores"].keys():
                missing[index, slot] = "has not all of `teacher_scores`"
    return missing


def read_responses(header: dict[str, Any], clips: Sequence[Clip], config, folder: Path) -> list[Row]:
    """Rows of the clips from a finished cache.

    Raises:
        InputError: none is there, it is of another backbone, preprocessing, prompts or settings (both hashes are
            named), or it does not hold every clip as it is.
    """
    file = folder / f"{RESPONSES}.jsonl"
    again = "Run `vaemotionllm cache-teacher` with this config."
    if not file.is_file():
        raise InputError(f"config field `teacher_cache`: {folder} holds no finished cache of the teacher. {again}")
    rows = {row_key(row): row for row in read_rows(file, header)}
    if missing := missing_rows(rows, clips, config):
        (index, slot), reason = next(iter(missing.items()))
        raise InputError(
            f"{file} lacks {len(missing)} of {len(clips) * config.responses_per_clip} responses; the first, of clip "
            f"{clips[index].id!r}, response {slot}, {reason}. {again}"
        )
    if broken := broken_shards(folder, rows.values()):
        shard, reason = next(iter(broken.items()))
        raise InputError(f"{folder / shard} is missing or damaged ({reason}). {again} It makes what is damaged again.")
    return [rows[clip.id, slot] for clip in clips for slot in range(config.responses_per_clip)]


class Teacher:
    """Queries the frozen visual pathway."""

    def __init__(self, model, processor, dataset: ClipDataset, source: PromptSource, config, states: bool):
        self.model, self.processor, self.dataset = model.eval(), processor, dataset
        self.source, self.config, self.states = source, config, states
        self.renderer = ConversationRenderer(processor)
        end_ids = model.generation_config.eos_token_id
        end_ids = end_ids if isinstance(end_ids, list) else [end_ids]
        self.end_ids = {*end_ids, processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id}

    @torch.no_grad()
    def answer(self, chunk: Sequence[tuple[int, int]]) -> list[tuple[Row, torch.Tensor | None]]:
        """A row, and states (R, D) where they are kept, for each (clip number, slot)."""
        samples = [self.dataset[SampleKey(index, 0, -1)] for index, _ in chunk]
        for sample in samples:
            if isinstance(sample, Failure):
                raise ClipError(sample.message)
        prompts = [self._prompt(index, slot) for index, slot in chunk]
        inputs = modality_inputs(self.processor, self.renderer, samples, "visual", [p.text for p in prompts], None)
        self._check_context(samples, inputs)
        visual = torch.isin(inputs["input_ids"], torch.tensor(self.model.config.visual_token_ids))
        visual_tokens, all_tokens = visual.sum(1).tolist(), inputs["attention_mask"].sum(1).tolist()
        inputs = self._to_device(inputs)
        generated = self.model.generate(
            **inputs, use_adapter=False, do_sample=False, num_beams=1,
            max_new_tokens=self.config.max_response_tokens, logits_processor=self._sampling(chunk),
            suppress_tokens=self.model.suppressed_tokens,
        )  # (B, width + new)  # fmt: skip
        answers = [self._until_end(row) for row in generated[:, inputs["input_ids"].shape[1] :].tolist()]
        states, scores = self._states_and_scores(samples, prompts, answers)
        rows: list[tuple[Row, torch.Tensor | None]] = []
        for number, (index, slot) in enumerate(chunk):
            clip, prompt, tokens = self.dataset.clips[index], prompts[number], answers[number]
            try:
                waveform = self.dataset.encoder.waveform(clip)
            except InputError as error:
                raise ClipError(str(error)) from error
            if "audio_dbfs" in self.config.teacher_scores:
                scores[number]["audio_dbfs"] = level_dbfs(waveform)
            row = {
                "id": clip.id, "slot": slot, "visual_hash": visual_hash(clip), "audio_hash": audio_hash(clip),
                "kind": prompt.kind, "prompt": prompt.text,
                "response": self.processor.tokenizer.decode(tokens, skip_special_tokens=True), "tokens": tokens,
                "empty": self.end_ids.issuperset(tokens),
                "text_tokens": all_tokens[number] - visual_tokens[number], "visual_tokens": visual_tokens[number],
                "audio_tokens": num_placeholders(
                    len(waveform), self.processor.window_samples, self.processor.samples_per_token
                ),
                "scores": scores[number],
            }  # fmt: skip
            rows.append((row, states[number] if self.states else None))
        return rows

    def _prompt(self, index: int, slot: int) -> Prompt:
        rng = seeded_random(self.config.teacher_seed, "prompt", self.dataset.clips[index].id)
        return self.source.draw(rng, slot + 1)[slot]

    def _states_and_scores(self, samples, prompts: list[Prompt], answers: list[list[int]]):
        """States (R, D) and scores of each answer, from the teacher's forward pass over it."""
        wanted = set(self.config.teacher_scores)
        if not self.states and not wanted & {"entropy", "grounding"}:
            return [None] * len(samples), [{} for _ in samples]
        texts = [prompt.text for prompt in prompts]
        variants = {"own": modality_inputs(self.processor, self.renderer, samples, "visual", texts, answers)}
        if "grounding" in wanted:
            variants["blind"] = modality_inputs(self.processor, self.renderer, samples, "text", texts, answers)
        states = {
            name: self.model(**self._to_device(inputs), use_adapter=False, response_fn=states_of).response
            for name, inputs in variants.items()
        }  # (N, D) each
        lengths, head = [len(answer) for answer in answers], self.model.get_output_embeddings()
        return states["own"].split(lengths), response_scores(states, head, lengths, wanted)

    def _sampling(self, chunk: Sequence[tuple[int, int]]) -> LogitsProcessorList:
        config = self.config
        if config.teacher_temperature == 0:
            return LogitsProcessorList()
        seeds = [
            int(seeded_random(config.teacher_seed, "sampling", self.dataset.clips[index].id, slot).integers(2**62))
            for index, slot in chunk
        ]
        return LogitsProcessorList([
            TemperatureLogitsWarper(config.teacher_temperature), TopPLogitsWarper(config.teacher_top_p),
            SeededSampling(seeds),
        ])  # fmt: skip

    def _until_end(self, tokens: list[int]) -> list[int]:
        stop = next((i + 1 for i, token in enumerate(tokens) if token in self.end_ids), len(tokens))
        return tokens[:stop]

    def _check_context(self, samples: Sequence[Sample], inputs) -> None:
        limit = self.model.config.get_text_config().max_position_embeddings
        for sample, length in zip(samples, inputs["attention_mask"].sum(1).tolist()):
            if length + self.config.max_response_tokens > limit:
                raise ClipError(
                    f"clip {sample.clip.id!r}: its prompt of {length} tokens and a response of "
                    f"{self.config.max_response_tokens} exceed the backbone's context of {limit} tokens. Lower "
                    "num_frames or max_response_tokens, or give a smaller image."
                )

    def _to_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}


def states_of(states: torch.Tensor, head: torch.nn.Module) -> torch.Tensor:
    """A `response_fn` that gives the states themselves."""
    return states


class SeededSampling(LogitsProcessor):
    """Makes the greedy choice a random one: with Gumbel noise on its log-probabilities the largest is a sample.

    Each row has a generator of its own, so a clip's answer depends neither on the batch nor on the rank.

    Args:
        seeds: one a row.
    """

    def __init__(self, seeds: Sequence[int]):
        self.seeds = seeds
        self.generators: list[torch.Generator] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.generators:
            self.generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self.seeds]
        # The negative logarithm of an exponential variable is a Gumbel variable.
        noise = torch.stack([
            torch.empty(scores.shape[1], device=scores.device).exponential_(generator=generator)
            for generator in self.generators
        ])  # (B, V)  # fmt: skip
        return scores - noise.log()


# ---- scores


def level_dbfs(waveform: np.ndarray) -> float:
    """Root mean square of a waveform (samples,) in [-1, 1], in dB of full scale; `SILENCE_DBFS` at least."""
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    return round(max(10 * math.log10(power), SILENCE_DBFS), 3) if power > 0 else SILENCE_DBFS


@torch.no_grad()
def response_scores(
    states: dict[str, torch.Tensor], head: nn.Module, lengths: Sequence[int], wanted: set[str]
) -> list[dict[str, float]]:
    """Scores of responses from the teacher's states at them.

    Args:
        states: "own" (N, D), and "blind" (N, D) where grounding is wanted.
        head: the LLM's head.
        lengths: tokens of each response; they sum to N.
        wanted: names of scores.

    Returns:
        one dictionary a response.
    """
    values: dict[str, torch.Tensor] = {}  # (N,) each
    if "entropy" in wanted:
        values["entropy"] = entropy(states["own"], head)
    if "grounding" in wanted:
        values["grounding"] = divergence(states["own"], states["blind"], head)["divergence"]
    means = {name: [part.mean().item() for part in value.split(list(lengths))] for name, value in values.items()}
    return [{name: round(found[i], 5) for name, found in means.items()} for i in range(len(lengths))]


# ---- teacher and student side by side, for `vaemotionllm inspect`


@torch.no_grad()
def compare(
    model, processor, clip: Clip, prompt: str, modality: str, max_response_tokens: int, top: int
) -> dict[str, Any]:
    """Let the teacher answer a prompt about a clip's visual, and compare what the student expects at its answer.

    Args:
        model, processor: a VAEmotionLLM; its frozen visual pathway is the teacher.
        clip: with audio and a visual.
        prompt: the prompt.
        modality: "audio" or "av", what the student is given.
        max_response_tokens: longest answer.
        top: tokens that are kept at each position.

    Returns:
        {"clip", "modality", "prompt", "response", "student_response" (what the student answers itself), "positions",
        "kl" (mean over the response, nats), "agreement" (share of positions at which both expect the same token
        most)}; a position is {"token", "teacher", "student" (most probable tokens with probabilities), "kl"}.

    Raises:
        InputError: the clip's files cannot be used.
    """
    encoder = ClipEncoder(processor, processor.num_frames, processor.max_audio_s)
    sample = Sample(SampleKey(0, 0, 0), clip, encoder.encode(clip, MEDIA_OF_MODALITY["av"]))
    renderer, head = ConversationRenderer(processor), model.get_output_embeddings()
    modalities = {"teacher": "visual", "student": modality}

    def inputs_of(who: str, response: list[int] | None) -> dict[str, Any]:
        responses = None if response is None else [response]
        inputs = modality_inputs(processor, renderer, [sample], modalities[who], [prompt], responses)
        return {name: tensor.to(model.device) for name, tensor in inputs.items()}

    answers = {}
    for who in modalities:
        inputs = inputs_of(who, None)
        generated = model.generate(
            **inputs, use_adapter=False, do_sample=False, num_beams=1, max_new_tokens=max_response_tokens,
            suppress_tokens=model.suppressed_tokens,
        )  # fmt: skip
        answers[who] = generated[0, inputs["input_ids"].shape[1] :].tolist()
    states = {
        who: model(**inputs_of(who, answers["teacher"]), use_adapter=False, response_fn=states_of).response
        for who in modalities
    }  # (N, D) each
    found = divergence(states["teacher"], states["student"], head)
    kl = found["divergence"].tolist()
    decode = processor.tokenizer.decode
    expected: dict[str, list[list[tuple[str, float]]]] = {}
    for who, of_who in states.items():
        best = torch.softmax(head(of_who).float(), -1).topk(top)
        expected[who] = [
            [(decode([token]), p) for token, p in zip(tokens, chances)]
            for tokens, chances in zip(best.indices.tolist(), best.values.tolist())
        ]
    positions = [
        {"token": decode([token]), "teacher": teacher, "student": student, "kl": value}
        for token, teacher, student, value in zip(answers["teacher"], expected["teacher"], expected["student"], kl)
    ]
    return {
        "clip": clip.id, "modality": modality, "prompt": prompt,
        "response": decode(answers["teacher"], skip_special_tokens=True),
        "student_response": decode(answers["student"], skip_special_tokens=True), "positions": positions,
        "kl": sum(kl) / len(kl), "agreement": found["agrees"].double().mean().item(),
    }  # fmt: skip
