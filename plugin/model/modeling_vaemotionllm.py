"""VAEmotionLLM: a transformers vision-language model with audio and emotion added to it."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils import TransformersKwargs, can_return_tuple

from .audio_projector import AudioProjector, check_audio_tower
from .checkpoint import commit_of, load_checkpoint, without_backbone
from .configuration_vaemotionllm import EMOTION_ADAPTER_FIELDS, VAEmotionLLMConfig, check_config_fields
from .emotion_adapter import EmotionAdapter, ZeroLinear
from .emotion_prediction import EmotionPrediction, predict_emotion
from .inputs import MODALITIES, InputError
from .media_injection import HostInputs, MediaInjection, flat_positions
from .processing_vaemotionllm import add_audio_token
from .transformers_api import CACHE, check_transformers, given_cache

check_transformers()


class ModalityOutput(NamedTuple):
    """What the Supervisor gives for one modality: (B,) valence and arousal, (B, K) logits or None; see `of`."""

    valence: torch.Tensor
    arousal: torch.Tensor
    emotion_logits: torch.Tensor | None


@dataclass
class VAEmotionLLMOutput(ModelOutput):
    """Output of [`VAEmotionLLMForConditionalGeneration`].

    Args:
        loss: scalar, next-token loss where `labels` were given.
        logits: (B, T, V), or (N, V) at the positions of `response_mask` where one was given; None with `response_fn`.
        response: what `response_fn` returned, where one was given.
        valence: (B, 3) float32 in [-1, 1], columns audio, visual, audio-visual; NaN where the sample lacks the
            modality. None with the adapter off. `of` gives a column by its name.
        arousal: (B, 3), likewise.
        emotion_logits: (B, 3, K) float32 logits of `config.emotion_labels`, likewise; None without labels.
        cache, hidden_states, attentions: the backbone's. The cache is `past_key_values` as well, by its older name.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    response: object | None = None
    cache: object | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    valence: torch.Tensor | None = None
    arousal: torch.Tensor | None = None
    emotion_logits: torch.Tensor | None = None

    if CACHE != "cache":

        @property
        def past_key_values(self):
            return self.cache

    def of(self, modality: str) -> ModalityOutput:
        """Valence, arousal and emotion logits of one modality.

        Args:
            modality: "audio", "visual" or "av".

        Raises:
            ValueError: another modality, or an output that was made with the adapter off.
        """
        if modality not in MODALITIES:
            raise ValueError(f"{modality!r} is no modality; allowed are {', '.join(map(repr, MODALITIES))}.")
        if self.valence is None or self.arousal is None:
            raise ValueError("the output holds no emotion: the adapter was off. Call the model with use_adapter=True.")
        column, logits = MODALITIES.index(modality), self.emotion_logits
        return ModalityOutput(
            self.valence[:, column], self.arousal[:, column], None if logits is None else logits[:, column]
        )


class VAEmotionLLMForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A vision-language model with audio and emotion.

    `vlm` is a complete transformers image-text-to-text model and is called as it is: audio tokens and the Enhancer's
    residual enter at the input of its decoder. With no audio in the input and the adapter off nothing of ours runs,
    and the logits are the backbone's, bit for bit.

    Args:
        config: the configuration.
        vlm: backbone to use instead of a new one made from `config.vlm_config`.
        audio_tower: encoder to use instead of a new one made from `config.audio_config`.
    """

    config_class = VAEmotionLLMConfig
    base_model_prefix = "vlm"
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "audio", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = [CACHE]
    # Small and sensitive: not rounded to float16, and what quantizers leave as it is.
    _keep_in_fp32_modules = ["audio_projector", "emotion_adapter"]

    def __init__(self, config: VAEmotionLLMConfig, vlm: PreTrainedModel | None = None, audio_tower=None):
        super().__init__(config)
        # The same, unless somebody set the latter.
        setattr(config.vlm_config, "tie_word_embeddings", config.tie_word_embeddings)  # noqa: B010
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config) if vlm is None else vlm
        self.audio_tower = _new_audio_tower(config.audio_config) if audio_tower is None else audio_tower
        self.audio_projector = AudioProjector(config)
        self.emotion_adapter = EmotionAdapter(config)
        self._no_split_modules = list(self.vlm._no_split_modules or []) + list(
            self.audio_tower._no_split_modules or []
        )
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        vlm: str | PreTrainedModel,
        audio: str,
        dtype="auto",
        attn_implementation: str | None = None,
        **config_fields,
    ):
        """Adds an audio encoder to a vision-language model: loads both, makes a new projector and a new EmoAdapter.

        Args:
            vlm: folder or Hub name of any image-text-to-text model of transformers, or such a model that was loaded
                already, in 4 bits for example. Its folder or name is then taken from it, for the tokenizer.
            audio: folder or Hub name of a Whisper or Audio Spectrogram Transformer model; its encoder is used.
            dtype: dtype of the weights, as in `from_pretrained`; a loaded model keeps its own, which holds for the
                other parts as well.
            attn_implementation: attention backend, as in `from_pretrained`; a loaded model keeps its own.
            **config_fields: fields of [`VAEmotionLLMConfig`], such as `projector_stride`.

        Returns:
            The model. Its processor is `VAEmotionLLMProcessor.from_backbone(vlm, audio)` with the same
            `projector_stride`, and with the backbone's name as `vlm`.

        Raises:
            ValueError: a field that does not exist, or a value of a wrong type.
            InputError: an audio encoder of another type.
        """
        check_config_fields(config_fields)
        audio_config = AutoConfig.from_pretrained(audio)
        check_audio_tower(audio_config)
        backbone = vlm if isinstance(vlm, PreTrainedModel) else None
        name = str(vlm) if backbone is None else backbone.name_or_path
        revision = commit_of(name) if backbone is None else getattr(backbone.config, "_commit_hash", None)
        pinned = {} if revision is None else {"revision": revision}
        tokenizer = AutoTokenizer.from_pretrained(name, **pinned)
        if backbone is None:
            backbone = AutoModelForImageTextToText.from_pretrained(
                name, dtype=dtype, attn_implementation=attn_implementation, use_safetensors=True, **pinned
            )
        tower = _encoder_of(
            AutoModel.from_pretrained(
                audio, dtype=backbone.dtype, attn_implementation=attn_implementation, use_safetensors=True
            )
        )
        config = cls.config_class(
            vlm_config=backbone.config,
            audio_config=audio_config,
            audio_token_id=add_audio_token(tokenizer),
            dtype=backbone.dtype,
            # A new config sets its own attention on the backbone's, which is a part of it: None would mean eager.
            attn_implementation=backbone.config._attn_implementation,
            backbone_name=name,
            backbone_revision=revision,
            **config_fields,
        )
        model = cls(config, vlm=backbone, audio_tower=tower)
        # Not the backbone: its float32 buffers stay what they are, and quantized weights cannot be cast.
        for part in (model.audio_tower, model.audio_projector, model.emotion_adapter):
            part.to(device=backbone.device, dtype=backbone.dtype)
        model.generation_config = backbone.generation_config
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As of every transformers model; weights that are cut off, altered, absent or left at random are an error.

        Of a folder that was saved with `audio_only` the backbone's weights are fetched by the name and the revision
        in its config, with this call's `token`, `cache_dir`, `local_files_only`, ...; `backbone_name` and
        `backbone_revision` may be given here where they have moved. dtype, device_map and the like hold for the whole.

        Returns:
            The model in evaluation mode; with `output_loading_info=True` also the library's report of what was
            missing, unexpected or mismatched.

        Raises:
            InputError: weights that cannot be read, that lack a part of the model, or whose backbone cannot be fetched
                or is another one.
            OSError: the name, its revision or a file of it cannot be found.
        """
        with_info = kwargs.pop("output_loading_info", False)
        if pretrained_model_name_or_path is None:  # the caller has the weights in hand
            return super().from_pretrained(None, *model_args, output_loading_info=with_info, **kwargs)
        loaded = load_checkpoint(cls, super().from_pretrained, pretrained_model_name_or_path, *model_args, **kwargs)
        return loaded if with_info else loaded[0]

    def save_pretrained(self, save_directory, *args, audio_only: bool = False, **kwargs):
        """Saves weights, config and this code, so that the folder loads by `AutoModel` with or without the package.

        Args:
            save_directory: the folder.
            audio_only: leave out the backbone's weights, which are then fetched at loading by `config.backbone_name`
                and `config.backbone_revision`. They are compared with those first, bit by bit.
            *args, **kwargs: as of every transformers model.

        Raises:
            InputError: a backbone that was quantized on its own; with `audio_only`, one that is not known, cannot be
                read, or was changed.
        """
        adapted = getattr(self, "_hf_peft_config_loaded", False)  # then the adapter alone is saved
        if getattr(self.vlm, "is_quantized", False) and not getattr(self, "is_quantized", False) and not adapted:
            raise InputError(
                "the backbone was quantized before the model was made of it, and such weights could not be loaded "
                "again. Save what was trained as a PEFT adapter, or make the model of the backbone's name."
            )
        name = f"{__name__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        models = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **dict.fromkeys(models, name)}
        if not audio_only:
            return super().save_pretrained(save_directory, *args, **kwargs)
        weights, fingerprint = without_backbone(self, kwargs.pop("state_dict", None) or self.state_dict())
        self.config.backbone_included, self.config.backbone_fingerprint = False, fingerprint
        try:
            super().save_pretrained(save_directory, *args, state_dict=weights, **kwargs)
        finally:
            self.config.backbone_included, self.config.backbone_fingerprint = True, None

    @classmethod
    def is_custom_code(cls) -> bool:
        # Custom code's initialisation passes modules without weights of their own by, such as Whisper's encoder, which
        # makes the sinusoids of a module below it. That is for code that overwrites loaded weights; this does not.
        # Under ZeRO-3 Whisper could not make them: what was loaded has a shape of nothing there.
        return is_deepspeed_zero3_enabled()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, AudioProjector):
            init.normal_(module.boundary, std=self.config.get_text_config().initializer_range)

    def reset_emotion_adapter(self, **config_fields) -> None:
        """Makes a new EmoAdapter, untrained, in another form; a calibration goes.

        Args:
            **config_fields: fields of [`VAEmotionLLMConfig`] that begin with `enhancer_` or `supervisor_`.

        Raises:
            ValueError: another field, or a value that is not allowed.
        """
        check_config_fields(config_fields, EMOTION_ADAPTER_FIELDS)
        changed = {**self.config.to_dict(), **config_fields, "emotion_calibration": None}
        config = type(self.config).from_dict(changed)  # which checks the layers against the backbone's
        old = next(self.emotion_adapter.parameters())
        self.emotion_adapter = EmotionAdapter(config).to(old)
        self.emotion_adapter.apply(self._init_weights)
        for name in (*config_fields, "emotion_calibration"):
            setattr(self.config, name, getattr(config, name))

    def set_emotion_labels(self, labels: list[str] | None) -> None:
        """Makes the Supervisor give probabilities for these labels, in this order; None for no label.

        All else stays as it is, the heads of labels that stay too; those of new ones start untrained, and a
        calibration goes. Labels that are there already in this order change nothing.

        Raises:
            ValueError: fewer than two, or the same twice.
        """
        if labels == self.config.emotion_labels:
            return
        config = type(self.config).from_dict({**self.config.to_dict(), "emotion_labels": labels})  # which checks them
        supervisor = self.emotion_adapter.supervisor
        heads = type(supervisor)(config).labels
        if labels is not None:
            heads.to(next(supervisor.parameters())).apply(self._init_weights)
            before = self.config.emotion_labels or []
            to = [number for number, label in enumerate(labels) if label in before]
            of = [before.index(labels[number]) for number in to]
            for head, old in zip(heads, supervisor.labels or (), strict=False):
                with torch.no_grad():
                    head.weight[to], head.bias[to] = old.weight[of], old.bias[of]
        supervisor.labels = heads
        self.config.emotion_labels, self.config.emotion_calibration = labels, None

    def get_output_embeddings(self) -> nn.Module:
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module):
        self.vlm.set_output_embeddings(value)

    def enable_input_require_grads(self):
        """Makes the LLM's input embeddings require gradients: what gradient checkpointing needs.

        The library's own does so for every inner model. Frozen towers would then keep their activations and run a
        backward pass, for a gradient that nobody reads.
        """
        hook = self.get_input_embeddings().register_forward_hook(
            lambda module, args, output: output.requires_grad_(True)
        )
        self._require_grads_hooks, self._require_grads_hook = [hook], hook

    def get_audio_states(self, input_features: torch.Tensor) -> torch.Tensor:
        """States of the audio tower over time.

        Args:
            input_features: (W, n_mels, frames) for Whisper, (W, frames, n_mels) for AST; one row a window.

        Returns:
            (W, L, D_audio).
        """
        return self._states_over_time(self.audio_tower(input_features.to(self.audio_tower.dtype)).last_hidden_state)

    def _states_over_time(self, states: torch.Tensor) -> torch.Tensor:
        if self.config.audio_config.model_type == "audio-spectrogram-transformer":
            # Two special tokens, then a grid of frequency by time: frequencies are averaged, time stays.
            mels, audio = self.config.audio_config.num_mel_bins, self.config.audio_config
            rows = (mels - audio.patch_size) // audio.frequency_stride + 1
            grid = states[:, 2:]  # (W, rows * columns, D)
            states = grid.reshape(grid.shape[0], rows, -1, grid.shape[-1]).mean(1)  # (W, columns, D)
        return states

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None,
        audio_num_tokens: torch.Tensor,
        audio_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> BaseModelOutputWithPooling:
        """Embeddings of the audio placeholders, as transformers' models give those of each modality.

        Args:
            input_features: see `get_audio_states`; None where the states are given.
            audio_num_tokens: (W,) integer, audio tokens of each window without its boundary tokens.
            audio_states: (M, projector_stride * D_audio), the tower's states stacked to tokens, windows in a row
                (`AudioProjector.stack`): given in place of `input_features` where a frozen tower's states are known.
            **kwargs: for the audio tower, such as `output_hidden_states`.

        Returns:
            `pooler_output` (N, D_llm), the embeddings in the order of the placeholders; and of the audio tower, where
            it ran, `last_hidden_state` (W, L, D_audio), `hidden_states` and `attentions`.
        """
        output = BaseModelOutputWithPooling()
        if audio_states is None:
            assert input_features is not None  # one of the two
            tower = self.audio_tower(input_features.to(self.audio_tower.dtype), **kwargs)
            output = BaseModelOutputWithPooling(
                last_hidden_state=tower.last_hidden_state,
                hidden_states=tower.hidden_states,
                attentions=tower.attentions,
            )
            audio_states = self.audio_projector.stack(
                self._states_over_time(tower.last_hidden_state), audio_num_tokens
            )
        output.pooler_output = self.audio_projector(audio_states, audio_num_tokens)
        return output

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_num_tokens: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        response_mask: torch.Tensor | None = None,
        response_fn: Callable[[torch.Tensor, nn.Module], object] | None = None,
        audio_states: torch.Tensor | None = None,
        packing: bool = False,
        use_adapter: bool | None = None,
        host: HostInputs | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> VAEmotionLLMOutput:
        r"""One pass over a batch that may mix audio-only, visual-only, audio-visual and text-only samples.

        Args:
            input_ids: (B, T) int64, as the processor gave them.
            attention_mask: (B, T), 0 on padding.
            inputs_embeds: (B, T, D), the tokens' embeddings in place of `input_ids`, or beside them where the backbone
                takes both. Without ids, the embedding of a placeholder marks where media are.
            input_features: audio features of all windows in the batch, see `get_audio_features`.
            audio_num_tokens: (W,) audio tokens of each window.
            labels: (B, T) int64, -100 where no loss is wanted; shifted inside. Not with `response_mask`.
            response_mask: (B, T) bool. Where given, `logits` is (N, V): what the model predicts for the marked tokens,
                row by row. The head then runs on those positions only.
            response_fn: called with the states (N, D) that predict the marked tokens and with the head, in place of
                the head; what it returns is the output's `response`. It runs inside this forward because an engine
                that shards parameters (ZeRO-3) has the head's weights in hand only here.
            audio_states: the audio tower's states in place of `input_features`, see `get_audio_features`.
            packing: run the decoder on the tokens alone, without the padding; for training, with `response_mask`. It
                pays with FlashAttention, see `pack_decoder_inputs`.
            use_adapter: whether EmoAdapter takes part; `config.adapter_enabled` if not given.
            host: CPU copies of ids, masks and counts; without them the host waits for the device to read them.
            **kwargs: everything that the backbone's forward takes (`pixel_values`, `image_grid_thw`, ...).

        Raises:
            ValueError: audio features and placeholders do not match.
        """
        host = host or HostInputs(input_ids, attention_mask, response_mask, audio_num_tokens)
        injection = self._prepare_injection(
            host.input_ids, input_features, host.audio_num_tokens, use_adapter, audio_states, inputs_embeds
        )
        if packing:
            if host.response_mask is None or host.attention_mask is None:
                raise ValueError("packing needs a response_mask and an attention_mask.")
            if injection is None:
                nowhere = torch.zeros_like(host.attention_mask, dtype=torch.bool)
                injection = MediaInjection(nowhere, nowhere, None, None)
            injection.packed = host.attention_mask.bool()
        ids = self._backbone_ids(input_ids)
        inputs = {"input_ids": ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds, **kwargs}
        logits = loss = response = None
        with self._entered(injection):
            if (response_fn if host.response_mask is None else labels) is not None:
                raise ValueError(
                    "response_fn needs a response_mask, which says where it looks; labels are not given with one, for "
                    "the loss is then the caller's."
                )
            if host.response_mask is None:
                output = self.vlm(**inputs, labels=labels)
                logits, loss = output.logits, output.loss
            else:
                output = self.vlm.base_model(**{"use_cache": False, **inputs})
                # The state at t - 1 predicts the token at t.
                before = nn.functional.pad(host.response_mask[:, 1:], (0, 1))  # (B, T)
                predicting = output[0].flatten(0, 1)[flat_positions(before, output[0].device)]  # (N, D)
                if response_fn is None:
                    logits = self.get_output_embeddings()(predicting)
                else:
                    response = response_fn(predicting, self.get_output_embeddings())
        return VAEmotionLLMOutput(
            loss=loss,
            logits=logits,
            response=response,
            cache=output.get(CACHE),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            **self._emotion(injection),
        )

    @property
    def suppressed_tokens(self) -> list[int]:
        """For `generate(suppress_tokens=...)`: what the generation config suppresses, and the placeholders of media,
        which would be taken for media that nobody gave as soon as a response is read again."""
        chosen = getattr(self.generation_config, "suppress_tokens", None) or ()
        return sorted({*chosen, *self.config.media_token_ids})

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_num_tokens: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        use_adapter: bool | None = None,
        **kwargs,
    ):
        """`generate` of the backbone, with audio and the adapter; takes what `forward` and the backbone's take.

        The audio is encoded once and enters in the prefill. To resume from a `cache`, give the whole
        conversation's ids, or the new ones with the whole conversation's `attention_mask`, and the new media alone;
        the Enhancer takes in those alone too. With `return_dict_in_generate=True` and the adapter on the
        result also has `valence`, `arousal` (B, 3) and `emotion_logits` (B, 3, K), as `forward` gives them for the
        prompt.
        """
        if self.generation_config is not None:
            self.vlm.generation_config = self.generation_config
        input_ids = kwargs.pop("inputs", None) if input_ids is None else input_ids
        if isinstance(assistant := kwargs.get("assistant_model"), VAEmotionLLMForConditionalGeneration):
            kwargs["assistant_model"] = assistant.vlm  # it proposes, and this model, which has the media, decides
        cached = _cached_length(input_ids, given_cache(kwargs), **kwargs)
        injection = self._prepare_injection(
            None if input_ids is None else input_ids[:, cached:],
            input_features,
            audio_num_tokens,
            use_adapter,
            audio_states,
            None if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"][:, cached:],
        )
        if injection is not None:
            self._check_passes(kwargs)
        backbone_ids = self._backbone_ids(input_ids)
        with self._entered(injection):
            generated = self.vlm.generate(input_ids=backbone_ids, **kwargs)
        if backbone_ids is not input_ids:
            sequences = generated if isinstance(generated, torch.Tensor) else generated.sequences
            assert input_ids is not None  # only ids can hold placeholders
            copies = sequences.shape[0] // input_ids.shape[0]
            sequences[:, : input_ids.shape[1]] = input_ids.repeat_interleave(copies, dim=0)
        if isinstance(generated, ModelOutput):
            for name, value in self._emotion(injection).items():
                generated[name] = value
        return generated

    def predict_emotion(
        self,
        clips: Mapping[str, object] | Sequence[Mapping[str, object]],
        processor,
        batch_size: int = 16,
    ) -> list[EmotionPrediction]:
        """The emotion of one clip or of several, on each modality that they carry.

        Each prediction comes from its own media alone: that of audio sees no image. A clip with audio and visual goes
        through the model three times.

        Args:
            clips: a clip or a list of clips, each a mapping with `audio`, with `image` or `video`, or with `audio` and
                one of the two. Values are files (paths or bytes) or `MediaFeatures` of the processor; an audio may be
                float32 (samples,) at `processor.sampling_rate`, an image a PIL image.
            processor: the processor saved with this model.
            batch_size: clips that go through the model at a time.

        Returns:
            A prediction for each clip: valence, arousal, probabilities of `config.emotion_labels`, intervals where the
            model is calibrated (`vaemotionllm calibrate`), and how far audio and visual disagree.

        Raises:
            InputError: a clip without media or with too many, a file that cannot be decoded, a model whose Supervisor
                was never trained.
        """
        return predict_emotion(self, processor, clips, batch_size)

    def _check_passes(self, generate_options: Mapping) -> None:
        """Refuses ways to generate in which a pass over the prompt would lack what the media need."""
        config = generate_options.get("generation_config") or self.generation_config
        for name in ("prefill_chunk_size", "assistant_early_exit", "assistant_model"):
            value = generate_options.get(name, getattr(config, name, None))
            if value is self.vlm or (value is not None and name != "assistant_model"):
                raise ValueError(
                    f"{name} was given, but the decoder takes audio and the adapter once, and whole: leave it out, "
                    "give another model as the assistant, or generate without audio and with use_adapter=False."
                )

    def _entered(self, injection: MediaInjection | None):
        return contextlib.nullcontext() if injection is None else injection.entered(self.vlm.get_decoder())

    def _backbone_ids(self, input_ids: torch.Tensor | None) -> torch.Tensor | None:
        """The ids that the backbone may look up: an audio placeholder beyond its vocabulary becomes id 0."""
        if input_ids is None or self.config.audio_token_id < self.config.get_text_config().vocab_size:
            return input_ids
        return input_ids.masked_fill(input_ids == self.config.audio_token_id, 0)

    def _prepare_injection(
        self, input_ids, input_features, audio_num_tokens, use_adapter, audio_states=None, inputs_embeds=None
    ) -> MediaInjection | None:
        use_adapter = self.config.adapter_enabled if use_adapter is None else use_adapter
        without_audio = input_features is None and audio_states is None
        if without_audio and not use_adapter:
            # Placeholders without features must not pass as ordinary tokens.
            if input_ids is not None and bool((input_ids == self.config.audio_token_id).any()):
                raise ValueError("input_ids hold audio placeholders but no input_features were given.")
            return None
        if input_ids is None and inputs_embeds is None:
            if without_audio:
                return None  # the backbone says what it lacks, or begins a text of its own
            raise ValueError("Audio needs input_ids, which hold its placeholders; none were given.")
        audio_mask, visual_mask = self._media_masks(input_ids, inputs_embeds)
        audio_embeds = None
        if not without_audio:
            audio_embeds = self.get_audio_features(
                input_features, audio_num_tokens, audio_states, return_dict=True
            ).pooler_output
        found, given = int(audio_mask.sum()), 0 if audio_embeds is None else audio_embeds.shape[0]
        if found != given:
            raise ValueError(
                f"input_ids hold {found} audio placeholders, but the audio features give {given} embeddings. Make "
                "both with one call of the processor that was saved with this model; to resume from a cache, give the "
                "new audio alone."
            )
        enhancers = self.emotion_adapter.enhancers if use_adapter else None
        return MediaInjection(audio_mask, visual_mask, audio_embeds, enhancers)

    def _media_masks(self, input_ids, inputs_embeds) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of the audio and the visual tokens, (B, T) bool each; by the placeholders' embeddings without ids."""
        audio, visual = self.config.audio_token_id, self.config.visual_token_ids
        if input_ids is not None:
            return input_ids == audio, torch.isin(input_ids, torch.tensor(visual, device=input_ids.device))
        table, size = self.get_input_embeddings(), self.config.get_text_config().vocab_size

        def positions_of(token_ids: list[int]) -> torch.Tensor:
            known = torch.tensor([i for i in token_ids if i < size], dtype=torch.long, device=inputs_embeds.device)
            return (inputs_embeds.unsqueeze(2) == table(known)).all(-1).any(-1)  # (B, T, n, D) -> (B, T)

        return positions_of([audio]), positions_of(visual)

    def _emotion(self, injection: MediaInjection | None) -> dict[str, torch.Tensor | None]:
        """What the Supervisor gives after a call; nothing with the adapter off."""
        if injection is None or injection.enhancers is None:
            return {}
        states = injection.last_hidden_state
        copies = states.shape[0] // injection.audio_mask.shape[0]
        masks = (mask.to(states.device, non_blocking=True) for mask in (injection.audio_mask, injection.visual_mask))
        valence, arousal, logits = self.emotion_adapter.supervisor(states[::copies], *masks)
        return {"valence": valence, "arousal": arousal, "emotion_logits": logits}


def _new_audio_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A new audio encoder. Whisper's is made without its decoder, which is as large and would be thrown away."""
    if config.model_type == "whisper":
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return WhisperEncoder._from_config(config)  # what AutoModel.from_config calls
    return _encoder_of(AutoModel.from_config(config))


def _encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The audio encoder of a loaded model: Whisper's encoder half, or the model itself."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _cached_length(input_ids, given, attention_mask=None, inputs_embeds=None, **_) -> int:
    """Tokens at the front of a prompt that a given cache holds, as `generate` of transformers understands it."""
    if given is None or given.get_seq_length() == 0:
        return 0
    if inputs_embeds is None and attention_mask is not None and attention_mask.shape[1] != input_ids.shape[1]:
        return 0  # the mask is that of the whole conversation: the ids are the new ones
    return int(given.get_seq_length())


VAEmotionLLMForConditionalGeneration.register_for_auto_class("AutoModel")
