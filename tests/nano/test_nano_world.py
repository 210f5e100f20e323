"""The procedural world: its clips, its files on disk, its benchmark folder, its questions, its command."""

import dataclasses
import hashlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from vaemotionllm import InputError
from vaemotionllm.benchmark import schema
from vaemotionllm.benchmark.prompts import letter_of, multiple_choice, parse_choice
from vaemotionllm.benchmark.validate import validate
from vaemotionllm.cli.main import main
from vaemotionllm.data.manifest import read_manifest
from vaemotionllm.model.media import load_audio, load_video
from vaemotionllm.model.media_images import load_image
from vaemotionllm.nano import language, world
from vaemotionllm.nano.audio import synthesize
from vaemotionllm.nano.clips import ART_FORMS, CONTENTS, EMOTIONS, WorldConfig, emotion_of, sample_clip
from vaemotionllm.nano.image import render
from vaemotionllm.nano.language import energy_word, valence_word
from vaemotionllm.nano.world import build_world, manifest_row, world_key, write_mp4

SIZES = {"train": 10, "validation": 6, "benchmark": 9}
SMALL = {"train": 4, "benchmark": 2}
CONFIG = WorldConfig()
SPLITS = ("train", "validation", "benchmark", "pretrain")


def build(folder: Path, seed: int = 0, sizes=SMALL, workers: int = 1) -> Path:
    """The folder of a world without a progress bar."""
    return build_world(folder, seed, sizes, workers=workers).parent


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def media(folder: Path) -> dict[str, str]:
    """Digest of each media file, by its path in the world."""
    suffixes = (".mp4", ".m4a", ".png", ".wav")
    return {
        name: hashlib.sha256(data).hexdigest() for name, data in contents(folder).items() if name.endswith(suffixes)
    }


def clips(split: str, count: int, config: WorldConfig = CONFIG):
    return [sample_clip(config, split, index) for index in range(count)]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("world") / "built", sizes=SIZES)


@pytest.fixture(scope="module")
def rows(built) -> list[dict]:
    return [json.loads(line) for line in (built / "manifest.jsonl").read_text().splitlines()]


# Clips


def test_labels_are_balanced_over_a_block():
    cells = {(content, emotion, art_form) for content in CONTENTS for emotion in EMOTIONS for art_form in ART_FORMS}
    assert len(cells) == 192
    for split in SPLITS:
        two_blocks = clips(split, 384)
        orders = []
        for block in (two_blocks[:192], two_blocks[192:]):
            orders.append([(clip.content, clip.emotion, clip.art_form) for clip in block])
            assert Counter(orders[-1]) == Counter(cells)
        assert orders[0] != orders[1]


def test_emotion_follows_from_valence_and_arousal():
    for angle, emotion in zip(np.arange(8) * 45 + 22.5, EMOTIONS):
        assert emotion_of(np.cos(np.radians(angle)), np.sin(np.radians(angle))) == emotion
    for clip in clips("train", 384):
        row = manifest_row(CONFIG, "train", clip.index)
        assert clip.emotion == emotion_of(clip.valence, clip.arousal) == emotion_of(row["valence"], row["arousal"])
        assert CONFIG.min_radius <= np.hypot(clip.valence, clip.arousal) <= 1
        degrees = np.degrees(np.arctan2(clip.arousal, clip.valence)) % 45
        assert CONFIG.margin_deg <= degrees <= 45 - CONFIG.margin_deg


def test_noise_is_independent_in_the_two_modalities():
    # So little noise that none of it is clipped.
    config = WorldConfig(expression_noise=0.06, hidden_probability=0.1, blend_probability=0.2)
    sample = clips("train", 1920, config)
    noise = np.array(
        [
            [part.valence - clip.valence for part in (clip.visual, clip.audio)]
            + [part.arousal - clip.arousal for part in (clip.visual, clip.audio)]
            for clip in sample
        ]
    )
    np.testing.assert_allclose(noise.std(axis=0), config.expression_noise, rtol=0.08)
    np.testing.assert_allclose(np.corrcoef(noise.T), np.eye(4), atol=0.1)
    assert (noise != 0).all() and len(np.unique(noise)) == noise.size
    assert all(clip.visual.content == clip.audio.content == clip.content for clip in sample)
    hidden = np.array([[part.hidden for part in (clip.visual, clip.audio)] for clip in sample])
    blended = np.array([[part.blend is not None for part in (clip.visual, clip.audio)] for clip in sample])
    np.testing.assert_allclose(hidden.mean(axis=0), config.hidden_probability, atol=0.03)
    np.testing.assert_allclose(blended.mean(axis=0), config.blend_probability, atol=0.03)
    assert hidden.all(axis=1).mean() == pytest.approx(0.01, abs=0.01) and not (hidden & blended).any()
    assert all(part.blend != clip.content for clip in sample for part in (clip.visual, clip.audio))


def test_a_modality_is_made_from_its_own_expression_alone():
    painting = next(clip for clip in clips("train", 50) if clip.art_form == "painting")
    other = sample_clip(CONFIG, "train", painting.index + 1)
    as_seen = dataclasses.replace(painting, audio=other.audio, valence=0.0, arousal=0.0, emotion="", content="")
    as_heard = dataclasses.replace(painting, visual=other.visual, valence=0.0, arousal=0.0, emotion="", content="")
    np.testing.assert_array_equal(render(CONFIG, as_seen), render(CONFIG, painting))
    np.testing.assert_array_equal(synthesize(CONFIG, as_heard), synthesize(CONFIG, painting))
    assert (render(CONFIG, as_heard) != render(CONFIG, painting)).any()
    assert (synthesize(CONFIG, as_seen) != synthesize(CONFIG, painting)).any()


def test_splits_and_seeds_share_no_latent_point():
    numbers, streams = [], []
    for seed in (0, 1):
        for split in SPLITS:
            for clip in clips(split, 200, WorldConfig(seed=seed)):
                numbers += [clip.valence, clip.arousal, clip.beat_s]
                for part in (clip.visual, clip.audio):
                    # Clipped numbers repeat; any other that is met twice would tell that two streams are one.
                    numbers += [number for number in (part.valence, part.arousal) if abs(number) < 1.3]
                    streams.append(part.seed)
    assert len(numbers) > 2 * len(SPLITS) * 200 * 6.5
    assert len(set(numbers)) == len(numbers)
    assert len(set(streams)) == len(streams) == 2 * len(SPLITS) * 200 * 2


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("seed", -1, "-1"),
        ("seed", 0.5, "0.5"),
    ],
)
def test_bad_configs_are_refused(field, value, word):
    with pytest.raises(InputError, match=field) as error:
        WorldConfig(**{field: value})
    assert word in str(error.value)


# Files


def test_the_same_seed_gives_the_same_files(built, tmp_path):
    again = build(tmp_path / "again", sizes=SIZES, workers=2)
    assert contents(again) == contents(built)


def test_another_seed_gives_other_files(built, tmp_path):
    other = build(tmp_path / "other", seed=1, sizes=SIZES)
    assert not set(media(other).values()) & set(media(built).values())
    # A path may exist in both worlds, never with the same bytes.
    for name in ("manifest.jsonl", "world.json", "benchmark/test.jsonl"):
        assert (other / name).read_bytes() != (built / name).read_bytes()
    assert world_key(0, SIZES) != world_key(1, SIZES) != world_key(1, SMALL)


def test_a_larger_split_goes_on_where_a_smaller_one_ended(built, tmp_path):
    larger = build(tmp_path / "larger", sizes={"train": SIZES["train"] + 2})
    smaller = {name: digest for name, digest in media(built).items() if name.startswith("media/train")}
    assert smaller.items() < media(larger).items()


def test_splits_share_no_clip(built, rows):
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids) == sum(SIZES.values())
    assert Counter(row["split"] for row in rows) == SIZES
    paths = [row[field] for row in rows for field in ("image", "video", "audio") if row.get(field)]
    assert set(paths) == set(media(built))
    assert len(set(media(built).values())) == len(media(built))


def test_the_manifest_is_accepted(built, rows):
    labels = ("audio", "visual", "content", "emotion", "valence", "arousal", "caption", "art_form")
    read = read_manifest(built / "manifest.jsonl", need=labels)
    assert [clip.id for clip in read] == [row["id"] for row in rows]
    for clip, row in zip(read, rows):
        latent = sample_clip(CONFIG, clip.split, int(clip.id.rsplit("-")[1]))
        assert (clip.content, clip.emotion, clip.art_form) == (latent.content, latent.emotion, latent.art_form)
        assert (clip.valence, clip.arousal) == pytest.approx((latent.valence, latent.arousal), abs=1e-6)
        assert (clip.start_s, clip.end_s, clip.extra) == (0.0, CONFIG.clip_s, {})
        assert clip.visual == ("image" if clip.art_form == "painting" else "video")
        assert row["caption"] == language.caption(row)


def test_a_painting_is_a_picture_and_a_sound(built, rows):
    paintings = [row for row in rows if row["art_form"] == "painting"]
    assert len(paintings) > 4
    for row in paintings:
        clip = sample_clip(CONFIG, row["split"], int(row["id"].rsplit("-")[1]))
        assert row["image"].endswith(".png") and row["audio"].endswith(".wav") and "video" not in row
        np.testing.assert_array_equal(np.asarray(load_image(built / row["image"])), render(CONFIG, clip)[0])
        assert np.asarray(load_image(built / row["image"])).shape == (56, 56, 3)
        info = soundfile.info(built / row["audio"])
        assert (info.format, info.samplerate, info.channels, info.frames) == ("WAV", 16_000, 1, 36_000)
        np.testing.assert_allclose(load_audio(built / row["audio"]), synthesize(CONFIG, clip), atol=1e-4)


def test_the_other_forms_are_videos_with_sound(built, rows):
    videos = [row for row in rows if row["art_form"] != "painting" and row["split"] != "benchmark"]
    assert {row["art_form"] for row in videos} == {"animation", "music_video"}
    for row in videos:
        clip = sample_clip(CONFIG, row["split"], int(row["id"].rsplit("-")[1]))
        path = built / row["video"]
        assert row["audio"] == row["video"] and path.suffix == ".mp4" and "image" not in row
        with av.open(str(path)) as container:
            assert [stream.type for stream in container.streams] == ["video", "audio"]
            picture, sound = container.streams
            assert (picture.width, picture.height, picture.average_rate, picture.frames) == (56, 56, 8, 18)
            assert (sound.rate, sound.channels) == (16_000, 1)
        frames, metadata = load_video(path, 18)
        assert frames.shape == (18, 56, 56, 3) and metadata.fps == 8 and metadata.duration_s == CONFIG.clip_s
        assert np.abs(frames - render(CONFIG, clip).astype(float)).mean() < 6  # of 255
        wave, made = load_audio(path), synthesize(CONFIG, clip)
        # AAC fills the last block of 1024 samples.
        assert len(made) == 36_000 <= len(wave) < 37_024
        assert np.corrcoef(wave[:36_000], made)[0, 1] > 0.95
        assert len(load_audio(path, start_s=row["start_s"], end_s=row["end_s"])) == 36_000


def test_a_benchmark_splits_sight_from_sound_and_keeps_both(built, rows, tmp_path):
    films = [row for row in rows if row["art_form"] != "painting" and row["split"] == "benchmark"]
    assert films
    for row in films:
        film, sound = built / row["video"], built / row["audio"]
        for path, kind in ((film, "video"), (sound, "audio")):
            with av.open(str(path)) as container:
                assert [stream.type for stream in container.streams] == [kind]
        clip = sample_clip(CONFIG, "benchmark", int(row["id"].rsplit("-")[1]))
        both = tmp_path / f"{clip.id}.mp4"
        write_mp4(both, CONFIG, render(CONFIG, clip), synthesize(CONFIG, clip))
        (apart, apart_metadata), (together, metadata) = load_video(film, 18), load_video(both, 18)
        np.testing.assert_array_equal(apart, together)
        np.testing.assert_array_equal(load_audio(sound), load_audio(both))
        assert apart_metadata == metadata and film.stat().st_size + sound.stat().st_size < 1.1 * both.stat().st_size
    assert "tracks" not in {issue.check for issue in validate(built / "benchmark").issues}


def test_a_video_moves(built, rows):
    row = next(row for row in rows if row["art_form"] == "animation")
    frames, _ = load_video(built / row["video"], 18)
    assert np.abs(np.diff(frames.astype(float), axis=0)).mean(axis=(1, 2, 3)).min() > 0.5


# Builds that are cut short, and folders that exist

KILLED = """
import os, signal, sys
from vaemotionllm.nano import world

world._write_benchmark = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
world.build_world(sys.argv[1], 0, {"train": 4, "benchmark": 2}, workers=1)
"""


def test_a_killed_build_leaves_nothing_and_the_next_is_whole(tmp_path):
    whole, target = build(tmp_path / "whole"), tmp_path / "killed" / "world"
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], cwd=tmp_path, capture_output=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()
    build(target)
    assert contents(target) == contents(whole)


@pytest.mark.parametrize("exists", [False, True])
def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch, exists):
    target = tmp_path / "world"
    if exists:
        target.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(world, "_write_benchmark", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(target, sizes={"train": 1, "benchmark": 1})
    assert target.exists() == exists and not any(target.glob("*"))
    build(target, sizes={"train": 1, "benchmark": 1})
    assert len(read_manifest(target / "manifest.jsonl")) == 2


def test_a_finished_world_is_reused(tmp_path, monkeypatch):
    folder = build(tmp_path / "w")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(world, "_write_media", lambda *args: 1 / 0)
    assert build_world(folder, 0, SMALL) == folder / "manifest.jsonl"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_world_and_a_foreign_folder_are_refused(tmp_path, monkeypatch):
    folder = build(tmp_path / "w", sizes={"train": 1})
    before = contents(folder)
    for seed, sizes in ((1, {"train": 1}), (0, {"train": 2}), (0, {"validation": 1})):
        with pytest.raises(InputError, match="another format, seed, size or config"):
            build(folder, seed, sizes)
    with pytest.raises(InputError, match="another format, seed, size or config"):
        build_world(folder, sizes={"train": 1}, config=WorldConfig(expression_noise=0.3))
    with monkeypatch.context() as patch:
        patch.setattr(world, "FORMAT", world.FORMAT + 1)
        with pytest.raises(InputError, match="another format, seed, size or config"):
            build(folder, sizes={"train": 1})
    assert contents(folder) == before
    for name, text in (("notes.txt", "mine"), ("world.json", "not JSON"), ("world.json", '["other"]')):
        foreign = tmp_path / f"foreign{len(text)}"
        foreign.mkdir()
        (foreign / name).write_text(text)
        with pytest.raises(InputError, match=re.escape(str(foreign))):
            build(foreign)
        assert contents(foreign) == {name: text.encode()}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        build(tmp_path / "file")


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"test": 3}, ["test", "train, validation, benchmark"]),
        ({"train": -1}, ["'train': -1"]),
        ({"train": 0, "benchmark": 0}, ["'train': 0"]),
        ({}, ["'train': 0"]),
    ],
)
def test_bad_sizes_are_refused(tmp_path, sizes, words):
    with pytest.raises(InputError) as error:
        build(tmp_path / "w", sizes=sizes)
    assert all(word in str(error.value) for word in words)
    assert not any(tmp_path.iterdir())


# Benchmark


@pytest.fixture(scope="module")
def benchmark(built):
    return schema.load(built / "benchmark")


def test_benchmark_asks_the_same_under_three_modalities(benchmark, rows):
    clip_ids = [row["id"] for row in rows if row["split"] == "benchmark"]
    assert benchmark.is_nano and "nano" in benchmark.name
    assert benchmark.info["items"] == len(benchmark.items) == 6 * len(clip_ids)
    assert benchmark.info["clips"] == len(clip_ids) == SIZES["benchmark"]
    for aspect in schema.ASPECTS:
        asked = [
            [(item.clip_id, item.question, item.options, item.answer) for item in benchmark.select(aspect, modality)]
            for modality in schema.MODALITIES
        ]
        assert asked[0] == asked[1] == asked[2]
        assert [clip_id for clip_id, *_ in asked[0]] == clip_ids


def test_benchmark_items_carry_what_their_modality_may_see(benchmark, built, rows):
    by_id = {row["id"]: row for row in rows}
    for item in benchmark.items:
        row = by_id[item.clip_id]
        wanted = {field: str((built / row[field]).resolve()) for field in schema.MEDIA if row.get(field)}
        if item.modality == "audio":
            wanted = {"audio": wanted["audio"]}
        elif item.modality == "visual":
            wanted.pop("audio")
        given = {field: getattr(item, field) for field in schema.MEDIA if getattr(item, field)}
        assert given == wanted
        assert item.answer == row[item.aspect] and len(item.options) == 4
        assert set(item.options) < set({"content": CONTENTS, "emotion": EMOTIONS}[item.aspect])
        assert (item.valence, item.arousal, item.art_form) == (row["valence"], row["arousal"], row["art_form"])


@pytest.mark.parametrize("count", [4, 9, 192])
def test_answer_positions_are_balanced(count):
    sample = [manifest_row(CONFIG, "benchmark", index) for index in range(count)]
    items = world.benchmark_items(sample, seed=0)
    for aspect in schema.ASPECTS:
        asked = [item for item in items if item["aspect"] == aspect and item["modality"] == "av"]
        positions = Counter(item["options"].index(item["answer"]) for item in asked)
        assert set(positions) == {0, 1, 2, 3} and max(positions.values()) - min(positions.values()) <= 1
    assert items == world.benchmark_items(sample, seed=0) != world.benchmark_items(sample, seed=1)


# Questions


def options_of(prompt: str) -> list[str]:
    return re.findall(r"^[A-D]\. (.*)$", prompt, re.MULTILINE)


def test_instructions_agree_with_the_labels():
    rng = np.random.default_rng(0)
    kinds, letters, prompts = Counter(), Counter(), set()
    for number in range(1200):
        row = manifest_row(CONFIG, "train", number % 192)
        kind, prompt, answer = language.instruction(rng, row)
        kinds[kind] += 1
        if options := options_of(prompt):
            question, request = language.INSTRUCTION_CHOICE
            label = row[kind.removesuffix("_choice")]
            assert prompt == multiple_choice(question, options, request) and len(set(options)) == 4
            assert parse_choice(answer, options) == label and answer == letter_of(options, label)
            letters[answer] += 1
            prompts.add(f"{question}\n{request}")
            continue
        prompts.add(prompt)
        if kind == "caption":
            assert row["content"] in answer and row["emotion"] in answer.lower()
            assert answer == language.caption(row, language.CAPTION_PROMPTS.index(prompt))
        else:
            words = {
                "Is it pleasant or unpleasant?": "pleasant" if row["valence"] > 0 else "unpleasant",
                "Is its energy high or low?": "high" if row["arousal"] > 0 else "low",
            }
            assert answer == words[prompt]
    assert set(kinds) == {"content_choice", "emotion_choice", "caption", "valence_arousal"}
    assert min(kinds.values()) > 180 and min(letters.values()) > 0.2 * letters.total()
    assert prompts == set(language.INSTRUCTION_PROMPTS)


def test_the_backbone_learns_the_benchmark_s_format():
    row = manifest_row(CONFIG, "train", 0)
    for seed, (aspect, (question, labels)) in enumerate(language.CHOICES.items()):
        prompt, answer = language.choice_instruction(np.random.default_rng(seed), row, aspect)
        options = options_of(prompt)
        assert prompt == multiple_choice(question, options) and set(options) <= set(labels)
        assert answer == letter_of(options, row[aspect])


def test_captions_are_sentences():
    row = {"content": "bell", "emotion": "angry", "valence": -0.7, "arousal": 0.6, "art_form": "animation"}
    assert [language.caption(row, template) for template in range(3)] == [
        "An angry animation of a bell.",
        "An animation of a bell, angry and unpleasant.",
        "This animation expresses an angry mood with a bell.",
    ]
    assert (valence_word(-0.7), energy_word(0.6)) == ("unpleasant", "high")


def test_stage1_prompt_knows_nothing_of_a_clip():
    assert list(inspect.signature(language.stage1_prompt).parameters) == ["rng"]
    rng = np.random.default_rng(0)
    drawn = [language.stage1_prompt(rng) for _ in range(3000)]
    prompts, choices = [text for _, text in drawn], [text for kind, text in drawn if kind == "choice"]
    assert choices == [prompt for prompt in prompts if options_of(prompt)]
    assert set(prompts) - set(choices) == {*language.OPEN_QUESTIONS, *language.CAPTION_PROMPTS}
    for question, labels in language.CHOICES.values():
        drawn = [options_of(prompt) for prompt in choices if prompt.startswith(question)]
        assert all(len(set(options)) == 4 and set(options) <= set(labels) for options in drawn)
        # Every label is as frequent as every other, in each position.
        for position in range(4):
            counts = Counter(options[position] for options in drawn)
            expected = len(drawn) / len(labels)
            assert set(counts) == set(labels)
            assert max(abs(count - expected) for count in counts.values()) < 5 * np.sqrt(expected)
    assert len({language.stage1_prompt(np.random.default_rng(7)) for _ in range(2)}) == 1


# Command


def test_command_writes_a_world(tmp_path, capsys):
    out = tmp_path / "w"
    arguments = ["nano", "world", "--out", str(out), "--seed", "3", "--train", "3", "--validation", "0"]
    assert main([*arguments, "--benchmark", "2", "--workers", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(out / "manifest.jsonl")]
    assert contents(out) == contents(build(tmp_path / "same", 3, {"train": 3, "benchmark": 2}))
    description = json.loads((out / "world.json").read_text())
    assert description["config"] == dataclasses.asdict(WorldConfig(seed=3))
    assert description["sizes"] == {"train": 3, "validation": 0, "benchmark": 2}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--seed", "-1"], "seed is -1"),
        (["--train", "-2"], "'train': -2"),
        (["--train", "0", "--validation", "0", "--benchmark", "0"], "'benchmark': 0"),
        (["--train", "1"], "not an empty folder"),
    ],
)
def test_command_ends_bad_input_with_exit_code_2(tmp_path, capsys, options, word):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["nano", "world", "--out", str(tmp_path), *options]) == 2
    captured = capsys.readouterr()
    assert "vaemotionllm nano: error: " in captured.err and word in captured.err
    assert captured.out == "" and os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("part", ["world", "backbone"])
def test_command_names_a_folder_that_cannot_be(tmp_path, capsys, monkeypatch, part):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("mine")
    assert main(["nano", part, "--out", str(tmp_path / "file" / "x")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err and (tmp_path / "file").read_text() == "mine"


def test_command_refuses_what_is_no_number(tmp_path):
    for options in (["--seed", "x"], ["--train", "many"]):
        with pytest.raises(SystemExit) as error:
            main(["nano", "world", "--out", str(tmp_path / "w"), *options])
        assert error.value.code == 2
