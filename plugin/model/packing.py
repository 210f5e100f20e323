"""The decoder without padding: the rows of a batch in one sequence, with their boundaries given."""

import torch
from torch.nn import functional as F


def pack_decoder_inputs(arguments: dict, keep: torch.Tensor, config) -> dict:
    """Arguments of a decoder's call with the padding taken out.

    FlashAttention is given the boundaries (`cu_seq_lens_q`, ...); other backends get a mask that is causal within each
    row and closed between rows, which costs memory that grows with the square of the tokens. Nothing is inferred from
    positions, which may repeat within a row of pictures.

    Args:
        arguments: keyword arguments, with `inputs_embeds` (B, T, D) and perhaps `position_ids` (B, T) or (P, B, T) and
            `visual_pos_masks` (B, T).
        keep: (B, T) bool, False on padding. N of them are True.
        config: the decoder's config.

    Returns:
        arguments with `inputs_embeds` (1, N, D), `position_ids` (1, N) or (4, 1, N), and what says where rows begin.

    Raises:
        ValueError: a decoder with sliding windows, and no FlashAttention.
    """
    embeds = arguments["inputs_embeds"]
    lengths = keep.sum(1, dtype=torch.int32)  # (B,)
    ends = lengths.cumsum(0, dtype=torch.int32)  # (B,)
    # Place of each token in its row.
    places = torch.arange(int(ends[-1]), device=embeds.device) - (ends - lengths).repeat_interleave(lengths)  # (N,)
    packed = {**arguments, "inputs_embeds": embeds[keep].unsqueeze(0), "attention_mask": None, "use_cache": False}
    positions = arguments.get("position_ids")
    if positions is None or positions.ndim == 2:
        packed["position_ids"] = places.unsqueeze(0) if positions is None else positions[keep].unsqueeze(0)
    else:
        # (P, B, T) -> (P, 1, N); the row in front tells transformers that places in the text are given as well.
        rows = positions[:, keep].unsqueeze(1)
        packed["position_ids"] = rows if rows.shape[0] == 4 else torch.cat([places.view(1, 1, -1), rows])
    if arguments.get("visual_pos_masks") is not None:
        packed["visual_pos_masks"] = arguments["visual_pos_masks"][keep].unsqueeze(0)
    attention = config._attn_implementation
    if "flash" in attention:
        boundaries, longest = F.pad(ends, (1, 0)), int(lengths.max())
        packed |= {
            "cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": longest, "max_length_k": longest,
        }  # fmt: skip
        return packed
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        raise ValueError("packing a decoder with sliding windows needs FlashAttention: set packing to false.")
    row = torch.arange(len(lengths), device=embeds.device).repeat_interleave(lengths)  # (N,)
    order = torch.arange(len(row), device=embeds.device)
    visible = (row.unsqueeze(1) == row) & (order.unsqueeze(1) >= order)  # (N, N)
    mask = visible[None, None]  # (1, 1, N, N)
    if attention == "eager":
        mask = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min)
    packed["attention_mask"] = mask
    return packed


def unpack_states(states: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """States (1, N, D) of a packed call in their rows again: (B, T, D), zero on padding."""
    rows = states.new_zeros(*keep.shape, states.shape[-1])
    return rows.masked_scatter(keep.unsqueeze(-1), states)
