"""The nano backbone, a small vision-language model: tokenizer, networks, training batches, training, and the cache."""

import functools
import json
import math
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
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

from .. import utils
from .clips import FORMAT as CLIP_FORMAT
from .clips import Clip, WorldConfig, sample_clip
from .image import render
from .language import caption_instruction, choice_instruction, corpus, open_instruction

# Raise it when the same config gives other weights than before.
FORMAT = 2
CONFIG_FILE = "nano_backbone.json"
PATCH_PX = 14
MERGE = 2
# Position steps a second of video, the backbone's `tokens_per_second`.
TOKENS_PER_SECOND = 2
# The first part of the training: clips a step, questions about each, and different clips, see `BatchMaker.make_text`.
TEXT_ROWS, TEXT_QUESTIONS, TEXT_CLIPS = 8, 4, 32
# The second part: questions about each image or video, and the share of multiple choice among them.
QUESTIONS, CHOICE_SHARE = 2, 0.5
# Peak of the learning rate in each part; it falls linearly to 0 over the last `DECAY_SHARE` of the second part.
LEARNING_RATE, DECAY_SHARE = 1e-3, 0.4
# Of an answer's end token in the loss, beside 1 for the tokens of an answer and `CAPTION_WEIGHT` for a caption's.
END_WEIGHT, CAPTION_WEIGHT = 0.05, 0.3
LOGGING_STEPS, SAVE_STEPS = 50, 250  # the one divides the other
_F32 = np.float32


@dataclass(frozen=True)
class BackboneConfig:
    """What decides the backbone's weights beside the constants above.

    First it learns the language: content and emotion are named as text, with questions about them.
    Then it learns to see: the same questions about images. The first part is there because that letters stand for
    options is hard to learn from images that are not understood yet, and easy from text.

    Args:
        seed: seed of weights and clips, from 0.
        hidden, layers, vision_layers: sizes of the networks; hidden is a multiple of 32.
        text_steps, steps: steps of the first and of the second part.
        images: images or videos a step of the second part.
        warmup_steps: steps in which the learning rate rises, in each part.
    """

    seed: int = 0
    hidden: int = 128
    layers: int = 4
    vision_layers: int = 3
    text_steps: int = 500
    steps: int = 1000
    images: int = 24
    warmup_steps: int = 100

    @property
    def total_steps(self) -> int:
        return self.text_steps + self.steps


# ---- build and cache


def cached_path(config: BackboneConfig) -> Path:
    """Folder of the cache that holds this backbone once it is built; another config is another folder."""
    return utils.cache_dir() / "nano" / f"backbone-{utils.sha256_of_json(_describe(config))[:12]}"


def build_backbone(seed: int = 0, out_dir: str | Path | None = None, config: BackboneConfig | None = None) -> Path:
    """Trains the nano backbone, or finds it in the cache.

    It takes minutes on a CPU. A build that was killed resumes from its last checkpoint; a second process that wants
    the same backbone waits for the first one.

    Args:
        seed: seed of weights and clips (ignored where `config` is given).
        out_dir: also copy the backbone to this folder: a new or empty one, or one that holds it already.
        config: every other property of the backbone.

    Returns:
        `out_dir`, or the folder in the cache. It holds `vlm/` (Qwen2.5-VL classes, with their processor), `audio/`
        (an untrained Whisper, with its feature extractor) and `metrics.jsonl` (the learning curve).

    Raises:
        InputError: `out_dir` holds something else, or a negative seed.
    """
    config = config or BackboneConfig(seed=seed)
    description = _describe(config)
    if out_dir is not None:
        out_dir = Path(out_dir).expanduser().absolute()
        file = out_dir / CONFIG_FILE
        if file.is_file() and utils.read_json(file, "a nano backbone's config") == description:
            return out_dir
        utils.check_new(out_dir, "--out")
    target = cached_path(config)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not target.is_dir():
            with utils.new_folder(target, "the cache") as partial, torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                world = WorldConfig(seed=config.seed)
                processor = build_processor(world.size_px, PATCH_PX, MERGE)
                vlm = build_vlm(processor.tokenizer, config.hidden, config.layers, config.vision_layers)
                audio, extractor = build_audio(config.hidden)
                checkpoint = target.with_name(f".{target.name}.safetensors")
                rows = train_backbone(vlm, processor.tokenizer, config, world, checkpoint)
                utils.write_json_lines(partial / "metrics.jsonl", rows)
                for part, name in ((vlm, "vlm"), (processor, "vlm"), (audio, "audio"), (extractor, "audio")):
                    part.save_pretrained(partial / name)
                utils.write_json(partial / CONFIG_FILE, description)
            checkpoint.unlink(missing_ok=True)
    if out_dir is None:
        return target
    with utils.new_folder(out_dir, "--out") as partial:
        shutil.copytree(target, partial, dirs_exist_ok=True)
    return out_dir


def _describe(config: BackboneConfig) -> dict:
    return {
        "format": FORMAT,
        "backbone": asdict(config),
        "world_format": CLIP_FORMAT,
        "world": asdict(WorldConfig(seed=config.seed)),
        # Rounding decides the weights as the config does; a cache may hold builds of several environments.
        "arithmetic": utils.arithmetic(),
        "torch": torch.__version__.partition("+")[0],
    }


# ---- tokenizer and processor

SPECIAL_TOKENS = tuple(
    f"<|{name}|>"
    for name in ("endoftext", "im_start", "im_end")
    + ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad", "audio_start", "audio_end", "audio_pad")
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

IMAGE_MEAN, IMAGE_STD = 0.5, 0.25


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
        image_mean=[IMAGE_MEAN] * 3,
        image_std=[IMAGE_STD] * 3,
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
    heads, sizes = hidden // 32, {"hidden_size": hidden, "intermediate_size": 2 * hidden}
    sizes["initializer_range"] = hidden**-0.5 / 2
    config = Qwen2_5_VLConfig(
        text_config={
            **sizes,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **sizes,
            "depth": vision_layers,
            "num_heads": heads,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "window_size": 112,
            "fullatt_block_indexes": list(range(vision_layers)),
            "tokens_per_second": TOKENS_PER_SECOND,
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


def draw_question(rng: np.random.Generator, clip: Clip, choice_share: float) -> tuple[str, str, float]:
    """Prompt, answer, and the weight of each of its tokens in the loss."""
    row = vars(clip)
    if rng.random() < choice_share:
        return *choice_instruction(rng, row), 1.0
    if rng.random() < 0.7:
        return *open_instruction(rng, row), 1.0
    return *caption_instruction(rng, row), CAPTION_WEIGHT


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
    pixels = (frames.astype(_F32) / 255 - _F32(IMAGE_MEAN)) / _F32(IMAGE_STD)
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    slabs, g = len(pixels) // 2, frames.shape[1] // PATCH_PX
    x = pixels.reshape(slabs, 2, g // MERGE, MERGE, PATCH_PX, g // MERGE, MERGE, PATCH_PX, 3)
    x = x.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # slab, block row, block column, row, column, channel, frame, y, x
    return x.reshape(slabs * g * g, -1)


class BatchMaker:
    """Makes batch number `step` from nothing but the seed."""

    def __init__(self, config: WorldConfig, tokenizer):
        self.config = config
        self.side = config.size_px // PATCH_PX // MERGE
        ids = tokenizer.convert_tokens_to_ids
        self.vision_start, self.vision_end = ids("<|vision_start|>"), ids("<|vision_end|>")
        self.image_pad, self.video_pad = ids("<|image_pad|>"), ids("<|video_pad|>")
        self.end, self.pad = ids("<|im_end|>"), tokenizer.pad_token_id
        # Most texts come again at every step.
        self.encode = functools.lru_cache(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
        self.head = self.encode("<|im_start|>user\n")
        self.turn = self.encode("<|im_end|>\n<|im_start|>assistant\n")

    def media_prefix(self, media: list[tuple[int, bool, float]]) -> tuple[list[int], np.ndarray, int]:
        """Token ids and M-RoPE positions (3, n) of the turn's start with media (slabs, is_video, seconds a slab)."""
        ids, start = list(self.head), len(self.head)
        positions = [np.tile(np.arange(start), (3, 1))]
        for slabs, is_video, seconds in media:
            count = slabs * self.side**2
            ids += [self.vision_start, *[self.video_pad if is_video else self.image_pad] * count, self.vision_end]
            block = np.indices((slabs, self.side, self.side)).reshape(3, -1)  # t, y, x
            block[0] = block[0] * TOKENS_PER_SECOND * seconds
            positions += [np.full((3, 1), start), block + start + 1, np.full((3, 1), start + 1 + self.side)]
            start += 2 + self.side
        return ids, np.concatenate(positions, 1), start

    def make_text(self, step: int) -> SimpleNamespace:
        """A batch without images: the prefix names content and emotion as text.

        Only `TEXT_CLIPS` different clips take part. Their repetition is what makes letters mean their options soon:
        the prefix becomes familiar while the options stay new.
        """
        rng = np.random.default_rng((self.config.seed, 6, step))
        packed = []
        for number in range(TEXT_ROWS):
            clip = sample_clip(self.config, "pretrain", (step * TEXT_ROWS + number) % TEXT_CLIPS)
            ids = [*self.head, *self.encode(f"{clip.content} {clip.emotion}\n")]
            prefix = (ids, np.tile(np.arange(len(ids)), (3, 1)), len(ids))
            packed.append((prefix, [draw_question(rng, clip, 0.8) for _ in range(TEXT_QUESTIONS)]))
        return self.pack(packed, [])

    def make(self, step: int, images: int) -> SimpleNamespace:
        """A batch of questions about images and videos that no earlier step showed."""
        rng = np.random.default_rng((self.config.seed, 5, step))
        rows, all_patches = [], []
        for number in range(images):
            clip = sample_clip(self.config, "pretrain", step * images + number)
            blocks = []
            chance = rng.random()
            # Without an image only the priors are left to learn.
            for _ in range(0 if chance < 0.04 else 2 if chance < 0.16 else 1):
                frames, is_video = draw_frames(rng, self.config, clip)
                all_patches.append(patchify(frames))
                slabs = len(all_patches[-1]) // (self.side * MERGE) ** 2
                seconds = self.config.clip_s / slabs * rng.uniform(0.85, 1.15) if rng.random() < 0.85 else 2 / 24
                blocks.append((slabs, is_video, seconds))
            drawn = [draw_question(rng, clip, CHOICE_SHARE) for _ in range(QUESTIONS)]
            rows.append((self.media_prefix(blocks), drawn))
        return self.pack(rows, all_patches)

    def pack(self, rows, all_patches: list[np.ndarray]) -> SimpleNamespace:
        """A batch of B rows of T tokens with N answer tokens.

        Args:
            rows: ((prefix ids, prefix positions, next position), questions) of each row.
            all_patches: of the media, in order.

        Returns:
            `input_ids` (B, T); `position_ids` (3, B, T); `attention_mask` (B, 1, T, T) additive; `patches` (slabs *
            patches, dim) and `num_slabs`; `vision_mask` (B, T); `rows`, `columns` (N,), where an answer token is
            predicted; `targets` and `weights` (N,); `num_questions`.
        """
        tokens, branches, positions, where, targets, weights = [], [], [], [], [], []
        for row, ((prefix, prefix_positions, start), questions) in enumerate(rows):
            ids, own, spans = list(prefix), [0] * len(prefix), [prefix_positions]
            for branch, (text, wanted, weight) in enumerate(questions, 1):
                answer = [*self.encode(wanted), self.end]
                prompt = [*self.encode(text), *self.turn]
                first = len(ids) + len(prompt) - 1  # this token predicts the first answer token
                where += [(row, first + k) for k in range(len(answer))]
                targets += answer
                weights += [weight] * (len(answer) - 1) + [END_WEIGHT]
                ids += prompt + answer[:-1]
                count = len(prompt) + len(answer) - 1
                own += [branch] * count
                spans.append(np.tile(np.arange(start, start + count), (3, 1)))
            tokens.append(torch.tensor(ids))
            branches.append(torch.tensor(own))
            positions.append(torch.from_numpy(np.concatenate(spans, 1).T))
        input_ids, branch = pad_sequence(tokens, True, self.pad), pad_sequence(branches, True, -1)
        visible = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])  # (B, query, key)
        visible = visible.tril()
        patches = np.concatenate(all_patches) if all_patches else np.zeros((0, 6 * PATCH_PX**2), _F32)
        at = torch.tensor(where).T
        return SimpleNamespace(
            input_ids=input_ids,
            position_ids=pad_sequence(positions, True).permute(2, 0, 1),
            attention_mask=torch.where(visible, 0.0, torch.finfo(torch.float32).min)[:, None],  # (B, 1, T, T)
            patches=torch.from_numpy(patches),
            num_slabs=len(patches) // (self.side * MERGE) ** 2,
            vision_mask=(input_ids == self.image_pad) | (input_ids == self.video_pad),
            rows=at[0],
            columns=at[1],
            targets=torch.tensor(targets),
            weights=torch.tensor(weights),
            num_questions=sum(len(questions) for _, questions in rows),
        )


# ---- training


def packed_logits(model: Qwen2_5_VLForConditionalGeneration, batch: SimpleNamespace) -> torch.Tensor:
    """Logits (N, V) that predict the answer tokens of a packed batch."""
    inner = model.model
    embeds = inner.get_input_embeddings()(batch.input_ids)  # (B, T, D)
    if batch.num_slabs:
        side = int((len(batch.patches) // batch.num_slabs) ** 0.5)
        # Attention stays inside a slab, so that all slabs of all media are one long video.
        grid = torch.tensor([[batch.num_slabs, side, side]])
        features = inner.visual(batch.patches, grid_thw=grid).pooler_output
        embeds = embeds.masked_scatter(batch.vision_mask[..., None], features)
    hidden = inner.language_model(
        inputs_embeds=embeds, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[batch.rows, batch.columns])


def learning_rate_at(config: BackboneConfig, step: int) -> float:
    since = step if step < config.text_steps else step - config.text_steps
    warm = min(1.0, (since + 1) / max(1, config.warmup_steps))
    tail = max(1, round(DECAY_SHARE * config.steps))
    return LEARNING_RATE * warm * min(1.0, (config.total_steps - step) / tail)


def answer_loss(logits: torch.Tensor, batch: SimpleNamespace) -> torch.Tensor:
    """Weighted cross-entropy, divided by the number of questions."""
    losses = F.cross_entropy(logits.float(), batch.targets, reduction="none")
    return (losses * batch.weights).sum() / batch.num_questions


def make_batch(maker: BatchMaker, config: BackboneConfig, step: int) -> SimpleNamespace:
    """The batch of a step, a function of the configs alone."""
    return maker.make_text(step) if step < config.text_steps else maker.make(step, config.images)


def make_optimizer(model) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-8, fused=True)


def save_checkpoint(path: Path, model, optimizer: torch.optim.Optimizer, step: int, rows: list[dict]) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    with utils.atomic_file(path) as temporary:
        # Clones, because tied weights share their memory, which the format refuses.
        clones = {name: value.detach().clone() for name, value in tensors.items()}
        save_file(clones, temporary, {"step": str(step), "rows": json.dumps(rows)})


def load_checkpoint(path: Path, model, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """Puts back what `save_checkpoint` wrote, and returns the number of steps and the rows of the learning curve."""
    weights, state = {}, defaultdict(dict)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        for key in file.keys():
            part, _, name = key.partition(".")
            if part == "model":
                weights[name] = file.get_tensor(key)
            else:
                index, _, value = name.partition(".")
                state[int(index)][value] = file.get_tensor(key)
    model.load_state_dict(weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(state)})
    return int(metadata["step"]), json.loads(metadata["rows"])


def train_backbone(model, tokenizer, config: BackboneConfig, world: WorldConfig, checkpoint: Path) -> list[dict]:
    """Trains `model` in place, and returns the rows of the learning curve.

    It resumes where `checkpoint`, a file, is there; a run that was killed gives the same bits as one that was not.
    """
    optimizer, maker = make_optimizer(model), BatchMaker(world, tokenizer)
    start, rows = load_checkpoint(checkpoint, model, optimizer) if checkpoint.exists() else (0, [])
    model.train()
    losses = []
    steps = range(start, config.total_steps)
    for step in tqdm(steps, "nano backbone", initial=start, total=config.total_steps):
        batch = make_batch(maker, config, step)
        loss = answer_loss(packed_logits(model, batch), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = learning_rate_at(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if (step + 1) % LOGGING_STEPS == 0 or step + 1 in (config.text_steps, config.total_steps):
            rows.append({"step": step + 1, "loss": float(torch.stack(losses).mean()), "learning_rate": rate})
            losses.clear()
            if not math.isfinite(rows[-1]["loss"]):
                raise RuntimeError(f"the loss is {rows[-1]['loss']} at step {step + 1}.")
        # A row was just written, so that no loss of the running window is lost.
        if (step + 1) % SAVE_STEPS == 0 and step + 1 < config.total_steps:
            save_checkpoint(checkpoint, model, optimizer, step + 1, rows)
    model.eval()
    return rows
