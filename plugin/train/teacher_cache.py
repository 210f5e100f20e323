"""The teacher cache: rows with tensors that many ranks make part by part, and hashes of what they depend on.

    responses.arrow                             when the work is done: the rows, sorted by id and slot; memory-mapped
    responses.parts/PASS-00000.arrow            until then: the rows of each part
    responses-PASS-00000.safetensors            tensors of a part's rows
    responses.files.arrow                       hashes of media, known by path, size and time of modification

A pass makes what is missing. Its parts, and with them every byte, depend on what is missing alone: neither on the
number of ranks and workers nor on what was killed. A part's tensors are written under another name and renamed, and
only then its rows: the parts that are there are done. A killed run loses the part that each rank was in.
"""

import bisect
import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..data.manifest import Clip
from ..utils import InputError, RankError, atomic_file, reported_writing, sha256_of_json
from .distributed import from_first_rank, sum_over_ranks

logger = logging.getLogger(__name__)

Row = dict[str, Any]

RESPONSES = "responses"
FILES = f"{RESPONSES}.files.arrow"
SCORES = ("entropy", "grounding", "audio_dbfs")
_BLOCK_BYTES = 65_536
_OPEN_SHARDS = 64
_READERS = 16
# Of network file systems: how long until a file of another node is visible, and how coarse a file's time may be.
_VISIBLE_S, _CLOCK_S = 60, 2

# No column holds nulls, whose bytes are not defined: a score that is not there is NaN, a shard "".
_SCHEMA = pa.schema([
    ("id", pa.large_string()), ("slot", pa.int32()), ("kind", pa.large_string()), ("prompt", pa.large_string()),
    ("response", pa.large_string()), ("tokens", pa.large_list(pa.int32())), ("empty", pa.bool_()),
    ("visual_hash", pa.large_string()), ("audio_hash", pa.large_string()), ("text_tokens", pa.int32()),
    ("visual_tokens", pa.int32()), ("audio_tokens", pa.int32()), ("shard", pa.large_string()),
    *((name, pa.float64()) for name in SCORES),
])  # fmt: skip


class Damaged(InputError):
    """A file of rows that a disk has damaged."""


WORK = np.dtype([("clip", "i8"), ("slot", "i8"), ("visual_hash", "S16"), ("audio_hash", "S16")])
"""What is to be made: the response number `slot` to clip number `clip`, and the hashes of its files."""


# ---- rows and shards


class Rows(Sequence[Row]):
    """Rows of a memory-mapped table, of which each is read when it is taken.

    Args:
        table: sorted by id and slot.
        numbers: of the rows in it; None for all.
    """

    def __init__(self, table: pa.Table, numbers: np.ndarray | None = None):
        self.table, self.numbers = table, np.arange(len(table)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Rows(self.table, self.numbers[index])
        return _row(self.table.slice(int(self.numbers[index]), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Row]:
        for begin in range(0, len(self), 4096):
            yield from map(_row, self.table.take(self.numbers[begin : begin + 4096]).to_pylist())

    def column(self, name: str) -> pa.ChunkedArray:
        return self.table[name].take(self.numbers)


class ResponsesOfClips(Mapping[str, Rows]):
    """Clip id -> its rows. Ranks and workers share the table's memory, whatever its length."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __getitem__(self, clip_id: str) -> Rows:
        ids, numbers = self.rows.table["id"], self.rows.numbers
        bounds = (side(numbers, clip_id, key=lambda n: ids[n].as_py()) for side in _SIDES)
        if not (found := self.rows[slice(*bounds)]):
            raise KeyError(clip_id)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self.rows.column("id").to_pylist()))

    def __len__(self) -> int:
        return len(pc.unique(self.rows.column("id")))


_SIDES = (bisect.bisect_left, bisect.bisect_right)


def _row(values: Row) -> Row:
    """A row with its scores in a dictionary, and without what it does not have."""
    found = {name: values.pop(name) for name in SCORES if name in values}
    if not values.get("shard", True):
        del values["shard"]
    return values | {"scores": {name: value for name, value in found.items() if value == value}}


class Plan(NamedTuple):
    """The work of a pass, the same on all ranks.

    Args:
        name: hash of what decides the pass's bytes.
        parts: `WORK` of each part, the responses of a clip together.
        done: numbers of the parts that are there.
    """

    name: str
    parts: list[np.ndarray]
    done: frozenset[int]


class PartStore:
    """Rows with an `id` and a `slot` each, and perhaps a tensor, that all ranks make.

    Args:
        folder: where; made if it is not there. All ranks, on whatever node, see the same folder.
        header: {"hash", "depends_on"}: what the rows depend on. Rows of another header are refused.
    """

    def __init__(self, folder: Path, header: dict[str, Any]):
        self.folder, self.header = folder, header
        self.file, self.parts = folder / f"{RESPONSES}.arrow", folder / f"{RESPONSES}.parts"

    def plan(
        self, missing: Callable[[pa.Table], np.ndarray], clips: Sequence[Clip], size: int, scores: Sequence[str]
    ) -> Plan:
        """What is to be made. Every rank must call it; rank 0 alone reads the folder.

        Args:
            missing: table of the rows that are there -> `WORK`, sorted.
            clips: that its numbers mean.
            size: responses in a part, at least.
            scores: that the rows are to have.

        Raises:
            InputError: the folder holds rows of another header (both hashes and what changed are named).
        """

        def make() -> Plan:
            work = missing(self._whole(self._read(self.file)))
            name = self._name(work, clips, size, scores)
            found = sorted(self.parts.glob("*.arrow"))
            if any(not file.name.startswith(f"{name}-") for file in found):
                # Of a pass over other work that was killed: what it has made is kept.
                with reported_writing(self.file):
                    self._write(self._whole(self._read(self.file)), *map(self._part, found))
                    shutil.rmtree(self.parts)
                work, found = missing(self._whole(self._read(self.file))), []
                name = self._name(work, clips, size, scores)
            with reported_writing(self.parts):
                self.parts.mkdir(parents=True, exist_ok=True)
            done = [int(file.stem.rsplit("-", 1)[1]) for file in found if len(self._part(file))]
            return Plan(name, _cut(work, size), frozenset(done))

        return from_first_rank(make)

    def _name(self, work: np.ndarray, clips: Sequence[Clip], size: int, scores: Sequence[str]) -> str:
        digest = hashlib.sha256(f"{self.header['hash']}\n{size}\n{sorted(scores)}\n".encode())
        digest.update("\n".join(clips[number].id for number in work["clip"].tolist()).encode())
        for field in WORK.names[1:]:
            digest.update(np.ascontiguousarray(work[field]).tobytes())
        return digest.hexdigest()[:8]

    def add(self, plan: Plan, number: int, rows: Sequence[tuple[Row, torch.Tensor | None]]) -> None:
        """Write a part: first its tensors, then its rows."""
        file = self.parts / f"{plan.name}-{number:05d}.arrow"
        tensors = {tensor_name(row): tensor.contiguous() for row, tensor in rows if tensor is not None}
        shard = self.folder / f"{RESPONSES}-{plan.name}-{number:05d}.safetensors"
        if tensors:
            with reported_writing(shard), atomic_file(shard) as temporary:
                save_file(tensors, temporary)
        with reported_writing(file), atomic_file(file) as temporary:
            _write_table(temporary, table_of([row for row, _ in rows], shard.name if tensors else ""), self.header)

    def close(self, plan: Plan, made: int, device: torch.device) -> pa.Table:
        """Put all parts together, once all ranks have made theirs. Every rank must call it.

        Args:
            plan: of the pass.
            made: rows that this rank has added.
            device: for the reduction.

        Returns:
            all rows, sorted by id and slot.

        Raises:
            RankError: a rank does not see what another has written.
        """
        expected = int(sum_over_ranks(torch.tensor(made, device=device)))
        expected += sum(len(plan.parts[number]) for number in plan.done)

        def put_together() -> int:
            assert expected == sum(map(len, plan.parts)), "a part was not made, or twice"
            files = [self.parts / f"{plan.name}-{number:05d}.arrow" for number in range(len(plan.parts))]
            # What another node has written may not be visible yet: nothing is deleted before every row is read.
            parts = _complete(
                lambda: list(map(self._part, files)), lambda parts: sum(map(len, parts)) == expected, self
            )
            if not parts and self.file.is_file():
                shutil.rmtree(self.parts)
                return len(self._read(self.file))
            with reported_writing(self.file):
                table = self._write(self._whole(self._read(self.file)), *parts)
                shutil.rmtree(self.parts)
                named = {*pc.unique(table["shard"]).to_pylist()}
                for path in self.folder.glob(f"{RESPONSES}-*.safetensors*"):
                    if path.name not in named:  # of a killed run, or of rows that were made again
                        path.unlink()
            return len(table)

        count = from_first_rank(put_together)
        return _complete(lambda: self._read(self.file), lambda table: len(table) == count, self)

    def _write(self, *tables: pa.Table) -> pa.Table:
        """Write the file of all rows; of two for the same response the later one."""
        table = pa.concat_tables(tables).combine_chunks()
        table = table.take(pc.sort_indices(table, [("id", "ascending"), ("slot", "ascending")]))  # a stable sort
        if len(table):
            first, second = table.slice(0, len(table) - 1), table.slice(1)
            again = pc.and_(pc.equal(first["id"], second["id"]), pc.equal(first["slot"], second["slot"]))
            if pc.any(again).as_py():
                table = table.filter(pa.array([*(not same for same in again.to_pylist()), True]))
        with atomic_file(self.file) as temporary:
            _write_table(temporary, table.combine_chunks(), self.header)
        return table

    def _read(self, file: Path) -> pa.Table:
        if (old := self.folder / f"{RESPONSES}.jsonl").is_file():
            raise InputError(f"{old} was written by an older version. Take another folder, or overwrite=true.")
        return read_table(file, self.header)

    def _part(self, file: Path) -> pa.Table:
        """The rows of a part; none where it, or its shard, is not whole."""
        try:
            return self._whole(read_table(file, self.header))
        except Damaged as error:
            logger.warning("%s Its rows are made again.", error)
            return _SCHEMA.empty_table()

    def _whole(self, table: pa.Table) -> pa.Table:
        """The rows whose shard is whole."""
        broken = broken_shards(self.folder, table)
        for shard, reason in broken.items():
            logger.warning("%s is not whole (%s); its rows are made again.", self.folder / shard, reason)
        return (
            table.filter(pc.invert(pc.is_in(table["shard"], pa.array(broken, pa.large_string())))) if broken else table
        )


def _cut(work: np.ndarray, size: int) -> list[np.ndarray]:
    """Parts of at least `size` responses each, but for the last; those of a clip stay together."""
    ends = np.append(np.flatnonzero(np.diff(work["clip"])) + 1, len(work))
    parts, begin = [], 0
    while begin < len(work):
        end = int(ends[min(np.searchsorted(ends, begin + size), len(ends) - 1)])
        parts.append(work[begin:end])
        begin = end
    return parts


def _complete(read: Callable[[], Any], is_whole: Callable[[Any], bool], store: PartStore) -> Any:
    """What `read` gives once it is complete.

    Raises:
        RankError: it stays incomplete.
    """
    deadline = time.monotonic() + _VISIBLE_S
    while not is_whole(found := read()):
        if time.monotonic() > deadline:
            raise RankError(
                f"{store.folder} lacks rows that another rank has written. All nodes need the same folder, on a "
                "shared file system; nothing was deleted, and the same command resumes."
            )
        time.sleep(1)
    return found


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


def tensor_name(row: Row) -> str:
    return f"{row['slot']}/{row['id']}"


def table_of(rows: Sequence[Row], shard: str) -> pa.Table:
    """Rows as columns.

    Args:
        rows: each with its `scores` in a dictionary.
        shard: name of the file with their tensors, or "".
    """
    lacking = dict.fromkeys(SCORES, float("nan"))
    return pa.Table.from_pylist([{**row, **lacking, **row["scores"], "shard": shard} for row in rows], _SCHEMA)


def _write_table(path: Path, table: pa.Table, header: dict[str, Any]) -> None:
    table = table.replace_schema_metadata({"header": json.dumps(header, sort_keys=True)})
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path, header: dict[str, Any]) -> pa.Table:
    """The rows of a file, mapped into memory; none of a missing file.

    Raises:
        InputError: the file's header is not `header`.
        Damaged: it cannot be read.
    """
    if not path.is_file():
        return _SCHEMA.empty_table()
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise Damaged(f"{path} is damaged ({error}): remove it, and what it held is made again.") from error
    found = json.loads(table.schema.metadata[b"header"])
    if found["hash"] != header["hash"]:
        old, new = found["depends_on"], header["depends_on"]
        changed = [name for name in new if old.get(name) != new[name]] or ["format"]
        raise InputError(
            f"{path} holds rows with hash {found['hash'][:12]}, this run needs {header['hash'][:12]}: "
            f"{', '.join(changed)} changed. Take another folder, or overwrite=true to make them again."
        )
    return table.replace_schema_metadata(None)


def broken_shards(folder: Path, table: pa.Table) -> dict[str, str]:
    """Shards that rows name and that are missing or not whole, each with what is wrong."""
    broken = {}
    for shard in filter(None, pc.unique(table["shard"]).to_pylist()):
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


def clip_hashes(clips: Sequence[Clip], index: Path) -> list[tuple[str, str]]:
    """Hashes of what the teacher and the student are given of each clip: the visual, the audio.

    A file is read once, and afterwards known by its size and its time of modification.

    Args:
        clips: the clips.
        index: file that keeps the hashes of files. Where it cannot be written they are made again another time.
    """
    known: dict[str, tuple[int, int, str]] = {}
    if index.is_file():
        with contextlib.suppress(pa.ArrowInvalid):
            columns = pa.ipc.open_file(pa.memory_map(str(index))).read_all().to_pydict()
            known = dict(zip(columns["path"], zip(columns["size"], columns["mtime_ns"], columns["hash"])))
    sources = [(clip.video if clip.video is not None else clip.image, clip.audio) for clip in clips]
    paths = list(dict.fromkeys(source for pair in sources for source in pair if isinstance(source, str)))
    now_ns, marks = time.time_ns(), dict(zip(paths, _in_threads(_mark_of, paths)))
    new = [path for path in paths if known.get(path, ())[:2] != marks[path]]
    known |= {path: (*marks[path], found) for path, found in zip(new, _in_threads(_file_hash, new))}
    if new:
        # A file that changed this moment may change again within the same tick of its clock.
        kept = [
            {"path": path, "size": size, "mtime_ns": mtime_ns, "hash": found}
            for path, (size, mtime_ns, found) in known.items()
            if now_ns - mtime_ns > _CLOCK_S * 1e9
        ]
        fields = [("path", pa.large_string()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("hash", pa.string())]
        with contextlib.suppress(OSError), atomic_file(index) as temporary:
            _write_table(temporary, pa.Table.from_pylist(kept, pa.schema(fields)), {})

    def part_hash(clip: Clip, source: str | bytes | None) -> str:
        found = known[source][2] if isinstance(source, str) else hashlib.sha256(source or b"").hexdigest()
        return hashlib.sha256(f"{clip.start_s}\n{clip.end_s}\n{found}".encode()).hexdigest()[:16]

    return [(part_hash(clip, pair[0]), part_hash(clip, pair[1])) for clip, pair in zip(clips, sources)]


def _in_threads(function: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    """`function` of each path; file systems of clusters answer late and many at a time."""
    chunks = [paths[begin : begin + 256] for begin in range(0, len(paths), 256)]
    with ThreadPoolExecutor(_READERS) as pool:
        return [found for part in pool.map(lambda chunk: list(map(function, chunk)), chunks) for found in part]


def _mark_of(path: str) -> tuple[int, int]:
    """Size and time of modification of a file."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _file_hash(path: str) -> str:
    """Hash of a file's size and its first, middle and last bytes: a whole video would take long to read."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for begin in (0, size // 2, size - _BLOCK_BYTES):
            file.seek(max(begin, 0))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:32]
