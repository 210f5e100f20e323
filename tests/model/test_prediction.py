"""`predict_emotion`, calibration, and the commands `predict` and `calibrate`, on real files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from media_files import write_png, write_video, write_wav, write_world
from test_model import encode, text, trained_adapter, user

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.cli.main import main
from vaemotionllm.data.manifest import read_manifest
from vaemotionllm.evaluation import calibration, prediction
from vaemotionllm.model.emotion_prediction import PROMPT, ModalityEmotion, conflict_of

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
        with pytest.raises(InputError, match="clip 0 is 'song.wav'; give a mapping"):
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


def test_the_temperature_undoes_a_scale():
    torch.manual_seed(0)
    logits = torch.randn(4000, 5)
    labels = torch.distributions.Categorical(logits=logits).sample()
    targets = torch.nn.functional.one_hot(labels, 5)
    assert calibration.fit_temperature(3 * logits, targets) == pytest.approx(3, rel=0.1)
    sharp, calm = ((scale * logits).softmax(-1).numpy() for scale in (3, 1))
    assert calibration.expected_calibration_error(sharp, targets.numpy()) > 0.15
    assert calibration.expected_calibration_error(calm, targets.numpy()) < 0.03
    always_right = torch.nn.functional.one_hot(labels, 5) * 1.0
    assert 0 < calibration.fit_temperature(always_right, targets) < 1


def test_error_of_calibration_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    targets = np.array([[1, 0], [0, 1], [0, 1], [0.5, 0.5]])
    # bins of 0.1: {0.9, 0.9} right 0.5; {0.6} right 1; {0.7} right 0.5
    expected = (2 * 0.4 + 0.4 + 0.2) / 4
    assert calibration.expected_calibration_error(probabilities, targets, bins=10) == pytest.approx(expected)


def test_intervals_hold_their_share_of_new_clips():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(300):
        half = calibration.conformal_quantile(abs(rng.standard_normal(100)), 0.9)
        held.append((abs(rng.standard_normal(1000)) <= half).mean())
    assert 0.895 < np.mean(held) < 0.92
    assert calibration.fewest_clips(0.9) == 30 and calibration.fewest_clips(0.99) == 99


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
    assert "fitted on split validation" in out and out.count(" 40 ") == 3
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
    assert "no path has 30 clips" in capsys.readouterr().err
    calibrated.set_emotion_labels(["a", "b"])
    assert calibrated.config.emotion_calibration is None


def test_an_emotion_that_the_model_does_not_know_is_no_label_and_is_told(model, processor, tmp_path, caplog):
    manifest = write_world(tmp_path / "world", clips=3)
    clips = [replace(clip, emotion=emotion) for clip, emotion in zip(
        read_manifest(manifest, "train"), ("solemn", LABELS[0], {LABELS[1]: 0.5, "solemn": 0.5}))]  # fmt: skip
    found = calibration.read_clips(model, processor, clips)
    for reading in found.values():
        assert torch.isnan(reading.targets[0]).all() and torch.isnan(reading.targets[2]).all()
        assert reading.targets[1].tolist() == [1.0, *[0.0] * (len(LABELS) - 1)]
    assert f"2 of 3 clips have an emotion that the model does not know (solemn), such as {clips[0].id}" in caplog.text


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
        (["{files}/sound.wav+gone.png"], "one of them is not there"),
        (["{files}/text.dat"], "neither an image nor a sound"),
        (["{files}/sound.wav", "--window-s", "-1"], "--window-s is -1"),
        (["{files}/sound.wav", "--plot", "x.txt"], "--plot"),
    ],
)
def test_predict_says_what_it_cannot_read(folder, files, capsys, words, message):
    (files / "text.dat").write_text("no picture")
    assert main(["predict", "--model", str(folder), *(word.format(files=files) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_a_title_names_each_file_once(files):
    pair = prediction.source_of(f"{files}/picture.png+{files}/sound.wav")
    assert pair.title == "sound.wav+picture.png" and prediction.source_of(f"{files}/film.mp4").title == "film.mp4"


def test_windows_cover_the_whole():
    assert prediction.windows(4.0, 1.0) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert prediction.windows(10.4, 5.0) == [(0, 5), (5, 10.4)] and prediction.windows(12.6, 5.0)[-1] == (10, 12.6)
    assert prediction.windows(0.3, 5.0) == [(0, 0.3)]
