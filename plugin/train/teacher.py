"""The teacher of stage 1: its responses to the visual, its states at them, scores of how far it can be trusted.

Its responses and states are constant, so they are made once. Rows of `responses.arrow`, one a clip and slot:

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

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from ..data.collator import ConversationRenderer, modality_inputs, with_responses
from ..data.dataset import MEDIA_OF_MODALITY, ClipDataset, ClipEncoder, Failure, Sample
from ..data.manifest import Clip
from ..data.samplers import SampleKey, seeded_random
from ..model.audio_projector import num_placeholders
from ..utils import ClipError, InputError
from .answers import Answers
from .chunked_divergence import entropy
from .distributed import from_first_rank
from .instructions import Prompt, PromptSource
from .losses import divergence
from .teacher_cache import (
    FILES,
    RESPONSES,
    WORK,
    PartStore,
    Row,
    Rows,
    broken_shards,
    clip_hashes,
    header_of,
    processor_hash,
    read_table,
    weights_hash,
)

# Of a pass over the clips: a part is decoded before it is sorted by length, so it is bounded by memory.
_BATCHES_OF_PART = 4
_FORMAT = 3
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
    model,
    processor,
    dataset: ClipDataset,
    source: PromptSource,
    config,
    folder: Path,
    states: bool,
    answers: Answers | None = None,
) -> Rows:
    """Rows of all clips of the data set; what is not in `folder` yet is made, shared among the ranks.

    Args:
        model, processor, dataset, source: what the teacher is and is given.
        config: `Stage1Config`.
        folder: of the rows.
        states: whether the teacher's states are kept.
        answers: responses from elsewhere. Those that are not in the folder yet are added, and nothing is generated.

    Raises:
        InputError: the folder holds rows of another backbone, of other prompts or settings (both hashes are named), or
            cannot be written; a clip cannot be decoded, or its prompt does not fit the backbone's context.
    """
    clips, size = dataset.clips, config.generation_batch_size
    store = PartStore(folder, teacher_header(model, processor, source, config, states))

    def missing(table) -> np.ndarray:
        found = missing_rows(table, clips, config, folder)
        return np.array([work for work, _ in found if answers is None or work[:2] in answers], WORK)

    plan = store.plan(missing, clips, _BATCHES_OF_PART * size, config.teacher_scores)
    mine = [number for number in range(len(plan.parts)) if number not in plan.done]
    mine = mine[config.process_index :: config.world_size]
    teacher, made = Teacher(model, processor, dataset, source, config, states, answers), 0
    decoded = teacher.decoded([plan.parts[number] for number in mine])
    total = sum(len(plan.parts[number]) for number in mine)
    with tqdm(total=total, desc="teacher", disable=config.disable_tqdm or config.process_index > 0) as bar:
        for number in mine:
            rows = []
            for batch in teacher.batches(plan.parts[number], decoded):
                rows += teacher.answer(batch)
                bar.update(len(batch))
            store.add(plan, number, rows)
            made += len(rows)
    return _rows_of(store.close(plan, made, config.device), clips, config)


def _rows_of(table, clips: Sequence[Clip], config) -> Rows:
    """The rows of these clips, of a table that may hold more clips and responses."""
    ids = pa.array([clip.id for clip in clips], table["id"].type)
    wanted = pc.and_(pc.is_in(table["id"], ids), pc.less(table["slot"], config.responses_per_clip))
    return Rows(table, np.flatnonzero(wanted.to_numpy()))


def missing_rows(table, clips: Sequence[Clip], config, folder: Path) -> list[tuple[tuple, str]]:
    """`WORK` that is to be done, and why, in the order of the clips.

    Args:
        table: of the rows that are there.
        clips: the clips.
        config: `Stage1Config`.
        folder: of the cache, which keeps the hashes of files.
    """
    number_of = {key: n for n, key in enumerate(zip(table["id"].to_pylist(), table["slot"].to_pylist()))}
    hashes_of = list(zip(table["visual_hash"].to_pylist(), table["audio_hash"].to_pylist()))
    scored = np.ones(len(table), bool)
    for name in config.teacher_scores:
        scored &= ~np.isnan(table[name].to_numpy())
    missing = []
    for index, (clip, hashes) in enumerate(zip(clips, clip_hashes(clips, folder / FILES), strict=True)):
        for slot in range(config.responses_per_clip):
            number = number_of.get((clip.id, slot))
            if number is None:
                reason = "is not there"
            elif hashes_of[number] != hashes:
                reason = "is of other files"
            elif not scored[number]:
                reason = "has not all of `teacher_scores`"
            else:
                continue
            missing.append(((index, slot, *hashes), reason))
    return missing


def read_responses(header: dict[str, Any], clips: Sequence[Clip], config, folder: Path, model, processor) -> Rows:
    """Rows of the clips from a finished cache, which rank 0 checks. Every rank must call it.

    Raises:
        InputError: none is there, it is of another backbone, preprocessing, prompts or settings (both hashes are
            named), it does not hold every clip as it is, or a response holds a placeholder.
    """
    file = folder / f"{RESPONSES}.arrow"
    again = "Run `vaemotionllm cache-teacher` with this config."

    def check() -> None:
        if not file.is_file():
            raise InputError(f"config field `teacher_cache`: {folder} holds no finished cache of the teacher. {again}")
        table = read_table(file, header)
        if missing := missing_rows(table, clips, config, folder):
            (index, slot, *_), reason = missing[0]
            raise InputError(
                f"{file} lacks {len(missing)} of {len(clips) * config.responses_per_clip} responses; the first, of "
                f"clip {clips[index].id!r}, response {slot}, {reason}. {again}"
            )
        if broken := broken_shards(folder, table):
            shard, reason = next(iter(broken.items()))
            raise InputError(
                f"{folder / shard} is missing or damaged ({reason}). {again} It makes what is damaged again."
            )
        for batch in table.select(["id", "tokens"]).to_batches(65_536):
            tokens = np.asarray(batch["tokens"].flatten())
            if len(found := np.flatnonzero(np.isin(tokens, model.config.media_token_ids))):
                row = pc.list_parent_indices(batch["tokens"])[int(found[0])].as_py()
                token = processor.tokenizer.convert_ids_to_tokens(int(tokens[found[0]]))
                raise InputError(
                    f"{file}: a response to clip {batch['id'][row].as_py()!r} holds {token}, a placeholder of media."
                )

    from_first_rank(check)
    return _rows_of(read_table(file, header), clips, config)


class Decoded(NamedTuple):
    """What is decoded of a clip, once for all its responses: the features of its visual, and its audio's length in
    samples and level."""

    visual: Any
    audio_samples: int
    audio_dbfs: float


class _Decoder(Dataset):
    """Maps a clip's number to what is `Decoded` of it, in a worker process of a loader, or to a `Failure`."""

    def __init__(self, dataset: ClipDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> Decoded | Failure:
        try:
            visual, waveform = self.dataset.visual_and_waveform(index)
        except InputError as error:
            return Failure(str(error))
        return Decoded(visual, len(waveform), level_dbfs(waveform))


def _as_it_is(found: Any) -> Any:
    return found


Query = tuple[tuple, Decoded]
"""`WORK`, and what is decoded of its clip."""


class Teacher:
    """Queries the frozen visual pathway."""

    def __init__(
        self, model, processor, dataset: ClipDataset, source: PromptSource, config, states: bool,
        answers: Answers | None = None,
    ):  # fmt: skip
        self.answers = answers
        self.model, self.processor, self.dataset = model.eval(), processor, dataset
        self.source, self.config, self.states = source, config, states
        self.renderer = ConversationRenderer(processor)
        self.prompt_tokens = functools.cache(lambda text: len(processor.tokenizer(text)["input_ids"]))
        end_ids = model.generation_config.eos_token_id
        end_ids = end_ids if isinstance(end_ids, list) else [end_ids]
        self.end_ids = {*end_ids, processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id}

    def decoded(self, parts: Sequence[np.ndarray]) -> Iterator[Decoded]:
        """The clips of all parts one by one, each decoded once, by the loader's workers ahead of the teacher.

        Raises:
            ClipError: one cannot be decoded.
        """
        order = [index for part in parts for index in dict.fromkeys(part["clip"].tolist())]
        workers = min(self.config.dataloader_num_workers, len(order))
        loader = DataLoader(
            _Decoder(self.dataset), batch_size=None, sampler=order, num_workers=workers, collate_fn=_as_it_is,
            prefetch_factor=self.config.dataloader_prefetch_factor if workers else None,
        )  # fmt: skip
        for found in loader:
            if isinstance(found, Failure):
                raise ClipError(found.message)
            if workers:  # else each tensor would keep a part of the shared memory, and a file, open
                inputs = {name: tensor.clone() for name, tensor in found.visual.inputs.items()}
                found = found._replace(visual=replace(found.visual, inputs=inputs))
            yield found

    def batches(self, part: np.ndarray, decoded: Iterator[Decoded]) -> Iterator[list[Query]]:
        """The work of a part in batches of prompts that are about equally long, so that little is padded.

        Args:
            part: `WORK`.
            decoded: its clips, in their order, and those of later parts.
        """
        clips = {index: next(decoded) for index in dict.fromkeys(part["clip"].tolist())}
        queries = [(work, clips[work[0]]) for work in part.tolist()]
        queries.sort(key=self._length)
        for begin in range(0, len(queries), self.config.generation_batch_size):
            yield queries[begin : begin + self.config.generation_batch_size]

    def _length(self, query: Query) -> int:
        (index, slot, *_), clip = query
        visual = clip.visual.replacement.count(clip.visual.placeholder)
        return visual + self.prompt_tokens(self._prompt(index, slot).text)

    @torch.no_grad()
    def answer(self, batch: Sequence[Query]) -> list[tuple[Row, torch.Tensor | None]]:
        """A row, and states (R, D) where they are kept, for each query."""
        keys = [work[:2] for work, _ in batch]
        samples = [
            Sample(SampleKey(index, 0, -1), self.dataset.clips[index], {"visual": clip.visual})
            for (index, _), (_, clip) in zip(keys, batch)
        ]
        prompts = [self._prompt(index, slot) for index, slot in keys]
        texts = [prompt.text for prompt in prompts]
        inputs = modality_inputs(self.processor, self.renderer, samples, "visual", texts, None)
        self._check_context(samples, inputs)
        visual = torch.isin(inputs["input_ids"], torch.tensor(self.model.config.visual_token_ids))
        visual_tokens, all_tokens = visual.sum(1).tolist(), inputs["attention_mask"].sum(1).tolist()
        moved, longest = self._to_device(inputs), self.config.max_response_tokens
        if self.answers is None:
            generated = self.model.generate(
                **moved, use_adapter=False, do_sample=False, num_beams=1, max_new_tokens=longest,
                logits_processor=self._sampling(keys), suppress_tokens=self.model.suppressed_tokens,
                synced_gpus=False,  # nothing is sharded yet, and ranks have different numbers of batches
            )[:, inputs["input_ids"].shape[1] :]  # (B, new)  # fmt: skip
            answers = [self._until_end(row) for row in generated.tolist()]
        else:  # with the end of the turn, which generation reaches where its limit does not come first
            answers = [self.renderer.answer_ids(self.answers[key])[:longest] for key in keys]
        states, scores = self._states_and_scores(samples, texts, inputs, moved, answers)
        rows: list[tuple[Row, torch.Tensor | None]] = []
        for number, ((_, slot, *hashes), clip) in enumerate(batch):
            prompt, tokens = prompts[number], answers[number]
            if "audio_dbfs" in self.config.teacher_scores:
                scores[number]["audio_dbfs"] = clip.audio_dbfs
            row = {
                "id": samples[number].clip.id, "slot": slot,
                **{name: found.decode() for name, found in zip(("visual_hash", "audio_hash"), hashes)},
                "kind": prompt.kind, "prompt": prompt.text,
                "response": self.processor.tokenizer.decode(tokens, skip_special_tokens=True), "tokens": tokens,
                "empty": self.end_ids.issuperset(tokens),
                "text_tokens": all_tokens[number] - visual_tokens[number], "visual_tokens": visual_tokens[number],
                "audio_tokens": num_placeholders(
                    clip.audio_samples, self.processor.window_samples, self.processor.samples_per_token
                ),
                "scores": scores[number],
            }  # fmt: skip
            # A copy, or each answer's states would keep those of its whole batch in memory.
            rows.append((row, states[number].cpu().clone() if self.states else None))
        return rows

    def _prompt(self, index: int, slot: int) -> Prompt:
        return self.source.prompt(self.config.teacher_seed, self.dataset.clips[index].id, slot)

    def _states_and_scores(self, samples, texts: list[str], inputs, moved, answers: list[list[int]]):
        """States (R, D) and scores of each answer, from the teacher's forward pass over it.

        Args:
            inputs, moved: of the prompts, and the same on the model's device.
        """
        wanted = set(self.config.teacher_scores)
        if not self.states and not wanted & {"entropy", "grounding"}:
            return [None] * len(samples), [{} for _ in samples]
        own = with_responses(self.processor, inputs, answers)
        kept = {name: moved[name] for name, tensor in inputs.items() if own[name] is tensor}  # the media
        variants = {"own": self._to_device({name: own[name] for name in own.keys() - kept.keys()}) | kept}
        if "grounding" in wanted:
            blind = modality_inputs(self.processor, self.renderer, samples, "text", texts, answers)
            variants["blind"] = self._to_device(blind)
        states = {
            name: self.model(**given, use_adapter=False, response_fn=states_of).response
            for name, given in variants.items()
        }  # (N, D) each
        lengths, head = [len(answer) for answer in answers], self.model.get_output_embeddings()
        return states["own"].split(lengths), response_scores(states, head, lengths, wanted)

    def _sampling(self, keys: Sequence[tuple[int, int]]) -> LogitsProcessorList:
        config = self.config
        if config.teacher_temperature == 0:
            return LogitsProcessorList()
        seeds = [
            int(seeded_random(config.teacher_seed, "sampling", self.dataset.clips[index].id, slot).integers(2**62))
            for index, slot in keys
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
