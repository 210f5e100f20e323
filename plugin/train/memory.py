"""Memory of stage 1 on one GPU: weights, gradients and optimizer in each ZeRO stage, and an estimate of activations.

Weights, gradients and optimizer follow from the numbers of parameters (ZeRO, arXiv 1910.02054): in mixed precision 2
bytes a weight, and for what is trained 2 bytes a gradient and 12 for the fp32 copy and Adam's two moments.

Activations are an estimate in bytes of what autograd keeps for the backward pass through a frozen LLM in bf16. A
frozen linear layer needs its weight and not its input; kept are, for each token and layer:

- 4 bytes a channel for the fp32 copy in each RMS norm (two over the hidden states, and those over query and key in
  Qwen3-VL);
- query, key, value and output of the attention, keys and values repeated for each query head where the attention is
  sdpa with a mask (a padded batch), and the mask once a layer;
- input and output of the MLP's activation and what it is multiplied with.

Beside them: the projector's inputs, an audio tower's where it is trained, the loss's buffers and the working set of
the layer that runs. With gradient checkpointing one layer's worth is kept, and the input of each other. Not counted
are fragmentation, CUDA's context and communication buffers: the plan keeps a reserve for them.
"""

from dataclasses import dataclass

from ..model.configuration_vaemotionllm import VAEmotionLLMConfig
from .chunked_divergence import held_bytes
from .flops import InputSizes, tower_length

GIB = 2**30
BF16, FP32 = 2, 4  # bytes
ADAM = 3 * FP32  # bytes a trained weight: fp32 copy and two moments

# Gathered weights that ZeRO-3 may keep at once: stage3_max_live_parameters in configs/deepspeed/zero3.json.
MAX_LIVE_PARAMETERS = 1_000_000_000


STAGES = ("0", "1", "2", "3", "3, frozen weights whole")


@dataclass(frozen=True)
class StateBytes:
    """Bytes on one GPU, whatever the batch. `gathered` is the sharded weights that are whole for a moment."""

    weights: int
    gathered: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gathered + self.gradients + self.optimizer


def state_bytes(trainable: int, frozen: int, gpus: int, stage: str) -> StateBytes:
    """Weights, gradients and optimizer on one of `gpus` GPUs.

    Args:
        trainable, frozen: numbers of parameters.
        gpus: GPUs over which ZeRO spreads.
        stage: one of `STAGES`; "0" is training without ZeRO. Without DeepSpeed trained weights and gradients are fp32
            and there is no second copy: the same 16 bytes.
    """
    share = lambda count: -(-count // gpus)
    sharded = {"3": trainable + frozen, "3, frozen weights whole": trainable}.get(stage, 0)
    whole = trainable + frozen - sharded
    return StateBytes(
        weights=BF16 * (whole + share(sharded)),
        gathered=BF16 * min(sharded - share(sharded), MAX_LIVE_PARAMETERS),
        gradients=BF16 * (share(trainable) if stage not in ("0", "1") else trainable),
        optimizer=ADAM * (share(trainable) if stage != "0" else trainable),
    )


@dataclass(frozen=True)
class ActivationBytes:
    """Bytes that depend on the batch. `saved` is kept from forward to backward, `working` lives for one layer."""

    saved: int
    working: int
    loss: int

    @property
    def total(self) -> int:
        return self.saved + self.working + self.loss


def activation_bytes(
    config: VAEmotionLLMConfig,
    student: InputSizes,
    teacher: InputSizes | None,
    response_tokens: int,
    trains_tower: bool = False,
    activation_checkpointing: bool = False,
    attention: str = "sdpa",
) -> ActivationBytes:
    """Estimate for one micro-batch of stage 1 in bf16; see the head of the file for what it counts.

    Args:
        config: the model's config.
        student, teacher: sizes of what the two are given; teacher None where it comes from a cache.
        response_tokens: target tokens of the micro-batch.
        trains_tower: whether the audio tower is trained.
        activation_checkpointing: whether only the inputs of layers are kept.
        attention: "eager", a name with "flash" (kernels that need no mask and do not repeat keys), or else sdpa.
    """
    text = config.get_text_config()
    tokens = sum(student.row_tokens)
    layer = sum(llm_layer_bytes(text, length, attention) for length in student.row_tokens)
    layers = text.num_hidden_layers
    kept = layers * BF16 * text.hidden_size * tokens + layer if activation_checkpointing else layers * layer
    saved = kept + FP32 * text.hidden_size * tokens  # the final norm
    saved += projector_bytes(config) * student.projector_tokens
    if trains_tower:
        saved += tower_bytes(config.audio_config, activation_checkpointing) * student.tower_windows
    vision, audio = config.vlm_config.vision_config, config.audio_config
    visual = max(_patches(student), _patches(teacher) if teacher else 0)
    width = text.hidden_size
    # What runs without a graph holds one layer at a time, before or after what is saved.
    working = max(
        _layer_working(width, text.intermediate_size) * max(tokens, sum(teacher.row_tokens) if teacher else 0),
        _layer_working(vision.hidden_size, vision.intermediate_size) * visual,
        _layer_working(audio.hidden_size, _ffn(audio)) * tower_length(audio) * student.tower_windows,
    )
    loss = held_bytes(response_tokens, text.vocab_size, "cuda", half_precision=True)
    loss += (2 * BF16 + FP32) * width * response_tokens  # states of both, gradient of the student's
    return ActivationBytes(saved, working, loss)


def llm_layer_bytes(text, length: int, attention: str = "sdpa") -> int:
    """Bytes that autograd keeps of one layer of a frozen LLM for one row of `length` tokens."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    norms = FP32 * 2 * text.hidden_size
    if text.model_type.startswith("qwen3"):  # norms over query and key
        norms += FP32 * (queries + keys)
    pairs = 0
    if attention == "eager":
        # The product with the keys needs query and key, the product with the values needs weights and values; the
        # softmax runs in fp32 and keeps its result.
        states, pairs = 3 * queries, text.num_attention_heads * (FP32 + BF16)
    elif "flash" in attention:
        states = 2 * queries + 2 * keys
    else:
        states, pairs = 4 * queries, BF16
    mlp = 3 * text.intermediate_size
    return length * (norms + BF16 * (states + mlp)) + length * length * pairs


def projector_bytes(config: VAEmotionLLMConfig) -> int:
    """Bytes that autograd keeps of the projector for one audio token: inputs of norm, linear layers, activation."""
    stacked = config.audio_config.hidden_size * config.projector_stride
    hidden = config.projector_hidden_size or config.get_text_config().hidden_size
    return BF16 * (2 * stacked + 2 * hidden)


def tower_bytes(audio, activation_checkpointing: bool) -> int:
    """Bytes that autograd keeps of a trained audio tower for one window.

    Of a layer 9 hidden states and 2 of its MLP; beside the layers what the convolutions and their activations need,
    and the state before the last norm.
    """
    width, length = audio.hidden_size, tower_length(audio)
    if audio.model_type == "whisper":  # the first convolution's frames are twice as many
        front = length * (2 * audio.num_mel_bins + 6 * width)
    else:
        front = audio.num_mel_bins * audio.max_length + length * width
    layer = tower_layer_bytes(audio)
    layers = audio.num_hidden_layers
    kept = layers * BF16 * length * width + layer if activation_checkpointing else layers * layer
    return BF16 * front + kept


def tower_layer_bytes(audio) -> int:
    """Bytes that autograd keeps of one layer of a trained audio tower for one window."""
    return BF16 * tower_length(audio) * (9 * audio.hidden_size + 2 * _ffn(audio))


def kv_cache_bytes(text, tokens: int) -> int:
    """Keys and values of `tokens` tokens in all layers, bf16: what generation keeps."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * BF16 * text.num_hidden_layers * text.num_key_value_heads * head * tokens


def _layer_working(width: int, ffn: int) -> int:
    """Bytes a token of the tensors that are alive at once inside a layer: residual, norm in fp32, three of the MLP."""
    return BF16 * (2 * width + 3 * ffn) + FP32 * width


def _patches(sizes: InputSizes) -> int:
    return sum(frames * rows * columns for frames, rows, columns in sizes.grids)


def _ffn(audio) -> int:
    return getattr(audio, "encoder_ffn_dim", None) or audio.intermediate_size
