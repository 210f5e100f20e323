"""`evaluate-emotion`: labels, calibration, intervals and the conflict score, against naive references."""

import json
from dataclasses import replace

import benchmark_files
import numpy as np
import pytest
import scipy.spatial.distance
import tiny
import torch
from media_files import write_png, write_wav
from report_files import make_rows

from vaemotionllm import VAEmotionLLMForConditionalGeneration
from vaemotionllm.benchmark import schema
from vaemotionllm.benchmark.controls import mismatched_partners
from vaemotionllm.cli.main import main
from vaemotionllm.evaluation import emotion
from vaemotionllm.evaluation.scores import pick, supervisor_scores, table_of
from vaemotionllm.model.emotion_prediction import ModalityEmotion, conflict_of
from vaemotionllm.nano.clips import EMOTIONS
from vaemotionllm.nano.world import benchmark_items
from vaemotionllm.utils import InputError


@pytest.fixture
def benchmark(tmp_path):
    rows = make_rows(24, 0)
    for row in rows:
        write_wav(tmp_path / row["audio"], seconds=0.2)
        write_png(tmp_path / row["image"])
    items = benchmark_items(rows, 0)
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "benchmark.json").write_text(json.dumps({"format": 1, "name": "nano", "nano": True, "seed": 0}))
    return schema.load(tmp_path)


def reading(rng, item, noise: float) -> ModalityEmotion:
    """A reading that knows the item's emotion, but for noise."""
    logits = rng.normal(size=len(EMOTIONS)) * noise + 4 * (np.array(EMOTIONS) == item.emotion)
    shares = np.exp(logits) / np.exp(logits).sum()
    valence = float(np.clip(item.valence + noise * rng.normal() / 5, -1, 1))
    return ModalityEmotion(
        valence, item.arousal, dict(zip(EMOTIONS, shares.tolist())), (valence - 0.2, valence + 0.2), (-1.0, -0.9)
    )


def readings(benchmark, noise: float):
    """Clips, their emotions, and readings of them."""
    rng = np.random.default_rng(1)
    emotions = {item.clip_id: item.answer for item in benchmark.select(aspect="emotion")}
    clips = emotion._clips_of(benchmark.select(modality="audio"))
    labelled = [replace(clip, emotion=emotions[name]) for name, clip in clips.items()]
    return clips, emotions, {clip.id: reading(rng, clip, noise) for clip in labelled}


def test_summary_is_what_a_loop_gives(benchmark):
    items, emotions, found = readings(benchmark, 3.0)
    summary = emotion._summary(list(items.values()), found, emotions)
    right, confident, targets = [], [], []
    inside = 0
    for clip, item in items.items():
        row = found[clip]
        right.append(max(row.probabilities, key=row.probabilities.get) == emotions[clip])
        confident.append([row.probabilities[name] for name in EMOTIONS])
        targets.append([name == emotions[clip] for name in EMOTIONS])
        inside += abs(item.valence - row.valence) <= 0.2
    assert summary["accuracy"] == pytest.approx(np.mean(right)) and 0.2 < np.mean(right) < 1
    assert summary["ece"] == emotion.expected_calibration_error(np.array(confident), np.array(targets, dtype=float))
    assert summary["valence_coverage"] == pytest.approx(inside / len(items)) and 0 < inside < len(items)
    assert summary["arousal_coverage"] == pytest.approx(np.mean([item.arousal <= -0.9 for item in items.values()]))
    assert summary["emotions"] == [emotions[clip] for clip in items]


def test_a_label_that_the_model_does_not_know_is_not_scored(benchmark):
    items, emotions, found = readings(benchmark, 0.0)
    odd = next(iter(items))
    summary = emotion._summary(list(items.values()), found, emotions | {odd: "solemn"})
    assert summary["emotions"][0] is None and summary["accuracy"] == 1.0
    nothing = emotion._summary(list(items.values()), found, {})
    assert nothing["accuracy"] is None and nothing["ece"] is None and nothing["valence_ccc"] is not None


def test_votes_are_compared_with_probabilities(benchmark):
    items, emotions, found = readings(benchmark, 1.0)
    clips = list(items)
    votes = {
        clips[0]: {"calm": 0.75, "sad": 0.25},
        clips[1]: {"joyful": 1.0},
        clips[2]: {"calm": 0.5, "solemn": 0.5},  # a label that the model does not know
    }
    summary = emotion._summary(list(items.values()), found, emotions, votes)
    p = [found[clip].probabilities for clip in clips[:2]]
    kl = [0.75 * np.log2(0.75 / p[0]["calm"]) + 0.25 * np.log2(0.25 / p[0]["sad"]), np.log2(1 / p[1]["joyful"])]
    assert summary["votes_n"] == 2 and summary["votes_kl"] == pytest.approx(np.mean(kl), abs=1e-9)
    js = []
    for given, shares in zip(list(votes.values())[:2], p):
        a, b = np.array([given.get(label, 0) for label in EMOTIONS]), np.array([shares[label] for label in EMOTIONS])
        js.append(scipy.spatial.distance.jensenshannon(a, b, base=2) ** 2)
    assert summary["votes_js"] == pytest.approx(np.mean(js), abs=1e-9)
    without = emotion._summary(list(items.values()), found, emotions)
    assert (without["votes_n"], without["votes_kl"], without["votes_js"]) == (0, None, None)
    # Arousal is read without error, valence with some.
    x, y = np.array(without["predicted"])[:, 0], np.array(without["true"])[:, 0]
    assert without["valence_rmse"] == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), abs=1e-9)
    assert without["valence_pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    assert without["arousal_rmse"] == 0 and without["arousal_pearson"] == pytest.approx(1)


def test_a_clip_disagrees_with_the_sound_of_one_that_shares_no_answer(benchmark):
    _, _, heard = readings(benchmark, 1.0)
    _, _, seen = readings(benchmark, 0.5)
    found = emotion.conflict_scores(benchmark, heard, seen)
    partners = mismatched_partners(benchmark.select(modality="audio"))
    assert sorted(found["clip_ids"]) == sorted(heard) and found["reason"] is None
    for clip, agreeing, disagreeing in zip(found["clip_ids"], found["agreeing"], found["disagreeing"]):
        assert agreeing == conflict_of(heard[clip], seen[clip])
        assert disagreeing == conflict_of(heard[partners[clip]], seen[clip])
    assert found["auroc"] > 0.9  # these readings know what they hear and see
    nothing = emotion.conflict_scores(benchmark, {}, seen)
    assert nothing["auroc"] is None and nothing["reason"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    path = tiny.make_vaemotionllm(tmp_path_factory.mktemp("model"))
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(path)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.emotion_adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(path)
    return path


def test_valence_and_arousal_under_each_modality(model_folder, tmp_path, capsys):
    folder, out = benchmark_files.write_benchmark(tmp_path / "benchmark"), tmp_path / "va.json"
    words = ["evaluate-emotion", "--out", str(out), "--device", "cpu"]
    assert main([*words, "--model", str(model_folder), "--benchmark", str(folder)]) == 0
    assert "valence CCC" in capsys.readouterr().out
    result = json.loads(out.read_text())
    again = emotion.evaluate(model_folder, folder, batch_size=1, device="cpu")
    for modality in emotion.MODALITIES:
        assert result[modality]["n"] == 6 and result[modality]["clip_ids"] == [f"clip-{i}" for i in range(6)]
        assert result[modality]["true"][1] == [-0.6, 0.55]
        predicted = np.array(result[modality]["predicted"])
        assert np.abs(predicted).max() <= 1 and len({tuple(point) for point in predicted}) == 6
        np.testing.assert_allclose(predicted, again[modality]["predicted"], atol=1e-5)
    # Without labels and calibration there is nothing to say about them, and the conflict is measured all the same.
    assert result["labels"] is None and result["level"] is None and result["av"]["ece"] is None
    assert result["av"]["valence_coverage"] is None and 0 <= result["conflict"]["auroc"] <= 1
    assert main([*words, "--model", str(tmp_path), "--benchmark", str(folder)]) == 2
    assert main([*words, "--model", str(model_folder), "--benchmark", str(tmp_path)]) == 2


def test_what_cannot_be_scored_is_refused(model_folder, tmp_path):
    folder = benchmark_files.write_benchmark(tmp_path / "benchmark", clips=2)
    rows = benchmark_files.read_items(folder)
    other = next(row for row in rows if row["clip_id"] == "clip-1" and row["modality"] == "av")
    swapped = [{**row, "audio": rows[0]["audio"]} if row is other else row for row in rows]
    benchmark_files.write_items(folder, swapped)
    with pytest.raises(InputError, match=f"item '{other['id']}': other items of the clip 'clip-1' show other media"):
        emotion.evaluate(model_folder, folder, device="cpu")
    benchmark_files.write_items(folder, [{**row, "valence": None} for row in rows])
    with pytest.raises(InputError, match="has no item with valence and arousal"):
        emotion.evaluate(model_folder, folder, device="cpu")
    benchmark_files.write_items(folder, rows)
    with pytest.raises(InputError, match="Supervisor of this model was never trained"):
        emotion.evaluate(tiny.make_vaemotionllm(tmp_path / "untrained"), folder, device="cpu")


def test_the_report_reads_it_with_intervals(benchmark, tmp_path):
    items, emotions, found = readings(benchmark, 1.0)
    summary = emotion._summary(list(items.values()), found, emotions)
    conflict = emotion.conflict_scores(benchmark, found, readings(benchmark, 3.0)[2])
    written = {"level": 0.9, "conflict": conflict, **dict.fromkeys(emotion.MODALITIES, summary)}
    (tmp_path / "emotion.json").write_text(json.dumps(written))
    scores = table_of(supervisor_scores(tmp_path / "emotion.json"))

    def row(measure, modality=""):
        return pick(scores, model="", measure=measure, modality=modality, condition="supervisor")

    assert row("ece", "av").value == summary["ece"] and row("auroc").n == len(items)
    assert row("auroc").low < conflict["auroc"] < row("auroc").high
    found = row("valence_coverage", "audio")
    assert found.low < summary["valence_coverage"] < found.high
    del written["av"]["ece"]
    (tmp_path / "emotion.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match="does not hold the calibration.*'ece'"):
        supervisor_scores(tmp_path / "emotion.json")
