"""Errors that a user can act on, files that are whole or absent, folders of the package, and the CPU's environment.

Imported before torch, so it imports neither torch nor transformers.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

# Defined beside the model, because the processor raises it and is copied to the Hub with its siblings alone.
from .model.inputs import InputError

# ---- errors


class RankError(InputError):
    """An error that one process of several meets alone, and so has to report itself."""


class ClipError(RankError):
    """A clip that cannot be used."""


class Terminated(Exception):
    """Work that SIGTERM ended, with all that it had done written."""


@contextlib.contextmanager
def reported_writing(path: Path, unfinished: bool = False) -> Iterator[None]:
    """Turns a failure to write below `path`, mostly a full disk, into an error with a remedy.

    Args:
        path: what is written, or the folder in which several files are.
        unfinished: whether `path` is of no use half-written and is removed.

    Raises:
        RankError: one rank may meet it alone.
    """
    from safetensors import SafetensorError  # `--version` works where the requirements are not installed

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError):
            # torch.save has no exception of its own, and names a place in its sources.
            if not any(words in str(error) for words in ("PytorchStreamWriter", "inline_container", "write(): fd")):
                raise
            error = OSError("a file was cut short")
        if unfinished:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        folder = path if path.is_dir() else path.parent
        free = shutil.disk_usage(folder).free / 2**30
        name = path.name.removesuffix(".tmp")
        raise RankError(
            f"cannot write {name} in {path.parent}: {error} ({free:.1f} GiB are free there). What was written before "
            "is whole: make room and run the same command again to resume."
        ) from error


def shown(value: Any) -> str:
    """A value as an error shows it: its beginning and its end where it is long, as a number of 400 digits is."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        return "a whole number of more than 4300 digits"
    return text if len(text) <= 200 else f"{text[:120]}...{text[-20:]} ({len(text)} characters)"


# ---- files


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it replaces `path` when the body ends well, and is removed otherwise."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, sorted and indented, so that it is there in full or not at all, also after a power cut."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        what: what it should be, for the error.

    Raises:
        InputError: the file is missing, or holds no JSON object.
    """
    try:
        value = _json(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path} ({what}): {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise InputError(f"{path} ({what}) is no valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} ({what}) holds {type(value).__name__}; a JSON object is needed.")
    return value


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, so that the file is there in full or not at all."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json_lines(path: Path, unit: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number, object) of each line that is not empty; `unit` is what errors call a line."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = _json(line)
            except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
                raise InputError(
                    f"{path}, {unit} {number}: not valid JSON ({error}). Write one JSON object a line, in UTF-8."
                ) from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, {unit} {number}: expected a JSON object, found {type(row).__name__}.")
            yield number, row


def decoded(content: bytes) -> str:
    """Text in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: bytes in another encoding.
    """
    if b"\0" in content or content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is in UTF-16 or UTF-32, or damaged; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not in UTF-8, {error}; save it as UTF-8") from None


def refuse_surrogates(value: Any) -> None:
    """Raise a ValueError where a text in `value` holds half a character, which no file and no tokenizer takes."""
    if found := re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)):
        raise ValueError(
            f"a text holds {found[0]!r}, a lone surrogate, which is no character; of a file whose name is not UTF-8, "
            "change the name"
        )


def _json(content: bytes) -> Any:
    value = json.loads(text := decoded(content))
    if "\\u" in text:  # how JSON writes a surrogate
        refuse_surrogates(value)
    return value


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ---- folders


def cache_dir() -> Path:
    """Folder of what can be rebuilt: the nano backbone, the nano benchmark. `VAEMOTIONLLM_CACHE` overrides it."""
    if override := os.environ.get("VAEMOTIONLLM_CACHE"):
        return Path(override).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vaemotionllm"


def check_name(folder: Path) -> None:
    """Raise an InputError where the name of a folder of media is not UTF-8: tables and decoders take no such path."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"the folder {str(folder)!r} has a name that is not in UTF-8. Rename it.") from None


def check_new(out: Path, option: str) -> None:
    """Raise an InputError where `out` exists and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{option} {out} exists and is not an empty folder; name a new one or remove it")


@contextlib.contextmanager
def new_folder(out: Path, option: str) -> Iterator[Path]:
    """A folder to write into, beside `out`, that gets its name when the body has ended well and goes otherwise.

    Args:
        out: the final folder; it may exist empty.
        option: what the user calls it, for the error.

    Raises:
        InputError: see `check_new`.
    """
    check_new(out, option)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# Of the process that works in a folder: who it is, and its lock. They are no part of what the folder holds.
OWNER = ".owner"
OWNER_FILES = (OWNER, f"{OWNER}.lock")
# Ours: what a process that was ended may still need for its last checkpoint, or its workers to notice.
WAIT_S = 5.0


@contextlib.contextmanager
def owned(folder: Path, name: str) -> Iterator[None]:
    """Hold a folder against other processes; the kernel lets go when this one ends, however it ends.

    Args:
        folder: made where it is missing, and removed again where the body leaves nothing in it.
        name: what the user calls it, for the error.

    Raises:
        RankError: another process holds it, and did not let go within `WAIT_S`.
    """
    from filelock import FileLock, Timeout  # not needed by `--version`

    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    owner, file = (folder / name for name in OWNER_FILES)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=WAIT_S)
    except Timeout:
        who = owner.read_text(encoding="utf-8") if owner.is_file() else "another process"
        raise RankError(f"{name} {folder} is in use by {who}: wait for it, end it, or name another folder.") from None
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        lock.release()
        if made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


# ---- environment variables of the CPU libraries below torch. They read them once, when torch is imported; so they are
# set first, or in the environment of a subprocess.

# Iterations that a thread of OpenMP (libgomp) spins before it sleeps; its own default is 300,000, some milliseconds. A
# waiting thread then keeps the core from the very thread that it waits for as soon as another process runs:
# benchmarks/threads.py.
SPIN = {"GOMP_SPINCOUNT": "2000"}

# The same sums in the same order on every x86-64 processor that has AVX2, which is every one since 2013:
FIXED_ARITHMETIC = {
    # One code path of MKL for all vendors. The faster ones differ: MKL takes others on AMD than on Intel.
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    # numpy: all that is above AVX2, by the names of 2.4 and of those before.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Haswell",  # of numpy and scipy
    # Sums are split among the threads, so their number counts, on a machine with more cores or fewer as well.
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_DYNAMIC": "FALSE",
    "OMP_DYNAMIC": "FALSE",
}


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep early when they wait, unless the user has set how they wait.

    Without effect in a process that has imported torch.
    """
    if "OMP_WAIT_POLICY" not in environment:
        for name, value in SPIN.items():
            environment.setdefault(name, value)


def fixed_environment(base: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that is to be started, with `FIXED_ARITHMETIC` in place of the user's settings."""
    environment = dict(base)
    bound_spinning(environment)
    return environment | FIXED_ARITHMETIC


def arithmetic() -> dict[str, str]:
    """What of `FIXED_ARITHMETIC` holds in this process; empty where the libraries choose for themselves."""
    return {name: os.environ[name] for name in FIXED_ARITHMETIC if name in os.environ}
