"""The teacher cache: rows with tensors that many ranks write, hashes of what they depend on, audio-tower states.

    NAME.jsonl                     when the work is done: a header, then one row a line
    NAME.parts/rank00000.jsonl     until then: the rows of each rank
    NAME-00000-00003.safetensors   tensors of rows, by rank and number

A shard is written under another name and renamed, and only then do its rows enter a part file: what a row names is on
disk whole. A killed run loses what it had not written yet, at most `max_age_s` of work.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from ..data.dataset import ClipDataset
from ..data.manifest import Clip
from ..model.audio_projector import BOUNDARY_TOKENS
from ..model.processing_vaemotionllm import AUDIO_TOKEN, MediaFeatures
from ..utils import (
    ClipError,
    InputError,
    atomic_file,
    reported_writing,
    sha256_of_json,
    write_json_lines,
)
from .checkpoint import complete_rows
from .distributed import barrier

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Key = tuple[str, int]

AUDIO = "audio"
_AUDIO_FORMAT = 1
_BLOCK_BYTES = 65_536
_AGAIN = "Run `vaemotionllm cache-teacher` with the same config again: it makes again what is damaged."


# ---- rows and shards


class ShardStore:
    """Collects rows, each with an `id`, a `slot` and perhaps a tensor.

    Args:
        folder: where; made if it is not there.
        name: of the files.
        header: {"hash", "depends_on"}: what the rows depend on. Rows of another header are refused.
        rank: of this process. Every rank makes a store, adds its share of the rows and closes it.
        shard_bytes: size at which a shard is closed.
        max_age_s: rows wait at most this long for their shard.

    Raises:
        InputError: the folder holds rows of another header (both hashes and what changed are named).
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        header: dict[str, Any],
        rank: int = 0,
        shard_bytes: int = 2**28,
        max_age_s: float = 60.0,
    ):
        self.folder, self.name, self.header, self.rank = folder, name, header, rank
        self.shard_bytes, self.max_age_s = shard_bytes, max_age_s
        self._final, self._parts = folder / f"{name}.jsonl", folder / f"{name}.parts"
        self._part = self._parts / f"rank{rank:05d}.jsonl"
        self._waiting: list[tuple[Row, torch.Tensor | None]] = []
        self._waiting_bytes, self._waiting_since = 0, time.monotonic()
        rows, broken = self._read()
        self.rows: dict[Key, Row] = {row_key(row): row for row in rows}
        barrier()  # everybody has read before anybody writes
        if rank == 0:
            for shard, reason in broken.items():
                logger.warning("%s is not whole (%s); its rows are made again.", folder / shard, reason)
            # What was left of a killed run is put together, so that parts hold rows of this run alone.
            with reported_writing(folder):
                if self._parts.is_dir():
                    write_json_lines(self._final, [header, *self.rows.values()])
                    shutil.rmtree(self._parts)
                self._parts.mkdir(parents=True)
                # A kill between a shard and its rows leaves a shard that nobody names.
                named = {row.get("shard") for row in rows}
                for path in folder.glob(f"{name}-*.safetensors*"):
                    if path.name not in named:
                        path.unlink()
        barrier()
        with reported_writing(folder):
            write_json_lines(self._part, [header])
        self._number = 1 + max(
            (int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"{name}-{rank:05d}-*.safetensors")), default=-1
        )

    def add(self, row: Row, tensor: torch.Tensor | None = None) -> None:
        """Take a row; with a tensor it reaches the disk with its shard."""
        self._waiting.append((row, None if tensor is None else tensor.detach().cpu().contiguous()))
        self._waiting_bytes += 0 if tensor is None else tensor.numel() * tensor.element_size()

    def flush(self, force: bool = False) -> None:
        """Write what waits: rows without tensors at once, others when their shard is large or old enough."""
        tensors = {tensor_name(row): tensor for row, tensor in self._waiting if tensor is not None}
        age = time.monotonic() - self._waiting_since
        if tensors and not force and self._waiting_bytes < self.shard_bytes and age < self.max_age_s:
            return
        shard = self.folder / f"{self.name}-{self.rank:05d}-{self._number:05d}.safetensors"
        with reported_writing(shard):
            if tensors:
                with atomic_file(shard) as temporary:
                    save_file(tensors, temporary)
                self._number += 1
            text = ""
            for row, tensor in self._waiting:
                row = row if tensor is None else row | {"shard": shard.name}
                self.rows[row_key(row)] = row
                text += json.dumps(row, ensure_ascii=False) + "\n"
            with open(self._part, "a", encoding="utf-8") as out:
                out.write(text)
        self._waiting, self._waiting_bytes, self._waiting_since = [], 0, time.monotonic()

    def close(self) -> list[Row]:
        """Write the rest, wait for all ranks, make `NAME.jsonl` of all parts. Returns all rows, sorted by key."""
        self.flush(force=True)
        barrier()
        rows = {row_key(row): row for row in self._read()[0]}
        order = [rows[key] for key in sorted(rows)]
        barrier()
        if self.rank == 0:
            with reported_writing(self._final):
                write_json_lines(self._final, [self.header, *order])
                shutil.rmtree(self._parts)
        barrier()
        return order

    def _read(self) -> tuple[list[Row], dict[str, str]]:
        """Rows of all files whose shard is whole, newer ones last, and the shards that are not."""
        # Parts come after the final file: a row that was made again replaces the old one.
        rows = [
            row for file in (self._final, *sorted(self._parts.glob("*.jsonl"))) for row in read_rows(file, self.header)
        ]
        broken = broken_shards(self.folder, rows)
        return [row for row in rows if row.get("shard") not in broken], broken


def fill(
    store: ShardStore,
    todo: Sequence[Any],
    make: Callable[[Sequence[Any]], Iterable[tuple[Row, torch.Tensor | None]]],
    config,
    what: str,
) -> list[Row]:
    """Make the rows that a store lacks, shared among the ranks, and close it.

    Args:
        store: of this rank.
        todo: what is to be made, the same on all ranks.
        make: part of it -> rows and their tensors.
        config: `Stage1Config`, for ranks, batch size and whether a bar is shown.
        what: word of the bar.

    Returns:
        All rows, sorted by key.
    """
    mine, size = todo[config.process_index :: config.world_size], config.generation_batch_size
    with tqdm(total=len(mine), desc=what, disable=config.disable_tqdm or config.process_index > 0) as bar:
        for begin in range(0, len(mine), size):
            chunk = mine[begin : begin + size]
            for row, tensor in make(chunk):
                store.add(row, tensor)
            store.flush()
            bar.update(len(chunk))
    return store.close()


class ShardReader:
    """Tensors of rows. It may be sent to, or forked into, the worker processes of a loader.

    Args:
        folder: of the store.
        open_files: shards that are kept open, each mapped into memory.
    """

    def __init__(self, folder: Path, open_files: int = 64):
        self.folder, self.open_files = folder, open_files
        self._open: OrderedDict[str, Any] = OrderedDict()

    def __call__(self, row: Row) -> torch.Tensor:
        """The row's tensor.

        Raises:
            InputError: its shard is missing or damaged.
        """
        shard = row["shard"]
        try:
            if shard not in self._open:
                self._open[shard] = safe_open(self.folder / shard, "pt")
                if len(self._open) > self.open_files:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return self._open[shard].get_tensor(tensor_name(row))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.folder / shard} cannot be read ({error}). {_AGAIN}") from error

    def __getstate__(self):
        return {"folder": self.folder, "open_files": self.open_files, "_open": OrderedDict()}


def row_key(row: Row) -> Key:
    return row["id"], row["slot"]


def tensor_name(row: Row) -> str:
    return f"{row['slot']}/{row['id']}"


def read_rows(path: Path, header: dict[str, Any]) -> list[Row]:
    """Complete rows of a row file without its header; none of a missing file.

    Raises:
        InputError: the file's header is not `header`.
    """
    rows = complete_rows(path)
    if rows and rows[0].get("hash") != header["hash"]:
        old, new = rows[0].get("depends_on", {}), header["depends_on"]
        changed = [name for name in new if old.get(name) != new[name]] or ["format"]
        raise InputError(
            f"{path} holds rows with hash {str(rows[0].get('hash'))[:12]}, this run needs {header['hash'][:12]}: "
            f"{', '.join(changed)} changed. Take another folder, or overwrite=true to make them again."
        )
    return rows[1:]


def broken_shards(folder: Path, rows: Iterable[Row]) -> dict[str, str]:
    """Shards that rows name and that are missing or not whole, each with what is wrong."""
    broken = {}
    for shard in sorted({row["shard"] for row in rows if "shard" in row}):
        try:
            # Opening compares the file's length with what its header promises.
            with safe_open(folder / shard, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            broken[shard] = str(error)
    return broken


# ---- hashes of what rows depend on: weights, processor, media of a clip


def header_of(depends_on: dict[str, Any]) -> dict[str, Any]:
    """Header of a row file: two files with equal hashes are interchangeable."""
    return {"hash": sha256_of_json(depends_on), "depends_on": depends_on}


def weights_hash(module: nn.Module, config) -> str:
    """Hash of a config and of a sample of every weight: a fine-tuned copy has another hash.

    Args:
        module: backbone or audio tower, whole (not sharded by an engine).
        config: its config.
    """
    digest = hashlib.sha256(json.dumps(_essential(config.to_dict()), sort_keys=True, default=str).encode())
    for name, parameter in sorted(module.named_parameters()):
        flat = parameter.detach().flatten()
        sample = flat[:: max(flat.numel() // 64, 1)].float().cpu()
        digest.update(name.encode())
        digest.update(str(parameter.dtype).encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _essential(value: Any) -> Any:
    """A config without where it was loaded from, by what, and how attention is computed."""
    if isinstance(value, dict):
        left_out = ("_name_or_path", "transformers_version", "_attn_implementation", "attn_implementation")
        return {key: _essential(item) for key, item in value.items() if key not in left_out}
    return value


def processor_hash(processor) -> str:
    """Hash of what makes a clip and a prompt into the teacher's inputs: settings, vocabulary, chat template."""
    parts = {
        "image": processor.image_processor.to_dict(),
        "video": processor.video_processor.to_dict(),
        "vlm": processor.vlm_processor_kwargs,
        "template": processor.chat_template,
        "vocabulary": sorted(processor.tokenizer.get_vocab().items()),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def visual_hash(clip: Clip) -> str:
    """Hash of the part of the file that the teacher is given."""
    return _clip_hash(clip, clip.video if clip.video is not None else clip.image)


def audio_hash(clip: Clip) -> str:
    """Hash of the part of the file that the student is given."""
    return _clip_hash(clip, clip.audio)


def _clip_hash(clip: Clip, source: str | bytes | None) -> str:
    """Hash of a clip's times, and of the file's size and its first, middle and last bytes.

    A whole video would take longer to read than to hash; embedded bytes are in memory and hashed whole.
    """
    digest = hashlib.sha256(f"{clip.start_s}\n{clip.end_s}\n".encode())
    if isinstance(source, bytes):
        digest.update(source)
    elif source is not None:
        size = os.path.getsize(source)
        digest.update(str(size).encode())
        with open(source, "rb") as file:
            for begin in (0, size // 2, size - _BLOCK_BYTES):
                file.seek(max(begin, 0))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]


# ---- states of a frozen audio tower: a step then neither decodes audio nor runs the tower. Rows of `audio.jsonl`, one
# a clip: id, slot (0), audio_hash, num_tokens (audio tokens of each window), shard (where the stacked states
# (M, projector_stride * D_audio) are, see `AudioProjector.stack`).


def audio_header(model, processor) -> dict[str, Any]:
    """What the states depend on. Each row has the hash of its clip's audio."""
    return header_of({
        "format": _AUDIO_FORMAT,
        "audio_tower": weights_hash(model.audio_tower, model.config.audio_config),
        "feature_extractor": processor.feature_extractor.to_dict(),
        "projector_stride": model.config.projector_stride,
        "window_samples": processor.window_samples,
        "max_audio_s": processor.max_audio_s,
    })  # fmt: skip


def cache_audio(model, processor, dataset: ClipDataset, config, folder: Path) -> None:
    """Run the audio tower over all clips that `folder` does not hold yet, shared among the ranks.

    Raises:
        InputError: the folder holds states of another tower (both hashes are named), or cannot be written; a clip
            cannot be decoded.
    """
    store = ShardStore(folder, AUDIO, audio_header(model, processor), config.process_index)
    hashes = [audio_hash(clip) for clip in dataset.clips]
    found = [store.rows.get((clip.id, 0), {}).get("audio_hash") for clip in dataset.clips]
    todo = [index for index, wanted in enumerate(hashes) if found[index] != wanted]
    model.eval()

    @torch.no_grad()
    def encode(chunk: Sequence[int]) -> Iterable[tuple[Row, torch.Tensor]]:
        try:
            inputs = [dataset.features(index, "audio").inputs for index in chunk]
        except InputError as error:
            raise ClipError(str(error)) from error
        features = torch.cat([item["input_features"] for item in inputs]).to(model.device)  # (W, ...)
        num_tokens = torch.cat([item["audio_num_tokens"] for item in inputs])  # (W,)
        stacked = model.audio_projector.stack(model.get_audio_states(features), num_tokens)  # (M, stride * D)
        per_clip = [item["audio_num_tokens"].tolist() for item in inputs]
        rows = [
            {"id": dataset.clips[index].id, "slot": 0, "audio_hash": hashes[index], "num_tokens": tokens}
            for index, tokens in zip(chunk, per_clip)
        ]
        return zip(rows, stacked.split([sum(tokens) for tokens in per_clip]))

    fill(store, todo, encode, config, "audio tower")


class AudioFeatures:
    """Gives a clip's audio as `MediaFeatures` from the cache.

    Args:
        folder: of the cache.
        header: see `audio_header`.
        clips: the clips that will be needed.

    Raises:
        InputError: no cache there, one of another tower, or a clip that it does not hold.
    """

    def __init__(self, folder: Path, header: dict[str, Any], clips: Iterable[Clip]):
        file = folder / f"{AUDIO}.jsonl"
        if not file.is_file():
            raise InputError(
                f"{folder} holds no finished cache of the audio tower. Run `vaemotionllm cache-teacher` with this "
                "config, or set cache_audio_features to false."
            )
        self.rows = {row["id"]: row for row in read_rows(file, header)}
        self.reader = ShardReader(folder)
        for clip in clips:
            found, wanted = self.rows.get(clip.id, {}).get("audio_hash"), audio_hash(clip)
            if found != wanted:
                raise InputError(
                    f"{folder} holds the audio of clip {clip.id!r} with hash {found}, the file has {wanted}. Run "
                    "`vaemotionllm cache-teacher` with this config again."
                )

    def __call__(self, clip: Clip) -> MediaFeatures:
        row = self.rows[clip.id]
        placeholders = sum(tokens + BOUNDARY_TOKENS for tokens in row["num_tokens"])
        return MediaFeatures(
            kind="audio",
            placeholder=AUDIO_TOKEN,
            replacement=AUDIO_TOKEN * placeholders,
            inputs={"audio_states": self.reader(row), "audio_num_tokens": torch.tensor(row["num_tokens"])},
        )
