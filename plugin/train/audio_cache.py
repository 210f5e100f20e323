"""States of a frozen audio tower, kept on disk: a step then neither decodes sound nor runs the tower.

Rows of `audio.jsonl`, one a clip: id, slot (0), heard (hash of the file), num_tokens (audio tokens of each window),
shard (where the stacked states (M, projector_stride * D_audio) are, see `AudioProjector.stack`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..data.dataset import ClipDataset
from ..data.manifest import Clip
from ..model.audio_projector import BOUNDARY_TOKENS
from ..model.processing_vaemotionllm import AUDIO_TOKEN, MediaFeatures
from ..utils import ClipError, InputError
from .hashes import header_of, heard_hash, weights_hash
from .shard_store import ShardReader, ShardStore, read_rows

AUDIO = "audio"
_FORMAT = 1


def audio_header(model, processor) -> dict[str, Any]:
    """What the states depend on. Each row says itself which clip it heard."""
    return header_of({
        "format": _FORMAT,
        "audio_tower": weights_hash(model.audio_tower, model.config.audio_config),
        "feature_extractor": processor.feature_extractor.to_dict(),
        "projector_stride": model.config.projector_stride,
        "window_samples": processor.window_samples,
        "max_audio_s": processor.max_audio_s,
    })  # fmt: skip


@torch.no_grad()
def cache_audio(
    model,
    processor,
    dataset: ClipDataset,
    folder: Path,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> None:
    """Run the audio tower over all clips that `folder` does not hold yet, shared among the ranks.

    Raises:
        InputError: the folder holds states of another tower (both hashes are named), or cannot be written; a clip
            cannot be decoded.
    """
    from tqdm import tqdm

    store = ShardStore(folder, AUDIO, audio_header(model, processor), rank)
    todo = [
        index
        for index, clip in enumerate(dataset.clips)
        if store.rows.get((clip.id, 0), {}).get("heard") != heard_hash(clip)
    ]
    mine = todo[rank::world_size]
    model.eval()
    with tqdm(total=len(mine), desc="audio tower", unit="clip", disable=not progress or rank > 0) as bar:
        for begin in range(0, len(mine), batch_size):
            chunk = mine[begin : begin + batch_size]
            try:
                inputs = [dataset.features(index, "audio").inputs for index in chunk]
            except InputError as error:
                raise ClipError(str(error)) from error
            features = torch.cat([item["input_features"] for item in inputs]).to(model.device)  # (W, ...)
            num_tokens = torch.cat([item["audio_num_tokens"] for item in inputs])  # (W,)
            stacked = model.audio_projector.stack(model.get_audio_states(features), num_tokens)  # (M, stride * D)
            per_clip = [item["audio_num_tokens"].tolist() for item in inputs]
            for index, tokens, states in zip(chunk, per_clip, stacked.split([sum(tokens) for tokens in per_clip])):
                clip = dataset.clips[index]
                store.add({"id": clip.id, "slot": 0, "heard": heard_hash(clip), "num_tokens": tokens}, states)
            store.flush()
            bar.update(len(chunk))
    store.close()


class AudioFeatures:
    """Gives a clip's sound as `MediaFeatures` from the cache.

    Args:
        folder: of the cache.
        header: see `audio_header`.
        clips: the clips that will be asked for.

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
            found, wanted = self.rows.get(clip.id, {}).get("heard"), heard_hash(clip)
            if found != wanted:
                raise InputError(
                    f"{folder} holds the sound of clip {clip.id!r} with hash {found}, the file has {wanted}. Run "
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
