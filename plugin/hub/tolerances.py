"""How far a model may be from its recording, by dtype and attention backend. All values are ours.

A recording is made in float32 on a CPU with eager attention. What is computed elsewhere adds in another order, and in
half precision rounds each product: the unit roundoff is 6e-8 in float32, 5e-4 in float16 and 4e-3 in bfloat16. Through
the layers of an LLM that grows to some units, or some tens of them, at the worst of the recorded logits, relative to
their spread. `vaemotionllm verify` prints the largest difference; for the model of the demo it is about a tenth of the
tolerances of half precision, and a hundredth of that of float32, with eager and with sdpa attention on a CPU. The rest
is for deeper models and for the kernels of other devices. It hides small changes, which the files' hashes show.
"""

from ..utils import InputError

DTYPES = ("float32", "float16", "bfloat16")
# Fused kernels order their sums by blocks of their own, and keep what eager attention rounds in between.
_EXACT, _FUSED = ("eager", "sdpa"), ("flash_attention_2", "flash_attention_3", "flex_attention")
ATTENTION = (*_EXACT, *_FUSED)
_BY_DTYPE = {"float32": 2e-4, "float16": 0.04, "bfloat16": 0.3}
_FUSED_FACTOR = 1.5
# Of the Supervisor's readings: they are means over tokens, squeezed into [-1, 1].
READINGS_SHARE = 0.25
# FlashAttention has no kernels for float32.
TOLERANCES = {
    dtype: {
        attention: value * (_FUSED_FACTOR if attention in _FUSED else 1.0)
        for attention in ATTENTION
        if not (dtype == "float32" and attention.startswith("flash"))
    }
    for dtype, value in _BY_DTYPE.items()
}
# Between processor and recording, in the units of the features. One grey level of 255, divided by the standard
# deviation of the pixels (0.22 and more), is at most 0.018: a decoder or a resize of another version may round the
# other way. Log-mel energies are float32 sums over a window.
PROCESSOR = {"image": 0.02, "video": 0.02, "audio": 1e-3}
# Share of the recorded answers that must come again. An answer turns where two letters are about equally probable.
ANSWERS = {"float32": 0.98, "float16": 0.95, "bfloat16": 0.9}


def tolerance_of(dtype: str, attention: str) -> float:
    """The tolerance of logits, relative to the spread (the standard deviation over the vocabulary) of the recorded.

    Args:
        dtype: one of `DTYPES`.
        attention: one of `ATTENTION`, as transformers names them.

    Raises:
        InputError: an unknown name, or FlashAttention in float32.
    """
    if dtype not in DTYPES:
        raise InputError(f"the dtype is {dtype!r}; allowed are {', '.join(DTYPES)}.")
    if attention not in ATTENTION:
        raise InputError(f"the attention backend is {attention!r}; allowed are {', '.join(ATTENTION)}.")
    if attention not in TOLERANCES[dtype]:
        raise InputError(f"{attention} has no kernels for {dtype}; give --dtype bfloat16 or float16, or sdpa.")
    return TOLERANCES[dtype][attention]
