"""`predict_emotion`, calibration, and the commands `predict` and `calibrate`, on real files."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from chats import encode, text, trained_adapter, user
from media_files import write_png, write_video, write_wav, write_world

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.benchmark.intervals import fewest_clips
from vaemotionllm.cli.main import main
from vaemotionllm.data.manifest import Clip, read_manifest
from vaemotionllm.evaluation import emotion
from vaemotionllm.model.emotion_prediction import PROMPT, EmotionPrediction, ModalityEmotion, conflict_of
from vaemotionllm.model.inputs import MODALITIES
from vaemotionllm.train import checkpoint

LABELS = ["calm", "fear", "joy", "sadness"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tiny.make_vaemotionllm(tmp_path_factory.mktemp("model"), emotion_labels=LABELS)
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(path)
    trained_adapter(model)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return VAEmotionLLMForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return VAEmotionLLMProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_wav(folder / "sound.wav", 2.0)
    write_png(folder / "picture.png")
    write_video(folder / "film.mp4", 4.0)
    return folder


def test_each_path_is_read_from_its_own_media_alone(model, processor, files):
    sound, picture = str(files / "sound.wav"), files / "picture.png"
    both, heard, seen = model.predict_emotion(
        [{"image": picture, "audio": sound}, {"audio": sound}, {"image": picture.read_bytes()}], processor
    )
    for path, alone in (("audio", heard), ("visual", seen)):
        one, other = getattr(both, path), getattr(alone, path)
        assert one.valence == pytest.approx(other.valence, abs=1e-5)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert both.av is not None and 0 < both.conflict < 1
    assert heard.visual is heard.av is heard.conflict is None
    assert sum(both.av.probabilities.values()) == pytest.approx(1) and both.av.label in LABELS
    assert both.av.valence_interval is None
    # As training shows them: the picture first.
    turn = user({"type": "image", "path": str(picture)}, {"type": "audio", "path": sound}, text(PROMPT))
    with torch.no_grad():
        expected = model(**encode(processor, [turn])).valence[0]
    assert both.av.valence == pytest.approx(expected[2].item(), abs=1e-5)
    many = model.predict_emotion(
        [{"audio": np.zeros(16_000, np.float32)}, {"image": picture}] * 2, processor, batch_size=3
    )
    assert many[3].visual.probabilities == pytest.approx(seen.visual.probabilities, abs=1e-5) and many[3].audio is None


def test_a_supervisor_that_was_never_trained_says_so(tmp_path, processor, files, capsys):
    path = tiny.make_vaemotionllm(tmp_path, emotion_labels=LABELS)
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(path).eval()
    with pytest.raises(InputError, match="was never trained"):
        model.predict_emotion({"audio": files / "sound.wav"}, processor)
    assert main(["predict", "--model", str(path), f"{files}/sound.wav"]) == 2
    assert "Train stage 2" in capsys.readouterr().err


@pytest.mark.parametrize("clip", [{}, {"sound": "a.wav"}, {"image": "a.png", "video": "b.mp4"}])
def test_a_clip_that_is_none_is_named(model, processor, clip):
    with pytest.raises(InputError, match="clip 0 has .*give `audio`, `image` or `video`"):
        model.predict_emotion(clip, processor)
    for word in ("song.wav", ["song.wav"]):
        with pytest.raises(InputError, match="clip 0 is '.*'; give a mapping"):
            model.predict_emotion(word, processor)
    with pytest.raises(InputError, match="nowhere.wav"):
        model.predict_emotion({"audio": "nowhere.wav"}, processor)


def test_conflict_is_nothing_where_paths_agree_and_all_where_they_are_opposite():
    def at(valence, arousal, joy):
        return ModalityEmotion(valence, arousal, {"joy": joy, "fear": 1 - joy})

    assert conflict_of(at(0.3, 0.2, 0.4), at(0.3, 0.2, 0.4)) == pytest.approx(0)
    assert conflict_of(at(1, 1, 1.0), at(-1, -1, 0.0)) == pytest.approx(1)
    nearer = conflict_of(at(0.5, 0.5, 0.6), at(0.4, 0.5, 0.5))
    assert 0 < nearer < conflict_of(at(0.5, 0.5, 0.9), at(-0.4, 0.5, 0.2)) < 1
    assert conflict_of(ModalityEmotion(1, 0), ModalityEmotion(0, 0)) == pytest.approx(1 / 8**0.5)
    assert conflict_of(None, at(0, 0, 1)) is None


# ---- calibration


def labelled_logits(n: int, k: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) logits, and labels that are drawn from them as one-hot rows."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k))
    return logits, np.eye(k)[(rng.random((n, 1)) > softmax(logits).cumsum(1)).sum(1)]


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_the_temperature_undoes_a_scale():
    logits, targets = labelled_logits(4000)
    assert emotion.fit_temperature(3 * logits, targets) == pytest.approx(3, rel=0.1)
    assert emotion.expected_calibration_error(softmax(3 * logits), targets) > 0.15
    assert emotion.expected_calibration_error(softmax(logits), targets) < 0.03
    assert 0 < emotion.fit_temperature(targets, targets) < 1  # always right


def test_the_temperature_is_the_likeliest():
    logits, targets = labelled_logits(60, seed=3)
    loss = lambda t: -(targets * np.log(softmax(logits / t))).sum()
    grid = np.exp(np.linspace(-3, 3, 60_001))
    assert emotion.fit_temperature(logits, targets) == pytest.approx(
        grid[np.argmin([loss(t) for t in grid])], rel=1e-4
    )


def predictions_of(logits: np.ndarray) -> list[EmotionPrediction]:
    labels = [f"label {number}" for number in range(logits.shape[1])]
    return [EmotionPrediction(audio=ModalityEmotion(0, 0, dict(zip(labels, row)))) for row in softmax(logits).tolist()]


def test_a_calibration_error_is_held_out_and_the_temperature_stays_where_it_rises():
    clips = [Clip(str(i), "validation", "test", "CC0-1.0") for i in range(400)]
    logits, targets = labelled_logits(40, seed=5)
    found = emotion.fit(predictions_of(logits), clips[:40], targets)
    before, after = found["ece"]["audio"]
    assert after > before + 0.05
    assert before == pytest.approx(emotion.expected_calibration_error(softmax(logits), targets), abs=1e-4)
    assert found["temperature"]["audio"] == pytest.approx(emotion.fit_temperature(logits, targets), abs=1e-4)
    logits, targets = labelled_logits(400)
    found = emotion.fit(predictions_of(3 * logits), clips, targets)
    assert found["ece"]["audio"][1] < found["ece"]["audio"][0]


def test_error_of_calibration_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    targets = np.array([[1, 0], [0, 1], [0, 1], [0.5, 0.5]])
    # bins of 0.1: {0.9, 0.9} right 0.5; {0.6} right 1; {0.7} right 0.5
    expected = (2 * 0.4 + 0.4 + 0.2) / 4
    assert emotion.expected_calibration_error(probabilities, targets, bins=10) == pytest.approx(expected)


def test_intervals_hold_their_share_of_new_clips():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(300):
        half = emotion.conformal_quantile(abs(rng.standard_normal(100)), 0.9)
        held.append((abs(rng.standard_normal(1000)) <= half).mean())
    assert 0.895 < np.mean(held) < 0.92
    assert fewest_clips(0.9) == 30 and fewest_clips(0.99) == 99


def test_calibrate_writes_what_predict_uses(folder, files, tmp_path, capsys):
    manifest = write_world(tmp_path / "world", clips=40)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(row | {"split": "validation"}) + "\n" for row in rows))
    target = tmp_path / "model"
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(target)
    VAEmotionLLMProcessor.from_pretrained(folder).save_pretrained(target)
    assert main(["calibrate", "--model", str(target), "--manifest", str(manifest)]) == 0
    out = capsys.readouterr().out
    assert "fitted on split validation" in out
    assert [line.split()[:2] for line in out.splitlines() if " 40 " in line[:30]] == [[m, "40"] for m in MODALITIES]
    calibrated = VAEmotionLLMForConditionalGeneration.from_pretrained(target).eval()
    found = calibrated.config.emotion_calibration
    assert found["level"] == 0.9 and set(found["temperature"]) == set(found["valence"]) == {"audio", "visual", "av"}
    processor = VAEmotionLLMProcessor.from_pretrained(target)
    [reading] = calibrated.predict_emotion({"audio": files / "sound.wav"}, processor)
    low, high = reading.audio.arousal_interval
    assert -1 <= low <= reading.audio.arousal <= high <= 1
    assert high == pytest.approx(min(reading.audio.arousal + found["arousal"]["audio"], 1))
    [plain] = model.eval().predict_emotion({"audio": files / "sound.wav"}, processor)
    hot, cold = (torch.tensor(list(r.audio.probabilities.values())).log() for r in (plain, reading))
    spread = (hot.max() - hot.min()) / (cold.max() - cold.min())
    assert spread == pytest.approx(found["temperature"]["audio"], rel=1e-3)
    few = manifest.with_name("few.jsonl")
    few.write_text("".join(line + "\n" for line in manifest.read_text().splitlines()[:29]))
    assert main(["calibrate", "--model", str(target), "--manifest", str(few)]) == 2
    assert "no modality has 30 clips" in capsys.readouterr().err
    calibrated.set_emotion_labels(["a", "b"])
    assert calibrated.config.emotion_calibration is None


def test_calibrate_refuses_clips_that_were_trained_on(folder, tmp_path, capsys):
    from training import stage2_values, train

    manifest = write_world(tmp_path / "world", clips=4)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    other, more = (manifest.with_name(name) for name in ("other.jsonl", "more.jsonl"))
    other.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    more.write_text("".join(json.dumps(row | {"split": "validation"}) + "\n" for row in rows))
    run = tmp_path / "run"
    train(stage2_values(folder, manifest, run, max_steps=1, lora=None))
    for start, named in ((run, run), (run, tmp_path / "longer"), (None, tmp_path / "fetched")):
        if start is None:  # as `push` leaves it, without the run's files
            shutil.copytree(run, named, ignore=shutil.ignore_patterns("run.json", "training.json", "checkpoint-*"))
            (named / "reproducibility.json").write_text(json.dumps({"stages": checkpoint.stages_of(run)}))
        elif named != run:  # a stage before the last
            train(stage2_values(start, other, named, max_steps=1, lora=None))
        words = ["calibrate", "--model", str(named), "--manifest", str(manifest), "--split"]
        assert main([*words, "train"]) == 2
        assert f"--split is train, on which stage 2 of {named} was trained" in capsys.readouterr().err
    # Another split, and another manifest, go as far as before.
    for words in (("--manifest", str(other), "--split", "train"), ("--manifest", str(more))):
        assert main(["calibrate", "--model", str(run), *words]) == 2
        assert "no modality has 30 clips" in capsys.readouterr().err


def test_an_emotion_that_the_model_does_not_know_is_no_label_and_is_reported(tmp_path, caplog):
    manifest = write_world(tmp_path / "world", clips=3)
    clips = [replace(clip, emotion=emotion) for clip, emotion in zip(
        read_manifest(manifest, "train"), ("solemn", LABELS[0], {LABELS[1]: 0.5, "solemn": 0.5}))]  # fmt: skip
    targets = emotion.emotion_targets(clips, LABELS)
    assert np.isnan(targets[[0, 2]]).all() and targets[1].tolist() == [1.0, *[0.0] * (len(LABELS) - 1)]
    assert f"2 of 3 clips have an emotion that the model does not know (solemn), such as {clips[0].id}" in caplog.text
    assert emotion.emotion_targets(clips, ()).shape == (3, 0)


def test_training_drops_a_calibration(folder, tmp_path):
    from training import stage1_values, train

    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder)
    model.config.emotion_calibration = {"level": 0.9, "valence": {"audio": 0.1}}
    model.save_pretrained(tmp_path / "model")
    VAEmotionLLMProcessor.from_pretrained(folder).save_pretrained(tmp_path / "model")
    manifest = write_world(tmp_path / "world", clips=4)
    train(stage1_values(tmp_path / "model", manifest, tmp_path / "run", max_steps=1))
    assert VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path / "run").config.emotion_calibration is None


# ---- the command


def test_predict_prints_a_table_and_json_and_draws(folder, files, tmp_path, capsys):
    pair = f"{files}/sound.wav+{files}/picture.png"
    words = ["predict", "--model", str(folder), f"{files}/picture.png", f"{files}/film.mp4", pair, "--window-s", "1"]
    assert main([*words, "--plot", str(tmp_path / "plots" / "plane.png")]) == 0
    out = capsys.readouterr().out
    assert "picture.png" in out and "3.0-4.0 s" in out and "not calibrated" in out
    assert (tmp_path / "plots" / "plane.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--json"]) == 0
    picture, film, both = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert picture["modalities"] == ["visual"] and both["modalities"] == ["audio", "visual", "av"]
    for row in (both, *film["curve"]):
        shares = row["av"]["probabilities"]
        assert row["av"]["label"] == max(shares, key=shares.get) and row["modalities"] == both["modalities"]
    assert (
        picture["audio"] is None and picture["curve"] == [] and set(picture["visual"]["probabilities"]) == set(LABELS)
    )
    assert [row["start_s"] for row in film["curve"]] == [0.0, 1.0, 2.0, 3.0] and film["conflict"] is not None
    assert both["audio"]["valence"] != both["visual"]["valence"] and both["file"] == pair


def test_a_film_whose_sound_ends_early_has_a_curve_of_what_is_there(folder, tmp_path, capsys):
    write_video(tmp_path / "film.mp4", 4.0, sound_s=1.0)
    words = ["predict", "--model", str(folder), str(tmp_path / "film.mp4"), "--window-s", "1", "--json"]
    assert main(words) == 0
    curve = json.loads(capsys.readouterr().out)["curve"]
    assert curve[0]["audio"] is not None and curve[3]["audio"] is None and curve[3]["visual"] is not None


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere.png"], "there is no file 'nowhere.png'"),
        (["{files}/sound.wav+{files}/sound.wav"], "two of a kind"),
        (["{files}/sound.wav+gone.png"], "there is no file 'gone.png'"),
        (["{files}/text.dat"], "a text file; allowed are images"),
        (["{files}/sound.wav", "--window-s", "-1"], "--window-s is -1"),
        (["{files}/sound.wav", "--window-s", "0.0001"], "--window-s is 0.0001; give seconds from 0.1, or 0"),
        (["{files}/sound.wav", "--window-s", "nan"], "--window-s is nan"),
        (["{files}/sound.wav", "--window-s", "inf"], "--window-s is inf"),
        (["{files}/sound.wav", "--device", "abacus"], "the device 'abacus' is not of this machine; allowed are cpu"),
        (["{files}/sound.wav", "--device", "cuda:99"], "the device 'cuda:99' is not of this machine"),
        (["{files}/sound.wav", "--plot", "x.txt"], "--plot"),
    ],
)
def test_predict_says_what_it_cannot_read(folder, files, capsys, words, message):
    (files / "text.dat").write_text("no picture")
    assert main(["predict", "--model", str(folder), *(word.format(files=files) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_each_file_has_its_own_outcome(folder, files, tmp_path, capsys):
    """One that is missing, one that is cut off and one that is too long stop none of those after them."""
    write_wav(tmp_path / "long.wav", 301, 8000)
    cut = tmp_path / "cut.wav"
    cut.write_bytes((files / "sound.wav").read_bytes()[:600])
    bad = [str(tmp_path / "gone.wav"), str(cut), str(tmp_path / "long.wav")]
    words = ["predict", "--model", str(folder), bad[0], f"{files}/picture.png", *bad[1:], f"{files}/sound.wav"]
    plot = tmp_path / "plot.png"
    assert main([*words, "--json", "--plot", str(plot)]) == 2
    done = capsys.readouterr()
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["file"] for row in rows] == words[3:] and [row["file"] for row in rows if "error" in row] == bad
    assert "301" in rows[3]["error"] and rows[4]["audio"]["label"] in LABELS and plot.is_file()
    errors = [line for line in done.err.splitlines() if line.startswith("vaemotionllm predict: error: ")]
    assert len(errors) == 3 and all(name in line for name, line in zip(bad, errors))
    assert main(words) == 2
    done = capsys.readouterr()
    assert "picture.png\n" in done.out and "sound.wav\n" in done.out and "long.wav" not in done.out
    assert all(name in done.err for name in bad)


def test_a_title_names_each_file_once(files):
    pair = emotion.input_of(f"{files}/picture.png+{files}/sound.wav")
    assert pair.title == "sound.wav+picture.png" and emotion.input_of(f"{files}/film.mp4").title == "film.mp4"


def test_windows_cover_the_whole():
    assert emotion.windows(4.0, 1.0) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert emotion.windows(10.4, 5.0) == [(0, 5), (5, 10.4)] and emotion.windows(12.6, 5.0)[-1] == (10, 12.6)
    assert emotion.windows(0.3, 5.0) == [(0, 0.3)]
    with pytest.raises(InputError, match="more than 10000 windows of 5 s"):
        emotion.windows(3e6, 5.0)
