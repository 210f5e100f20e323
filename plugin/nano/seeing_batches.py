"""Training batches of the nano backbone: fresh pictures, several questions about each in one packed sequence.

A row is `[media prefix][question 1 + answer][question 2 + answer]...`. Every question sees the prefix and itself, and
its positions go on from the prefix: the same computation as one sequence a question, with the prefix shared.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .clips import Clip, WorldConfig, sample_clip
from .language import caption_instruction, choice_instruction, open_instruction
from .picture import render
from .tokenizer import IMAGE_MEAN, IMAGE_STD

PATCH_PX = 14
MERGE = 2
_F32 = np.float32


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


def as_row(clip: Clip) -> dict:
    return {
        "content": clip.content,
        "emotion": clip.emotion,
        "valence": clip.valence,
        "arousal": clip.arousal,
        "art_form": clip.art_form,
    }


def draw_question(rng: np.random.Generator, clip: Clip, choice_share: float) -> Question:
    row = as_row(clip)
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
    """Makes batch number `step` from nothing but the seed, so that a resumed run sees what it would have seen."""

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
        if chance < 0.04:  # no picture: only the priors are left to learn
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

    def make_told(self, step: int, rows: int, questions: int, clips: int) -> PackedBatch:
        """A batch without pictures: the prefix names content and emotion in words.

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

    def make(self, step: int, pictures: int, questions: int, choice_share: float) -> PackedBatch:
        """A batch of questions about pictures that no earlier step showed."""
        rng = np.random.default_rng((self.config.seed, 5, step))
        rows, all_patches = [], []
        for number in range(pictures):
            clip = sample_clip(self.config, self.split, step * pictures + number)
            blocks, patches = self._media(rng, clip)
            all_patches += patches
            asked = [draw_question(rng, clip, choice_share) for _ in range(questions)]
            rows.append((self.media_prefix(blocks), asked))
        return self.pack(rows, all_patches)

    def pack(self, rows, all_patches: list[np.ndarray]) -> PackedBatch:
        """rows: ((prefix ids, prefix positions, next position), questions) of each row."""
        packed, where, targets, weights, kinds = [], [], [], [], []
        for row, ((prefix, positions, start), questions) in enumerate(rows):
            ids, branches, places = list(prefix), [0] * len(prefix), [positions]
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
                places.append(np.tile(np.arange(start, start + count), (3, 1)))
            packed.append((ids, branches, np.concatenate(places, 1)))
        b, t = len(packed), max(len(ids) for ids, _, _ in packed)
        input_ids = np.full((b, t), self.pad, np.int64)
        branch = np.full((b, t), -1, np.int64)
        position = np.zeros((3, b, t), np.int64)
        for row, (ids, branches, places) in enumerate(packed):
            input_ids[row, : len(ids)], branch[row, : len(ids)], position[:, row, : len(ids)] = ids, branches, places
        seen = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])  # (B, query, key)
        seen &= np.tri(t, dtype=bool)
        mask = np.where(seen, _F32(0), np.finfo(_F32).min)[:, None]  # (B, 1, T, T)
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


# Position steps a second of video, the backbone's `tokens_per_second`.
TOKENS_PER_SECOND = 2
