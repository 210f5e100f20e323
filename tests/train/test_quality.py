"""The filter of stage 1: which of the teacher's responses teach, and what the report says."""

import json
import shutil

import numpy as np
import pytest
import torch
from training import losses_of, make_setup, stage1_values, train

from vaemotionllm import InputError
from vaemotionllm.config_file import build_config
from vaemotionllm.train import data
from vaemotionllm.train.config import Stage1Config
from vaemotionllm.train.instructions import Prompt, prompt_source
from vaemotionllm.train.teacher import SILENCE_DBFS, level_dbfs, response_scores


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"))


def row(clip, slot=0, empty=False, **scores):
    return {"id": clip, "slot": slot, "empty": empty, "scores": scores}


RULES = {"grounding": {"min": 0.1}, "entropy": {"max": 4.0}}


def test_verdicts_name_their_reasons():
    rows = [
        row("a", grounding=0.1, entropy=4.0), row("b", grounding=0.09, entropy=5.0),
        row("c", grounding=0.5, entropy=4.1), row("d", empty=True, grounding=0.5, entropy=1.0),
        row("e", entropy=1.0),
    ]  # fmt: skip
    verdicts = data.judge(rows, {r["id"]: {} for r in rows}, RULES)
    assert [v["kept"] for v in verdicts] == [True, False, False, False, True]
    assert [v["reasons"] for v in verdicts] == [
        [], ["grounding", "entropy"], ["entropy"], ["empty response"], []
    ]  # fmt: skip
    found = data.summary(verdicts, RULES)
    assert found["responses_dropped"] == 3 and found["clips_dropped"] == ["b", "c", "d"]
    assert found["dropped_by"] == {"entropy": 2, "grounding": 1, "empty response": 1}
    assert found["without_score"] == {"grounding": 1, "entropy": 0}
    assert found["quantiles"]["entropy"] == pytest.approx(
        np.quantile([4, 5, 4.1, 1, 1], [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]), abs=1e-4
    )


def test_a_column_of_the_manifest_is_a_score():
    verdicts = data.judge(
        [row("a"), row("b")], {"a": {"likeness": 0.3}, "b": {"likeness": 0.1}}, {"likeness": {"min": 0.2}}
    )
    assert [v["kept"] for v in verdicts] == [True, False]
    with pytest.raises(InputError, match="rule for `likeness`, which is no score .* Scores are entropy"):
        data.judge([row("a", entropy=1.0)], {"a": {}}, {"likeness": {"min": 0.2}})
    with pytest.raises(InputError, match="clip 'a': its column `likeness` is 'high'; a finite number is needed"):
        data.judge([row("a")], {"a": {"likeness": "high"}}, {"likeness": {"min": 0.2}})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"entropy": {"min": 1, "max": 2}}, r"give \{min: a\} or"),
        ({"entropy": {"max": 4, "full": 2}}, r"give \{min: a\} or"),
        ({"entropy": {"max": "low"}}, "`quality` is .*'low'.* valid number"),
        ({"entropy": 3.0}, "`quality` is .*valid dictionary"),
    ],
)  # fmt: skip
def test_rules_that_mean_nothing_are_refused(tmp_path, rules, message):
    with pytest.raises(InputError, match=message):
        build_config(Stage1Config, stage1_values("model", "manifest", tmp_path, quality=rules))


def test_scores_equal_the_naive_ones():
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 11, bias=False).requires_grad_(False)
    states = {name: torch.randn(5, 4) * 3 for name in ("own", "blind")}
    scores = response_scores(states, head, [2, 3], {"entropy", "grounding"})
    p, blind = (torch.softmax(head(states[name]).double(), -1) for name in ("own", "blind"))
    for found, part in zip(scores, (slice(0, 2), slice(2, 5)), strict=True):
        assert found["entropy"] == pytest.approx(-(p[part] * p[part].log()).sum(-1).mean().item(), abs=1e-4)
        kl = (p[part] * (p[part] / blind[part]).log()).sum(-1).mean().item()
        assert found["grounding"] == pytest.approx(kl, abs=1e-4)


def test_level_of_a_sound():
    tone = np.sin(np.linspace(0, 200 * np.pi, 16_000)).astype(np.float32)
    assert level_dbfs(tone) == pytest.approx(-3.01, abs=0.01)
    assert level_dbfs(tone / 100) == pytest.approx(-43.01, abs=0.01)
    assert level_dbfs(np.zeros(100, np.float32)) == SILENCE_DBFS


def test_prompts_by_kind(tmp_path):
    source = prompt_source({"mood": ["Which mood?", "What mood is it?"], "scene": ["What happens?"]})
    rng = np.random.default_rng(0)
    drawn = source.draw(rng, 3)
    assert {p.text for p in drawn} == {"Which mood?", "What mood is it?", "What happens?"}
    assert {p.kind for p in drawn if "mood" in p.text} == {"mood"}
    file = tmp_path / "p.yaml"
    file.write_text('mood: ["Which mood?"]')
    assert prompt_source(str(file)).draw(rng, 1) == [Prompt("mood", "Which mood?")]
    with pytest.raises(InputError, match="`prompts` is 'artt', which is not `nano` and no file: .*shipped: art"):
        prompt_source("artt")
    with pytest.raises(InputError, match=r"`prompts.mood` is \[3\]; a list of prompts, in quotes"):
        prompt_source({"mood": [3]})
    with pytest.raises(InputError, match="`prompts.mood` is 'x'; a list of prompts"):
        prompt_source({"mood": "x"})


def test_a_run_trains_on_what_passes_and_reports_the_rest(setup, tmp_path):
    shutil.copytree(setup[1].parent, tmp_path / "world")
    manifest = tmp_path / "world" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["likeness"] = 0.9 if number < 6 else 0.0
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = tmp_path / "run"
    rules = {"likeness": {"min": 0.5}}
    train(stage1_values(setup[0], manifest, run, quality=rules, max_steps=3))
    verdicts = [json.loads(line) for line in (run / "quality.jsonl").read_text().splitlines()]
    assert {v["id"] for v in verdicts if not v["kept"]} == {f"train-{i}" for i in range(6, 12)}
    found = json.loads((run / "quality.json").read_text())
    assert (found["responses"], found["responses_dropped"], found["dropped_by"]) == (24, 12, {"likeness": 12})
    assert len(losses_of(run)) == 3
    with pytest.raises(InputError, match="the filter `quality` dropped every response; see .*quality.json"):
        train(stage1_values(setup[0], manifest, tmp_path / "none", quality={"audio_dbfs": {"min": 0.0}}))


def test_dropping_is_training_on_the_rest(setup, tmp_path):
    """A response that is dropped counts as if its clip were not in the manifest."""
    lines = setup[1].read_text().splitlines(keepends=True)
    few = setup[1].with_name("few.jsonl")
    few.write_text("".join(lines[:8]))
    marked = setup[1].with_name("marked.jsonl")
    rows = [json.loads(line) | {"ok": float(number < 8)} for number, line in enumerate(lines)]
    marked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(stage1_values(setup[0], few, tmp_path / "few", max_steps=4))
    train(stage1_values(setup[0], marked, tmp_path / "marked", max_steps=4, quality={"ok": {"min": 1.0}}))
    one, two = losses_of(tmp_path / "few"), losses_of(tmp_path / "marked")
    assert one[0]["loss"] > 0.1
    for left, right in zip(one, two, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)


def test_null_is_no_filter(setup, tmp_path):
    train(stage1_values(*setup, tmp_path / "run", quality=None, max_steps=1))
    found = json.loads((tmp_path / "run" / "quality.json").read_text())
    assert found["rules"] == {} and found["responses_dropped"] == 0
