"""The ablation: its commands, its statistics against naive ones, and its report from files of known skill."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import fork_server
import numpy as np
import pytest
import tiny
from report_files import make_rows, respond, write_evaluation, write_markers, write_va
from scipy import stats

from vaemotionllm.benchmark.intervals import ccc
from vaemotionllm.cli.main import main
from vaemotionllm.config_file import build_config, parse_overrides, read_config
from vaemotionllm.demo import ablation, steps
from vaemotionllm.demo.demo import Sizes
from vaemotionllm.evaluation.scores import CELLS, over_seeds, pick
from vaemotionllm.nano.world import benchmark_items
from vaemotionllm.train.config import Stage1Config, Stage2Config


def typed(**sizes) -> dict[str, str]:
    return {step.name: step.typed(Path("runs/a")) for step in ablation.plan(3, Sizes(**sizes))}


def write_run(out: Path, seed: int, skill: dict[str, float], n_clips: int = 60) -> Path:
    """A finished run: `skill` says how often a variant answers right (0.8 where it does not say)."""
    rng = np.random.default_rng(seed)
    rows = make_rows(n_clips, seed)
    items = benchmark_items(rows, seed)
    by_cell = {cell: [i for i in items if f"{i['aspect']}_{i['modality']}" == cell] for cell in CELLS}
    for variant in ablation.VARIANTS:
        folder, right = out / "eval" / variant.name, skill.get(variant.name, 0.8)
        tasks = {f"artemo_{cell}": (group, respond(group, right, rng)) for cell, group in by_cell.items()}
        write_evaluation(folder / "lmms_eval", tasks)
        if variant.supervised:
            write_va(folder / "emotion.json", rows, 1 - right, rng)
    commands = {f"eval_{variant.name}": "lmms-eval" for variant in ablation.VARIANTS}
    write_markers(out, {"seed": seed, "scale": "full", "backbone": None, "train_clips": None}, commands)
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    skill = {"full": 0.9, "no_stage1": 0.5, "no_enhancer": 0.9, "lora": 0.9}
    return [write_run(folder / f"seed{seed}", seed, skill) for seed in (0, 1, 2)]


def test_every_variant_is_a_command_that_a_user_can_type():
    commands = typed()
    trained = [variant for variant in ablation.VARIANTS if variant.start is not None]
    for variant in trained:
        words = shlex.split(commands[variant.name])
        assert words[:4] == ["vaemotionllm", "train", "--config", "stage2_nano"]
        values = read_config("stage2_nano", words[4:])
        assert values["model"] == f"runs/a/{variant.start}" and values["seed"] == 3
        # What a variant is not about, it shares with the full model.
        own = set(parse_overrides(variant.words)) | {"model", "output_dir", "max_clips"}
        full = read_config("stage2_nano", shlex.split(commands["full"])[4:])
        assert {k: v for k, v in values.items() if k not in own} == {k: v for k, v in full.items() if k not in own}
        build_config(Stage2Config, values | {"use_cpu": True})
    assert {"model_fields={enhancer_layers: []}"} <= set(shlex.split(commands["no_enhancer"]))
    assert "max_clips=240" in commands["full_10"] and "max_clips=240" in commands["stage1_10"]
    assert "max_clips" not in commands["full"] and "max_clips" not in commands["stage1"]
    # Only models with a trained Supervisor predict valence and arousal.
    assert "emotion_no_supervisor" not in commands and "emotion_stage1" not in commands


def test_captions_are_taught_with_the_media_and_steps_of_stage_1():
    commands = typed()
    captions = build_config(
        Stage2Config, read_config("stage2_nano", shlex.split(commands["captions"])[4:]) | {"use_cpu": True}
    )
    stage1 = build_config(
        Stage1Config, read_config("stage1_nano", shlex.split(commands["stage1"])[4:]) | {"use_cpu": True}
    )
    same = ("max_steps", "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "audio_tower_lr", "model")
    for name in (*same, "train_audio_tower", "train_audio_projector", "per_device_train_batch_size"):
        assert getattr(captions, name) == getattr(stage1, name), name
    assert captions.modalities == stage1.student_modalities
    assert not captions.train_emotion_adapter and captions.emotion_labels is None
    assert {pair["answer"] for pair in captions.instructions} == {"{caption}"}


def test_sizes_reach_the_parts_of_the_clips():
    commands = typed(train_clips=50, stage1_steps=2, stage2_steps=3)
    assert commands["full_10"].endswith("max_clips=5 max_steps=3")
    assert "max_steps=2" in commands["stage1_30"] and "max_clips=15" in commands["stage1_30"]
    assert commands["captions"].endswith("max_steps=2")


def test_means_differences_and_intervals_are_those_of_a_loop_over_seeds(runs):
    """The difference is paired by seed, and its interval is Student's t of the seeds' differences."""
    scores = over_seeds([ablation.run_scores(folder) for folder in runs])
    for measure, aspect, modality in (("accuracy", "emotion", "audio"), ("ccc", "", "av")):
        expected = {}
        for name in ("full", "no_context"):
            expected[name] = []
            for folder in runs:
                if measure == "ccc":
                    row = json.loads((folder / f"eval/{name}/emotion.json").read_text())["av"]
                    predicted, true = np.array(row["predicted"]), np.array(row["true"])
                    expected[name].append(np.mean([ccc(predicted[:, i], true[:, i]) for i in (0, 1)]))
                else:
                    [file] = (folder / f"eval/{name}/lmms_eval").glob("**/*_samples_artemo_emotion_audio.jsonl")
                    expected[name].append(np.mean([json.loads(line)["accuracy"] for line in open(file)]))
        row = pick(scores, model="full model", measure=measure, aspect=aspect, modality=modality)
        assert row.value == pytest.approx(np.mean(expected["full"]), abs=1e-12) and row.n == 3
        title = "without cross-modal context"
        row = pick(scores, model=title, measure=f"{measure}_full_minus", aspect=aspect, modality=modality)
        differences = np.subtract(*expected.values())
        assert row.value == pytest.approx(differences.mean(), abs=1e-12)
        half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / np.sqrt(3)
        np.testing.assert_allclose([row.low, row.high], [row.value - half, row.value + half], atol=1e-12)


def test_report_is_bold_where_an_interval_over_seeds_leaves_0_out(runs, tmp_path, capsys):
    assert main(["ablation", "report", *map(str, reversed(runs)), "--out", str(tmp_path)]) == 0
    written = capsys.readouterr().out.split()
    assert sorted(written) == sorted(str(tmp_path / f"ablation.{kind}") for kind in ("md", "html", "json"))
    found, text = json.loads((tmp_path / "ablation.json").read_text()), (tmp_path / "ablation.md").read_text()
    assert found["seeds"] == [0, 1, 2] and list(found["by_seed"]) == ["0", "1", "2"]
    table = text.split("| full model minus |")[1].split("\n\n")[0]
    for line in table.splitlines()[2:]:
        for cell in line.split("|")[2:-1]:
            if numbers := re.findall(r"\[([+-][\d.]+), ([+-][\d.]+)\]", cell):
                low, high = map(float, numbers[0])
                if low and high:  # rounded to 0.0 it could be either
                    assert ("**" in cell) == (low * high > 0), cell
    assert re.search(r"without stage 1 \| \*\*\+[2-6]", table), "0.9 against 0.5 over three seeds"
    # A baseline of one modality is compared on it alone, and one without a Supervisor has no CCC.
    cells = [(row["model"], row["measure"], row.get("modality")) for row in found["scores"]]
    assert {of for of in cells if of[0] == "trained on audio alone"} == {
        ("trained on audio alone", f"{measure}{kind}", "audio")
        for measure in ("accuracy", "ccc") for kind in ("", "_full_minus")
    }  # fmt: skip
    assert ("without Supervisor", "ccc", "av") not in cells and ("full model", "ece", "av") in cells
    for image in re.findall(r"\]\((figures/[^)]*)\)", text):
        assert (tmp_path / image).read_bytes()[:4] == b"\x89PNG"
    again = tmp_path / "again"
    assert main(["ablation", "report", *map(str, runs), "--out", str(again)]) == 0
    for name in ("ablation.md", "ablation.json"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda run: (run / "run.json").unlink(), "cannot read"),
        (lambda run: edit(run / "steps/eval_full.json", done=False), "no finished run"),
        (lambda run: edit(run / "run.json", arguments={"seed": 0}), "the same seed"),
        (lambda run: edit(run / "run.json", versions={"torch": "2.10.0"}), "differ in torch 2.11.0 and 2.10.0"),
        (lambda run: (run / "eval/lora/emotion.json").unlink(), "eval/lora/emotion.json"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(tmp_path, capsys, change, words):
    runs = [write_run(tmp_path / str(seed), seed, {}, n_clips=16) for seed in (0, 1)]
    change(runs[1])
    assert main(["ablation", "report", *map(str, runs), "--out", str(tmp_path / "docs")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "docs").exists()


def test_one_seed_has_no_interval_and_nothing_bold(tmp_path):
    run = write_run(tmp_path / "a", 4, {"no_stage1": 0.3})
    ablation.write_report([run], tmp_path / "docs")
    scores = json.loads((tmp_path / "docs/ablation.json").read_text())["scores"]
    assert not any("low" in row or "high" in row for row in scores)
    assert "**" not in (tmp_path / "docs/ablation.md").read_text()


def test_backbones_that_are_given_may_differ_by_seed(tmp_path):
    runs = [write_run(tmp_path / str(seed), seed, {}, n_clips=16) for seed in (0, 1)]
    for run in runs:
        arguments = json.loads((run / "run.json").read_text())["arguments"]
        edit(run / "run.json", arguments=arguments | {"backbone": str(run)})
    assert [run["arguments"]["seed"] for run in ablation.read_runs(runs).values()] == [0, 1]


def run_forked(out, step, log, say, really=steps._run_command) -> tuple[int, None]:
    """The step's own program, as a fork where it is one of Python."""
    words, env = shlex.split(step.typed(out)), {}
    if words[0] == "cp":
        return really(out, step, log, say)
    if words[0] == "env":
        env, words = {"ARTEMO_DATASET": words[1].partition("=")[2]}, words[2:]
    program = str(Path(sys.executable).parent / words[0])
    process = fork_server.start([program, *words[1:]], {**os.environ, **env}, stdout=log, stderr=log)
    process.join()
    return process.exitcode, None


def test_a_run_on_real_files_is_read_as_it_was_written(tmp_path, monkeypatch, capsys):
    """Fewer variants, each by the commands that users type; a minute, since these train and answer for real."""
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, "_run_command", run_forked)
    monkeypatch.setattr(
        ablation, "VARIANTS", (ablation.FULL, ablation.Variant("backbone", "backbone alone", start=None))
    )
    backbone = tmp_path / "given"
    backbone.mkdir()
    tiny.make_backbone(backbone)
    words = ["ablation", "run", "--scale", "tiny", "--backbone", str(backbone), "--out", "run", "--seed", "5"]
    assert main(words) == 0, capsys.readouterr().out[-3000:]
    run = ablation.read_runs([Path("run")])[Path("run")]
    assert run["arguments"]["seed"] == 5 and run["arguments"]["scale"] == "tiny"
    scores = ablation.run_scores(Path("run"))
    row = pick(scores, model="full model", measure="accuracy", aspect="emotion", modality="av")
    assert 0 <= row.value <= 1 and row.chance == 0.25
    assert (scores.measure == "valence_coverage").sum() == 3  # it was calibrated
    capsys.readouterr()
    assert main(words) == 0 and "is finished" in capsys.readouterr().out


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
