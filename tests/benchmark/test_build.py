"""`vaemotionllm benchmark build`: rules, bytes, resuming, and what is refused."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from drawn_media import RATE_HZ, melody, scene
from media_files import write_clip, write_video
from PIL import Image

from vaemotionllm import InputError
from vaemotionllm.benchmark import build as building
from vaemotionllm.benchmark import questions, schema
from vaemotionllm.benchmark.build import build
from vaemotionllm.benchmark.questions import BuildConfig, read_build_config
from vaemotionllm.benchmark.validate import validate
from vaemotionllm.cli.main import main
from vaemotionllm.data.manifest import Clip, read_manifest
from vaemotionllm.model.media import load_audio, load_video

PLANE = {"joyful": (0.7, 0.5), "calm": (0.6, -0.5), "sad": (-0.6, -0.4), "tense": (-0.6, 0.6), "proud": (0.4, 0.3)}
CONTENTS = {"film": ("rain", "fire", "bell", "drum"), "painting": ("horse", "harbour", "orchard", "bridge")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))


def clip_row(i: int) -> dict:
    emotion = list(PLANE)[i % 5]
    form = list(CONTENTS)[i % 2]
    valence, arousal = PLANE[emotion]
    return {
        "id": f"c{i}", "split": "benchmark", "source": "test", "license": "CC0-1.0",
        "content": CONTENTS[form][i // 2 % 4],
        "emotion": emotion, "valence": valence + 0.02 * (-1) ** (i // 5), "arousal": arousal, "art_form": form,
        "audio": f"{i}.wav", "image": f"{i}.png",
    }  # fmt: skip


def write_rows(folder: Path, rows: list[dict]) -> Path:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """40 clips of sound and picture; the fifth is a film with sound instead, the seventh has votes."""
    folder = tmp_path_factory.mktemp("world")
    rows = [clip_row(i) for i in range(40)]
    for i in range(40):
        soundfile.write(folder / f"{i}.wav", melody(i, 1.0), RATE_HZ)
        Image.fromarray(scene(i, 64)).save(folder / f"{i}.png")
    write_video(folder / "5.mp4", seconds=2.0, size_px=64)
    rows[5] |= {"audio": "5.mp4", "video": "5.mp4", "image": None}
    rows[7]["emotion"] = {"sad": 6, "tense": 3, "calm": 1}
    write_rows(folder, rows)
    return folder


def config_of(world: Path, out: Path, **values) -> BuildConfig:
    return BuildConfig(
        manifest=str(world / "manifest.jsonl"), out=str(out), name="Built", **{"shard_mb": 0.3} | values
    )


def changed(world: Path, tmp_path: Path, change) -> Path:
    """A manifest whose rows `change(rows)` has edited, beside links to the media."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in world.iterdir():
        if path.suffix != ".jsonl":
            (folder / path.name).symlink_to(path)
    rows = [json.loads(line) for line in (world / "manifest.jsonl").read_text().splitlines()]
    write_rows(folder, change(rows) or rows)
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_built_is_valid_and_loads(world, tmp_path, capsys):
    assert main(["benchmark", "build", "--config", "art", f"manifest={world}/manifest.jsonl", f"out={tmp_path}/b",
                 "name=Built", "shard_mb=0.3"]) == 0  # fmt: skip
    assert "240 items about 40 clips in" in capsys.readouterr().out
    benchmark = schema.load(tmp_path / "b")
    assert Counter((item.aspect, item.modality) for item in benchmark.items) == {
        (aspect, modality): 40 for aspect in schema.ASPECTS for modality in schema.MODALITIES
    }
    report = validate(tmp_path / "b")
    assert [str(issue) for issue in report.issues] == []
    cells = Counter((item.aspect, item.modality, item.options.index(item.answer)) for item in benchmark.items)
    assert len(cells) == 24 and set(cells.values()) == {10}
    assert benchmark.info["answers"]["emotion"] == dict.fromkeys(("calm", "joyful", "proud", "tense"), 8) | {"sad": 8}
    assert benchmark.info["art_forms"] == ["film", "painting"]


def test_media_are_those_of_the_clip_without_other_tracks(world, tmp_path):
    build(config_of(world, tmp_path / "b"))
    by_id = {item.id: item for item in schema.load(tmp_path / "b").items}
    assert Path(by_id["c3-emotion-audio"].audio).read_bytes() == (world / "3.wav").read_bytes()
    assert Path(by_id["c3-content-visual"].image).read_bytes() == (world / "3.png").read_bytes()
    film = by_id["c5-emotion-av"]
    with av.open(film.video) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert film.audio.endswith(".flac") and soundfile.info(film.audio).samplerate == 16_000
    heard, own = load_audio(film.audio), load_audio(str(world / "5.mp4"))
    assert len(heard) == len(own) and np.abs(heard - own).max() < 1e-4
    seen, _ = load_video(film.video, 4)
    assert (seen == load_video(str(world / "5.mp4"), 4)[0]).all()  # copied, not coded anew


def test_a_part_of_a_file_is_cut(world):
    path = str(world / "5.mp4")
    clip = Clip("x", "benchmark", "s", "l", audio=path, video=path, start_s=0.5, end_s=1.2)
    sound, suffix = building.audio_of(clip)
    assert suffix == ".flac" and len(load_audio(sound)) == round(0.7 * 16_000)
    film, suffix = building.visual_of(clip)
    assert suffix == ".mp4"
    cut, metadata = load_video(film, 7)
    own, _ = load_video(path, 7, 0.5, 1.2)
    assert np.abs(cut.astype(int) - own).mean() < 4 and metadata.duration_s == pytest.approx(0.7, abs=0.01)
    assert building.visual_of(clip) == (film, ".mp4") and building.audio_of(clip) == (sound, ".flac")
    # The whole file, as its end says, is not cut.
    whole = Clip("x", "benchmark", "s", "l", audio=str(world / "3.wav"), start_s=0.0, end_s=1.0)
    assert building.audio_of(whole) == ((world / "3.wav").read_bytes(), ".wav")


def test_same_input_and_seed_give_the_same_bytes(world, tmp_path, monkeypatch):
    build(config_of(world, tmp_path / "a"))
    monkeypatch.setattr(building, "WORKERS", 1)
    moved = shutil.copytree(world, tmp_path / "elsewhere")
    build(config_of(moved, tmp_path / "deep/b"))
    first, second = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "deep/b")
    assert len(first) > 4 and first == second
    assert str(tmp_path).encode() not in b"".join(first.values())
    build(config_of(world, tmp_path / "c", seed=1))
    assert bytes_of(tmp_path / "c")["benchmark.json"] != first["benchmark.json"]


def test_a_build_that_was_killed_goes_on_with_the_same_bytes(world, tmp_path, monkeypatch):
    whole = build(config_of(world, tmp_path / "whole"))
    real, written = building._write_shard, []

    def killed(shard, path, *args):
        if len(written) == 2:
            path.with_suffix(".tmp").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(path.name)
        real(shard, path, *args)

    monkeypatch.setattr(building, "_write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        build(config_of(world, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    again = []

    def counted(shard, path, *args):
        again.append(path.name)
        real(shard, path, *args)

    monkeypatch.setattr(building, "_write_shard", counted)
    build(config_of(world, tmp_path / "out"))
    assert len(written) == 2 and not set(written) & set(again) and len(again) == len(whole["shards"]) - 2
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    # A finished one is not built again, and nothing is left of the stopped one.
    again.clear()
    build(config_of(world, tmp_path / "out"))
    assert again == [] and not list(tmp_path.glob(".out*.partial"))


def test_a_build_whose_process_dies_goes_on(world, tmp_path):
    code = f"""
import os, signal
from vaemotionllm.benchmark import build
from vaemotionllm.benchmark.questions import BuildConfig
real, calls = build._rows, []
def dying(questions, *others):
    calls.append(questions)
    if len(calls) == 20:  # in the third shard
        os.kill(os.getpid(), signal.SIGKILL)
    yield from real(questions, *others)
build._rows = dying
build.build(BuildConfig(**{vars(config_of(world, tmp_path / "out"))!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=600)
    assert done.returncode == -signal.SIGKILL
    [partial] = tmp_path.glob(".out.*.partial")
    assert len(list(partial.glob("data/*.parquet"))) == 2 and len(list(partial.glob("data/*.tmp"))) == 1
    build(config_of(world, tmp_path / "out"))
    build(config_of(world, tmp_path / "whole"))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_the_tasks_read_what_was_built(world, tmp_path, monkeypatch):
    from vaemotionllm.evaluation import artemo
    from vaemotionllm.nano import select

    build(config_of(world, tmp_path / "b"))
    monkeypatch.setenv(select.VARIABLE, str(tmp_path / "b"))
    file = Path(artemo.yaml_value("dataset_kwargs")["data_files"]["test"])
    assert len(file.read_text().splitlines()) == 240
    documents = artemo.yaml_value("documents_emotion_av")(None)
    assert len(documents) == 40 and all(Path(path).is_file() for path in documents["audio"])


def test_a_stopped_build_of_other_questions_is_not_mixed_in(world, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(building, "_write_shard", killed)
        build(config_of(world, tmp_path / "out", seed=1))
    assert list(tmp_path.glob(".out*.partial"))
    build(config_of(world, tmp_path / "out"))
    build(config_of(world, tmp_path / "fresh"))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "fresh") and not list(tmp_path.glob(".out*.partial"))
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        build(config_of(world, tmp_path / "out", seed=2))


def test_each_medium_is_stored_once_a_row_group(world, tmp_path):
    build(config_of(world, tmp_path / "b", shard_mb=256))
    [shard] = (tmp_path / "b/data").glob("*.parquet")
    media = sum(path.stat().st_size for path in world.iterdir() if path.suffix in (".wav", ".png"))
    assert shard.stat().st_size < 1.3 * media  # and not four times, though four items show each


def test_the_datasets_library_reads_the_shards(world, tmp_path):
    from datasets import Audio, Image, load_dataset

    build(config_of(world, tmp_path / "b"))
    files = sorted(str(path) for path in (tmp_path / "b/data").glob("*.parquet"))
    data = load_dataset("parquet", data_files={"test": files}, split="test", cache_dir=str(tmp_path / "hf"))
    assert isinstance(data.features["audio"], Audio) and isinstance(data.features["image"], Image)
    row = data.cast_column("audio", Audio(decode=False))[9]
    assert row["id"] == "c1-emotion-audio" and row["audio"]["bytes"] == (world / "1.wav").read_bytes()


def test_emotion_distractors_lie_in_the_bands(world, tmp_path):
    clips = read_manifest(world / "manifest.jsonl")
    config = config_of(world, tmp_path / "b", options=3, emotion_distances=[[0.2, 1.2], [1.2, 2.83]])
    asked, counts, plane = questions.make_questions(clips, config)
    assert plane["proud"] == pytest.approx((0.4, 0.3), abs=1e-9) and plane["sad"][0] == pytest.approx(-0.6, abs=1e-9)
    drawn = {answer: set() for answer in PLANE}
    for question in asked:
        if question.aspect == "emotion":
            others = [option for option in question.options if option != question.answer]
            distances = sorted(math.dist(plane[question.answer], plane[option]) for option in others)
            if not question.distribution:
                assert 0.2 <= distances[0] <= 1.2 <= distances[1] <= 2.83
            drawn[question.answer] |= set(others)
    # One is outside: c7 is sad, and tense, the only label that is near, was chosen by 30% of its annotators.
    assert drawn["joyful"] == {"calm", "proud", "sad", "tense"} and counts["emotion_outside_band"] == 1
    # A band that holds no label takes the nearest, and that is counted.
    config = config_of(world, tmp_path / "b", options=2, emotion_distances=[[2.5, 2.6]])
    asked, counts, _ = questions.make_questions(clips, config)
    assert counts["emotion_outside_band"] == 40
    assert {q.options for q in asked if q.answer == "calm"} <= {("calm", "tense"), ("tense", "calm")}


def test_votes_are_kept_and_what_many_chose_is_no_distractor(world, tmp_path):
    config = config_of(world, tmp_path / "b", options=3, emotion_distances=[[0.0, 2.83], [0.0, 2.83]])
    for seed in range(20):
        config.seed = seed
        [question] = [q for q in questions.make_questions(read_manifest(world / "manifest.jsonl"), config)[0]
                      if q.clip.id == "c7" and q.aspect == "emotion"]  # fmt: skip
        assert question.answer == "sad" and "tense" not in question.options  # 30% chose it
    assert question.distribution == {"sad": 0.6, "tense": 0.3, "calm": 0.1}
    build(config)
    items = {item.id: item for item in schema.load(tmp_path / "b").items}
    assert items["c7-emotion-av"].emotion_distribution == {"sad": 0.6, "tense": 0.3, "calm": 0.1}
    assert items["c8-emotion-av"].emotion_distribution is items["c7-content-av"].emotion_distribution is None


def test_content_distractors_are_of_the_same_art_form(world, tmp_path):
    asked, _, _ = questions.make_questions(read_manifest(world / "manifest.jsonl"), config_of(world, tmp_path / "b"))
    for question in asked:
        if question.aspect == "content":
            assert set(question.options) == set(CONTENTS[question.clip.art_form])


def test_a_small_pool_is_refused_or_widened_and_counted(world, tmp_path):
    def change(rows):
        rows[0]["art_form"] = "dance"

    folder = changed(world, tmp_path, change)
    with pytest.raises(InputError, match="clip 'c0': 3 distractors .*'dance' has 0 other contents.*widen"):
        build(config_of(folder, tmp_path / "b"))
    built = build(config_of(folder, tmp_path / "b", content_pool="widen"))
    assert built["counts"]["content_pool_widened"] == 1
    assert "- content pool widened: 1" in (tmp_path / "b/README.md").read_text()


def test_ties_are_refused_or_dropped_with_a_count(world, tmp_path):
    def change(rows):
        rows[2]["emotion"] = {"sad": 2, "calm": 2, "tense": 1}

    folder = changed(world, tmp_path, change)
    with pytest.raises(InputError, match="clip 'c2': the emotions calm, sad have equal votes.*ties=drop"):
        build(config_of(folder, tmp_path / "b"))
    built = build(config_of(folder, tmp_path / "b", ties="drop"))
    assert built["counts"]["emotion_ties_dropped"] == 1 and built["items"] == 237


def test_a_manifest_without_labels_is_refused(world, tmp_path):
    def change(rows):
        return [{k: v for k, v in row.items() if k not in ("content", "emotion", "valence")} for row in rows]

    folder = changed(world, tmp_path, change)
    with pytest.raises(InputError, match="clip 'c0' has no label `content`.*unlabelled=drop"):
        build(config_of(folder, tmp_path / "b"))
    with pytest.raises(InputError, match="no clip of the split 'benchmark' has the label `content`"):
        build(config_of(folder, tmp_path / "b", unlabelled="drop"))
    assert not (tmp_path / "b").exists()


def test_emotions_without_a_place_on_the_plane_are_named(world, tmp_path):
    def change(rows):
        return [row | {"valence": None} if row["emotion"] == "calm" else row for row in rows]

    folder = changed(world, tmp_path, change)
    with pytest.raises(InputError, match="no clip with the emotion 'calm' has `valence`.*emotion_positions={calm:"):
        build(config_of(folder, tmp_path / "b"))
    build(config_of(folder, tmp_path / "b", emotion_positions={"calm": [0.5, -0.5]}))
    assert schema.load(tmp_path / "b").info["emotion_positions"]["calm"] == [0.5, -0.5]


def test_a_duplicate_clip_is_refused_or_dropped(world, tmp_path):
    def change(rows):
        rows[9] |= {"audio": rows[1]["audio"], "image": rows[1]["image"]}

    folder = changed(world, tmp_path, change)
    with pytest.raises(InputError, match="clip 'c9' holds the same media as clip 'c1'"):
        build(config_of(folder, tmp_path / "b"))
    assert build(config_of(folder, tmp_path / "b", duplicates="drop"))["counts"]["duplicates_dropped"] == 1


@pytest.mark.parametrize("broken", ["cut.wav", "noise.png", "empty.wav", "cut.mp4"])
def test_a_corrupt_clip_ends_the_build_and_is_named(world, tmp_path, broken):
    source = {"cut.wav": "3.wav", "noise.png": "3.png", "empty.wav": "3.wav", "cut.mp4": "5.mp4"}[broken]
    content = (world / source).read_bytes()
    content = {"noise.png": b"\x89PNG" + os.urandom(99), "empty.wav": b""}.get(broken, content[: len(content) // 2])

    def change(rows):
        column = {".wav": "audio", ".png": "image", ".mp4": "video"}[Path(broken).suffix]
        rows[3] |= ({"image": None} if column == "video" else {}) | {column: broken}

    folder = changed(world, tmp_path, change)
    (folder / broken).write_bytes(content)
    with pytest.raises(InputError, match=r"clip 'c3', (audio|image|video): "):
        build(config_of(folder, tmp_path / "b"))
    assert not (tmp_path / "b").exists()
    # Mended, the build goes on.
    (folder / broken).unlink()
    shutil.copy(world / source, folder / broken)
    assert build(config_of(folder, tmp_path / "b"))["clips"] == 40


def test_a_missing_file_or_modality_is_named(world, tmp_path):
    def change(rows):
        rows[3]["audio"] = "none.wav"

    folder = changed(world, tmp_path, change)
    with pytest.raises(InputError, match="row 4 .id 'c3'.: field `audio`: file not found"):
        build(config_of(folder, tmp_path / "b"))
    rows = [json.loads(line) for line in (world / "manifest.jsonl").read_text().splitlines()]
    rows[3].pop("audio")
    write_rows(folder, rows)
    with pytest.raises(InputError, match="row 4 .id 'c3'.: field `audio` is missing, and this step needs it"):
        build(config_of(folder, tmp_path / "b"))
    assert build(config_of(folder, tmp_path / "b", modalities=["visual"]))["items"] == 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sedd=1"], "unknown config field `sedd`: did you mean `seed`?"),
        (["zzz=1"], "unknown config field `zzz`: the fields are manifest, out, name"),
        (["options=1"], "`options` is 1: Input should be greater than or equal to 2"),
        (["options=3"], "3 options need 2 bands"),
        (["emotion_distances=[[1, 0], [0, 1], [1, 2]]"], r"is \[\[1.*bands \[low, high\] with low < high"),
        (["aspects=[style]"], "`aspects` is .'style'.: .*String should match pattern .*content.emotion"),
        (["ties=maybe"], "`ties` is 'maybe': Input should be 'refuse' or 'drop'"),
        (["emotion_positions={calm: [2, 0]}"], r"'calm': \[2, 0\].*less than or equal to 1"),
        (["shard_mb=0"], "`shard_mb` is 0.*greater than 0"),
        (["max_vote_share=0.7"], "less than 0.5"),
        (["name="], "`name` is None: Input should be a valid string"),
        (["manifest=none.jsonl"], "manifest not found"),
    ],
)
def test_wrong_configs_are_refused(world, tmp_path, capsys, words, message):
    base = [f"manifest={world}/manifest.jsonl", f"out={tmp_path}/b", "name=Built"]
    assert main(["benchmark", "build", "--config", "art", *base, *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "b").exists()


def test_the_shipped_config_is_what_the_defaults_say():
    shipped = read_build_config("art", ["manifest=m", "out=o", "name=n"])
    assert shipped == BuildConfig(manifest="m", out="o", name="n")


def test_the_card_is_one_that_the_hub_reads(world, tmp_path):
    build(config_of(world, tmp_path / "b", description="Made for a test."))
    text = (tmp_path / "b/README.md").read_text()
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["license"] == "cc0-1.0" and matter["size_categories"] == ["n<1K"]
    assert matter["configs"][0]["data_files"] == [{"split": "test", "path": "data/test-*.parquet"}]
    for line in ("# Built", "Made for a test.", "| joyful | 8 |", "- CC0-1.0: 40 clips"):
        assert line in text.splitlines()


def test_embedded_manifests_are_built_as_well(world, tmp_path):
    rows = [json.loads(line) for line in (world / "manifest.jsonl").read_text().splitlines()]
    import pyarrow as pa

    for row in rows:
        row["emotion"] = "sad" if row["id"] == "c7" else row["emotion"]
        for column in ("audio", "image", "video"):
            row[column] = (world / row[column]).read_bytes() if row.get(column) else None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "manifest.parquet")
    config = BuildConfig(manifest=str(tmp_path / "manifest.parquet"), out=str(tmp_path / "b"), name="Built")
    assert build(config)["items"] == 240
    item = schema.load(tmp_path / "b").items[0]
    assert item.audio.endswith(".wav") and load_audio(io.BytesIO(Path(item.audio).read_bytes()).getvalue()).size


@pytest.mark.parametrize("part", [(None, None), (1.0, 3.0)])
def test_audio_and_video_that_are_taken_apart_stay_together(tmp_path, part):
    path = write_clip(tmp_path / "a.mp4", "mp4", "libx264", "aac", 4.0, flash_s=2.2, video_start_s=0.8)
    clip = Clip(
        id="a",
        split="test",
        source="s",
        license="CC0-1.0",
        audio=str(path),
        video=str(path),
        start_s=part[0],
        end_s=part[1],
    )
    beep_s = np.flatnonzero(np.abs(load_audio(building.audio_of(clip)[0])) > 0.1)[0] / 16_000
    frames, metadata = load_video(building.visual_of(clip)[0], None)
    flash_s = metadata.indices[int(frames.mean((1, 2, 3)).argmax())] / metadata.fps
    assert abs(beep_s - (2.2 - (part[0] or 0.0))) < 0.04 and abs(flash_s - beep_s) <= 0.04
