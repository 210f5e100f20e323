"""Processor of VAEmotionLLM: the backbone's own processor, plus audio."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoProcessor,
    BatchFeature,
    GenerationConfig,
    ProcessorMixin,
    processing_utils,
)
from transformers.processing_utils import MultiModalData, ProcessingKwargs, Unpack

from .audio_projector import (
    check_audio_tower,
    encoder_samples_per_position,
    num_placeholders,
    split_into_windows,
    tokens_in_window,
    window_samples,
)
from .checkpoint import check_files, hub_arguments
from .inputs import InputError
from .media_sources import (
    AUDIO_IN_VIDEO,
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

# What a call may say about the choice of frames: the backbone's processor gets frames that are chosen.
_FRAME_ARGUMENTS = ("num_frames", "fps", "do_sample_frames", "video_metadata")
# What precedes a control token that `sanitize_control_tokens` found in a user's words, which is no placeholder.
_MARK = getattr(processing_utils, "_CONTROL_TOKEN_START", None)

logger = logging.getLogger(__name__)


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


class VAEmotionLLMAudioKwargs(TypedDict, total=False):
    """Arguments of a call about its audio, also as `audio_kwargs`.

    Args:
        sampling_rate: rate in Hz of the samples that come without one; the tower's if not given.
        truncation: whether audio longer than the processor's `max_audio_s` is cut instead of refused. It counts in
            `audio_kwargs` alone: beside it, `truncation` is the text's.
        return_tensors: "pt" or "np", for audio alone; where there is text, its `return_tensors` counts.
    """

    sampling_rate: int | None
    truncation: bool | None
    return_tensors: str | None


class VAEmotionLLMProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Arguments of a call of [`VAEmotionLLMProcessor`], beside what all processors of transformers know.

    Args:
        audio_kwargs: see [`VAEmotionLLMAudioKwargs`].
    """

    audio_kwargs: VAEmotionLLMAudioKwargs


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

    valid_processor_kwargs = VAEmotionLLMProcessorKwargs

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
        self._cut_was_logged = False
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
        check_audio_tower(audio_config)
        feature_extractor = AutoFeatureExtractor.from_pretrained(audio)
        backbone = AutoProcessor.from_pretrained(vlm)
        own = {"image_processor", "tokenizer", "video_processor", "processor_class", "auto_map", "chat_template"}
        if getattr(backbone, "video_processor", None) is None or not hasattr(backbone, "video_token"):
            raise InputError(
                f"The processor of {vlm}, {type(backbone).__name__}, takes no videos; give a backbone that takes "
                "images and videos, such as Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision."
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
        files = ["processor_config.json", "tokenizer_config.json", "tokenizer.json"]
        if kwargs.get("chat_template") is None:
            files.append("chat_template.jinja")
        remedy = "the folder is incomplete: fetch or copy it again, or save the processor into it"
        check_files(pretrained_model_name_or_path, files, remedy, **hub_arguments(kwargs))
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """Saves the parts, the chat template and this code; see `ProcessorMixin.save_pretrained`."""
        # Where the code is, for `trust_remote_code`, is written into each part as well; kept there, it would make this
        # processor differ from the one that is loaded.
        parts = [vars(part) for part in (self, self.image_processor, self.video_processor, self.feature_extractor)]
        before = [part.get("auto_map") for part in parts]
        try:
            return super().save_pretrained(save_directory, **kwargs)
        finally:
            for part, auto_map in zip(parts, before, strict=True):
                part.pop("auto_map", None)
                if auto_map is not None:
                    part["auto_map"] = auto_map

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

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens: bool = True, **kwargs):
        """Texts of generated ids (B, T), as the backbone's processor decodes them."""
        return self.vlm_processor.post_process_image_text_to_text(
            generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
        )

    # ---- texts and media in one call

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Unpack[VAEmotionLLMProcessorKwargs],
    ) -> BatchFeature:
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
            **kwargs: what [`VAEmotionLLMProcessorKwargs`] has: `sampling_rate`, `padding`, `padding_side`,
                `return_tensors`, `num_frames`, `audio_kwargs`, `text_kwargs`, ...

        Returns:
            `ModelInputs`; with audio they also hold `input_features` (W, ...) and `audio_num_tokens` (W,).
            `count_tokens` gives the number of tokens that each medium became.

        Raises:
            InputError: an argument that is not known, a medium that cannot be used, audio longer than `max_audio_s`, a
                number of media that differs from the placeholders'. It names the sample and the medium.
        """
        if images is None and text is None and videos is None and audio is None:
            raise InputError("Nothing was given; give at least one of text, images, videos and audio.")
        vlm = self.vlm_processor
        merged = self._checked_arguments(vlm, kwargs)
        texts = None if text is None else [text] if isinstance(text, str) else list(text)
        if texts is not None and not all(isinstance(sample, str) for sample in texts):
            raise InputError("text must be a string or a list of strings.")
        placed = _placed_media(texts, {"image": images, "video": videos, "audio": audio}, self._placeholders(vlm))

        # Beside `audio_kwargs`, `truncation` is the text's.
        truncation = bool((kwargs.get("audio_kwargs") or {}).get("truncation"))
        sampling_rate = merged["audio_kwargs"].get("sampling_rate")
        encoded = [self.encode_audio(medium, sampling_rate, truncation, name) for medium, name in placed["audio"]]
        rest = {key: value for key, value in kwargs.items() if key not in ("audio_kwargs", "sampling_rate")}
        if videos is not None:
            rest, videos = self._chosen_frames(rest, placed["video"])
        if images is not None:
            images = _like(images, [read_image(medium, name) for medium, name in placed["image"]])
        if texts is None and images is None and videos is None:
            return ModelInputs(_join_inputs(encoded), tensor_type=merged["audio_kwargs"].get("return_tensors"))

        # Audio first, since the backbone's processor leaves its placeholders alone.
        offsets: list[list[dict]] = []
        if texts is not None:
            texts, offsets = self.get_text_with_replacements(texts, [], [], [audio.replacement for audio in encoded])
        inputs = vlm(images=images, text=None if texts is None else list(texts), videos=videos, **rest)
        if texts is not None:
            self._check_special_mm_tokens(texts, inputs, modalities=["audio"])
        if "text_replacement_offsets" in inputs and encoded:
            later = inputs["text_replacement_offsets"] or [[] for _ in offsets]
            inputs["text_replacement_offsets"] = [_both(*changes) for changes in zip(offsets, later, strict=True)]
        tensor_type = merged["text_kwargs"].get("return_tensors")
        return ModelInputs({**inputs, **BatchFeature(_join_inputs(encoded), tensor_type=tensor_type)})

    def apply_chat_template(self, conversation, *args, processor_kwargs: dict | None = None, **kwargs):
        """A conversation, or several, as text or as inputs for the model; see `ProcessorMixin.apply_chat_template`.

        Media items hold what `__call__` takes, under their kind, `url`, `path`, `bytes` or `base64`; an audio item may
        have a `sampling_rate` of its own. Of a video item with `use_audio_in_video` the audio is used as well, as if
        an audio item with the same file followed it; `use_audio_in_video=True` here holds for all items that do not
        state it, and `load_audio_from_video` is the same by its name in transformers. An audio item without a source
        after such a video marks the place of its audio. A video without an audio track gives no audio tokens.

        Args:
            conversation: messages, or a list of conversations.
            processor_kwargs: arguments of `__call__`.
            **kwargs: as in `ProcessorMixin.apply_chat_template`.
        """
        processor_kwargs = dict(processor_kwargs or {})
        given = [
            source.pop(name) for source in (kwargs, processor_kwargs) for name in AUDIO_IN_VIDEO if name in source
        ]
        if any(answer not in (True, False, None) for answer in given):
            raise InputError(
                f"{AUDIO_IN_VIDEO[0]} is {given}; allowed are True and False. For single videos state it in their "
                f'item: {{"type": "video", "path": FILE, "{AUDIO_IN_VIDEO[0]}": True}}.'
            )
        conversations, is_batched = self._normalize_conversations(conversation)
        conversations = with_video_audio(conversations, use_audio=any(given))
        conversation = conversations if is_batched else conversations[0]
        return super().apply_chat_template(conversation, *args, processor_kwargs=processor_kwargs, **kwargs)

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
        masks = inputs.get("attention_mask")
        found = []
        for row, sample in enumerate(inputs["input_ids"]):
            tokens = torch.as_tensor(sample)
            if masks is not None:
                tokens = tokens[torch.as_tensor(masks[row]).bool()]
            counts = {kind: int((tokens == token_id).sum()) for kind, token_id in ids.items()}
            found.append({"text": len(tokens) - sum(counts.values()), **counts})
        return found

    # ---- media by themselves, and batches of them

    def encode_audio(
        self, waveform, sampling_rate: int | None = None, truncation: bool = False, name: str = "the audio"
    ) -> MediaFeatures:
        """Features of one audio, and the placeholders that stand for it.

        Args:
            waveform: a file or samples, as `__call__` takes them.
            sampling_rate: rate of samples that come without one, in Hz; `self.sampling_rate` if not given.
            truncation: whether to cut what is longer than `max_audio_s`; the first cut is logged.
            name: what errors call it.
        """
        waveform = local_source(waveform, name)
        name = called(name, waveform) if is_file(waveform) else name
        waveform, dropped_s = to_waveform(
            waveform, sampling_rate, self.sampling_rate, self.max_audio_s, truncation=truncation, name=name
        )
        if dropped_s and not self._cut_was_logged:
            self._cut_was_logged = True
            logger.warning(
                "%s: the last %.1f s were cut off, since max_audio_s is %g. Later cuts are not logged.",
                name,
                dropped_s,
                self.max_audio_s,
            )
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
            indices: (F,) number of each frame in the file.
        """
        vlm = self.vlm_processor
        arguments = self._vlm_arguments(vlm, "videos_kwargs", **video_arguments([(frames, fps, indices)]))
        inputs, (replacement,) = vlm._process_videos([frames], **arguments)
        return MediaFeatures("video", vlm.video_token, replacement, _tensors(inputs))

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
            return self.encode_image(read_image(source, name))
        if kind == "video":
            return self.encode_video(*read_video(source, name, self.num_frames))
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
        vlm, texts = self.vlm_processor, list(texts)
        for kind, token in self._placeholders(vlm).items():
            replacements = [medium.replacement for medium in media if medium.kind == kind]
            split = [_split(text, token) for text in texts]
            _check_counts(kind, token, [len(parts) - 1 for parts in split], len(replacements))
            rest = iter(replacements)
            texts = [parts[0] + "".join(next(rest) + part for part in parts[1:]) for parts in split]
        inputs = self.tokenizer(texts, **{"padding": True, "return_tensors": "pt", **tokenizer_kwargs})
        if vlm.return_mm_token_type_ids:
            token_types = vlm.create_mm_token_type_ids(inputs["input_ids"].tolist())
            inputs["mm_token_type_ids"] = torch.tensor(token_types)
        return ModelInputs({**inputs, **_join_inputs(media)})

    # ---- private

    @staticmethod
    def _placeholders(vlm: ProcessorMixin) -> dict[str, str]:
        """Kind -> placeholder token."""
        return {"image": vlm.image_token, "video": vlm.video_token, "audio": AUDIO_TOKEN}

    def _vlm_arguments(self, vlm: ProcessorMixin, kind: str, **arguments) -> dict:
        """What the backbone's processor would hand to one of its parts, its own defaults included."""
        merged = vlm._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, return_tensors="pt", **arguments)
        return merged[kind]

    def _checked_arguments(self, vlm: ProcessorMixin, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by modality; an InputError for one that is not known or has a wrong value.

        transformers warns once of an argument that it does not know and runs without it: a `sampling_rate` that was
        mistyped would change the audio.
        """
        theirs = vlm.valid_processor_kwargs.__annotations__
        kinds = {
            "text_kwargs": (theirs["text_kwargs"],),
            "images_kwargs": (theirs["images_kwargs"], vlm.image_processor.valid_kwargs),
            "videos_kwargs": (theirs["videos_kwargs"], vlm.video_processor.valid_kwargs),
            "audio_kwargs": (VAEmotionLLMAudioKwargs,),
        }
        known = {"common_kwargs", *kinds, *theirs}
        for modality, of in kinds.items():
            inner = {name for kind in of for name in kind.__annotations__}
            _check_names(f"{modality} of {type(self).__name__}", kwargs.get(modality) or {}, inner)
            known |= inner
        _check_names(type(self).__name__, kwargs, known)
        if kwargs.get("sampling_rate") and (kwargs.get("audio_kwargs") or {}).get("sampling_rate"):
            raise InputError("sampling_rate was given twice, in audio_kwargs and beside it; give it once.")
        try:
            return self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        except (StrictDataclassError, TypeError) as error:
            raise InputError(f"The arguments cannot be used: {' '.join(str(error).split())}") from error

    def _chosen_frames(
        self, kwargs: Mapping[str, Any], videos: Sequence[tuple[Any, str]]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """A call's arguments for the backbone's processor, and its videos (with their names) as chosen frames."""
        nested = dict(kwargs.get("videos_kwargs") or {})
        rest: dict[str, Any] = {**kwargs, "videos_kwargs": nested}
        choice: dict[str, Any] = {}
        for source in (nested, rest):  # beside `videos_kwargs` counts more than in it
            choice |= {name: source.pop(name) for name in _FRAME_ARGUMENTS if name in source}
        about = choice.pop("video_metadata", None)
        rows = about if isinstance(about, (list, tuple)) else [about] * len(videos)
        about = [one for row in rows for one in (row if isinstance(row, (list, tuple)) else [row])]
        if len(about) != len(videos):
            raise InputError(f"video_metadata has {len(about)} entries for {len(videos)} videos; give one for each.")
        chosen = [
            read_video(video, name, self.num_frames, **choice, video_metadata=metadata)
            for (video, name), metadata in zip(videos, about, strict=True)
        ]
        return {**rest, **video_arguments(chosen)}, [frames for frames, _, _ in chosen]

    def _multimodal_inputs_from_conversations(self, conversations, audio_loading_params, load_audio_from_video=False):
        # The library's loaders need torchcodec or change with what is installed; `__call__` reads files by ours, which
        # give the same samples everywhere.
        media = media_of(conversations)
        return media["image"], media["video"], [audio for row in media["audio"] for audio in row], {}


def _check_names(of: str, given: Mapping[str, Any], known: set[str]) -> None:
    for name in given:
        if name not in known:
            close = ["audio"] if name == "audios" else difflib.get_close_matches(name, sorted(known), 1)
            if name in AUDIO_IN_VIDEO:
                hint = "it belongs to `apply_chat_template`, or to the video's item in the conversation."
            elif hasattr(GenerationConfig(), name):
                hint = "it belongs to `generate`, in a pipeline to its `generate_kwargs`."
            elif close:
                hint = f"did you mean {close[0]!r}?"
            else:
                hint = f"neither it nor the chat template knows it. Known are {', '.join(sorted(known))}."
            raise InputError(f"{of}: there is no argument {name!r}; {hint}")


def _placed_media(
    texts: Sequence[str] | None, given: Mapping[str, Any], tokens: Mapping[str, str]
) -> dict[str, list[tuple[Any, str]]]:
    """Kind -> the media of a call, each with what errors call it, by its placeholder's sample: "sample 1, audio 0"."""
    placed = {}
    for kind, media in given.items():
        rows, flat = _rows_of(media, kind)
        if texts is None:
            placed[kind] = [(medium, f"{kind} {number}") for number, medium in enumerate(flat)]
            continue
        counts = [len(_split(text, tokens[kind])) - 1 for text in texts]
        if rows is not None and len(rows) == len(counts) and rows != counts:
            row = next(row for row, (one, other) in enumerate(zip(rows, counts)) if one != other)
            raise InputError(
                f"sample {row}: its text holds {counts[row]} {kind} placeholders ({tokens[kind]}) and {rows[row]} "
                f"{kind} inputs were given for it; there must be as many of the one as of the other."
            )
        _check_counts(kind, tokens[kind], counts, len(flat))
        names = [f"sample {row}, {kind} {n}" for row, count in enumerate(counts) for n in range(count)]
        placed[kind] = list(zip(flat, names, strict=True))
    return placed


def _rows_of(media: Any, kind: str) -> tuple[list[int] | None, list]:
    """How many media each text has, where they come in a list for each, and all of them in a row."""
    if media is None:
        return None, []
    if not isinstance(media, (list, tuple)):
        # A batch in one array or tensor, or one medium.
        batched = {"image": 4, "video": 5}.get(kind, -1)
        return None, list(media) if getattr(media, "ndim", None) == batched else [media]
    is_part = {"video": _is_frame, "audio": _is_sample}.get(kind, lambda medium: False)
    if media and is_part(media[0]):
        return None, [media]  # one video as its frames, one audio as its samples
    if media and all(isinstance(row, (list, tuple)) for row in media):
        if any(row and is_part(row[0]) for row in media):
            return None, list(media)
        return [len(row) for row in media], [medium for row in media for medium in row]
    return None, list(media)


def _is_frame(medium: Any) -> bool:
    """Whether it can be a frame of a video, and no video."""
    return isinstance(medium, Image.Image) or (hasattr(medium, "shape") and np.ndim(medium) in (2, 3))


def _is_sample(value: Any) -> bool:
    return np.isscalar(value) and not isinstance(value, (str, bytes))


def _check_counts(kind: str, token: str, counts: Sequence[int], given: int) -> None:
    if sum(counts) != given:
        held = ", ".join(f"sample {row}: {count}" for row, count in enumerate(counts) if count) or "none"
        raise InputError(
            f"The text holds {sum(counts)} {kind} placeholders ({token}; {held}) and {given} {kind} inputs were "
            "given; there must be as many of the one as of the other."
        )


def _split(text: str, token: str) -> list[str]:
    """The text between the placeholders."""
    if not _MARK:
        return text.split(token)
    marked, stand_in = _MARK + token, _MARK + "\0"
    return [piece.replace(stand_in, marked) for piece in text.replace(marked, stand_in).split(token)]


def _both(first: list[dict], second: list[dict]) -> list[dict]:
    """The replacements of two rounds in a text as one: `span` before both, and `new_span` after both."""
    # By their position in the text between the rounds.
    changes = [(change["new_span"][0], True, change) for change in first]
    changes += [(change["span"][0], False, change) for change in second]
    found, gained = [], {True: 0, False: 0}  # characters that the text grew by in each round, up to here
    for begin, is_first, change in sorted(changes, key=lambda each: each[0]):
        length, new_length = len(change["text"]), len(change["replacement"])
        before, after = begin - gained[True], begin + gained[False]
        found.append({**change, "span": (before, before + length), "new_span": (after, after + new_length)})
        gained[is_first] += new_length - length
    return found


def _like(given: Any, flat: list) -> Any:
    """A flat list in the form of what was given: a list for each text, or one list."""
    if isinstance(given, (list, tuple)) and given and all(isinstance(row, (list, tuple)) for row in given):
        rest = iter(flat)
        return [[next(rest) for _ in row] for row in given]
    return flat


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
