"""The teacher of stage 1: its own responses to what it sees, its states at them, and how far it can be trusted.

What it says and knows is constant, so it is asked once. Rows of `responses.jsonl`, one a clip and slot:

    id, slot, kind, prompt, response, tokens    what was asked, and the teacher's answer as text and token ids
    empty                                       whether it is nothing but its end
    seen, heard                                 hashes of the files: what it saw, and the sound that goes with it
    text_tokens, visual_tokens, audio_tokens    lengths, for batches of clips that are equally long
    scores                                      see `teacher_scores`
    shard                                       where the post-norm hidden states (len(tokens), D) are, in a cache
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from ..data.collator import ConversationRenderer, build_inputs, modality_inputs
from ..data.dataset import ClipDataset, Failure, Sample
from ..data.manifest import Clip
from ..data.samplers import SampleKey, seeded_random
from ..model.audio_projector import num_placeholders
from ..utils import ClipError, InputError
from .hashes import header_of, heard_hash, processor_hash, seen_hash, weights_hash
from .prompts import Prompt, PromptSource
from .shard_store import Key, Row, ShardStore, broken_shards, read_rows, row_key
from .teacher_scores import level_dbfs, reading_scores

RESPONSES = "responses"
_FORMAT = 2


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher is asked; fields of `Stage1Config` of the same names, and whether its states are kept."""

    num_frames: int
    responses_per_clip: int
    max_response_tokens: int
    teacher_temperature: float
    teacher_top_p: float
    teacher_seed: int
    teacher_scores: tuple[str, ...]
    states: bool

    @classmethod
    def of(cls, config, states: bool) -> "TeacherSettings":
        own = [name for name in cls.__dataclass_fields__ if name not in ("states", "teacher_scores")]
        return cls(
            **{name: getattr(config, name) for name in own}, teacher_scores=tuple(config.teacher_scores), states=states
        )


def teacher_header(model, processor, source: PromptSource, settings: TeacherSettings) -> dict[str, Any]:
    """What the teacher's rows depend on, for the header of their file. Each row says itself which clip it saw."""
    depends_on = {
        "format": _FORMAT,
        "backbone": weights_hash(model.vlm, model.vlm.config),
        "preprocessing": processor_hash(processor),
        "prompts": header_of({"prompts": source.identity})["hash"],
        "num_frames": settings.num_frames,
        "max_response_tokens": settings.max_response_tokens,
        "teacher_temperature": settings.teacher_temperature,
        "teacher_top_p": settings.teacher_top_p,
        "teacher_seed": settings.teacher_seed,
        "states": settings.states,
    }
    return header_of(depends_on)


def ask_teacher(
    model,
    processor,
    dataset: ClipDataset,
    source: PromptSource,
    settings: TeacherSettings,
    folder: Path,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> list[Row]:
    """Rows of all clips of the data set; what is not in `folder` yet is made, shared among the ranks.

    Raises:
        InputError: the folder holds rows of another backbone, of other prompts or settings (both hashes are named), or
            cannot be written; a clip cannot be decoded, or its prompt does not fit the backbone's context.
    """
    store = ShardStore(folder, RESPONSES, teacher_header(model, processor, source, settings), rank)
    todo = missing_rows(store.rows, dataset.clips, settings)
    teacher = _Teacher(model, processor, dataset, source, settings)
    mine = todo[rank::world_size]
    from tqdm import tqdm

    with tqdm(total=len(mine), desc="teacher", unit="response", disable=not progress or rank > 0) as bar:
        for begin in range(0, len(mine), batch_size):
            chunk = mine[begin : begin + batch_size]
            for row, states in teacher.answer(chunk):
                store.add(row, states)
            store.flush()
            bar.update(len(chunk))
    wanted = {clip.id for clip in dataset.clips}
    return [row for row in store.close() if row["id"] in wanted and row["slot"] < settings.responses_per_clip]


def missing_rows(rows: Mapping[Key, Row], clips: Sequence[Clip], settings: TeacherSettings) -> list[tuple[int, int]]:
    """(clip number, slot) of what is not among the rows, was made of another file, or lacks a score."""
    missing = []
    for index, clip in enumerate(clips):
        files = {"seen": seen_hash(clip), "heard": heard_hash(clip)}
        for slot in range(settings.responses_per_clip):
            row = rows.get((clip.id, slot), {})
            if not files.items() <= row.items() or not set(settings.teacher_scores) <= row["scores"].keys():
                missing.append((index, slot))
    return missing


def read_teacher(header: dict[str, Any], clips: Sequence[Clip], settings: TeacherSettings, folder: Path) -> list[Row]:
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
    if missing := missing_rows(rows, clips, settings):
        index, slot = missing[0]
        wanted = f"{seen_hash(clips[index])} (seen) and {heard_hash(clips[index])} (heard)"
        row = rows.get((clips[index].id, slot))
        found = "none" if row is None else f"{row['seen']} (seen) and {row['heard']} (heard)"
        raise InputError(
            f"{file} lacks {len(missing)} of {len(clips) * settings.responses_per_clip} responses; the first is clip "
            f"{clips[index].id!r}, response {slot}: its files have the hashes {wanted}, the cache holds {found}"
            f"{' without all of teacher_scores' if found == wanted else ''}. {again}"
        )
    if broken := broken_shards(folder, rows.values()):
        shard, reason = next(iter(broken.items()))
        raise InputError(f"{folder / shard} is missing or damaged ({reason}). {again} It makes anew what is damaged.")
    return [rows[clip.id, slot] for clip in clips for slot in range(settings.responses_per_clip)]


class _Teacher:
    """Asks the frozen visual pathway."""

    def __init__(self, model, processor, dataset: ClipDataset, source: PromptSource, settings: TeacherSettings):
        self.model, self.processor, self.dataset = model.eval(), processor, dataset
        self.source, self.settings = source, settings
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
        inputs = self._to_device(inputs)
        generated = self.model.generate(
            **inputs, use_adapter=False, do_sample=False, num_beams=1,
            max_new_tokens=self.settings.max_response_tokens, logits_processor=self._sampling(chunk),
        )  # (B, width + new)  # fmt: skip
        answers = [self._until_end(row) for row in generated[:, inputs["input_ids"].shape[1] :].tolist()]
        visual = torch.isin(
            inputs["input_ids"], torch.tensor(self.model.config.visual_token_ids).to(self.model.device)
        )
        visual_tokens, all_tokens = visual.sum(1).tolist(), inputs["attention_mask"].sum(1).tolist()
        states, scores = self._read(samples, prompts, answers)
        rows: list[tuple[Row, torch.Tensor | None]] = []
        for number, (index, slot) in enumerate(chunk):
            clip, prompt, tokens = self.dataset.clips[index], prompts[number], answers[number]
            try:
                waveform = self.dataset.encoder.waveform(clip)
            except InputError as error:
                raise ClipError(str(error)) from error
            if "audio_dbfs" in self.settings.teacher_scores:
                scores[number]["audio_dbfs"] = level_dbfs(waveform)
            row = {
                "id": clip.id, "slot": slot, "seen": seen_hash(clip), "heard": heard_hash(clip),
                "kind": prompt.kind, "prompt": prompt.text,
                "response": self.processor.tokenizer.decode(tokens, skip_special_tokens=True), "tokens": tokens,
                "empty": self.end_ids.issuperset(tokens),
                "text_tokens": all_tokens[number] - visual_tokens[number], "visual_tokens": visual_tokens[number],
                "audio_tokens": num_placeholders(
                    len(waveform), self.processor.window_samples, self.processor.samples_per_token
                ),
                "scores": scores[number],
            }  # fmt: skip
            rows.append((row, states[number] if self.settings.states else None))
        return rows

    def _prompt(self, index: int, slot: int) -> Prompt:
        rng = seeded_random(self.settings.teacher_seed, "prompt", self.dataset.clips[index].id)
        return self.source.draw(rng, slot + 1)[slot]

    def _read(self, samples, prompts: list[Prompt], answers: list[list[int]]):
        """States (R, D) and scores of each answer, from the teacher's reading of it."""
        wanted = set(self.settings.teacher_scores)
        if not self.settings.states and not wanted & {"entropy", "agreement", "grounding"}:
            return [None] * len(samples), [{} for _ in samples]
        readings = {"own": modality_inputs(
            self.processor, self.renderer, samples, "visual", [p.text for p in prompts], answers
        )}  # fmt: skip
        if "grounding" in wanted:
            readings["blind"] = modality_inputs(
                self.processor, self.renderer, samples, "text", [p.text for p in prompts], answers
            )
        if "agreement" in wanted:
            readings["again"] = self._other_reading(samples, prompts, answers)
        states = {
            name: self.model(**self._to_device(inputs), use_adapter=False, response_fn=states_of).response
            for name, inputs in readings.items()
        }  # (N, D) each
        lengths = [len(answer) for answer in answers]
        scores = reading_scores(states, self.model.get_output_embeddings(), lengths, wanted)
        for score, sample, prompt in zip(scores, samples, prompts):
            if "agreement" in wanted and not self._can_read_otherwise(sample, prompt):
                score["agreement"] = None
        return states["own"].split(lengths), scores

    def _can_read_otherwise(self, sample: Sample, prompt: Prompt) -> bool:
        several_frames = sample.media["visual"].kind == "video" and self.settings.num_frames > 1
        return several_frames or len(self.source.kinds.get(prompt.kind, ())) > 1

    def _other_reading(self, samples: Sequence[Sample], prompts: list[Prompt], answers):
        """The same answers after other frames and, where the prompt can be said in other words, those."""
        frames = max(self.settings.num_frames // 2, 1)
        media, texts = [], []
        for sample, prompt in zip(samples, prompts):
            clip = self.dataset.clips[sample.key.index]
            features = sample.media["visual"]
            if features.kind == "video":
                features = self.dataset.encoder.encode(clip, "visual", num_frames=frames)
            rng = seeded_random(self.settings.teacher_seed, "other words", clip.id, prompt.text)
            text = self.source.other_words(rng, prompt) or prompt.text
            texts.append(self.renderer.prompt([features.kind], text))
            media.append(features)
        return build_inputs(self.processor, texts, media, answers)

    def _sampling(self, chunk: Sequence[tuple[int, int]]) -> LogitsProcessorList:
        settings = self.settings
        if settings.teacher_temperature == 0:
            return LogitsProcessorList()
        seeds = [
            int(seeded_random(settings.teacher_seed, "sampling", self.dataset.clips[index].id, slot).integers(2**62))
            for index, slot in chunk
        ]
        return LogitsProcessorList([
            TemperatureLogitsWarper(settings.teacher_temperature), TopPLogitsWarper(settings.teacher_top_p),
            SeededSampling(seeds),
        ])  # fmt: skip

    def _until_end(self, tokens: list[int]) -> list[int]:
        stop = next((i + 1 for i, token in enumerate(tokens) if token in self.end_ids), len(tokens))
        return tokens[:stop]

    def _check_context(self, samples: Sequence[Sample], inputs) -> None:
        limit = self.model.config.get_text_config().max_position_embeddings
        for sample, length in zip(samples, inputs["attention_mask"].sum(1).tolist()):
            if length + self.settings.max_response_tokens > limit:
                raise ClipError(
                    f"clip {sample.clip.id!r}: its prompt of {length} tokens and a response of "
                    f"{self.settings.max_response_tokens} exceed the backbone's context of {limit} tokens. Lower "
                    "num_frames or max_response_tokens, or give a smaller picture."
                )

    def _to_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}


def states_of(states: torch.Tensor, head: torch.nn.Module) -> torch.Tensor:
    """A `response_fn` that gives the states themselves."""
    return states


class SeededSampling(LogitsProcessor):
    """Makes the greedy choice a random one: with Gumbel noise on its log-probabilities the largest is a sample.

    Each row has a generator of its own, so what a clip is answered depends neither on the batch nor on the rank.

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
