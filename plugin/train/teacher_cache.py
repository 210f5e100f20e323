"""The teacher cache: rows with tensors that many ranks write, and hashes of what they depend on.

    responses.jsonl                     when the work is done: a header, then one row a line
    responses.parts/rank00000.jsonl     until then: the rows of each rank
    responses-00000-00003.safetensors   tensors of rows, by rank and number

A shard is written under another name and renamed, and only then do its rows enter a part file: what a row names is on
disk whole. A killed run loses what it had not written yet, at most a shard of each rank.
"""

import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..data.manifest import Clip
from ..utils import InputError, atomic_file, reported_writing, sha256_of_json, write_json_lines
from .checkpoint import complete_rows
from .distributed import barrier

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Key = tuple[str, int]

RESPONSES = "responses"
_BLOCK_BYTES = 65_536
_OPEN_SHARDS = 64


# ---- rows and shards


class ShardStore:
    """Collects rows, each with an `id`, a `slot` and perhaps a tensor.

    Args:
        folder: where; made if it is not there.
        header: {"hash", "depends_on"}: what the rows depend on. Rows of another header are refused.
        rank: of this process. Every rank makes a store, adds its share of the rows and closes it.
        shard_bytes: size at which a shard is closed.

    Raises:
        InputError: the folder holds rows of another header (both hashes and what changed are named).
    """

    def __init__(self, folder: Path, header: dict[str, Any], rank: int = 0, shard_bytes: int = 2**28):
        self.folder, self.header, self.rank, self.shard_bytes = folder, header, rank, shard_bytes
        self._final, self._parts = folder / f"{RESPONSES}.jsonl", folder / f"{RESPONSES}.parts"
        self._part = self._parts / f"rank{rank:05d}.jsonl"
        self._waiting: list[tuple[Row, torch.Tensor]] = []
        self.rows = self._read()
        barrier()  # everybody has read before anybody writes
        if rank == 0:
            # What was left of a killed run is put together, so that parts hold rows of this run alone.
            with reported_writing(folder):
                if self._parts.is_dir():
                    write_json_lines(self._final, [header, *self.rows.values()])
                    shutil.rmtree(self._parts)
                self._parts.mkdir(parents=True)
                # A kill between a shard and its rows leaves a shard that nobody names.
                named = {row.get("shard") for row in self.rows.values()}
                for path in folder.glob(f"{RESPONSES}-*.safetensors*"):
                    if path.name not in named:
                        path.unlink()
        barrier()
        with reported_writing(folder):
            write_json_lines(self._part, [header])
        numbers = [int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"{RESPONSES}-{rank:05d}-*.safetensors")]
        self._number = max(numbers, default=-1) + 1

    def add(self, rows: Sequence[tuple[Row, torch.Tensor | None]]) -> None:
        """Take rows: those without a tensor are written at once, others when their shard is large enough."""
        self._write([row for row, tensor in rows if tensor is None])
        self._waiting += [(row, tensor.detach().cpu().contiguous()) for row, tensor in rows if tensor is not None]
        if sum(tensor.nbytes for _, tensor in self._waiting) >= self.shard_bytes:
            self._flush()

    def close(self) -> list[Row]:
        """Write the rest, wait for all ranks, make the final file of all parts. Returns all rows, sorted by key."""
        self._flush()
        barrier()
        rows = self._read()
        order = [rows[key] for key in sorted(rows)]
        barrier()
        if self.rank == 0:
            with reported_writing(self._final):
                write_json_lines(self._final, [self.header, *order])
                shutil.rmtree(self._parts)
        barrier()
        return order

    def _flush(self) -> None:
        if not self._waiting:
            return
        shard = self.folder / f"{RESPONSES}-{self.rank:05d}-{self._number:05d}.safetensors"
        with reported_writing(shard), atomic_file(shard) as temporary:
            save_file({tensor_name(row): tensor for row, tensor in self._waiting}, temporary)
        self._write([row | {"shard": shard.name} for row, _ in self._waiting])
        self._waiting, self._number = [], self._number + 1

    def _write(self, rows: Iterable[Row]) -> None:
        with reported_writing(self._part), open(self._part, "a", encoding="utf-8") as out:
            out.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _read(self) -> dict[Key, Row]:
        """Rows of all files whose shard is whole. Parts come last: a row that was made again replaces the old one."""
        files = (self._final, *sorted(self._parts.glob("*.jsonl")))
        rows = [row for file in files for row in read_rows(file, self.header)]
        broken = broken_shards(self.folder, rows)
        for shard, reason in broken.items() if self.rank == 0 else ():
            logger.warning("%s is not whole (%s); its rows are made again.", self.folder / shard, reason)
        return {row_key(row): row for row in rows if row.get("shard") not in broken}


class ShardReader:
    """Tensors of rows. It may be forked into the worker processes of a loader.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        # Each is mapped into memory.
        self._open = functools.lru_cache(_OPEN_SHARDS)(lambda shard: safe_open(folder / shard, "pt"))

    def __call__(self, row: Row) -> torch.Tensor:
        """The row's tensor.

        Raises:
            InputError: its shard is missing or damaged.
        """
        try:
            return self._open(row["shard"]).get_tensor(tensor_name(row))
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{self.folder / row['shard']} cannot be read ({error}). Run `vaemotionllm cache-teacher` with the "
                "same config again: it makes again what is damaged."
            ) from error


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
        module: the backbone, whole (not sharded by an engine).
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
        # Saving a processor puts auto_map into its parts.
        left_out = ("_name_or_path", "transformers_version", "_attn_implementation", "attn_implementation", "auto_map")
        return {key: _essential(item) for key, item in value.items() if key not in left_out}
    return value


def processor_hash(processor) -> str:
    """Hash of what makes a clip and a prompt into the teacher's inputs: settings, vocabulary, chat template."""
    parts = {
        "image": _essential(processor.image_processor.to_dict()),
        "video": _essential(processor.video_processor.to_dict()),
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
