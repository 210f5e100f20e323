"""`vaemotionllm benchmark validate`: what each check finds, and that it finds nothing in a fair benchmark."""

import io
import json
import shutil
from pathlib import Path

import benchmark_files
import numpy as np
import pytest
import soundfile
from drawn_media import RATE_HZ, melody, scene
from media_files import write_video
from PIL import Image

from vaemotionllm import InputError
from vaemotionllm.benchmark import validate as checks
from vaemotionllm.benchmark.validate import Medium, validate
from vaemotionllm.cli.main import main
from vaemotionllm.model.media import load_audio


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def fair(tmp_path_factory):
    """24 clips with sounds and pictures of their own, and one question of each aspect in three modalities."""
    return write_fair(tmp_path_factory.mktemp("fair"))


def write_fair(folder: Path, clips: int = 24) -> Path:
    (folder / "media").mkdir(parents=True)
    rows = []
    for clip in range(clips):
        soundfile.write(folder / f"media/{clip}.wav", melody(clip), RATE_HZ)
        Image.fromarray(scene(clip)).save(folder / f"media/{clip}.png")
        for aspect, labels in (("content", benchmark_files.CONTENTS), ("emotion", benchmark_files.EMOTIONS)):
            for modality in ("audio", "visual", "av"):
                rows.append(
                    {
                        "id": f"{clip}-{aspect}-{modality}", "clip_id": str(clip), "modality": modality,
                        "aspect": aspect, "question": f"Which {aspect}?",
                        "options": [labels[(i + clip) % 4] for i in range(4)],
                        "answer": labels[(clip + clip // 4) % 4],
                        "audio": f"media/{clip}.wav" if modality != "visual" else None,
                        "image": f"media/{clip}.png" if modality != "audio" else None,
                        "art_form": "painting", "license": "CC0-1.0",
                    }
                )  # fmt: skip
    benchmark_files.write_items(folder, rows)
    return folder


@pytest.fixture
def copy(fair, tmp_path):
    return Path(shutil.copytree(fair, tmp_path / "copy"))


def edit(folder, change) -> None:
    """Changes the rows of which `change(row)` returns something."""
    benchmark_files.write_items(folder, [row | (change(row) or {}) for row in benchmark_files.read_items(folder)])


def found(report, check):
    return [(issue.level, issue.message, issue.items) for issue in report.issues if issue.check == check]


def test_a_fair_benchmark_has_no_issue(fair):
    report = validate(fair)
    assert [str(issue) for issue in report.issues] == []
    assert (report.items, report.clips) == (144, 24)


def test_every_bad_row_is_reported_and_named(copy, capsys, tmp_path):
    edit(copy, lambda row: {"answer": "snow"} if row["id"] == "3-emotion-av" else None)
    edit(copy, lambda row: {"options": ["rain"], "answer": "rain"} if row["id"] == "5-content-av" else None)
    assert main(["benchmark", "validate", str(copy), "--no-media", "--json", str(tmp_path / "a/found.json")]) == 1
    out = capsys.readouterr().out
    assert "the answer is 'snow'" in out and "column 'options'" in out
    result = json.loads((tmp_path / "a/found.json").read_text())
    schema_errors = [issue for issue in result["issues"] if issue["check"] == "schema"]
    assert [issue["items"] for issue in schema_errors] == [["3-emotion-av"], ["5-content-av"]]
    assert result["errors"] == 2 and result["items"] == 142
    with open(copy / "test.jsonl", "a") as lines:
        lines.write("{broken\n")
    assert main(["benchmark", "validate", str(copy), "--no-media"]) == 2
    assert "line 145: not valid JSON" in capsys.readouterr().err


def test_a_newer_format_ends_with_2_and_says_what_to_upgrade(copy, capsys):
    (copy / "benchmark.json").write_text(json.dumps({"format": 2}))
    assert main(["benchmark", "validate", str(copy)]) == 2
    error = capsys.readouterr().err
    assert "reads format 1 and not 2" in error and "upgrade the package" in error


def test_bad_arguments_end_with_2(fair, tmp_path, capsys):
    for words, message in (
        ([str(tmp_path / "none")], "there is no folder"),
        ([str(tmp_path)], "holds no test.jsonl"),
        ([str(fair), "--against", str(tmp_path / "none.jsonl")], "manifest not found"),
        ([str(fair), "--against", str(fair), "--no-media"], "give one of the two"),
    ):
        assert main(["benchmark", "validate", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_warning_alone_ends_with_0(copy, capsys):
    edit(
        copy, lambda row: {"options": [*row["options"][:3], "thunder"]} if row["answer"] != row["options"][3] else None
    )
    assert main(["benchmark", "validate", str(copy), "--no-media"]) == 0
    assert "'thunder' is an option and never an answer anywhere" in capsys.readouterr().out


def test_media_that_cannot_be_used_are_named_and_the_rest_is_checked(copy):
    (copy / "media/1.wav").write_bytes((copy / "media/1.wav").read_bytes()[:20_000])
    (copy / "media/2.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    soundfile.write(copy / "media/3.wav", np.zeros(RATE_HZ), RATE_HZ)
    Image.fromarray(np.full((96, 96, 3), 8, np.uint8)).save(copy / "media/4.png")
    report = validate(copy)
    decode = found(report, "decode")
    assert [(level, "truncated" in message or "cannot decode" in message) for level, message, _ in decode] == [
        ("error", True)
    ] * 2
    assert set(decode[0][2]) == {
        f"1-{aspect}-{modality}" for aspect in ("content", "emotion") for modality in ("audio", "av")
    }
    assert set(decode[1][2]) == {
        f"2-{aspect}-{modality}" for aspect in ("content", "emotion") for modality in ("visual", "av")
    }
    levels = {
        (check, message.split(",")[0].removeprefix("clip ")): level
        for check in ("silence", "black")
        for level, message, _ in found(report, check)
    }
    assert levels == {("silence", "'3'"): "error", ("black", "'4'"): "error"}


def test_a_film_with_sound_is_no_medium_for_one_sense(copy):
    write_video(copy / "media/3.mp4", seconds=2.0, size_px=96)
    edit(copy, lambda row: {"audio": row["audio"] and "media/3.mp4"} if row["clip_id"] == "3" else None)
    [(level, message, items)] = found(validate(copy), "tracks")
    assert level == "warning" and message.startswith("clip '3', audio: the file holds both audio and video")
    assert items == ("3-content-audio", "3-emotion-audio")  # with both senses it gives nothing away


def test_black_frames_of_a_film_are_counted(tmp_path):
    import av

    def film(path, black):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.width = stream.height = 96
            stream.pix_fmt = "yuv420p"
            for i in range(16):
                picture = scene(i) if i >= black else np.zeros((96, 96, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        return checks.measure(Medium("video", str(path))).problem

    assert film(tmp_path / "a.mp4", 0) is None
    (level, check, _) = film(tmp_path / "b.mp4", 10)
    assert (level, check) == ("warning", "black")
    (level, check, _) = film(tmp_path / "c.mp4", 16)
    assert (level, check) == ("error", "black")


def coded(sound, kind, subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, RATE_HZ, format=kind, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS")])
@pytest.mark.parametrize(("gain", "lead"), [(1.0, 0), (0.3, 800)])
def test_a_sound_matches_its_coded_copy_and_no_other(kind, subtype, gain, lead, monkeypatch):
    monkeypatch.setattr(checks, "MATCHED_ROWS", 5)
    sounds = [melody(seed, seconds=4) for seed in range(12)]
    copies = [
        load_audio(coded(np.concatenate([np.zeros(lead, np.float32), gain * sound]), kind, subtype))
        for sound in sounds
    ]
    prints = [np.stack([checks.audio_fingerprint(s, RATE_HZ) for s in group]) for group in (sounds, copies)]
    pairs = checks.matching_pairs(*prints, "audio")
    assert sorted((i, j) for i, j, _ in pairs) == [(i, i) for i in range(12)]


@pytest.mark.parametrize(("quality", "scale", "gain"), [(40, 1.0, 1.0), (70, 0.5, 1.0), (90, 2.0, 0.8)])
def test_a_picture_matches_its_coded_copy_and_no_other(quality, scale, gain):
    def copied(picture):
        buffer = io.BytesIO()
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        Image.fromarray((picture * gain).astype(np.uint8)).resize(size).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer).convert("RGB"))

    pictures = [scene(seed) for seed in range(12)]
    prints = [
        np.stack([checks.image_fingerprint(p[None]) for p in group]) for group in (pictures, map(copied, pictures))
    ]
    pairs = checks.matching_pairs(*prints, "image")
    assert sorted((i, j) for i, j, _ in pairs) == [(i, i) for i in range(12)]


@pytest.mark.parametrize("seed", range(6))
def test_colour_counts_and_survives_coding(seed):
    pixels = scene(seed, 128)
    recoloured = pixels[..., [2, 0, 1]]

    def coded(pixels, quality, size_px, gain):
        buffer = io.BytesIO()
        image = Image.fromarray((pixels * gain).astype(np.uint8)).resize((size_px, size_px))
        image.save(buffer, "JPEG", quality=quality)
        return checks.colours_of(np.asarray(Image.open(buffer).convert("RGB"))[None])

    own = checks.colours_of(pixels[None])
    for quality, size_px, gain in ((40, 128, 1.0), (70, 64, 1.0), (90, 256, 0.8)):
        assert checks.same_colours(own, coded(pixels, quality, size_px, gain))
        assert not checks.same_colours(own, coded(recoloured, quality, size_px, gain))
    grey = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))[None]
    assert checks.same_colours(checks.colours_of(grey), checks.colours_of(grey // 2))
    assert not checks.same_colours(own, checks.colours_of(grey))


def test_one_work_in_two_colourings_is_no_duplicate_and_in_two_sizes_is_one(copy):
    wallpaper = np.repeat(scene(1)[..., :1], 3, axis=2) // np.array([1, 2, 4], np.uint8)  # of one hue
    Image.fromarray(wallpaper).save(copy / "media/1.png")
    Image.fromarray(wallpaper).resize((192, 192)).save(copy / "media/2.png")
    Image.fromarray(wallpaper[..., ::-1] * np.array([2, 1, 1], np.uint8)).save(copy / "media/3.png")
    prints = [checks.image_fingerprint(np.asarray(Image.open(copy / f"media/{i}.png"))[None]) for i in (1, 3)]
    assert list(checks.matching_pairs(prints[0][None], prints[1][None], "image"))  # but for their colours
    [(level, message, _)] = found(validate(copy), "duplicate")
    assert (level, message.split(": same image")[0]) == ("warning", "clips '1' and '2'")


def test_silence_and_flat_pictures_match_nothing():
    flat = checks.image_fingerprint(np.full((1, 96, 96, 3), 120, np.uint8))
    assert not flat.any() and not checks.audio_fingerprint(np.zeros(RATE_HZ, np.float32), RATE_HZ).any()
    prints = np.stack([flat, flat])
    assert not list(checks.matching_pairs(prints, prints, "image"))


def test_a_clip_that_stands_twice_is_an_error_and_half_of_it_a_warning(copy):
    soundfile.write(copy / "media/2.mp3", 0.5 * melody(1), RATE_HZ)
    Image.open(copy / "media/1.png").save(copy / "media/2.jpg", quality=60)
    soundfile.write(copy / "media/4.ogg", 0.5 * melody(3), RATE_HZ)
    new = {"media/2.wav": "media/2.mp3", "media/2.png": "media/2.jpg", "media/4.wav": "media/4.ogg"}
    edit(copy, lambda row: {column: new.get(row[column], row[column]) for column in ("audio", "image")})
    twice, half = found(validate(copy), "duplicate")
    assert twice[0] == "error" and twice[1].startswith("clips '1' and '2': same audio (agreement ")
    assert " and image (agreement " in twice[1] and {"1-emotion-av", "2-content-visual"} <= set(twice[2])
    assert half[0] == "warning" and half[1].startswith("clips '3' and '4': same audio (agreement 0.")


def test_one_file_under_two_clips_is_a_duplicate(copy):
    new = {"media/2.wav": "media/1.wav", "media/2.png": "media/1.png"}
    edit(copy, lambda row: {column: new.get(row[column], row[column]) for column in ("audio", "image")})
    [(level, message, _)] = found(validate(copy), "duplicate")
    assert level == "error" and "same audio (agreement 1.00) and image (agreement 1.00)" in message


def test_the_same_bytes_are_found_where_a_fingerprint_says_nothing(copy):
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE_HZ) / RATE_HZ)
    assert not checks.audio_fingerprint(tone.astype(np.float32), RATE_HZ).any()
    for clip in (1, 2):
        soundfile.write(copy / f"media/{clip}.wav", tone, RATE_HZ)
    [(level, message, _)] = found(validate(copy), "duplicate")
    assert (level, message) == ("warning", "clips '1' and '2': same audio (agreement 1.00)")


def test_media_of_a_training_manifest_are_found(fair, tmp_path, capsys):
    train = tmp_path / "train"
    train.mkdir()
    soundfile.write(train / "a.mp3", 0.4 * melody(7), RATE_HZ)
    soundfile.write(train / "b.wav", melody(100), RATE_HZ)
    Image.fromarray(scene(100)).save(train / "b.png")
    row = {"source": "test", "license": "CC0-1.0"}
    rows = [row | {"id": "a", "split": "train", "audio": "a.mp3"}]
    rows += [row | {"id": "b", "split": "validation", "audio": "b.wav", "image": "b.png"}]
    (train / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = validate(fair, against=str(train / "manifest.jsonl"))
    [(level, message, items)] = found(report, "against")
    assert level == "error" and message.startswith("clip '7', audio: also in the manifest as train clip 'a'")
    assert set(items) == {
        f"7-{aspect}-{modality}" for aspect in ("content", "emotion") for modality in ("audio", "av")
    }
    # Its own clips, under a split that no model is trained on.
    (train / "manifest.jsonl").write_text(json.dumps(rows[0] | {"split": "test"}) + "\n")
    assert main(["benchmark", "validate", str(fair), "--against", str(train / "manifest.jsonl")]) == 2
    assert "holds no clip of the splits train, validation" in capsys.readouterr().err


def test_unbalanced_positions_are_an_error_that_names_the_letter(copy):
    edit(copy, lambda row: {"options": [row["answer"], *(o for o in row["options"] if o != row["answer"])]}
         if row["aspect"] == "emotion" and row["modality"] == "audio" else None)  # fmt: skip
    report = validate(copy, media=False)
    [(level, message, items)] = found(report, "positions")
    assert level == "error" and message.startswith(
        "emotion audio, 4 options: the answer stands at A in 24 of 24 items"
    )
    assert len(items) == 24
    # The options are now in another order than in the other modalities, which a paired comparison does not allow.
    assert {message.split("'")[1] for _, message, _ in found(report, "modalities")} == {
        str(clip) for clip in range(24) if clip // 4 % 4
    }


def test_a_cell_too_small_for_the_test_is_not_judged(tmp_path):
    folder = write_fair(tmp_path / "small", clips=4)
    edit(folder, lambda row: {"options": [row["answer"], *(o for o in row["options"] if o != row["answer"])]})
    assert not found(validate(folder, media=False), "positions")


def test_the_answer_that_is_always_the_longest_is_found(copy):
    def lengthen(row):
        long = f"{row['answer']} as a very long phrase"
        return {"options": [long if o == row["answer"] else o for o in row["options"]], "answer": long}

    edit(copy, lengthen)
    messages = [message for _, message, _ in found(validate(copy, media=False), "plausibility")]
    assert any("content: 24 of 24 answers can be guessed by the longest option" in message for message in messages)


def test_near_identical_options_are_found(copy):
    swap = {"rain": "a Rain.", "fire": "rain", "bell": "thunderstorm", "drum": "thunderstorms"}
    edit(
        copy,
        lambda row: {
            "options": [swap.get(o, o) for o in row["options"]],
            "answer": swap.get(row["answer"], row["answer"]),
        },
    )
    (first, second) = found(validate(copy, media=False), "options")
    assert first[:2] == ("error", "'a Rain.' and 'rain' say the same") and len(first[2]) == 72
    assert second[:2] == ("warning", "'thunderstorm' and 'thunderstorms' are nearly the same")


def test_a_clip_that_lacks_a_modality_or_a_licence_is_named(copy):
    rows = [row for row in benchmark_files.read_items(copy) if row["id"] != "2-content-av"]
    benchmark_files.write_items(copy, rows)
    edit(copy, lambda row: {"license": None} if row["clip_id"] == "9" else None)
    edit(copy, lambda row: {"audio": "media/0.wav"} if row["id"] == "1-emotion-av" else None)
    report = validate(copy, media=False)
    messages = {(level, message) for level, message, _ in found(report, "modalities")}
    assert messages == {
        ("warning", "the clip '2' has no content item for av"),
        ("error", "the clip '1' (emotion) differs in audio by modality"),
    }
    [(level, message, items)] = found(report, "licence")
    assert (level, message) == ("error", "6 items have no licence") and len(items) == 6


def test_long_lists_are_cut_for_people_alone(copy, monkeypatch):
    monkeypatch.setattr(checks, "SHOWN_ISSUES", 3)
    edit(copy, lambda row: {"license": None, "answer": "snow" if row["modality"] == "av" else row["answer"]})
    report = validate(copy, media=False)
    lines = report.lines()
    assert "error: schema: 45 more; --json FILE has them all" in lines
    assert lines[0].endswith("[0-content-audio, 0-content-visual, 0-emotion-audio, 0-emotion-visual and 92 more]")
    assert sum(issue["check"] == "schema" for issue in report.as_dict()["issues"]) == 48


def test_the_number_of_threads_changes_nothing(fair, monkeypatch):
    first = validate(fair).as_dict()
    monkeypatch.setattr(checks.schema, "WORKERS", 1)
    assert validate(fair).as_dict() == first


def test_a_folder_without_items_is_an_error_and_a_newer_format_a_refusal(tmp_path):
    (tmp_path / "test.jsonl").write_text("\n")
    assert [issue.message for issue in validate(tmp_path).issues] == [f"{tmp_path}/test.jsonl holds no item."]
    (tmp_path / "benchmark.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="reads format 1 and not 99"):
        validate(tmp_path)
