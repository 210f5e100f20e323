"""Processor of VAEmotionLLM: the backbone's own processor, plus audio."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData, Unpack

from .audio_lengths import (
    encoder_samples_per_position,
    num_placeholders,
    split_into_windows,
    tokens_in_window,
    window_samples,
)
from .film_frames import choose_frames, frames_to_take, read_film, video_arguments
from .input_error import InputError
from .media_sources import (
    HEAR_FILM,
    as_media_item,
    called,
    has_sound,
    is_file,
    local_source,
    media_of,
    read_image,
    with_video_audio,
)
from .placeholders import Placed, composed_offsets, place_media, replace_placeholders, sound_after_films
from .processor_kwargs import VAEmotionLLMProcessorKwargs, check_call, one_each
from .waveforms import RoundedLog10, to_waveform
from .weight_files import HUB_ARGUMENTS, check_files

AUDIO_TOKEN = "<|audio_pad|>"

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
        self._cut_was_said = False
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
        """The placeholder for a sound."""
        return AUDIO_TOKEN

    @property
    def image_token(self) -> str:
        """The backbone's placeholder for a picture."""
        return self.vlm_processor.image_token

    @property
    def video_token(self) -> str:
        """The backbone's placeholder for a film."""
        return self.vlm_processor.video_token

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

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Unpack[VAEmotionLLMProcessorKwargs],
    ) -> BatchFeature:
        """Inputs for the model.

        Media are files (a path, a `file://` or `data:` URL, bytes) or decoded: PIL images, arrays, tensors. They stand
        in the order of their placeholders, in one list or in a list for each text.

        Args:
            images: pictures.
            text: a text or several, with a placeholder token for each medium.
            videos: films; of a file `num_frames` frames are taken (or `fps` a second, or all with
                `do_sample_frames=False`). Decoded frames, (frames, height, width, 3), are taken as they are unless one
                of these is given; `video_metadata` may say their rate.
            audio: sounds of any rate and number of channels: (samples,), (channels, samples), (samples, channels), or
                {"array": samples, "sampling_rate": Hz}.
            **kwargs: what [`VAEmotionLLMProcessorKwargs`] has: `sampling_rate`, `use_audio_in_video`, `padding`,
                `padding_side`, `return_tensors`, `num_frames`, `audio_kwargs`, `text_kwargs`, ... With
                `use_audio_in_video` each film's sound comes right after it, as if the text had an audio placeholder
                there and `audio` the same file. A film without a sound track, and decoded frames, add nothing.

        Returns:
            `BatchFeature`; with sound it also holds `input_features` (W, ...) and `audio_num_tokens` (W,).
            `count_tokens` tells how many tokens each medium became.

        Raises:
            InputError: an argument that is not known, a medium that cannot be used, sound longer than `max_audio_s`, a
                number of media that differs from the placeholders'. It names the sample and the medium.
        """
        if images is None and text is None and videos is None and audio is None:
            raise InputError("Nothing was given; give at least one of text, images, videos and audio.")
        vlm = self.vlm_processor
        merged, hear = check_call(self, vlm, kwargs)
        texts = None if text is None else [text] if isinstance(text, str) else list(text)
        if texts is not None and not all(isinstance(sample, str) for sample in texts):
            raise InputError("text must be a string or a list of strings.")
        given = {"image": images, "video": videos, "audio": audio}
        tokens = {"image": vlm.image_token, "video": vlm.video_token, "audio": AUDIO_TOKEN}
        placed = place_media(texts, given, tokens)

        films = [local_source(film.medium, film.name) for film in placed["video"]]
        sounds = placed["audio"]
        heard = [
            hears and has_sound(film, place.name)
            for film, place, hears in zip(films, placed["video"], one_each(hear, len(films)), strict=True)
        ]
        if texts is not None and any(heard):
            own = [Placed(film, f"{place.name}'s sound") for film, place in zip(films, placed["video"])]
            after = self._after_film(vlm)
            texts, sounds = sound_after_films(texts, own, heard, sounds, tokens["video"], AUDIO_TOKEN, after)

        # Beside `audio_kwargs`, `truncation` is the text's.
        truncation = bool((kwargs.get("audio_kwargs") or {}).get("truncation"))
        sampling_rate = merged["audio_kwargs"].get("sampling_rate")
        encoded = [self.encode_audio(sound.medium, sampling_rate, truncation, sound.name) for sound in sounds]
        rest = {
            key: value for key, value in kwargs.items() if key not in ("audio_kwargs", "sampling_rate", *HEAR_FILM)
        }
        if videos is not None:
            names = [place.name for place in placed["video"]]
            rest, videos = choose_frames(rest, films, names, self.num_frames)
        if images is not None:
            images = _like(images, [read_image(place.medium, place.name) for place in placed["image"]])
        if texts is None and images is None and videos is None:
            return BatchFeature(_join_inputs(encoded), tensor_type=merged["audio_kwargs"].get("return_tensors"))

        offsets: list[list[dict]] = []
        if texts is not None:
            texts, offsets = self.get_text_with_replacements(texts, [], [], [sound.replacement for sound in encoded])
        inputs = vlm(images=images, text=None if texts is None else list(texts), videos=videos, **rest)
        if texts is not None:
            self._check_special_mm_tokens(texts, inputs, modalities=["audio"])
        if "text_replacement_offsets" in inputs and encoded:
            late = inputs["text_replacement_offsets"] or [[] for _ in offsets]
            inputs["text_replacement_offsets"] = composed_offsets(offsets, late)
        inputs.update(BatchFeature(_join_inputs(encoded), tensor_type=merged["text_kwargs"].get("return_tensors")))
        return inputs

    def apply_chat_template(self, conversation, *args, processor_kwargs: dict | None = None, **kwargs):
        """A conversation, or several, as text or as inputs for the model; see `ProcessorMixin.apply_chat_template`.

        Media items hold what `__call__` takes, under their kind, `url`, `path`, `bytes` or `base64`; an audio item may
        have a `sampling_rate` of its own. A video item with `use_audio_in_video` is heard as well, as if an audio item
        with the same file followed it; `use_audio_in_video=True` here says so for all items that do not say it, and
        `load_audio_from_video` is the same by its name in transformers. An audio item without a source after such a
        film marks the place of its sound. A film without a sound track gives no audio tokens, and no error.

        Args:
            conversation: messages, or a list of conversations.
            processor_kwargs: arguments of `__call__`.
            **kwargs: as in `ProcessorMixin.apply_chat_template`.
        """
        processor_kwargs = dict(processor_kwargs or {})
        said = [source.pop(name) for source in (kwargs, processor_kwargs) for name in HEAR_FILM if name in source]
        conversations, is_batched = self._normalize_conversations(conversation)
        if any(answer not in (True, False, None) for answer in said):
            raise InputError(
                f"{HEAR_FILM[0]} is {said}; allowed are True and False. For single films say so in the video item: "
                f'{{"type": "video", "path": FILE, "{HEAR_FILM[0]}": True}}.'
            )
        conversations = with_video_audio(conversations, hear=any(said))
        conversation = conversations if is_batched else conversations[0]
        return super().apply_chat_template(conversation, *args, processor_kwargs=processor_kwargs, **kwargs)

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

    def count_tokens(self, inputs: Mapping[str, Any]) -> list[dict[str, int]]:
        """How many tokens of each modality the samples of a batch have.

        Args:
            inputs: what the processor returned: `input_ids` (B, T), and `attention_mask` where there is padding.

        Returns:
            For each sample {"text", "image", "video", "audio"}, whose sum is its length without padding. Audio counts
            the two boundary tokens of each window as well; tokens that frame a picture or a film are text. A film that
            was to be heard and has no sound shows as `audio` 0.
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

    def _get_num_multimodal_tokens(self, image_sizes=None, video_sizes=None, audio_lengths=None, **kwargs):
        """Placeholders of media by their sizes, as serving engines ask for them.

        Args:
            image_sizes: (height, width) of each image.
            video_sizes: (frames, height, width) of each film.
            audio_lengths: samples of each sound at the tower's rate.

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

    def encode_audio(
        self, waveform, sampling_rate: int | None = None, truncation: bool = False, name: str = "the audio"
    ) -> MediaFeatures:
        """Features of one sound, and the placeholders that stand for it.

        Args:
            waveform: a file or samples, as `__call__` takes them.
            sampling_rate: rate of samples that do not say theirs, in Hz; `self.sampling_rate` if not given.
            truncation: whether to cut what is longer than `max_audio_s`; the first cut is logged.
            name: what errors call it.
        """
        waveform = local_source(waveform, name)
        name = called(name, waveform) if is_file(waveform) else name
        waveform, dropped_s = to_waveform(
            waveform, sampling_rate, self.sampling_rate, self.max_audio_s, truncation=truncation, name=name
        )
        if dropped_s and not self._cut_was_said:
            self._cut_was_said = True
            logger.warning(
                "%s: the last %.1f s were cut off, since max_audio_s is %g. Later cuts are not told.",
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
            indices: (F,) place of each frame in the file.
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
            source = local_source(source, name)
            return self.encode_video(*read_film(source, name, frames_to_take(source, {}, self.num_frames)))
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
        tokens = {"image": vlm.image_token, "video": vlm.video_token, "audio": AUDIO_TOKEN}
        texts = replace_placeholders(list(texts), media, tokens)
        inputs = self.tokenizer(texts, **{"padding": True, "return_tensors": "pt", **tokenizer_kwargs})
        if vlm.return_mm_token_type_ids:
            token_types = vlm.create_mm_token_type_ids(inputs["input_ids"].tolist())
            inputs["mm_token_type_ids"] = torch.tensor(token_types)
        return BatchFeature({**inputs, **_join_inputs(media)})

    def _vlm_arguments(self, vlm: ProcessorMixin, kind: str, **arguments) -> dict:
        """What the backbone's processor would hand to one of its parts, its own defaults included."""
        merged = vlm._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, return_tensors="pt", **arguments)
        return merged[kind]

    def _after_film(self, vlm: ProcessorMixin) -> str:
        """What the chat template writes between a film's placeholder and what follows: the sound comes after it."""
        if self.chat_template is None:
            return ""
        mark = "the end"
        turn = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": mark}]}]
        return self.apply_chat_template(turn).partition(vlm.video_token)[2].partition(mark)[0]

    def _normalize_conversations(self, conversation):
        conversations, is_batched = super()._normalize_conversations(conversation)
        for message in (message for messages in conversations for message in messages):
            if isinstance(message.get("content"), list):
                message["content"] = [as_media_item(item) for item in message["content"]]
        return conversations, is_batched

    def _multimodal_inputs_from_conversations(self, conversations, audio_loading_params, load_audio_from_video=False):
        # The library's loaders need torchcodec or change with what is installed; `__call__` reads files by ours, which
        # give the same samples everywhere.
        media = media_of(conversations)
        return media["image"], media["video"], [sound for row in media["audio"] for sound in row], {}


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
