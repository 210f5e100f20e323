"""Batches of `transformers.pipeline` on a VAEmotionLLM: padded on the left, with every window of the audio.

The library's collate function refuses a tokenizer and a feature extractor that pad on different sides, though none of
ours pads the other's input; of several audio windows it would keep the first; and all samples need the same media.
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

MARK = "_vaemotionllm_pipelines"


def joined(batches: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """One batch of several for generation, padded on the left, whatever media each holds.

    Args:
        batches: what the processor returned, as torch tensors, with what the pipeline added.
        pad_token_id: id of padding.

    Raises:
        ValueError: media whose tensors cannot be one batch.
    """
    import torch

    width = max(batch["input_ids"].shape[1] for batch in batches)
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for batch in batches for name in batch):
        values = [batch[name] for batch in batches if name in batch]
        if not isinstance(values[0], torch.Tensor):
            found[name] = values
            continue
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):  # (B, T)
            padding = pad_token_id if name == "input_ids" else 0
            values = [torch.nn.functional.pad(v, (width - v.shape[1], 0), value=padding) for v in values]
        shapes = sorted({tuple(value.shape[1:]) for value in values})
        if len(shapes) > 1:
            raise ValueError(
                f"{name} of the samples differ in shape ({', '.join(map(str, shapes))}) and cannot be one batch; give "
                "batch_size=1."
            )
        found[name] = torch.cat(values)
    return found


def apply(loaded: str | None = None) -> bool:
    """Wraps `pad_collate_fn`. Returns False, after a warning, where it does not fit."""
    module: Any = sys.modules["transformers.pipelines.base"]
    original: Any = getattr(module, "pad_collate_fn", None)
    if getattr(original, MARK, False):
        return True
    expected = ["tokenizer", "feature_extractor"]
    found = list(inspect.signature(original).parameters) if callable(original) else None
    if found != expected:
        warnings.warn(
            f"vaemotionllm: transformers.pipelines.base.pad_collate_fn takes {found} where {expected} is known, so "
            "pipelines on a VAEmotionLLM run with batch_size=1 alone. For batches call its processor with a list of "
            "conversations, and `generate`.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False

    @functools.wraps(original)
    def pad_collate_fn(tokenizer, feature_extractor):
        def collate(items):
            if all(getattr(type(item), "of_vaemotionllm", False) for item in items):
                return joined(items, tokenizer.pad_token_id)
            return original(tokenizer, feature_extractor)(items)

        return collate

    setattr(pad_collate_fn, MARK, True)
    module.pad_collate_fn = pad_collate_fn
    return True
