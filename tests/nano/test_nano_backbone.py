"""The nano backbone: tokenizer, packed batches beside plain sequences, training and its resumption, the cache."""

import dataclasses
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from nano_config import TINY
from transformers import AutoModelForImageTextToText, AutoProcessor, WhisperFeatureExtractor, WhisperModel

from vaemotionllm import InputError
from vaemotionllm.benchmark.prompts import multiple_choice
from vaemotionllm.cli.main import main
from vaemotionllm.nano import backbone
from vaemotionllm.nano.backbone import (
    MAX_VOCAB,
    MERGE,
    PATCH_PX,
    SPECIAL_TOKENS,
    BackboneConfig,
    BatchMaker,
    answer_loss,
    build_backbone,
    build_processor,
    build_tokenizer,
    build_vlm,
    cached_path,
    draw_question,
    learning_rate_at,
    make_batch,
    packed_logits,
    patchify,
    train_backbone,
)
from vaemotionllm.nano.clips import WorldConfig, sample_clip
from vaemotionllm.nano.image import render
from vaemotionllm.nano.language import CHOICES, ENERGY_WORDS, LETTERS, VALENCE_WORDS

WORLD = WorldConfig()


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def processor():
    return build_processor(WORLD.size_px, PATCH_PX, MERGE)


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer


@pytest.fixture(scope="module")
def model(tokenizer):
    """Two layers of two heads; no weight, bias or norm is left at a value that would hide a mistake."""
    torch.manual_seed(0)
    model = build_vlm(tokenizer, hidden=64, layers=2, vision_layers=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


# Tokenizer


def test_an_option_is_the_same_token_as_the_open_answer(tokenizer):
    for question, labels in CHOICES.values():
        for shift in range(len(labels)):
            options = [labels[(shift + k) % len(labels)] for k in range(4)]
            ids = tokenizer(multiple_choice(question, options))["input_ids"]
            for letter, option in zip(LETTERS, options):
                (marker,) = tokenizer(f"\n{letter}. ")["input_ids"]
                (answer,) = tokenizer(option)["input_ids"]
                assert ids.count(marker) == 1 and ids[ids.index(marker) + 1] == answer
                assert tokenizer.decode([marker]) == f"\n{letter}. " and tokenizer.decode([answer]) == option


def test_every_answer_in_one_word_is_one_token_of_its_own(tokenizer):
    words = [*LETTERS, *VALENCE_WORDS, *ENERGY_WORDS, *(label for _, labels in CHOICES.values() for label in labels)]
    ids = [tokenizer(word)["input_ids"] for word in words]
    assert all(len(tokens) == 1 for tokens in ids)
    assert len({tokens[0] for tokens in ids}) == len(words)


def test_special_tokens_are_whole(tokenizer):
    for token in SPECIAL_TOKENS:
        (number,) = tokenizer(token)["input_ids"]
        assert number == tokenizer.convert_tokens_to_ids(token) and number != tokenizer.convert_tokens_to_ids("a")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(tokenizer) <= MAX_VOCAB + len(SPECIAL_TOKENS)
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_any_text_survives(tokenizer):
    rng = np.random.default_rng(0)
    # Characters of Unicode 3.2: Python and the tokenizer need not know the same newer ones.
    letters = [chr(point) for point in range(0xFFFF) if unicodedata.ucd_3_2_0.category(chr(point)) not in ("Cn", "Cs")]
    texts = ["".join(letters[i] for i in rng.integers(len(letters), size=40)) for _ in range(200)]
    texts += [
        "",
        " ",
        "\n\n \t A. ",
        "\nZ. x",
        "日本語 und Ärger",
        "👩‍👩‍👧",
        "don't  stop",
        "12345",
        "<|im_end|>a<|im_start|>",
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == unicodedata.normalize("NFC", text)


# Packed batches beside plain sequences


@dataclass
class Medium:
    frames: np.ndarray  # uint8 (F, S, S, 3)
    is_video: bool
    # Seconds of a temporal slab, that is of two frames.
    seconds: float = 1.0

    @property
    def slabs(self) -> int:
        return (len(self.frames) + 1) // 2


def draw_medium(number: int, frames: int = 1, is_video: bool = False, seconds: float = 1.0) -> Medium:
    clip = sample_clip(WORLD, "pretrain", number)
    return Medium(render(WORLD, clip, np.arange(frames) / 4)[:frames], is_video, seconds)


def image(number: int) -> Medium:
    return draw_medium(number)


def video(number: int, frames: int, seconds: float) -> Medium:
    return draw_medium(number, frames, True, seconds)


def naive_inputs(processor, media: list[Medium], text: str, answer: str) -> dict:
    """One sequence of one question, as Qwen's processor makes it."""
    content = [{"type": "video" if medium.is_video else "image"} for medium in media]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    arguments = {}
    if images := [medium.frames[0] for medium in media if not medium.is_video]:
        arguments["images"] = images
    if videos := [medium for medium in media if medium.is_video]:
        arguments["videos"] = [medium.frames for medium in videos]
        arguments["video_metadata"] = [
            {"fps": 2 / medium.seconds, "total_num_frames": len(medium.frames)} for medium in videos
        ]
    return processor(text=[prompt + answer], return_tensors="pt", **arguments)


def naive_logits(model, processor, media: list[Medium], question: tuple, told: str = "") -> torch.Tensor:
    """Logits (answer tokens and the end token, V) of the plain forward pass."""
    prompt, answer, _ = question
    inputs = naive_inputs(processor, media, told + prompt, answer + "<|im_end|>")
    count = len(processor.tokenizer(answer)["input_ids"]) + 1
    with torch.no_grad():
        return model(**inputs).logits[0, -count - 1 : -1]


def assert_equals_plain_sequences(model, processor, batch, rows: list[tuple[list[Medium], list[tuple], str]]):
    with torch.no_grad():
        packed = packed_logits(model, batch)
    naive = [
        naive_logits(model, processor, media, question, told)
        for media, questions, told in rows
        for question in questions
    ]
    assert len(packed) == sum(map(len, naive)) and packed.dtype == torch.float32
    torch.testing.assert_close(packed, torch.cat(naive), atol=2e-4, rtol=1e-4)
    # The comparison means something: rows and questions do not predict the same.
    assert torch.cat(naive).std(dim=0).mean() > 0.05


QUESTIONS = [
    (multiple_choice("Which subject is this?", ["rain", "bell", "fire", "bird"]), "C", 1.0),
    ("Which emotion does this artwork express?", "calm", 1.0),
    ("Write a caption.", "This painting expresses a sad mood with a drum.", 0.3),
]
MEDIA = {
    "image": [image(0)],
    "video of 2": [video(1, 2, 1.0)],
    "video of 4": [video(2, 4, 1.6)],
    "video of 3": [video(2, 3, 0.6)],
    "two videos": [video(3, 8, 0.55), video(4, 4, 2 / 24)],
    "image and video": [image(5), video(6, 4, 1.2)],
    "video and image": [video(7, 2, 2.2), image(8)],
    "nothing": [],
}


def pack(maker: BatchMaker, rows: list[list[Medium]], questions: list[tuple]):
    prefixes = [maker.media_prefix([(m.slabs, m.is_video, m.seconds) for m in media]) for media in rows]
    patches = [patchify(medium.frames) for media in rows for medium in media]
    return maker.pack([(prefix, questions) for prefix in prefixes], patches)


@pytest.mark.parametrize("name", MEDIA)
def test_a_packed_row_equals_one_sequence_a_question(model, processor, name):
    batch = pack(BatchMaker(WORLD, processor.tokenizer), [MEDIA[name]], QUESTIONS)
    assert batch.input_ids.shape[0] == 1
    assert_equals_plain_sequences(model, processor, batch, [(MEDIA[name], QUESTIONS, "")])


def test_rows_of_different_lengths_equal_one_sequence_a_question(model, processor):
    batch = pack(BatchMaker(WORLD, processor.tokenizer), list(MEDIA.values()), QUESTIONS)
    assert len(set(batch.vision_mask.sum(1).tolist())) > 3  # there is padding
    assert_equals_plain_sequences(model, processor, batch, [(media, QUESTIONS, "") for media in MEDIA.values()])


class Recorder(BatchMaker):
    """Keeps what the batch is packed from."""

    def media_prefix(self, media):
        self.blocks = [*getattr(self, "blocks", []), media]
        return super().media_prefix(media)

    def pack(self, rows, all_patches):
        self.questions = [questions for _, questions in rows]
        return super().pack(rows, all_patches)


def test_a_training_batch_equals_one_sequence_a_question(model, processor, monkeypatch):
    drawn, draw = [], backbone.draw_frames
    monkeypatch.setattr(backbone, "draw_frames", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    maker = Recorder(WORLD, processor.tokenizer)
    batch = maker.make(step=7, images=16)
    frames = iter(drawn)
    rows = []
    for blocks, questions in zip(maker.blocks, maker.questions, strict=True):
        media = [Medium(*next(frames), seconds) for _, _, seconds in blocks]
        assert [(medium.slabs, medium.is_video) for medium in media] == [block[:2] for block in blocks]
        rows.append((media, questions, ""))
    assert next(frames, None) is None
    # Every kind of row is there: none, one and two media, pictures and videos of several lengths.
    assert {len(media) for media, _, _ in rows} == {0, 1, 2}
    assert {len(pixels) for pixels, is_video in drawn if is_video} == {2, 4, 8}
    assert {is_video for _, is_video in drawn} == {False, True}
    assert_equals_plain_sequences(model, processor, batch, rows)


def test_a_told_batch_equals_one_sequence_a_question(model, processor):
    maker = Recorder(WORLD, processor.tokenizer)
    batch = maker.make_text(step=5)
    clips = [sample_clip(WORLD, "pretrain", (5 * 8 + number) % 32) for number in range(8)]
    rows = [([], asked, f"{clip.content} {clip.emotion}\n") for clip, asked in zip(clips, maker.questions)]
    assert batch.num_slabs == 0 and not batch.vision_mask.any()
    assert_equals_plain_sequences(model, processor, batch, rows)


def test_targets_are_the_answers(processor):
    tokenizer = processor.tokenizer
    batch = pack(BatchMaker(WORLD, tokenizer), [MEDIA["image"], MEDIA["nothing"]], QUESTIONS)
    assert batch.num_questions == 6
    end = 0
    for _, answer, weight in QUESTIONS * 2:
        start, end = end, end + len(tokenizer(answer)["input_ids"]) + 1
        assert tokenizer.decode(batch.targets[start:end]) == answer + "<|im_end|>"
        assert batch.weights[start:end].tolist() == pytest.approx([weight] * (end - start - 1) + [0.05])
        assert batch.columns[start:end].diff().eq(1).all()
    assert end == len(batch.targets)


def test_questions_of_a_row_do_not_see_each_other(model, processor):
    maker = BatchMaker(WORLD, processor.tokenizer)
    other = [(QUESTIONS[0][0], "B", 1.0), *QUESTIONS[1:]]
    with torch.no_grad():
        first = packed_logits(model, pack(maker, [MEDIA["image"]], QUESTIONS))
        second = packed_logits(model, pack(maker, [MEDIA["image"]], other))
    torch.testing.assert_close(first[2:], second[2:])
    assert not torch.allclose(first[1], second[1])  # the end token after another letter


def test_loss_is_a_mean_over_questions(processor):
    batch = pack(BatchMaker(WORLD, processor.tokenizer), [MEDIA["image"], MEDIA["nothing"]], QUESTIONS)
    logits = torch.randn(len(batch.targets), len(processor.tokenizer), generator=torch.Generator().manual_seed(0))
    naive = 0.0
    for row, target, weight in zip(logits, batch.targets, batch.weights):
        naive -= weight * row.log_softmax(-1)[target]
    torch.testing.assert_close(answer_loss(logits, batch), naive / 6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_patches_are_those_of_the_processor(processor, count):
    frames = np.random.default_rng(count).integers(0, 256, (count, 56, 56, 3), dtype=np.uint8)
    if count == 1:
        naive = processor.image_processor([frames[0]], return_tensors="np")
        pixels, grid = naive["pixel_values"], naive["image_grid_thw"]
    else:
        naive = processor.video_processor([frames], return_tensors="np")
        pixels, grid = naive["pixel_values_videos"], naive["video_grid_thw"]
    assert grid.tolist() == [[(count + 1) // 2, 4, 4]]
    assert patchify(frames).dtype == np.float32
    np.testing.assert_allclose(patchify(frames), pixels, atol=1e-5)


@pytest.mark.parametrize("size_px", [28, 56, 100])
def test_pictures_of_other_sizes_are_resized(processor, size_px):
    picture = np.zeros((size_px, size_px, 3), np.uint8)
    assert processor.image_processor([picture], return_tensors="np")["image_grid_thw"].tolist() == [[1, 4, 4]]


@pytest.mark.parametrize("name", MEDIA)
def test_positions_are_those_of_the_model(model, processor, name):
    maker = BatchMaker(WORLD, processor.tokenizer)
    ids, positions, start = maker.media_prefix([(m.slabs, m.is_video, m.seconds) for m in MEDIA[name]])
    inputs = naive_inputs(processor, MEDIA[name], "What is this?", "A")
    if name == "nothing":  # the model leaves text alone to the decoder, which counts
        wanted = torch.arange(inputs["input_ids"].shape[1]).tile(3, 1)
    else:
        wanted = model.model.get_rope_index(**inputs)[0][:, 0]  # (3, T)
    assert inputs["input_ids"][0, : len(ids)].tolist() == ids
    np.testing.assert_array_equal(positions, wanted[:, : len(ids)])
    # The question goes on from `start`.
    assert wanted[:, len(ids)].tolist() == [start] * 3


# Batches


def same(first, second) -> bool:
    pairs = [(of, vars(second)[name]) for name, of in vars(first).items()]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_batches_are_a_function_of_seed_and_step(tokenizer):
    maker = BatchMaker(WORLD, tokenizer)
    batches = [make_batch(maker, TINY, step) for step in range(TINY.total_steps)]
    for step in reversed(range(TINY.total_steps)):
        assert same(make_batch(BatchMaker(WORLD, tokenizer), TINY, step), batches[step])
        other = BatchMaker(WorldConfig(seed=1), tokenizer)
        assert not same(make_batch(other, TINY, step), batches[step])
    assert not any(same(batches[i], batches[j]) for i in range(len(batches)) for j in range(i))
    assert [bool(batch.num_slabs) for batch in batches] == [False] * 2 + [True] * 4


def test_told_batches_repeat_few_facts_and_pictures_never_repeat(tokenizer, monkeypatch):
    asked = []

    def sample(config, split, index):
        asked.append((split, index))
        return sample_clip(config, split, index)

    monkeypatch.setattr(backbone, "sample_clip", sample)
    maker = BatchMaker(WORLD, tokenizer)
    for step in range(6):
        maker.make_text(step)
    assert len(asked) == 48 and set(asked) == {("pretrain", index) for index in range(32)}
    asked.clear()
    for step in range(6):
        maker.make(step, images=3)
    assert len(asked) == len(set(asked)) == 18 and {split for split, _ in asked} == {"pretrain"}


def test_questions_are_of_every_kind():
    rng = np.random.default_rng(0)
    clip = sample_clip(WORLD, "pretrain", 0)
    drawn = [draw_question(rng, clip, 0.5) for _ in range(400)]
    choices = [question for question in drawn if "\nA. " in question[0]]
    assert len(choices) / 400 == pytest.approx(0.5, abs=0.1)
    found = {label for prompt, letter, _ in choices for label in (clip.content, clip.emotion)
             if f"\n{letter}. {label}\n" in prompt}  # fmt: skip
    assert found == {clip.content, clip.emotion}
    assert {weight for _, _, weight in drawn} == {1.0, 0.3}


# Training


@pytest.fixture(autouse=True, scope="module")
def often():
    """A row and a checkpoint at every second step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "LOGGING_STEPS", 2)
        patch.setattr(backbone, "SAVE_STEPS", 2)
        yield


def train(tokenizer, folder: Path, seed: int = 0):
    torch.manual_seed(seed)
    model = build_vlm(tokenizer, TINY.hidden, TINY.layers, TINY.vision_layers)
    rows = train_backbone(model, tokenizer, TINY, WORLD, folder / "checkpoint.safetensors")
    return model.state_dict(), rows


def count_steps(monkeypatch, kill_at: int | None = None) -> list:
    """A list that grows with each step; the step number `kill_at` of the process is its last."""
    calls = []

    def forward(model, batch):
        if len(calls) == kill_at:
            raise Killed
        calls.append(batch)
        return packed_logits(model, batch)

    monkeypatch.setattr(backbone, "packed_logits", forward)
    return calls


@pytest.fixture(scope="module")
def uninterrupted(often, tokenizer, tmp_path_factory):
    return train(tokenizer, tmp_path_factory.mktemp("uninterrupted"))


def assert_same_weights(first: dict, second: dict):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_training_changes_every_weight(tokenizer, uninterrupted):
    torch.manual_seed(0)
    before = build_vlm(tokenizer, TINY.hidden, TINY.layers, TINY.vision_layers).state_dict()
    assert [name for name in before if torch.equal(before[name], uninterrupted[0][name])] == []
    lines = uninterrupted[1]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(line["learning_rate"] == learning_rate_at(TINY, line["step"] - 1) for line in lines)
    assert all(0 < line["loss"] < 20 for line in lines)


@pytest.mark.parametrize(("kill_at", "resumed_at"), [(1, 0), (2, 2), (3, 2), (5, 4)])
def test_a_killed_training_resumes_to_the_same_weights(
    tokenizer, uninterrupted, tmp_path, monkeypatch, kill_at, resumed_at
):
    count_steps(monkeypatch, kill_at)
    with pytest.raises(Killed):
        train(tokenizer, tmp_path)
    steps = count_steps(monkeypatch)
    # Other weights at first where a checkpoint is there, so that it must be read.
    weights, rows = train(tokenizer, tmp_path, seed=1 if resumed_at else 0)
    assert len(steps) == TINY.total_steps - resumed_at
    assert_same_weights(weights, uninterrupted[0])
    assert rows == uninterrupted[1]


def test_a_kill_amid_saving_leaves_the_last_checkpoint(tokenizer, uninterrupted, tmp_path, monkeypatch):
    save, calls = backbone.save_file, []

    def half(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise Killed
        save(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(backbone, "save_file", half)
        with pytest.raises(Killed):
            train(tokenizer, tmp_path)
    steps = count_steps(monkeypatch)
    assert_same_weights(train(tokenizer, tmp_path, seed=1)[0], uninterrupted[0])
    assert len(steps) == TINY.total_steps - 2


def test_learning_rate_warms_up_in_both_parts_and_ends_near_0():
    config = BackboneConfig(text_steps=50, steps=100, warmup_steps=10)
    rates = np.array([learning_rate_at(config, step) for step in range(config.total_steps)])
    warm = np.arange(1, 11) / 10 * 1e-3
    np.testing.assert_allclose(rates[:10], warm)
    np.testing.assert_allclose(rates[10:50], 1e-3)
    np.testing.assert_allclose(rates[50:60], warm)
    np.testing.assert_allclose(rates[60:111], 1e-3)
    np.testing.assert_allclose(rates[110:], np.linspace(1e-3, 1e-3 / 40, 40))
    assert learning_rate_at(dataclasses.replace(config, warmup_steps=0), 0) == 1e-3


# The cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(cache))


@pytest.fixture(scope="module")
def built(often, cache) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEMOTIONLLM_CACHE", str(cache))
        return build_backbone(config=TINY)


def refuse_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(backbone, "train_backbone", fail)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> dict:
    return AutoModelForImageTextToText.from_pretrained(folder / "vlm").state_dict()


def test_a_backbone_is_built_in_the_cache(built, cache):
    assert built == cached_path(TINY) and built.parent == cache / "nano"
    assert [path.name for path in built.parent.iterdir() if path.is_dir()] == [built.name]
    names = sorted(path.name for path in built.iterdir())
    assert names == ["audio", "metrics.jsonl", "nano_backbone.json", "vlm"]
    assert [json.loads(line)["step"] for line in (built / "metrics.jsonl").read_text().splitlines()] == [2, 4, 6]
    assert json.loads((built / "nano_backbone.json").read_text())["backbone"] == dataclasses.asdict(TINY)


def test_a_built_backbone_is_found_again(built, monkeypatch, tmp_path):
    refuse_training(monkeypatch)
    before = files(built)
    assert build_backbone(config=TINY) == built
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new" / "copy"):
        for _ in range(2):  # the second time the folder holds it already
            assert build_backbone(out_dir=out, config=TINY) == out
        assert files(out) == before == files(built)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]
    with pytest.raises(AssertionError, match="trained again"):
        build_backbone(config=dataclasses.replace(TINY, steps=5))


def test_another_config_is_another_folder():
    changes = {name: 2 * value or 1 for name, value in dataclasses.asdict(TINY).items()}
    paths = {cached_path(dataclasses.replace(TINY, **{name: value})) for name, value in changes.items()}
    assert len(paths | {cached_path(TINY)}) == len(changes) + 1


def test_a_folder_in_use_is_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    refuse_training(monkeypatch)
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    for out in (used, used / "notes.txt"):
        with pytest.raises(InputError, match="not an empty folder"):
            build_backbone(out_dir=out, config=TINY)
        assert main(["nano", "backbone", "--out", str(out)]) == 2
        assert str(out) in capsys.readouterr().err
    assert files(used) == {"notes.txt": b"mine"}
    assert main(["nano", "backbone", "--seed", "-1"]) == 2
    assert "seed is -1" in capsys.readouterr().err


def test_command_prints_the_folder(monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(backbone, "build_backbone", lambda **given: asked.append(given) or tmp_path)
    assert main(["nano", "backbone", "--seed", "3", "--out", "x"]) == 0
    assert asked == [{"seed": 3, "out_dir": "x"}] and capsys.readouterr().out == f"{tmp_path}\n"


def test_a_killed_build_resumes_to_the_same_files(built, tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path))
    target = cached_path(TINY)
    assert target != built
    with monkeypatch.context() as patch:
        count_steps(patch, kill_at=3)
        with pytest.raises(Killed):
            build_backbone(config=TINY)
    assert not target.exists()
    assert build_backbone(config=TINY) == target
    first, second = files(target), files(built)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert not list(target.parent.glob(".*.safetensors"))


def test_a_build_trains_from_its_seed_alone(built, uninterrupted, tmp_path, monkeypatch):
    assert_same_weights(weights(built), uninterrupted[0])
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path))
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    other = weights(build_backbone(config=dataclasses.replace(TINY, seed=1)))
    assert torch.equal(torch.rand(3), wanted)  # the caller's random numbers go on as if nothing had been built
    assert not any(torch.equal(other[name], tensor) for name, tensor in uninterrupted[0].items())


def test_the_backbone_loads_by_the_auto_classes(built):
    vlm = AutoModelForImageTextToText.from_pretrained(built / "vlm")
    processor = AutoProcessor.from_pretrained(built / "vlm")
    assert type(vlm).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    fresh = build_processor(WORLD.size_px, PATCH_PX, MERGE)
    for name in ("image and video", "two videos"):
        loaded, made = (
            naive_inputs(p, MEDIA[name], QUESTIONS[0][0], "A 日本語<|im_end|>") for p in (processor, fresh)
        )
        assert loaded.keys() == made.keys()
        for key in made:
            torch.testing.assert_close(torch.as_tensor(loaded[key]), torch.as_tensor(made[key]))
    inputs = naive_inputs(processor, MEDIA["image"], "What is this?", "")
    with torch.no_grad():
        said = vlm.generate(**inputs, max_new_tokens=3, do_sample=False)
        wanted = vlm(**inputs).logits[0, -1].argmax()
    assert said[0, inputs["input_ids"].shape[1]] == wanted
    assert vlm.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_the_audio_tower_loads_and_hears_3_s(built):
    audio = WhisperModel.from_pretrained(built / "audio").eval()
    extractor = WhisperFeatureExtractor.from_pretrained(built / "audio")
    wave = np.sin(np.arange(36_000) / 16_000 * 2 * np.pi * 440).astype(np.float32)
    features = extractor(wave, sampling_rate=16_000, return_tensors="pt")["input_features"]
    assert features.shape == (1, 64, 150)
    with torch.no_grad():
        hidden = audio.encoder(features).last_hidden_state
    assert hidden.shape == (1, 75, TINY.hidden) and hidden.isfinite().all() and hidden.std() > 0.1
    # Frames of 20 ms: the sound of 2.25 s ends near frame 112.
    energy = features[0].max(0).values
    assert energy[:110].min() > energy[116:].max()
