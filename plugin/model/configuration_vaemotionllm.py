"""Configuration of VAEmotionLLM."""

from collections.abc import Sequence
from dataclasses import field

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

FORMAT_VERSION = 1
"""Of the folders that this code writes; it reads this one and older ones. Raise it with any change of the files that
older code would misread."""

# What names of a backbone's special tokens begin with; `boi` and `eoi` are the ends of an image.
_MEDIA_NAMES = ("image", "video", "vision", "audio", "boi", "eoi", "boa", "eoa")


@strict
class VAEmotionLLMConfig(PreTrainedConfig):
    r"""Configuration of [`VAEmotionLLMForConditionalGeneration`].

    The paper (arXiv 2511.12077) does not state backbone, audio encoder, projector or the sizes of EmoAdapter: every
    default here is ours.

    Args:
        vlm_config: config of the image-text-to-text backbone (Qwen2.5-VL by default).
        audio_config: config of the audio encoder (Whisper by default; Audio Spectrogram Transformer works as well).
        audio_token_id: id of the placeholder for audio tokens in `input_ids`. It may lie beyond the backbone's
            vocabulary: its embedding is never read and its logit does not exist.
        projector_stride: encoder positions that become one audio token (4 of Whisper's make 80 ms).
        projector_hidden_size: width of the projector's hidden layer; the LLM's width if not given.
        projector_act: activation of the projector, a name that transformers knows.
        adapter_enabled: whether EmoAdapter takes part in `forward` and `generate` when the call does not say.
        enhancer_rank: rank of the Enhancer's residual.
        enhancer_context: whether the Enhancer takes in the mean of the other modality's tokens.
        enhancer_gate: whether each token's residual has a gate.
        enhancer_layers: where the residual enters, each position with weights of its own: 0 is before the LLM, k is
            at the input of its layer k (counted from 0). An empty list leaves the Enhancer out.
        supervisor_hidden_size: width of the hidden layer of the Supervisor's heads.
        emotion_labels: names that the Supervisor gives probabilities for; None leaves it at valence and arousal.
        emotion_calibration: what `vaemotionllm calibrate` fitted: temperatures, and half widths of intervals.
        format_version: of the saved folder; one without the field is of version 1.
        backbone_name: folder or Hub name of the backbone that the model was made from, where it is known.
        backbone_revision: its commit on the Hub.
        backbone_included: whether the saved weights hold the backbone's; where not, `from_pretrained` fetches those of
            `backbone_name` at `backbone_revision`.
        backbone_fingerprint: hash of names, shapes and some values of the weights that are to be fetched.

    Raises:
        ValueError: a value that is not allowed, or a newer format.
    """

    model_type = "vaemotionllm"
    sub_configs_defaults = {
        "vlm_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2_5_vl"),
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper"),
    }

    vlm_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    audio_token_id: int = 151665
    projector_stride: int = 4
    projector_hidden_size: int | None = None
    projector_act: str = "gelu"
    adapter_enabled: bool = True
    enhancer_rank: int = 64
    enhancer_context: bool = True
    enhancer_gate: bool = True
    enhancer_layers: list[int] = field(default_factory=lambda: [0])
    supervisor_hidden_size: int = 256
    emotion_labels: list[str] | None = None
    emotion_calibration: dict | None = None
    format_version: int = FORMAT_VERSION
    backbone_name: str | None = None
    backbone_revision: str | None = None
    backbone_included: bool = True
    backbone_fingerprint: str | None = None

    def __post_init__(self, **kwargs):
        if (kind := kwargs.get("model_type", self.model_type)) != self.model_type:
            raise ValueError(
                f"config.json is of a model of type {kind!r}, not {self.model_type!r}; "
                "VAEmotionLLMForConditionalGeneration.from_backbone adds an audio encoder to such a model."
            )
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"config.json is of format_version {self.format_version} and this code reads up to {FORMAT_VERSION}: "
                "upgrade with `pip install -U vaemotionllm`. Where the package is not installed, "
                "trust_remote_code=True runs the code that was saved beside the weights, which reads them."
            )
        self.format_version = FORMAT_VERSION  # of what is saved next
        backbone_given = self.vlm_config is not None
        super().__post_init__(**kwargs)
        for name in ("projector_stride", "enhancer_rank", "supervisor_hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        layers = getattr(self.vlm_config.get_text_config(), "num_hidden_layers", None) if backbone_given else None
        for layer in self.enhancer_layers:
            if layer < 0 or (layers is not None and layer >= layers) or self.enhancer_layers.count(layer) > 1:
                raise ValueError(
                    f"enhancer_layers is {self.enhancer_layers}; allowed are different numbers, from 0 (before the "
                    f"LLM) to {'that of its last layer' if layers is None else layers - 1}."
                )
        labels = self.emotion_labels
        if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels)):
            raise ValueError(f"emotion_labels is {labels}; at least two different names are needed, or None.")
        # Weight tying is the backbone's affair; the top-level flag must agree or loading would untie it.
        self.tie_word_embeddings = bool(getattr(self.vlm_config, "tie_word_embeddings", False))

    def get_text_config(self, decoder=None, encoder=None):
        return self.vlm_config.get_text_config(decoder=decoder, encoder=encoder)

    @property
    def visual_token_ids(self) -> list[int]:
        """Ids of the backbone's image and video placeholders."""
        names = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
        ids = (getattr(self.vlm_config, name, None) for name in names)
        return sorted({token_id for token_id in ids if token_id is not None})

    @property
    def media_token_ids(self) -> list[int]:
        """Ids that no response may hold: placeholders of image, video and audio, and what frames them in a prompt."""
        found = {self.audio_token_id}
        for name, value in vars(self.vlm_config).items():
            kind, _, rest = name.partition("_")
            if kind in _MEDIA_NAMES and rest.endswith(("token_id", "token_index")) and value is not None:
                found.update(value if isinstance(value, list) else [value])
        return sorted(found)


VAEmotionLLMConfig.register_for_auto_class()


def _fields(*starts: str) -> tuple[str, ...]:
    return tuple(name for name in VAEmotionLLMConfig.__annotations__ if name.startswith(starts))


# What the form of EmoAdapter hangs on, but for the Supervisor's labels.
EMOTION_ADAPTER_FIELDS = _fields("enhancer_", "supervisor_")
_NEW_MODEL_FIELDS = _fields("projector_", "adapter_", "enhancer_", "supervisor_", "emotion_labels")


def check_config_fields(fields: dict, allowed: Sequence[str] = _NEW_MODEL_FIELDS) -> None:
    """Checks the fields that a caller may choose; the library would take unknown names in silence.

    Args:
        fields: name -> value.
        allowed: names that may be chosen; if not given, those of a new model.

    Raises:
        ValueError: naming the field and what is allowed.
    """
    for name in fields:
        if name not in allowed:
            raise ValueError(f"{name!r} is no field to choose here; fields are {', '.join(allowed)}.")
    try:
        VAEmotionLLMConfig(**fields)
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from error
