"""The nano backbone, a small vision-language model: tokenizer, networks, training batches, training, and the cache."""

import functools
import json
import logging
import math
import os
import shutil
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from ..utils import (
    InputError,
    arithmetic,
    atomic_file,
    cache_dir,
    check_new,
    new_folder,
    sha256_of_json,
    write_json_lines,
)
from .clips import FORMAT as CLIP_FORMAT
from .clips import Clip, WorldConfig, sample_clip
from .image import render
from .language import caption_instruction, choice_instruction, corpus, open_instruction

logger = logging.getLogger(__name__)

# Raise it when the same config gives other weights than before.
FORMAT = 1
CONFIG_FILE = "nano_backbone.json"
CHECKPOINT = "checkpoint.safetensors"
PATCH_PX = 14
MERGE = 2
# Position steps a second of video, the backbone's `tokens_per_second`.
TOKENS_PER_SECOND = 2
_F32 = np.float32


@dataclass(frozen=True)
class BackboneConfig:
    """Everything that decides the backbone's weights.

    First it learns the language: content and emotion are named as text, with questions about them (`text_` fields).
    Then it learns to see: the same questions about images. The first part is there because that letters stand for
    options is hard to learn from images that are not understood yet, and easy from text.

    Args:
        seed: seed of weights and clips.
        hidden, layers, vision_layers: sizes of the networks.
        text_steps, text_rows, text_questions: steps of the first part, clips a step, and questions about each.
        text_clips: different clips of the first part; few, see `BatchMaker.make_text`.
        steps, images, questions: steps of the second part, images or videos a step, and questions about each.
        choice_share: share of multiple choice among the questions of the second part.
        learning_rate: peak of each part, after `warmup_steps`; it falls linearly to 0 over the last `decay_share` of
            the second part.
        max_grad_norm, weight_decay: as usual.
        checkpoint_steps: steps between checkpoints.
    """

    seed: int = 0
    hidden: int = 128
    layers: int = 4
    vision_layers: int = 3
    text_steps: int = 500
    text_rows: int = 8
    text_questions: int = 4
    text_clips: int = 32
    steps: int = 1000
    images: int = 24
    questions: int = 2
    choice_share: float = 0.5
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.4
    max_grad_norm: float = 1.0
    weight_decay: float = 0.02
    checkpoint_steps: int = 250

    def __post_init__(self):
        for name, value in asdict(self).items():
            least = 0 if name in ("seed", "text_steps", "warmup_steps", "weight_decay", "choice_share") else None
            if value < least if least is not None else value <= 0:
                raise InputError(f"{name} is {value}; give {'at least 0' if least == 0 else 'more than 0'}.")
        if self.hidden % 32:
            raise InputError(f"hidden is {self.hidden}; give a multiple of 32.")

    @property
    def total_steps(self) -> int:
        return self.text_steps + self.steps

    def as_dict(self) -> dict:
        """The fields as the cache key has them: there, `images` keeps its first name."""
        return {"pictures" if k == "images" else k: v for k, v in asdict(self).items()}  # words: part of the key


# ---- build and cache


def cached_path(seed: int = 0, config: BackboneConfig | None = None) -> Path:
    """Folder of the cache that holds this backbone once it is built; another config is another folder."""
    key = sha256_of_json(_describe(config or BackboneConfig(seed=seed)))[:12]
    return cache_dir() / "nano" / f"backbone-{key}"


def build_backbone(
    seed: int = 0,
    out_dir: str | Path | None = None,
    progress: bool = True,
    config: BackboneConfig | None = None,
) -> Path:
    """Trains the nano backbone, or finds it in the cache.

    A build that was killed resumes from its last checkpoint; a second process that wants the same backbone waits for
    the first one.

    Args:
        seed: seed of weights and clips (ignored where `config` is given).
        out_dir: also copy the backbone to this folder: a new or empty one, or one that holds it already.
        progress: show a progress bar.
        config: every other property of the backbone.

    Returns:
        `out_dir`, or the folder in the cache. It holds `vlm/` (Qwen2.5-VL classes, with their processor), `audio/`
        (an untrained Whisper, with its feature extractor) and `metrics.jsonl` (the learning curve).

    Raises:
        InputError: `out_dir` holds something else.
    """
    config = config or BackboneConfig(seed=seed)
    if out_dir is not None:
        out_dir = Path(out_dir).expanduser().absolute()
        file = out_dir / CONFIG_FILE
        if file.is_file() and file.read_text() == _as_text(config):
            return out_dir
        check_new(out_dir, "--out")
    target = cached_path(config=config)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not target.is_dir():
            _build(config, target, progress)
    if out_dir is None:
        return target
    with new_folder(out_dir, "--out") as partial:
        shutil.copytree(target, partial, dirs_exist_ok=True)
    return out_dir


def _describe(config: BackboneConfig) -> dict:
    return {
        "format": FORMAT,
        "backbone": config.as_dict(),
        "world_format": CLIP_FORMAT,
        "world": WorldConfig(seed=config.seed).as_dict(),
        # Rounding decides the weights as the config does; a cache may hold builds of several environments.
        "arithmetic": arithmetic(),
        "torch": torch.__version__.partition("+")[0],
    }


def _as_text(config: BackboneConfig) -> str:
    return json.dumps(_describe(config), indent=2) + "\n"


def _build(config: BackboneConfig, target: Path, progress: bool) -> None:
    """Trains in `.<name>.partial`, which holds the checkpoint, and renames it when everything is written."""
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        world = WorldConfig(seed=config.seed)
        processor = build_processor(world.size_px, PATCH_PX, MERGE)
        vlm = build_vlm(processor.tokenizer, config.hidden, config.layers, config.vision_layers)
        audio, extractor = build_audio(config.hidden)
        train_backbone(vlm, processor.tokenizer, config, world, partial, progress)
    for part, name in ((vlm, "vlm"), (processor, "vlm"), (audio, "audio"), (extractor, "audio")):
        part.save_pretrained(partial / name)
    (partial / CONFIG_FILE).write_text(_as_text(config))
    (partial / CHECKPOINT).unlink(missing_ok=True)
    os.replace(partial, target)
    logger.info("built the nano backbone in %s", target)


# ---- tokenizer and processor

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
)
MAX_VOCAB = 1024

# Qwen's pattern with one more alternative in front: a list marker such as "\nA. " is one piece. So an option is the
# same token as the one-word answer, and it stands right after its letter, which makes a choice far easier to learn.
_PIECES = (
    r"""\n[A-Z]\. |(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+"""
    r"""|\s+(?!\S)|\s+"""
)

# Qwen2.5-VL's template without its default system prompt, which the nano backbone has no use for.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif item['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif item['type'] == 'text' -%}{{- item['text'] -}}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.25, 0.25, 0.25)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word of the nano world is one token; any other text falls back to bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCAB,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*corpus(), "system", "user", "assistant"], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_processor(size_px: int, patch_px: int, merge: int) -> Qwen2_5_VLProcessor:
    """Processor for square images of `size_px`, which keep their size; larger and smaller ones are resized to it."""
    pixels = size_px * size_px
    common = dict(
        patch_size=patch_px,
        merge_size=merge,
        temporal_patch_size=2,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
        size={"shortest_edge": pixels, "longest_edge": pixels},
    )
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**common),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(do_sample_frames=False, cap_pixels_per_frame=False, **common),
        chat_template=CHAT_TEMPLATE,
    )


# ---- networks


def build_vlm(tokenizer, hidden: int, layers: int, vision_layers: int) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with random weights; heads have 32 dimensions."""
    ids = tokenizer.convert_tokens_to_ids
    heads = hidden // 32
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 2048,
            "initializer_range": hidden**-0.5 / 2,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_heads": heads,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "window_size": 112,
            "fullatt_block_indexes": list(range(vision_layers)),
            "tokens_per_second": TOKENS_PER_SECOND,
            "initializer_range": hidden**-0.5 / 2,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    # Words that stand out from what the untrained layers add are distinguished sooner; so are neighbouring positions
    # with a `rope_theta` that fits sequences of some hundred tokens. Both make letters mean their options sooner.
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def build_audio(hidden: int) -> tuple[WhisperModel, WhisperFeatureExtractor]:
    """A Whisper with random weights whose window is 3 s: 150 log-mel frames of 20 ms become 75 positions."""
    extractor = WhisperFeatureExtractor(
        feature_size=64, sampling_rate=16000, hop_length=320, chunk_length=3, n_fft=640, padding_value=0.0
    )
    config = WhisperConfig(
        vocab_size=16,
        num_mel_bins=64,
        d_model=hidden,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=2 * hidden,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=hidden,
        max_source_positions=75,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        dropout=0.0,
        init_std=hidden**-0.5 / 2,
    )
    return WhisperModel(config), extractor


# ---- training batches


# A row is `[media prefix][question 1 + answer][question 2 + answer]...`. Every question attends to the prefix and to
# itself, and its positions continue those of the prefix: the same computation as one sequence a question, with the
# prefix shared.


@dataclass
class PackedBatch:
    """B rows of T tokens with N answer tokens.

    `input_ids` (B, T); `position_ids` (3, B, T); `attention_mask` (B, 1, T, T) additive; `patches` (slabs * patches,
    dim); `vision_mask` (B, T); `rows`, `columns` (N,) are where an answer token is predicted; `targets` and `weights`
    are (N,).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    patches: torch.Tensor
    num_slabs: int
    vision_mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    # Kind of question of each answer token's question, "" for all but its first token: for accuracies.
    kinds: list[str]


@dataclass(frozen=True)
class Question:
    kind: str
    prompt: str
    answer: str
    # Weight of each answer token in the loss, and of the end token.
    weight: float
    end_weight: float


def draw_question(rng: np.random.Generator, clip: Clip, choice_share: float) -> Question:
    row = vars(clip)
    if rng.random() < choice_share:
        aspect = ("content", "emotion")[int(rng.integers(2))]
        return Question(f"choice_{aspect}", *choice_instruction(rng, row, aspect), weight=1.0, end_weight=0.05)
    if rng.random() < 0.7:
        return Question("open", *open_instruction(rng, row), weight=1.0, end_weight=0.05)
    return Question("caption", *caption_instruction(rng, row), weight=0.3, end_weight=0.05)


def like_decoded(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """Noise and a coarse chroma, as lossy video has them. uint8 (F, S, S, 3) in and out."""
    pixels = frames.astype(_F32)
    light = pixels @ np.array([0.299, 0.587, 0.114], _F32)  # (F, S, S)
    chroma = pixels - light[..., None]
    f, s = frames.shape[:2]
    coarse = chroma.reshape(f, s // 2, 2, s // 2, 2, 3).mean((2, 4))  # (F, S/2, S/2, 3)
    pixels = light[..., None] + coarse.repeat(2, 1).repeat(2, 2)
    pixels += rng.standard_normal(light.shape, dtype=_F32)[..., None] * _F32(rng.uniform(0, 4))
    return np.clip(pixels + _F32(0.5), 0, 255).astype(np.uint8)


def draw_frames(rng: np.random.Generator, config: WorldConfig, clip: Clip) -> tuple[np.ndarray, bool]:
    """Frames of a clip as a reader of its file would see them, and whether they are a video."""
    if clip.art_form == "painting":
        return render(config, clip), False
    count = int(rng.choice([2, 4, 4, 4, 4, 4, 4, 8]))
    # The middle of equal pieces, as load_video takes them, with a little play.
    times = (np.arange(count) + 0.5 + rng.uniform(-0.3, 0.3)) / count * config.clip_s
    frames = render(config, clip, np.floor(times * config.fps) / config.fps)
    if rng.random() < 0.08:
        return like_decoded(rng, frames[:1]), False
    return like_decoded(rng, frames), True


def patchify(frames: np.ndarray) -> np.ndarray:
    """uint8 (F, S, S, 3) -> float32 (slabs * patches, 3 * 2 * P * P), in the order of Qwen's processors."""
    pixels = (frames.astype(_F32) / 255 - np.array(IMAGE_MEAN, _F32)) / np.array(IMAGE_STD, _F32)
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    slabs, g = len(pixels) // 2, frames.shape[1] // PATCH_PX
    x = pixels.reshape(slabs, 2, g // MERGE, MERGE, PATCH_PX, g // MERGE, MERGE, PATCH_PX, 3)
    x = x.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # slab, block row, block column, row, column, channel, frame, y, x
    return x.reshape(slabs * g * g, -1)


class BatchMaker:
    """Makes batch number `step` from nothing but the seed, so that a resumed run gets the same batches."""

    def __init__(self, config: WorldConfig, tokenizer, split: str = "pretrain"):
        self.config, self.tokenizer, self.split = config, tokenizer, split
        self.side = config.size_px // PATCH_PX // MERGE
        ids = tokenizer.convert_tokens_to_ids
        self.vision_start, self.vision_end = ids("<|vision_start|>"), ids("<|vision_end|>")
        self.image_pad, self.video_pad = ids("<|image_pad|>"), ids("<|video_pad|>")
        self.end, self.pad = ids("<|im_end|>"), tokenizer.pad_token_id
        self.head = self._encode("<|im_start|>user\n")
        self.turn = self._encode("<|im_end|>\n<|im_start|>assistant\n")
        self._cache: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _encode_cached(self, text: str) -> list[int]:
        if len(text) > 60:  # multiple choice: too many variants to keep
            return self._encode(text)
        if text not in self._cache:
            self._cache[text] = self._encode(text)
        return self._cache[text]

    def media_prefix(self, media: list[tuple[int, bool, float]]) -> tuple[list[int], np.ndarray, int]:
        """Token ids and M-RoPE positions (3, n) of the turn's start with media (slabs, is_video, seconds a slab)."""
        ids, start = list(self.head), len(self.head)
        positions = [np.tile(np.arange(start), (3, 1))]
        for slabs, is_video, seconds in media:
            count = slabs * self.side**2
            ids += [self.vision_start, *[self.video_pad if is_video else self.image_pad] * count, self.vision_end]
            t, y, x = np.meshgrid(np.arange(slabs), np.arange(self.side), np.arange(self.side), indexing="ij")
            t = (t * TOKENS_PER_SECOND * seconds).astype(np.int64)
            block = np.stack([t.ravel(), y.ravel(), x.ravel()]) + start + 1
            positions += [np.full((3, 1), start), block, np.full((3, 1), start + 1 + self.side)]
            start += 2 + self.side
        return ids, np.concatenate(positions, 1), start

    def _media(self, rng, clip: Clip) -> tuple[list[tuple[int, bool, float]], list[np.ndarray]]:
        chance = rng.random()
        if chance < 0.04:  # no image: only the priors are left to learn
            return [], []
        blocks, patches = [], []
        for _ in range(2 if chance < 0.16 else 1):
            frames, is_video = draw_frames(rng, self.config, clip)
            x = patchify(frames)
            slabs = len(x) // (self.side * MERGE) ** 2
            seconds = self.config.clip_s / slabs * rng.uniform(0.85, 1.15) if rng.random() < 0.85 else 2 / 24
            blocks.append((slabs, is_video, seconds))
            patches.append(x)
        return blocks, patches

    def make_text(self, step: int, rows: int, questions: int, clips: int) -> PackedBatch:
        """A batch without images: the prefix names content and emotion as text.

        Only `clips` different clips take part. Their repetition is what makes letters mean their options soon: the
        prefix becomes familiar while the options stay new.
        """
        rng = np.random.default_rng((self.config.seed, 6, step))
        packed = []
        for number in range(rows):
            clip = sample_clip(self.config, self.split, (step * rows + number) % clips)
            ids = [*self.head, *self._encode_cached(f"{clip.content} {clip.emotion}\n")]
            prefix = (ids, np.tile(np.arange(len(ids)), (3, 1)), len(ids))
            packed.append((prefix, [draw_question(rng, clip, 0.8) for _ in range(questions)]))
        return self.pack(packed, [])

    def make(self, step: int, images: int, questions: int, choice_share: float) -> PackedBatch:
        """A batch of questions about images and videos that no earlier step showed."""
        rng = np.random.default_rng((self.config.seed, 5, step))
        rows, all_patches = [], []
        for number in range(images):
            clip = sample_clip(self.config, self.split, step * images + number)
            blocks, patches = self._media(rng, clip)
            all_patches += patches
            drawn = [draw_question(rng, clip, choice_share) for _ in range(questions)]
            rows.append((self.media_prefix(blocks), drawn))
        return self.pack(rows, all_patches)

    def pack(self, rows, all_patches: list[np.ndarray]) -> PackedBatch:
        """rows: ((prefix ids, prefix positions, next position), questions) of each row."""
        packed, where, targets, weights, kinds = [], [], [], [], []
        for row, ((prefix, positions, start), questions) in enumerate(rows):
            ids, branches, spans = list(prefix), [0] * len(prefix), [positions]
            for branch, question in enumerate(questions, 1):
                answer = [*self._encode_cached(question.answer), self.end]
                prompt = [*self._encode_cached(question.prompt), *self.turn]
                first = len(ids) + len(prompt) - 1  # this token predicts the first answer token
                where += [(row, first + k) for k in range(len(answer))]
                targets += answer
                kinds += [question.kind] + [""] * (len(answer) - 1)
                weights += [question.weight] * (len(answer) - 1) + [question.end_weight]
                ids += prompt + answer[:-1]
                count = len(prompt) + len(answer) - 1
                branches += [branch] * count
                spans.append(np.tile(np.arange(start, start + count), (3, 1)))
            packed.append((ids, branches, np.concatenate(spans, 1)))
        b, t = len(packed), max(len(ids) for ids, _, _ in packed)
        input_ids = np.full((b, t), self.pad, np.int64)
        branch = np.full((b, t), -1, np.int64)
        position = np.zeros((3, b, t), np.int64)
        for row, (ids, branches, spans) in enumerate(packed):
            input_ids[row, : len(ids)], branch[row, : len(ids)], position[:, row, : len(ids)] = ids, branches, spans
        visible = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])  # (B, query, key)
        visible &= np.tri(t, dtype=bool)
        mask = np.where(visible, _F32(0), np.finfo(_F32).min)[:, None]  # (B, 1, T, T)
        patches = np.concatenate(all_patches) if all_patches else np.zeros((0, 6 * PATCH_PX**2), _F32)
        at = np.array(where).T
        return PackedBatch(
            input_ids=torch.from_numpy(input_ids),
            position_ids=torch.from_numpy(position),
            attention_mask=torch.from_numpy(mask),
            patches=torch.from_numpy(patches),
            num_slabs=len(patches) // (self.side * MERGE) ** 2,
            vision_mask=torch.from_numpy((input_ids == self.image_pad) | (input_ids == self.video_pad)),
            rows=torch.from_numpy(at[0]),
            columns=torch.from_numpy(at[1]),
            targets=torch.tensor(targets),
            weights=torch.tensor(weights),
            kinds=kinds,
        )


# ---- training


def _equal_length_attention(attention, length, hidden_states, cu_seqlens=None, position_embeddings=None, **kwargs):
    n = hidden_states.shape[0]
    qkv = attention.qkv(hidden_states).view(n, 3, attention.num_heads, -1)
    q, k, v = qkv.unbind(1)  # (N, heads, head_dim)
    q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (x.view(n // length, length, attention.num_heads, -1).transpose(1, 2) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=attention.scaling)  # (slabs, heads, length, head_dim)
    return attention.proj(mixed.transpose(1, 2).reshape(n, -1))


@contextmanager
def equal_length_attention(visual, length: int):
    """Vision attention as one batched call; transformers calls it once a slab, which costs more than the sums."""
    for block in visual.blocks:
        block.attn.forward = functools.partial(_equal_length_attention, block.attn, length)
    try:
        yield
    finally:
        for block in visual.blocks:
            del block.attn.forward


def packed_logits(model: Qwen2_5_VLForConditionalGeneration, batch: PackedBatch) -> torch.Tensor:
    """Logits (N, V) that predict the answer tokens of a packed batch."""
    inner = model.model
    embeds = inner.get_input_embeddings()(batch.input_ids)  # (B, T, D)
    if batch.num_slabs:
        per_slab = len(batch.patches) // batch.num_slabs
        side = int(per_slab**0.5)
        # Attention stays inside a slab, so that all slabs of all media are one long video.
        grid = torch.tensor([[batch.num_slabs, side, side]])
        with equal_length_attention(inner.visual, per_slab):
            features = inner.visual(batch.patches, grid_thw=grid).pooler_output
        embeds = embeds.masked_scatter(batch.vision_mask[..., None], features)
    hidden = inner.language_model(
        inputs_embeds=embeds, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[batch.rows, batch.columns])


def learning_rate_at(config: BackboneConfig, step: int) -> float:
    since = step if step < config.text_steps else step - config.text_steps
    warm = min(1.0, (since + 1) / max(1, config.warmup_steps))
    tail = max(1, round(config.decay_share * config.steps))
    return config.learning_rate * warm * min(1.0, (config.total_steps - step) / tail)


def answer_loss(logits: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Weighted cross-entropy, divided by the number of questions."""
    losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
    return (losses * batch.weights).sum() / sum(map(bool, batch.kinds))


def make_batch(maker: BatchMaker, config: BackboneConfig, step: int) -> PackedBatch:
    """The batch of a step, a function of the configs alone."""
    if step < config.text_steps:
        return maker.make_text(step, config.text_rows, config.text_questions, config.text_clips)
    return maker.make(step, config.images, config.questions, config.choice_share)


def accuracies(logits: torch.Tensor, batch: PackedBatch) -> dict[str, list[bool]]:
    """Whether the first answer token was right, by kind of question."""
    right = (logits.argmax(-1) == batch.targets).tolist()
    result = defaultdict(list)
    for kind, hit in zip(batch.kinds, right):
        if kind:
            result[kind].append(hit)
    return result


def _optimizer(model, config: BackboneConfig) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-8, fused=True)


def _save(path: Path, model, optimizer: torch.optim.Optimizer, progress: dict) -> None:
    """Writes weights, the optimizer's state and `progress`, which JSON can hold, as safetensors."""
    state = optimizer.state_dict()
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, values in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    metadata = {"progress": json.dumps({**progress, "param_groups": state["param_groups"]})}
    with atomic_file(path) as temporary:
        # Clones, because tied weights share their memory, which the format refuses.
        save_file({name: value.detach().clone() for name, value in tensors.items()}, temporary, metadata)


def _load(path: Path, model, optimizer: torch.optim.Optimizer) -> dict:
    """Puts back what `_save` wrote, and returns its `progress`."""
    weights, state = {}, defaultdict(dict)
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
        for key in file.keys():
            part, _, name = key.partition(".")
            if part == "model":
                weights[name] = file.get_tensor(key)
            else:
                index, _, value = name.partition(".")
                state[int(index)][value] = file.get_tensor(key)
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": dict(state), "param_groups": progress.pop("param_groups")})
    return progress


def train_backbone(
    model, tokenizer, config: BackboneConfig, world: WorldConfig, folder: Path, progress: bool = True
) -> dict:
    """Trains `model` in place; `folder` gets `checkpoint.safetensors` (to resume) and `metrics.jsonl` (the curve).

    The clips are fresh at every step, so the accuracies of the curve's part "visual" are those on images that were
    never shown before. Those of the part "language" are not: it shows no images and repeats a few clips.
    """
    optimizer = _optimizer(model, config)
    maker = BatchMaker(world, tokenizer)
    checkpoint = folder / CHECKPOINT
    lines, start, spent_s = [], 0, 0.0
    if checkpoint.exists():
        before = _load(checkpoint, model, optimizer)
        start, lines, spent_s = before["step"], before["metrics"], before["wall_s"]
        logger.info("resuming the nano backbone at step %d", start)
    model.train()
    window, losses, began = defaultdict(list), [], time.monotonic() - spent_s
    total = config.total_steps
    bar = tqdm(range(start, total), initial=start, total=total, desc="nano backbone", disable=not progress)
    for step in bar:
        batch = make_batch(maker, config, step)
        logits = packed_logits(model, batch)
        loss = answer_loss(logits, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        for kind, hits in accuracies(logits.detach(), batch).items():
            window[kind] += hits
        if (step + 1) % 50 == 0 or step + 1 in (config.text_steps, total):
            line = {"step": step + 1, "loss": float(torch.stack(losses).mean())}
            line["learning_rate"] = learning_rate_at(config, step)
            if not math.isfinite(line["loss"]):
                raise RuntimeError(f"the loss is {line['loss']} at step {step + 1}; lower learning_rate.")
            line["part"] = "language" if step < config.text_steps else "visual"
            line |= {f"accuracy_{kind}": sum(hits) / len(hits) for kind, hits in sorted(window.items())}
            line["wall_s"] = round(time.monotonic() - began, 2)
            lines.append(line)
            bar.set_postfix({k.removeprefix("accuracy_"): f"{v:.2f}" for k, v in line.items() if k.startswith("acc")})
            window.clear()
            losses.clear()
        if (step + 1) % config.checkpoint_steps == 0 and step + 1 < total:
            now = {"step": step + 1, "metrics": lines, "wall_s": time.monotonic() - began}
            _save(checkpoint, model, optimizer, now)
    model.eval()
    write_json_lines(folder / "metrics.jsonl", lines)
    return lines[-1] if lines else {}
