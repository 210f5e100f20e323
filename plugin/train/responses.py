"""The teacher's own responses for stage 1: generated once from the picture alone, kept beside the run.

Every rank appends to a part file as it goes, so a killed run loses at most one batch; a finished set is one file.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.collator import ConversationRenderer, path_inputs
from ..data.dataset import ClipDataset, Failure
from ..data.samplers import SampleKey, seeded_random
from ..errors import ClipError, InputError
from .distributed import barrier
from .prompts import PromptSource

Responses = dict[str, list[tuple[str, list[int]]]]
"""Clip id -> [(prompt, token ids of the response)]."""

_FORMAT = 1


def responses_header(backbone: str, clips_hash: str, prompts: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What the responses depend on; two sets with equal headers are interchangeable.

    Args:
        backbone: hash of the teacher, see `backbone_hash`.
        clips_hash: see `clips_hash`.
        prompts: text that identifies the prompts.
        settings: everything else, such as num_frames and max_response_tokens.
    """
    parts = {
        "backbone": backbone,
        "clips": clips_hash,
        "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
        **settings,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"format": _FORMAT, "hash": digest, "depends_on": parts}


def backbone_hash(model) -> str:
    """Hash of the teacher's config and of a sample of every weight: a fine-tuned copy has another hash."""
    digest = hashlib.sha256(json.dumps(model.vlm.config.to_dict(), sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.vlm.named_parameters()):
        flat = parameter.detach().flatten()
        sample = flat[:: max(flat.numel() // 64, 1)].float().cpu()
        digest.update(name.encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def clips_hash(clips: Sequence) -> str:
    """Hash of what the teacher sees: ids, files with their sizes, and the parts that are taken. No label enters."""
    digest = hashlib.sha256()
    for clip in clips:
        source = clip.video if clip.video is not None else clip.image
        if isinstance(source, bytes):
            medium = hashlib.sha256(source).hexdigest()
        else:
            medium = f"{Path(source).name} {os.path.getsize(source)}"
        digest.update(f"{clip.id}\n{medium}\n{clip.start_s}\n{clip.end_s}\n".encode())
    return digest.hexdigest()


def teacher_responses(
    model,
    processor,
    dataset: ClipDataset,
    source: PromptSource,
    header: dict[str, Any],
    folder: Path,
    *,
    per_clip: int,
    max_response_tokens: int,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> Responses:
    """Read the responses in `folder/responses.jsonl`, generating greedily what is not there yet.

    Raises:
        InputError: the file there was made by another teacher, other clips, prompts or settings (both hashes named).
    """
    final = folder / "responses.jsonl"
    if final.is_file():
        return _as_responses(_read(final, header), dataset)
    parts_folder = folder / "responses.parts"
    rows = {row_key(row): row for part in sorted(parts_folder.glob("*.jsonl")) for row in _read(part, header)}
    todo = [
        (index, slot)
        for index in range(len(dataset))
        for slot in range(per_clip)
        if (dataset.clips[index].id, slot) not in rows
    ]
    parts_folder.mkdir(parents=True, exist_ok=True)
    barrier()  # everybody has read the parts before anybody writes
    part = parts_folder / f"rank{rank:05d}.jsonl"
    with open(_trimmed(part, header), "a", encoding="utf-8") as out:
        for row in _generate(
            model, processor, dataset, source, todo[rank::world_size], per_clip, max_response_tokens, batch_size, seed,
            progress=progress and rank == 0,
        ):  # fmt: skip
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
    barrier()
    rows = {row_key(row): row for part in sorted(parts_folder.glob("*.jsonl")) for row in _read(part, header)}
    if rank == 0:
        order = sorted(rows.values(), key=row_key)
        temporary = final.with_suffix(".tmp")
        with open(temporary, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in (header, *order))
        os.replace(temporary, final)
        for part in parts_folder.glob("*.jsonl"):
            part.unlink()
        parts_folder.rmdir()
    barrier()
    return _as_responses(_read(final, header), dataset)


def row_key(row: dict[str, Any]) -> tuple[str, int]:
    return row["id"], row["slot"]


@torch.no_grad()
def _generate(model, processor, dataset, source, todo, per_clip, max_response_tokens, batch_size, seed, progress):
    """Yield a row for each (clip number, slot): the teacher's greedy answer to a prompt about the picture."""
    from tqdm import tqdm

    renderer = ConversationRenderer(processor)
    end_ids = model.generation_config.eos_token_id
    end_ids = set(end_ids if isinstance(end_ids, list) else [end_ids]) | {processor.tokenizer.eos_token_id}
    was_training = model.training
    model.eval()
    bar = tqdm(total=len(todo), desc="teacher responses", unit="clip", disable=not progress)
    for begin in range(0, len(todo), batch_size):
        chunk = todo[begin : begin + batch_size]
        samples = [dataset[SampleKey(index, 0, -1)] for index, _ in chunk]
        for sample in samples:
            if isinstance(sample, Failure):
                raise ClipError(sample.message)
        prompts = [
            source(seeded_random(seed, "prompt", dataset.clips[index].id), per_clip)[slot] for index, slot in chunk
        ]
        inputs = path_inputs(processor, renderer, samples, "visual", prompts, None)
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        width = inputs["input_ids"].shape[1]
        generated = model.generate(
            **inputs, use_adapter=False, do_sample=False, num_beams=1, max_new_tokens=max_response_tokens
        )  # (B, width + new)
        for (index, slot), prompt, row in zip(chunk, prompts, generated[:, width:].tolist()):
            stop = next((i + 1 for i, token in enumerate(row) if token in end_ids), len(row))
            text = processor.tokenizer.decode(row[:stop], skip_special_tokens=True)
            yield {
                "id": dataset.clips[index].id, "slot": slot, "prompt": prompt, "response": text, "tokens": row[:stop],
            }  # fmt: skip
        bar.update(len(chunk))
    bar.close()
    model.train(was_training)


def _read(path: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """Complete rows of a response file; a line that a kill cut short is left out."""
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
            f"{path} holds responses with hash {str(found.get('hash'))[:12]}, this run needs {header['hash'][:12]}: "
            f"{', '.join(changed)} changed. Take another output_dir, or overwrite=true to generate them again."
        )
    return rows[1:]


def _trimmed(part: Path, header: dict[str, Any]) -> Path:
    """A part file that ends with a complete line, made with its header where it is new."""
    if part.is_file():
        data = part.read_bytes()
        keep = data.rfind(b"\n") + 1
        if keep < len(data):
            with open(part, "r+b") as file:
                file.truncate(keep)
    if not part.is_file() or part.stat().st_size == 0:
        part.write_text(json.dumps(header, ensure_ascii=False) + "\n", encoding="utf-8")
    return part


def _as_responses(rows: Sequence[dict[str, Any]], dataset: ClipDataset) -> Responses:
    responses: Responses = {clip.id: [] for clip in dataset.clips}
    for row in rows:
        responses[row["id"]].append((row["prompt"], row["tokens"]))
    return responses
