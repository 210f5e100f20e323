"""Processor of VAEmotionLLM: the backbone's own processor, plus audio."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor, BatchFeature, ProcessorMixin

from .audio_lengths import (
    encoder_samples_per_position,
    num_placeholders,
    split_into_windows,
    tokens_in_window,
    window_samples,
)
from .input_error import InputError
from .media import load_audio, load_image, load_video
from .weight_files import HUB_ARGUMENTS, check_files

AUDIO_TOKEN = "<|audio_pad|>"

# Keys of a media item in a conversation that may hold the medium, in the order in which they are looked at.
_SOURCE_KEYS = {
    "image": ("image", "url", "path", "bytes"),
    "video": ("video", "url", "path", "bytes"),
    "audio": ("audio", "url", "path", "bytes"),
}


def add_audio_token(tokenizer) -> int:
    """Id of the audio placeholder, which is added to the tokenizer where it is not there yet."""
    if AUDIO_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AUDIO_TOKEN], special_tokens=True)
    return tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)


@dataclass(frozen=True)
class MediaFeatures:
    """One medium, ready for the model: what `encode_media` gives and `assemble` takes.

    Args:
        kind: "image", "video" or "audio".
        placeholder: the token that stands for it in a rendered conversation.
        replacement: what the token becomes: the placeholders of its embeddings.
        inputs: model inputs of this medium alone; rows of several media are joined along the first axis.
    """

    kind: str
    placeholder: str
    replacement: str
    inputs: dict[str, torch.Tensor]


class VAEmotionLLMProcessor(ProcessorMixin):
    r"""Turns text, images, videos and audio into the inputs of [`VAEmotionLLMForConditionalGeneration`].

    Args:
        image_processor, tokenizer, video_processor: those of the backbone.
        feature_extractor: that of the audio tower.
        vlm_processor_class: name of the backbone's processor class in transformers.
        vlm_processor_kwargs: its other arguments.
        window_samples: longest waveform, in samples, that the audio tower takes at once; longer audio is split.
        samples_per_token: waveform samples that one audio token stands for.
        max_audio_s: longest audio that is accepted, in seconds.
        num_frames: frames taken from a video file, evenly over its length.
        chat_template: Jinja template of the conversation.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        feature_extractor=None,
        vlm_processor_class: str = "Qwen2_5_VLProcessor",
        vlm_processor_kwargs: dict | None = None,
        window_samples: int = 480_000,
        samples_per_token: int = 1_280,
        max_audio_s: float = 300.0,
        num_frames: int = 8,
        chat_template: str | None = None,
    ):
        self.vlm_processor_class = vlm_processor_class
        self.vlm_processor_kwargs = vlm_processor_kwargs or {}
        self.window_samples = window_samples
        self.samples_per_token = samples_per_token
        self.max_audio_s = max_audio_s
        self.num_frames = num_frames
        self.audio_token_id = add_audio_token(tokenizer)
        super().__init__(image_processor, tokenizer, video_processor, feature_extractor, chat_template=chat_template)

    @classmethod
    def from_backbone(
        cls,
        vlm: str,
        audio: str,
        projector_stride: int = 4,
        max_audio_s: float = 300.0,
        num_frames: int = 8,
    ) -> "VAEmotionLLMProcessor":
        """The processor of `VAEmotionLLMForConditionalGeneration.from_backbone(vlm, audio)`.

        Args:
            vlm: folder or Hub name of the backbone.
            audio: folder or Hub name of the audio model.
            projector_stride: as in the model's config.
            max_audio_s, num_frames: see the class.
        """
        backbone = AutoProcessor.from_pretrained(vlm)
        feature_extractor = AutoFeatureExtractor.from_pretrained(audio)
        audio_config = AutoConfig.from_pretrained(audio)
        own = {"image_processor", "tokenizer", "video_processor", "processor_class", "auto_map", "chat_template"}
        if getattr(backbone, "video_processor", None) is None or not hasattr(backbone, "video_token"):
            raise InputError(
                f"The processor of {vlm}, {type(backbone).__name__}, takes no videos; give a backbone that sees "
                "pictures and videos, such as Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision."
            )
        if getattr(backbone, "chat_template", None) is None:
            raise InputError(f"The processor of {vlm} has no chat template; give the backbone one and save it.")
        preamble = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
        return cls(
            image_processor=backbone.image_processor,
            tokenizer=backbone.tokenizer,
            video_processor=backbone.video_processor,
            feature_extractor=feature_extractor,
            vlm_processor_class=type(backbone).__name__,
            vlm_processor_kwargs={key: value for key, value in backbone.to_dict().items() if key not in own},
            window_samples=window_samples(audio_config, feature_extractor),
            samples_per_token=encoder_samples_per_position(audio_config, feature_extractor) * projector_stride,
            max_audio_s=max_audio_s,
            num_frames=num_frames,
            chat_template=preamble + backbone.chat_template,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As of every processor of transformers; a file of it that is not there is an error.

        Raises:
            InputError: naming the file.
            OSError: the name, its revision or a file of the parts cannot be found.
        """
        where = {key: kwargs[key] for key in (*HUB_ARGUMENTS, "revision", "subfolder") if key in kwargs}
        files = ["processor_config.json", "tokenizer_config.json", "tokenizer.json"]
        if kwargs.get("chat_template") is None:
            files.append("chat_template.jinja")
        remedy = "the folder is incomplete: fetch or copy it again, or save the processor into it"
        check_files(pretrained_model_name_or_path, files, remedy, **where)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def audio_token(self) -> str:
        return AUDIO_TOKEN

    @property
    def sampling_rate(self) -> int:
        """Rate of the waveforms that the audio tower hears, in Hz."""
        return self.feature_extractor.sampling_rate

    @property
    def vlm_processor(self) -> ProcessorMixin:
        """The backbone's processor over the same tokenizer, image and video processors."""
        # Made at each use and never stored, so that replacing `processor.tokenizer` has its effect.
        return getattr(transformers, self.vlm_processor_class)(
            image_processor=self.image_processor,
            tokenizer=self.tokenizer,
            video_processor=self.video_processor,
            chat_template=self.chat_template,
            **self.vlm_processor_kwargs,
        )

    @property
    def model_input_names(self) -> list[str]:
        return [*self.vlm_processor.model_input_names, "input_features", "audio_num_tokens"]

    def __call__(self, images=None, text=None, videos=None, audio=None, sampling_rate: int | None = None, **kwargs):
        """Inputs for the model.

        Args:
            images, text, videos: as for the backbone's processor; a placeholder token in the text for each medium.
            audio: waveforms in the order of their placeholders: 1-D float arrays, or (channels, samples).
            sampling_rate: rate of `audio` in Hz, `self.sampling_rate` if not given; other rates are resampled.
            **kwargs: for the backbone's processor (`padding`, `padding_side`, `return_tensors`, `num_frames`, ...).

        Returns:
            `BatchFeature`; with audio it also holds `input_features` (W, ...) and `audio_num_tokens` (W,).

        Raises:
            InputError: empty or too long audio, or a number of waveforms that differs from the placeholders'.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        encoded = [self.encode_audio(waveform, sampling_rate) for waveform in _as_list(audio)]
        texts = _replace_placeholders(texts, encoded)
        inputs = self.vlm_processor(images=images, text=texts or None, videos=videos, **kwargs)
        features = _join_inputs(encoded)
        inputs.update(BatchFeature(features, tensor_type=kwargs.get("return_tensors")))
        return inputs

    def encode_audio(self, waveform, sampling_rate: int | None = None) -> MediaFeatures:
        """Features of one waveform, and the placeholders that stand for it."""
        waveform = self._prepare_waveform(waveform, sampling_rate)
        windows = np.split(waveform, range(self.window_samples, len(waveform), self.window_samples))
        # Kaldi's filter banks need one frame of 25 ms; what is shorter is filled up with silence.
        shortest = self.sampling_rate * 25 // 1000
        windows = [np.pad(window, (0, max(0, shortest - len(window)))) for window in windows]
        extracted = self.feature_extractor(windows, sampling_rate=self.sampling_rate, return_tensors="pt")
        features = extracted.get("input_features", extracted.get("input_values"))
        tokens = [
            tokens_in_window(samples, self.samples_per_token)
            for samples in split_into_windows(len(waveform), self.window_samples)
        ]
        placeholders = num_placeholders(len(waveform), self.window_samples, self.samples_per_token)
        return MediaFeatures(
            kind="audio",
            placeholder=AUDIO_TOKEN,
            replacement=AUDIO_TOKEN * placeholders,
            inputs={"input_features": features, "audio_num_tokens": torch.tensor(tokens)},
        )

    def encode_image(self, image) -> MediaFeatures:
        """Features of one PIL image, and the placeholders that stand for it."""
        vlm = self.vlm_processor
        arguments = self._vlm_arguments(vlm, "images_kwargs")
        inputs, (replacement,) = vlm._process_images([image], **arguments)
        return MediaFeatures("image", vlm.image_token, replacement, _tensors(inputs))

    def encode_video(self, frames: np.ndarray, fps: float, indices: Sequence[int]) -> MediaFeatures:
        """Features of one video.

        Args:
            frames: uint8 (F, H, W, 3), already chosen.
            fps: frames a second of the file.
            indices: (F,) place of each frame in the file.
        """
        vlm = self.vlm_processor
        arguments = self._vlm_arguments(vlm, "videos_kwargs", **video_arguments([(frames, fps, indices)]))
        inputs, (replacement,) = vlm._process_videos([frames], **arguments)
        return MediaFeatures("video", vlm.video_token, replacement, _tensors(inputs))

    def encode_media(self, kind: str, source) -> MediaFeatures:
        """Features of one image, video or audio file.

        Args:
            kind: "image", "video" or "audio".
            source: path or bytes of a file.
        """
        if kind == "audio":
            return self.encode_audio(load_audio(source, self.sampling_rate, max_s=self.max_audio_s))
        if kind == "image":
            return self.encode_image(load_image(source))
        if kind == "video":
            frames, metadata = load_video(source, self.num_frames)
            return self.encode_video(frames, metadata.fps, metadata.indices)
        raise InputError(f"{kind!r} is no kind of media; allowed are 'image', 'video' and 'audio'.")

    def assemble(self, texts: Sequence[str], media: Sequence[MediaFeatures], **tokenizer_kwargs) -> BatchFeature:
        """A batch from rendered conversations and media that were encoded before: the processor without its costs.

        Gives what `__call__` gives for the same media, as torch tensors.

        Args:
            texts: rendered conversations with one placeholder token for each medium.
            media: the media of all texts, in the order of their placeholders.
            **tokenizer_kwargs: for the tokenizer (`padding_side`, ...); padding is on.

        Raises:
            InputError: the texts' placeholders and the media do not match.
        """
        vlm = self.vlm_processor
        texts = _replace_placeholders(list(texts), media, vlm)
        inputs = self.tokenizer(texts, **{"padding": True, "return_tensors": "pt", **tokenizer_kwargs})
        if vlm.return_mm_token_type_ids:
            token_types = vlm.create_mm_token_type_ids(inputs["input_ids"].tolist())
            inputs["mm_token_type_ids"] = torch.tensor(token_types)
        return BatchFeature({**inputs, **_join_inputs(media)})

    def _vlm_arguments(self, vlm: ProcessorMixin, kind: str, **arguments) -> dict:
        """What the backbone's processor would hand to one of its parts, its own defaults included."""
        merged = vlm._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, return_tensors="pt", **arguments)
        return merged[kind]

    def _prepare_waveform(self, waveform, sampling_rate: int | None) -> np.ndarray:
        """Mono float32 at the tower's rate, checked."""
        waveform = np.asarray(waveform, dtype=np.float32)
        if waveform.ndim == 2 and waveform.shape[0] <= 8:
            waveform = waveform.mean(0)  # (channels, samples) -> (samples,)
        if waveform.ndim != 1 or waveform.size == 0:
            raise InputError(
                f"A waveform of shape {waveform.shape} was given; allowed are (samples,) and (channels, samples) with "
                "at least 1 sample and at most 8 channels."
            )
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            import torchaudio

            resampled = torchaudio.functional.resample(torch.from_numpy(waveform), sampling_rate, self.sampling_rate)
            waveform = resampled.numpy()
        seconds = len(waveform) / self.sampling_rate
        if seconds > self.max_audio_s:
            raise InputError(
                f"The audio is {seconds:.1f} s long, but max_audio_s is {self.max_audio_s:g}. Cut it, or raise "
                "`processor.max_audio_s`."
            )
        return waveform

    def _multimodal_inputs_from_conversations(self, conversations, audio_loading_params, load_audio_from_video=False):
        if load_audio_from_video:
            raise InputError(
                "load_audio_from_video is True, and a video item is only seen here; to hear it, add an item "
                '{"type": "audio", "path": FILE} with the same file.'
            )
        # The library's loaders need torchcodec or change with what is installed; ours give the same bytes everywhere.
        images, videos, audio = [], [], []
        for conversation in conversations:
            sources = {"image": [], "video": [], "audio": []}
            for message in conversation:
                content = message.get("content") or []
                for item in content if not isinstance(content, str) else []:
                    if item["type"] in sources:
                        keys = [key for key in _SOURCE_KEYS[item["type"]] if item.get(key) is not None]
                        sources[item["type"]] += [item[key] for key in keys[:1]]
            images.append([load_image(source) if _is_file(source) else source for source in sources["image"]])
            videos.append([self._load_video(source) for source in sources["video"]])
            audio += [
                load_audio(source, audio_loading_params["sampling_rate"], max_s=self.max_audio_s)
                if _is_file(source)
                else source
                for source in sources["audio"]
            ]
        loaded = [video for row in videos for video in row]
        frames = [[video[0] for video in row] for row in videos]
        return images, frames, audio, video_arguments(loaded) if loaded else {}

    def _load_video(self, source) -> tuple[np.ndarray, float, Sequence[int]]:
        if _is_file(source):
            frames, metadata = load_video(source, self.num_frames)
            return frames, metadata.fps, metadata.indices
        frames = np.asarray(source)  # (F, H, W, 3), taken as they are
        return frames, 24.0, range(len(frames))


def video_arguments(videos: Sequence[tuple[np.ndarray, float, Sequence[int]]]) -> dict:
    """Arguments that tell a processor about videos whose frames are already chosen: frames, fps, indices of each."""
    metadata = [
        {"fps": fps, "total_num_frames": int(max(indices)) + 1, "frames_indices": list(indices)}
        for _, fps, indices in videos
    ]
    return {"video_metadata": metadata, "do_sample_frames": False}


def _is_file(source) -> bool:
    return isinstance(source, (str, Path, bytes))


def _as_list(audio) -> list:
    if audio is None:
        return []
    if isinstance(audio, (list, tuple)) and not (len(audio) and np.isscalar(audio[0])):
        return list(audio)
    return [audio]


def _tensors(inputs) -> dict[str, torch.Tensor]:
    """The inputs that the model takes: all but the lists that only help to make the text."""
    return {
        key: torch.as_tensor(value) for key, value in inputs.items() if key not in ("video_metadata", "rows", "cols")
    }


def _join_inputs(media: Sequence[MediaFeatures]) -> dict[str, torch.Tensor]:
    """Rows of several media as one input each, in order."""
    names = dict.fromkeys(name for item in media for name in item.inputs)
    return {name: torch.cat([item.inputs[name] for item in media if name in item.inputs]) for name in names}


def _replace_placeholders(texts: list[str], media: Sequence[MediaFeatures], vlm=None) -> list[str]:
    """Texts in which each placeholder token became the placeholders of its medium's embeddings.

    Without `vlm` only audio is looked at; with it, images and videos as well.
    """
    kinds = {"audio": AUDIO_TOKEN}
    if vlm is not None:
        kinds |= {"image": vlm.image_token, "video": vlm.video_token}
    for kind, token in kinds.items():
        replacements = [item.replacement for item in media if item.kind == kind]
        found = sum(text.count(token) for text in texts)
        if found != len(replacements):
            raise InputError(
                f"The text holds {found} {kind} placeholders ({token}) and {len(replacements)} {kind} inputs were "
                "given; there must be as many of the one as of the other."
            )
        remaining = iter(replacements)
        texts = [
            "".join(part + (next(remaining) if more else "") for part, more in _pieces(text, token)) for text in texts
        ]
    return texts


def _pieces(text: str, token: str):
    """The pieces between the tokens, each with whether a token follows it."""
    parts = text.split(token)
    return [(part, position < len(parts) - 1) for position, part in enumerate(parts)]


VAEmotionLLMProcessor.register_for_auto_class()
