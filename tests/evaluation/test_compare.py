"""`vaemotionllm benchmark compare`: two result folders of lmms-eval, paired; gains and synergy."""

import json
import math

import benchmark_files
import numpy as np
import pytest
from compared import CELLS, DATE, A, B, chosen, evaluate, folder, write_benchmark  # noqa: F401  (fixtures)

from vaemotionllm import InputError
from vaemotionllm.benchmark.intervals import draw_weights, paired, wilson
from vaemotionllm.cli.main import main
from vaemotionllm.evaluation import artemo
from vaemotionllm.evaluation.scores import GAINS, MODALITIES, compare, modality_gains, pick, table_of
from vaemotionllm.nano import select


def score(result: dict, measure: str, cell: str = "_", model: str = "B", **keys):
    aspect, modality = cell.split("_")
    return pick(table_of(result["scores"]), model=model, measure=measure, aspect=aspect, modality=modality, **keys)


def test_differences_are_paired_by_clip(tmp_path):
    result = compare(evaluate(tmp_path / "a", A), evaluate(tmp_path / "b", B, model="other"))
    values = [score(result, "accuracy", "content_audio", model).value for model in "AB"]
    assert values == pytest.approx([4 / 12, 8 / 12], abs=1e-12)
    found = score(result, "accuracy_minus_first", "content_audio")
    assert found.value == pytest.approx(4 / 12, abs=1e-12)
    clips = [f"clip-{i}" for i in range(12)]
    expected = paired(
        (clips, [float(i < 8) for i in range(12)]), (clips, [float(i < 4) for i in range(12)]), np.subtract
    )
    assert [found.low, found.high] == pytest.approx(expected, abs=1e-12)
    # Both see the same draw, so a model is exactly as good as itself.
    same = score(result, "accuracy_minus_first", "emotion_visual")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert (result["a"]["model"], result["b"]["model"]) == ("model", "other")
    assert result["benchmark"] == {"name": "test set", "version": "1"} and not result["only_in_a"]


def test_gains_and_synergy_by_hand(tmp_path):
    result = compare(evaluate(tmp_path / "a", A), evaluate(tmp_path / "b", B))
    values = {model: [score(result, gain, "emotion_", model).value for gain in GAINS] for model in "AB"}
    assert values["A"] == pytest.approx([3 / 12, 5 / 12, 3 / 12], abs=1e-12)
    # Both senses are worse than sound alone: a negative synergy.
    assert values["B"] == pytest.approx([1 / 12, -1 / 12, -1 / 12], abs=1e-12)
    differences = [score(result, f"{gain}_minus_first", "emotion_").value for gain in GAINS]
    assert differences == pytest.approx([-2 / 12, -6 / 12, -4 / 12], abs=1e-12)
    # The interval against a plain bootstrap over the same draws.
    weights = draw_weights(12)
    right = {"audio": np.arange(12) < 4, "visual": np.arange(12) < 6, "av": np.arange(12) < 9}
    order = np.argsort([f"clip-{i}" for i in range(12)])
    drawn = []
    for row in weights:
        times = dict(zip(order, row))
        accuracy = {path: sum(times[i] * right[path][i] for i in range(12)) / 12 for path in right}
        drawn.append(accuracy["av"] - max(accuracy["audio"], accuracy["visual"]))
    found = score(result, "synergy", "emotion_", "A")
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1e-9)


def test_all_six_cells_pool_their_items_and_draw_clips(tmp_path):
    result = compare(evaluate(tmp_path / "a", A), evaluate(tmp_path / "b", B))
    a, b = (score(result, "accuracy", "all_all", model) for model in "AB")
    # Both aspects: 4 + 6 + 9 and 8 + 6 + 7 of 36.
    assert a.n == 72 and [a.value, b.value] == pytest.approx([19 / 36, 21 / 36], abs=1e-12)
    # A clip's six questions stand or fall together: far wider than 72 independent answers.
    narrow = wilson(38, 72)
    assert a.low < narrow[0] and narrow[1] < a.high
    each = np.array([sum(i < limit for limit in (4, 6, 9)) / 3 for i in sorted(range(12), key=str)])
    assert [a.low, a.high] == pytest.approx(np.quantile(draw_weights(12) @ each / 12, [0.025, 0.975]), abs=1e-9)
    found = score(result, "accuracy_minus_first", "all_all")
    other = np.array([sum(i < limit for limit in (8, 6, 7)) / 3 for i in sorted(range(12), key=str)])
    ends = np.quantile(draw_weights(12) @ (other - each) / 12, [0.025, 0.975])
    assert [found.value, found.low, found.high] == pytest.approx([2 / 36, *ends], abs=1e-9)


def test_gains_need_the_same_clips():
    cells = {path: (["x", "y"], [1.0, 0.0]) for path in MODALITIES}
    with pytest.raises(ValueError, match=r"a visual differs in 2, such as \['y', 'z'\]"):
        modality_gains({"a": {**cells, "visual": (["x", "z"], [1.0, 0.0])}})
    assert set(modality_gains({"a": cells})) == {"a"}


def test_every_kind_of_task_is_compared(tmp_path):
    tasks = ("va_av", "conflict", "emotion_audio_circular", "content_blind")

    def first(task, doc):
        if task == "va_av":
            return "no idea" if doc["clip_id"] == "clip-0" else f"{0.5 * doc['valence']:.3f}, {doc['arousal']:.3f}"
        return doc["answer"]

    def second(task, doc):
        if task == "va_av":
            return f"valence: {doc['valence']}, arousal: {doc['arousal']}"
        return doc["sound_answer"] if task == "conflict" else "B"

    out = evaluate(tmp_path / "a", first, tasks), evaluate(tmp_path / "b", second, tasks)
    found = compare(*out)
    circular = [score(found, "circular_accuracy", "emotion_audio", model) for model in "AB"]
    assert [(of.n, of.value) for of in circular] == [(12, 1), (12, 0)]
    assert score(found, "circular_accuracy_minus_first", "emotion_audio").value == -1
    assert score(found, "follows_sight_minus_first", condition="conflict").value == -1
    assert score(found, "accuracy", "content_", condition="blind").value == 0
    first, second = (score(found, "ccc", "_av", model, condition="stated") for model in "AB")
    assert first.unparsable == 1 / 12 and second.value == pytest.approx(1, abs=1e-9)
    difference = score(found, "ccc_minus_first", "_av", condition="stated")
    assert difference.value == pytest.approx(1 - first.value, abs=1e-9)
    assert 0 < difference.low < difference.value < difference.high


def test_the_command_prints_and_writes(tmp_path, capsys):
    a, b = evaluate(tmp_path / "a", A, (*CELLS, "content_blind")), evaluate(tmp_path / "b", B, (*CELLS, "va_audio"))
    assert main(["benchmark", "compare", str(a), str(b), "--json", str(tmp_path / "c.json")]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("accuracy content audio "))
    assert line.split()[3:5] == ["33.3%", "[13.8,"] and "+33.3 [" in line
    same = next(line for line in out.splitlines() if line.startswith("accuracy emotion visual "))
    assert same.endswith(" +0.0"), "nothing differs, so there is no interval"
    assert "Only in A: artemo_content_blind" in out and "Only in B: artemo_va_audio" in out
    assert "\nsynergy emotion " in out and "test set, version 1" in out
    assert json.loads((tmp_path / "c.json").read_text()) == compare(a, b)


def test_a_score_that_is_not_defined_is_left_out(tmp_path, capsys):
    silent = evaluate(tmp_path / "a", lambda task, doc: "", ("va_audio",))
    assert math.isnan(score(compare(silent, silent), "ccc", "_audio", condition="stated").value)
    assert main(["benchmark", "compare", str(silent), str(silent), "--json", str(tmp_path / "c.json")]) == 0
    assert "not defined" in capsys.readouterr().out
    assert not any("value" in row for row in json.loads((tmp_path / "c.json").read_text())["scores"])


def test_other_benchmarks_are_refused_by_name(tmp_path, monkeypatch, folder):  # noqa: F811
    a = evaluate(tmp_path / "a", A)
    cut = evaluate(tmp_path / "cut", A, limit=11)
    with pytest.raises(InputError, match="artemo_.*: 1 items differ, the first is 'clip-11-.*"):
        compare(a, cut)
    with pytest.raises(InputError, match="/cut/.* None in .*/a/|None in .*/cut/.*/a/"):
        compare(cut, a)
    other = write_benchmark(tmp_path / "other")
    rows = benchmark_files.read_items(other)
    rows[0]["options"] = rows[0]["options"][::-1]
    benchmark_files.write_items(other, rows)
    monkeypatch.setenv(select.VARIABLE, str(other))
    with pytest.raises(InputError, match="items differ, the first is 'clip-0-content-audio'"):
        compare(a, evaluate(tmp_path / "b", A))
    (other / "benchmark.json").write_text(json.dumps({"format": 1, "name": "their set", "version": "2"}))
    artemo._benchmark.cache_clear()
    with pytest.raises(InputError, match="'test set', 'version': '1'. in .*'their set', 'version': '2'. in "):
        compare(a, evaluate(tmp_path / "c", A))


def test_files_that_do_not_fit_are_named(tmp_path, capsys):
    a = evaluate(tmp_path / "a", A)
    assert main(["benchmark", "compare", str(tmp_path / "none"), str(a)]) == 2
    assert "holds no *_results.json" in capsys.readouterr().err
    with pytest.raises(
        InputError, match="share no task: the first has artemo_content_audio.* the second artemo_va_av"
    ):
        compare(a, evaluate(tmp_path / "b", lambda task, doc: "0, 0", ("va_av",)))
    both = evaluate(evaluate(tmp_path / "both", A), A, model="second")
    with pytest.raises(InputError, match="several models; name one of .*org__model, .*org__second"):
        compare(both, a)
    # A results file names itself, and the newest of a folder counts.
    evaluate(tmp_path / "a", B, date="20260102_030406")
    old = a / "org__model" / f"{DATE}_results.json"
    assert score(compare(old, a), "accuracy_minus_first", "content_audio").value == pytest.approx(4 / 12)
    samples = old.with_name(f"{DATE}_samples_artemo_content_av.jsonl")
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match="holds 11 of 12 answers"):
        compare(old, a)
    flipped = {**json.loads(lines[0]), "accuracy": 0.0}
    samples.write_text("".join([json.dumps(flipped) + "\n", *lines[1:]]))
    with pytest.raises(InputError, match="says accuracy 0.75 for artemo_content_av, but its samples say 0.66"):
        compare(old, a)
    samples.write_text("".join(json.dumps({"doc_id": i, "accuracy": 1.0}) + "\n" for i in range(12)))
    with pytest.raises(InputError, match="lacks what the tasks write"):
        compare(old, a)
    samples.unlink()
    with pytest.raises(InputError, match="run lmms-eval with --log_samples"):
        compare(old, a)
    old.write_text("{}")
    with pytest.raises(InputError, match="is no results file of lmms-eval"):
        compare(old, a)
