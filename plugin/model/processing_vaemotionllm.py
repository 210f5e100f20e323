"""Processor of VAEmotionLLM: the backbone's own processor, plus audio."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData
from transformers.utils import cached_file, logging

from .audio_projector import (
    encoder_samples_per_position,
    num_placeholders,
    split_into_windows,
    tokens_in_window,
    window_samples,
)
from .checkpoint import hub_arguments
from .inputs import InputError
from .media_files import Limits, limits
from .media_sources import (
    RoundedLog10,
    called,
    is_file,
    local_source,
    media_of,
    read_image,
    read_video,
    to_waveform,
    video_arguments,
    with_video_audio,
)

AUDIO_TOKEN = "<|audio_pad|>"

logger = logging.get_logger(__name__)


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


class ModelInputs(BatchFeature):
    """Inputs of the model, as the processor returns them: by their type pipelines know how to batch them."""

    of_vaemotionllm = True


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
        max_pixels: most pixels of an image or frame that is accepted.
        max_clip_bytes: most bytes of the decoded frames of a video.
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
        max_pixels: int = Limits.max_pixels,
        max_clip_bytes: int = Limits.max_bytes,
        chat_template: str | None = None,
    ):
        self.vlm_processor_class = vlm_processor_class
        self.vlm_processor_kwargs = vlm_processor_kwargs or {}
        self.window_samples = window_samples
        self.samples_per_token = samples_per_token
        self.max_audio_s = max_audio_s
        self.num_frames = num_frames
        self.max_pixels = max_pixels
        self.max_clip_bytes = max_clip_bytes
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

        Raises:
            InputError: a backbone that takes no videos or has no chat template, an audio encoder of another type.
        """
        audio_config = AutoConfig.from_pretrained(audio)
        feature_extractor = AutoFeatureExtractor.from_pretrained(audio)
        backbone = AutoProcessor.from_pretrained(vlm)
        own = {"image_processor", "tokenizer", "video_processor", "processor_class", "auto_map", "chat_template"}
        takes_videos = getattr(backbone, "video_processor", None) is not None and hasattr(backbone, "video_token")
        if not takes_videos or getattr(backbone, "chat_template", None) is None:
            raise InputError(
                f"The processor of {vlm}, {type(backbone).__name__}, takes no videos or has no chat template; give a "
                "backbone with both, such as Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision."
            )
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
        files = ["processor_config.json", "tokenizer_config.json", "tokenizer.json"]
        if kwargs.get("chat_template") is None:
            files.append("chat_template.jinja")
        name, where = str(pretrained_model_name_or_path), hub_arguments(kwargs)
        for file in files:  # without one the library would fall back on something else in silence
            if cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where) is None:
                raise InputError(
                    f"{name} holds no {file}; the folder is incomplete: fetch or copy it again, or save the processor "
                    "into it."
                )
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    # ---- what transformers reads from a processor

    @property
    def audio_token(self) -> str:
        """The placeholder for an audio."""
        return AUDIO_TOKEN

    @property
    def image_token(self) -> str:
        """The backbone's placeholder for an image."""
        return self.vlm_processor.image_token

    @property
    def video_token(self) -> str:
        """The backbone's placeholder for a video."""
        return self.vlm_processor.video_token

    @property
    def sampling_rate(self) -> int:
        """Rate of the waveforms that the audio tower takes, in Hz."""
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

    @property
    def unused_input_names(self) -> list[str]:
        return self.vlm_processor.unused_input_names

    def _get_num_multimodal_tokens(self, image_sizes=None, video_sizes=None, audio_lengths=None, **kwargs):
        """Placeholders of media by their sizes, as serving engines need them.

        Args:
            image_sizes: (height, width) of each image.
            video_sizes: (frames, height, width) of each video.
            audio_lengths: samples of each audio at the tower's rate.

        Returns:
            `MultiModalData`.
        """
        sizes = {"image_sizes": image_sizes, "video_sizes": video_sizes}
        sizes = {name: given for name, given in sizes.items() if given is not None}
        data = self.vlm_processor._get_num_multimodal_tokens(**sizes, **kwargs) if sizes else MultiModalData()
        if audio_lengths is not None:
            data.num_audio_tokens = [
                num_placeholders(int(length), self.window_samples, self.samples_per_token) for length in audio_lengths
            ]
        return data

    # ---- texts and media in one call

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs):
        """Inputs for the model.

        Media are files (a path, a `file://` or `data:` URL, bytes) or decoded: PIL images, arrays, tensors. They come
        in the order of their placeholders, in one list or in a list for each text.

        Args:
            images: images.
            text: a text or several, with a placeholder token for each medium.
            videos: videos; of a file `num_frames` frames are taken (or `fps` a second, or all with
                `do_sample_frames=False`). Decoded frames, (frames, height, width, 3), are taken as they are unless one
                of these is given; `video_metadata` may state their rate.
            audio: audio of any rate and number of channels: (samples,), (channels, samples), (samples, channels), or
                {"array": samples, "sampling_rate": Hz}.
            **kwargs: what the backbone's processor takes: `padding`, `padding_side`, `return_tensors`, `num_frames`,
                `text_kwargs`, ...; `sampling_rate` in Hz of the samples that come without one, the tower's if not
                given; and `audio_kwargs={"truncation": True}`, which cuts audio longer than `max_audio_s`.

        Returns:
            `ModelInputs`; with audio they also hold `input_features` (W, ...) and `audio_num_tokens` (W,).

        Raises:
            InputError: an argument that is not known, a medium that cannot be used, audio longer than `max_audio_s`.
                It names the medium.
            ValueError: a number of media that differs from the placeholders'.
        """
        return ModelInputs(super().__call__(images, text, videos, audio, **kwargs))

    def apply_chat_template(self, conversation, *args, load_audio_from_video: bool = False, **kwargs):
        """A conversation, or several, as text or as inputs for the model; see `ProcessorMixin.apply_chat_template`.

        Media items hold what `__call__` takes, under their kind, `url`, `path`, `bytes` or `base64`; an audio item may
        have a `sampling_rate` of its own. Of a video item with `use_audio_in_video` the audio is used as well, as if
        an audio item with the same file followed it. An audio item without a source after such a video marks the place
        of its audio. A video without an audio track gives no audio tokens.

        Args:
            conversation: messages, or a list of conversations.
            load_audio_from_video: whether the audio is used of videos whose item does not state it.
            **kwargs: as in `ProcessorMixin.apply_chat_template`.
        """
        conversations, is_batched = self._normalize_conversations(conversation)
        conversations = with_video_audio(conversations, load_audio_from_video)
        conversation = conversations if is_batched else conversations[0]
        return super().apply_chat_template(conversation, *args, **kwargs)

    def count_tokens(self, inputs: Mapping[str, Any]) -> list[dict[str, int]]:
        """How many tokens of each modality the samples of a batch have.

        Args:
            inputs: what the processor returned: `input_ids` (B, T), and `attention_mask` where there is padding.

        Returns:
            For each sample {"text", "image", "video", "audio"}, whose sum is its length without padding. Audio counts
            the two boundary tokens of each window as well; tokens that frame an image or a video are text. A video
            whose audio was to be used and that has none shows as `audio` 0.
        """
        vlm = self.vlm_processor
        ids = {"image": vlm.image_token_id, "video": vlm.video_token_id, "audio": self.audio_token_id}
        tokens = torch.as_tensor(inputs["input_ids"])
        mask = torch.as_tensor(inputs.get("attention_mask", torch.ones_like(tokens))).bool()
        found = []
        for row in (row[kept] for row, kept in zip(tokens, mask, strict=True)):
            counts = {kind: int((row == token_id).sum()) for kind, token_id in ids.items()}
            found.append({"text": len(row) - sum(counts.values()), **counts})
        return found

    # ---- media by themselves, and batches of them

    def limits(self):
        """The context in which files are decoded: within `max_pixels` and `max_clip_bytes`."""
        return limits(max_pixels=self.max_pixels, max_bytes=self.max_clip_bytes)

    def encode_audio(
        self, waveform, sampling_rate: int | None = None, truncation: bool = False, name: str = "the audio"
    ) -> MediaFeatures:
        """Features of one audio, and the placeholders that stand for it.

        Args:
            waveform: a file or samples, as `__call__` takes them.
            sampling_rate: rate of samples that come without one, in Hz; `self.sampling_rate` if not given.
            truncation: whether to cut what is longer than `max_audio_s`, which is logged once.
            name: what errors call it.
        """
        waveform = local_source(waveform, name)
        name = called(name, waveform) if is_file(waveform) else name
        with self.limits():
            waveform, dropped_s = to_waveform(
                waveform, sampling_rate, self.sampling_rate, self.max_audio_s, truncation=truncation, name=name
            )
        if dropped_s:
            logger.warning_once(f"Audio is cut to max_audio_s, {self.max_audio_s:g} s; not logged again.")
        windows = np.split(waveform, range(self.window_samples, len(waveform), self.window_samples))
        # Kaldi's filter banks need one frame of 25 ms; what is shorter is filled up with silence.
        shortest = self.sampling_rate * 25 // 1000
        windows = [np.pad(window, (0, max(0, shortest - len(window)))) for window in windows]
        with RoundedLog10():
            extracted = self.feature_extractor(windows, sampling_rate=self.sampling_rate, return_tensors="pt")
        features = extracted.get("input_features", extracted.get("input_values"))
        tokens = [
            tokens_in_window(samples, self.samples_per_token)
            for samples in split_into_windows(len(waveform), self.window_samples)
        ]
        return MediaFeatures(
            kind="audio",
            placeholder=AUDIO_TOKEN,
            replacement=AUDIO_TOKEN * num_placeholders(len(waveform), self.window_samples, self.samples_per_token),
            inputs={"input_features": features, "audio_num_tokens": torch.tensor(tokens)},
        )

    def encode_image(self, image) -> MediaFeatures:
        """Features of one PIL image, and the placeholders that stand for it."""
        with _refusals("the image"):
            inputs, (replacement,) = self._process_images([image], **self._vlm_arguments("images_kwargs"))
        return MediaFeatures("image", self.image_token, replacement, _tensors(inputs))

    def encode_video(self, frames: np.ndarray, fps: float, indices: Sequence[int]) -> MediaFeatures:
        """Features of one video.

        Args:
            frames: uint8 (F, H, W, 3), already chosen.
            fps: frames a second of the file.
            indices: (F,) number of each frame in the file.
        """
        arguments = self._vlm_arguments("videos_kwargs", **video_arguments([(frames, fps, indices)]))
        with _refusals("the video"):
            inputs, (replacement,) = self.vlm_processor._process_videos([frames], **arguments)
        return MediaFeatures("video", self.video_token, replacement, _tensors(inputs))

    def encode_media(self, kind: str, source) -> MediaFeatures:
        """Features of one image, video or audio, as `__call__` and `apply_chat_template` give them.

        Args:
            kind: "image", "video" or "audio".
            source: as `__call__` takes it.
        """
        name = f"the {kind}"
        if kind == "audio":
            return self.encode_audio(source, name=name)
        if kind == "image":
            with self.limits():
                image = read_image(source, name)
            return self.encode_image(image)
        if kind == "video":
            with self.limits():
                video = read_video(source, name, self.num_frames)
            return self.encode_video(*video)
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
        replacements: dict[str, list[str]] = {"image": [], "video": [], "audio": []}
        for medium in media:
            replacements[medium.kind].append(medium.replacement)
        for kind, given in replacements.items():
            token = getattr(self, f"{kind}_token")
            held = sum(text.count(token) for text in texts)
            if held != len(given):
                raise InputError(
                    f"The texts hold {held} {kind} placeholders ({token}) and {len(given)} {kind} inputs were given; "
                    "there must be as many of the one as of the other."
                )
        texts, _ = self.get_text_with_replacements(list(texts), *replacements.values())
        inputs = self.tokenizer(texts, **{"padding": True, "return_tensors": "pt", **tokenizer_kwargs})
        if self.vlm_processor.return_mm_token_type_ids:
            token_types = self.create_mm_token_type_ids(inputs["input_ids"].tolist())
            inputs["mm_token_type_ids"] = torch.tensor(token_types)
        return ModelInputs({**inputs, **_join_inputs(media)})

    # ---- what `ProcessorMixin` calls: text, images and videos are the backbone's affair

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Files are read here: the library's own loaders download, and need torchcodec."""
        for kind, media in (("image", images), ("video", videos), ("audio", audio)):
            self._check_rows(kind, [text] if isinstance(text, str) else text or [], media)
        with self.limits():
            images = _images(images)
        images, text, videos, _ = self.vlm_processor.prepare_inputs_layout(images, text, videos, **kwargs)
        videos = None if videos is None else _in_a_row(videos, _is_frame)
        return images, text, videos, None if audio is None else _in_a_row(audio)

    def _check_rows(self, kind: str, texts: Sequence[str], media: Any) -> None:
        """Media in a list for each text belong to that text; the library compares their sum alone."""
        rows, token = (
            _rows(media, _is_frame if kind == "video" else lambda medium: False),
            getattr(self, f"{kind}_token"),
        )
        for n, (text, row) in enumerate(zip(texts, rows)) if len(rows) == len(texts) else ():
            if text.count(token) != len(row):
                raise InputError(
                    f"Text {n} holds {text.count(token)} {kind} placeholders ({token}) and its list {len(row)} {kind} "
                    "inputs; there must be as many of the one as of the other."
                )

    def validate_inputs(self, videos=None, **kwargs):
        """Videos are only counted: they are read when it is known which frames are wanted."""
        super().validate_inputs(videos=None if videos is None else ["video"] * len(videos), **kwargs)

    def _process_images(self, images, **kwargs):
        with _refusals("an image"):
            return self.vlm_processor._process_images(images, **kwargs)

    def _process_videos(self, videos, num_frames=None, fps=None, do_sample_frames=None, video_metadata=None, **kwargs):
        """Features of videos, whose frames are chosen here."""
        about = [None] * len(videos) if video_metadata is None else _in_a_row(video_metadata)
        if len(about) != len(videos):
            raise InputError(f"video_metadata has {len(about)} entries for {len(videos)} videos; give one for each.")
        with self.limits():
            chosen = [
                read_video(video, f"video {n}", self.num_frames, num_frames, fps, do_sample_frames, metadata)
                for n, (video, metadata) in enumerate(zip(videos, about, strict=True))
            ]
        frames = [frames for frames, _, _ in chosen]
        with _refusals("a video"):
            return self.vlm_processor._process_videos(frames, **kwargs, **video_arguments(chosen))

    def _process_audio(self, audio, **kwargs):
        encoded = [self.encode_audio(medium, **kwargs, name=f"audio {n}") for n, medium in enumerate(audio)]
        return _join_inputs(encoded), [medium.replacement for medium in encoded]

    def create_mm_token_type_ids(self, input_ids):
        return self.vlm_processor.create_mm_token_type_ids(input_ids)

    def _merge_kwargs(self, *args, audio_kwargs=None, sampling_rate=None, **kwargs):
        """Arguments by modality: the backbone's with its defaults, and ours of the audio."""
        merged = self.vlm_processor._merge_kwargs(*args, **kwargs)
        known = {"common_kwargs", "tokenizer_init_kwargs", *merged}
        known.update(*(part for part in merged.values() if isinstance(part, dict)))
        if unknown := sorted(set(kwargs) - known):
            # The library warns once and runs without it: a `sampling_rate` that was mistyped would change the audio.
            raise InputError(f"{type(self).__name__} has no argument {', '.join(map(repr, unknown))}.")
        audio_kwargs = dict(audio_kwargs or {})
        if sampling_rate is not None and audio_kwargs.setdefault("sampling_rate", sampling_rate) != sampling_rate:
            raise InputError("sampling_rate was given twice, in audio_kwargs and beside it; give it once.")
        return {**merged, "audio_kwargs": audio_kwargs}

    def _vlm_arguments(self, kind: str, **kwargs) -> dict:
        """What the backbone's processor would hand to one of its parts, its own defaults included."""
        kwargs |= {"tokenizer_init_kwargs": self.tokenizer.init_kwargs, "return_tensors": "pt"}
        return self._merge_kwargs(**kwargs)[kind]

    def _multimodal_inputs_from_conversations(self, conversations, audio_loading_params, load_audio_from_video=False):
        media = media_of(conversations)
        return media["image"], media["video"], [audio for row in media["audio"] for audio in row], {}


def _in_a_row(media: Any, is_part: Callable[[Any], bool] = lambda medium: False) -> list:
    """The media of a call, which may come alone, in a list, or in a list for each text.

    `is_part` says of an object whether a list of such ones is one medium.
    """
    if not isinstance(media, (list, tuple)) or (media and is_part(media[0])):
        return [media]
    rows = _rows(media, is_part)
    return [medium for row in rows for medium in row] if rows else list(media)


def _rows(media: Any, is_part: Callable[[Any], bool]) -> Sequence[Sequence]:
    """The media of a call where they come in a list for each text, else nothing."""
    nested = isinstance(media, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in media)
    return media if nested and not any(row and is_part(row[0]) for row in media) else ()


def _is_frame(medium: Any) -> bool:
    """Whether it can be a frame of a video, and no video."""
    return isinstance(medium, Image.Image) or (hasattr(medium, "shape") and np.ndim(medium) in (2, 3))


@contextlib.contextmanager
def _refusals(name: str):
    """What the backbone's processor refuses, such as a ratio of the sides, is an error of the input."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{name} cannot be used by this backbone: {error}") from error


def _images(images: Any) -> Any:
    """The images of a call, read, in the form in which they were given: some backbones tile a single one alone."""
    if isinstance(images, (list, tuple)):
        return [_images(image) for image in images]
    return None if images is None else read_image(images, "the image")


def _tensors(inputs) -> dict[str, torch.Tensor]:
    """The inputs that the model takes: all but the lists that only help to make the text."""
    return {
        key: torch.as_tensor(value) for key, value in inputs.items() if key not in ("video_metadata", "rows", "cols")
    }


def _join_inputs(media: Sequence[MediaFeatures]) -> dict[str, torch.Tensor]:
    """Rows of several media as one input each, in order."""
    names = dict.fromkeys(name for item in media for name in item.inputs)
    return {name: torch.cat([item.inputs[name] for item in media if name in item.inputs]) for name in names}


VAEmotionLLMProcessor.register_for_auto_class()
