"""FlashAttention 2 where transformers looks for it, computed plainly and strict about its arguments as the real one.

with installed() as calls:
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder, attn_implementation="flash_attention_2")
    ...
"""

import contextlib
import importlib.machinery
import sys
import types
from unittest import mock

import torch
from transformers import modeling_flash_attention_utils as library


def _check(*states: torch.Tensor, half_only: bool) -> None:
    queries, keys, _ = states
    dtypes = {tensor.dtype for tensor in states}
    if len(dtypes) > 1 or (half_only and not dtypes <= {torch.float16, torch.bfloat16}):
        raise RuntimeError(f"FlashAttention only supports fp16 and bf16 data type; got {dtypes}")
    if queries.shape[-1] % 8 or queries.shape[-1] > 256 or queries.shape[-2] % keys.shape[-2]:
        raise RuntimeError(f"heads {tuple(queries.shape)} and {tuple(keys.shape)} do not fit FlashAttention")


def _attention(queries, keys, values, causal: bool, scale: float | None) -> torch.Tensor:
    """Of one sequence, (L, heads, D) each."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    q, k, v = (states.float().transpose(0, 1) for states in (queries, keys, values))
    scores = q @ k.transpose(-1, -2) * (scale or queries.shape[-1] ** -0.5)
    if causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~visible.tril(scores.shape[-1] - scores.shape[-2]), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).to(queries.dtype)


@contextlib.contextmanager
def installed(half_only: bool = True):
    """Within it transformers finds flash_attn.

    Args:
        half_only: refuse float32, as the real one does; without it results can be compared closely.

    Yields:
        the calls so far, "padded" or "packed" each.
    """
    calls: list[str] = []

    def padded(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, **options):
        calls.append("padded")
        _check(q, k, v, half_only=half_only)
        return torch.stack([_attention(*rows, causal, softmax_scale) for rows in zip(q, k, v)])

    def packed(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p=0.0, softmax_scale=None, causal=False, **options,
    ):  # fmt: skip
        calls.append("packed")
        _check(q, k, v, half_only=half_only)
        for ends in (cu_seqlens_q, cu_seqlens_k):
            if ends.dtype != torch.int32 or not ends.is_contiguous():
                raise RuntimeError(f"cu_seqlens must be contiguous int32; got {ends.dtype}")
        if not (type(max_seqlen_q) is type(max_seqlen_k) is int):
            raise TypeError(f"max_seqlen_q is {type(max_seqlen_q)} and not int")
        # The kernel reads them on the device: what the host reads here is no wait of the real one.
        of_q, of_k = (getattr(ends, "plain", ends).tolist() for ends in (cu_seqlens_q, cu_seqlens_k))
        if of_q[-1] != len(q) or of_k[-1] != len(k):
            raise RuntimeError(f"{of_q[-1]} and {of_k[-1]} tokens by cu_seqlens, {len(q)} and {len(k)} given")
        if max(end - begin for begin, end in zip(of_q, of_q[1:])) > max_seqlen_q:
            raise RuntimeError(f"a sequence is longer than max_seqlen_q {max_seqlen_q}")
        parts = zip(of_q, of_q[1:], of_k, of_k[1:])
        return torch.cat([_attention(q[a:b], k[c:d], v[c:d], causal, softmax_scale) for a, b, c, d in parts])

    package, padding = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.bert_padding")
    package.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    package.flash_attn_func, package.flash_attn_varlen_func, package.flash_attn_with_kvcache = padded, packed, None
    padding.pad_input, padding.unpad_input = library._pad_input, library._unpad_input
    package.bert_padding = padding
    yes = lambda *args, **kwargs: True
    found = {"general_availability_check": yes, "supported_devices": ((yes, "cuda"),)}
    # What the library keeps of the package once it has loaded it.
    kept = (
        "_loaded_implementation",
        "_flash_fn",
        "_flash_varlen_fn",
        "_flash_with_kvcache_fn",
        "_pad_fn",
        "_unpad_fn",
    )
    with (
        mock.patch.dict(sys.modules, {"flash_attn": package, "flash_attn.bert_padding": padding}),
        mock.patch.object(library, "is_flash_attn_2_available", yes),
        mock.patch.dict(library.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2], found),
        mock.patch.multiple(library, **{name: getattr(library, name) for name in kept}),
    ):
        yield calls
