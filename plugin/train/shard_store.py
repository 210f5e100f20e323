"""Rows with tensors on disk: written by many ranks, whole after a kill, read in any order.

    NAME.jsonl                     when the work is done: a header, then one row a line
    NAME.parts/rank00000.jsonl     until then: the rows of each rank
    NAME-00000-00003.safetensors   tensors of rows, by rank and number

A shard is written under another name and renamed, and only then do its rows enter a part file: what a row names is on
disk whole. A killed run loses what it had not written yet, at most `max_age_s` of work.
"""

import json
import logging
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..utils import InputError, reported_writing
from .distributed import barrier

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Key = tuple[str, int]


def row_key(row: Row) -> Key:
    return row["id"], row["slot"]


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
                    write_rows(self._final, header, self.rows.values())
                    shutil.rmtree(self._parts)
                self._parts.mkdir(parents=True)
                # A kill between a shard and its rows leaves a shard that nobody names.
                named = {row.get("shard") for row in rows}
                for path in folder.glob(f"{name}-*.safetensors*"):
                    if path.name not in named:
                        path.unlink()
        barrier()
        self._part = self._parts / f"rank{rank:05d}.jsonl"
        with reported_writing(folder):
            self._part.write_text(_line(header), encoding="utf-8")
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
        shard = f"{self.name}-{self.rank:05d}-{self._number:05d}.safetensors"
        temporary = self.folder / f"{shard}.tmp"
        with reported_writing(temporary, unfinished=True):
            if tensors:
                save_file(tensors, temporary)
                os.replace(temporary, self.folder / shard)
                self._number += 1
            text = ""
            for row, tensor in self._waiting:
                row = row if tensor is None else row | {"shard": shard}
                self.rows[row_key(row)] = row
                text += _line(row)
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
            with reported_writing(self._final.with_suffix(".tmp"), unfinished=True):
                write_rows(self._final, self.header, order)
                shutil.rmtree(self._parts)
        barrier()
        return order

    def _read(self) -> tuple[list[Row], dict[str, str]]:
        """Rows of all files whose shard is whole, newer ones last, and the shards that are not."""
        # Parts come after the final file: a row that was made again replaces the old one.
        files = [file for file in (self._final, *sorted(self._parts.glob("*.jsonl"))) if file.is_file()]
        rows = [row for file in files for row in read_rows(file, self.header)]
        broken = broken_shards(self.folder, rows)
        return [row for row in rows if row.get("shard") not in broken], broken

    @property
    def _final(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    @property
    def _parts(self) -> Path:
        return self.folder / f"{self.name}.parts"


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


_AGAIN = "Run `vaemotionllm cache-teacher` with the same config again: it makes anew what is damaged."


def tensor_name(row: Row) -> str:
    return f"{row['slot']}/{row['id']}"


def write_rows(path: Path, header: dict[str, Any], rows: Iterable[Row]) -> None:
    """A row file that is either there in full or not at all."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as out:
        out.writelines(_line(row) for row in (header, *rows))
    os.replace(temporary, path)


def read_rows(path: Path, header: dict[str, Any]) -> list[Row]:
    """Complete rows of a row file; a line that a kill cut short is left out.

    Raises:
        InputError: the file's header is not `header`.
    """
    rows = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                break
            rows.append(json.loads(line))
    if not rows:
        return []
    found = rows[0]
    if found.get("hash") != header["hash"]:
        old, new = found.get("depends_on", {}), header["depends_on"]
        changed = [name for name in new if old.get(name) != new[name]] or ["format"]
        raise InputError(
            f"{path} holds rows with hash {str(found.get('hash'))[:12]}, this run needs {header['hash'][:12]}: "
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


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
