"""The ablation: its commands, its statistics against naive ones, and its report from files of known skill."""

import json
import shlex
import shutil
import time
from pathlib import Path

import fork_server
import numpy as np
import pytest
import tiny
from report_files import make_rows, respond, write_evaluation

from vaemotionllm.benchmark.intervals import ccc
from vaemotionllm.cli.main import main
from vaemotionllm.config_file import build_config, parse_overrides, read_config
from vaemotionllm.evaluation import ablation, ablation_report, ablation_results, child, steps
from vaemotionllm.evaluation.demo import Sizes
from vaemotionllm.nano.world import benchmark_items
from vaemotionllm.train.config import Stage1Config, Stage2Config
from vaemotionllm.utils import InputError

MODALITIES, CELLS = ablation_results.MODALITIES, ablation_results.CELLS


def typed(**sizes) -> dict[str, str]:
    return {step.name: step.typed() for step in ablation.plan(Path("runs/a"), 3, Sizes(**sizes))}


def write_run(out: Path, seed: int, skill: dict[str, float], n_clips: int = 60, calibrated: bool = True) -> Path:
    """A finished run: `skill` says how often a variant answers right (0.8 where it does not say)."""
    rng = np.random.default_rng(seed)
    rows = make_rows(n_clips, seed)
    items = benchmark_items(rows, seed)
    (out / "world/benchmark").mkdir(parents=True)
    (out / "world/benchmark/test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    by_cell = {cell: [i for i in items if f"{i['aspect']}_{i['modality']}" == cell] for cell in CELLS}
    true = np.array([[row["valence"], row["arousal"]] for row in rows])
    for variant in ablation.VARIANTS:
        folder = out / "eval" / variant.name
        right = skill.get(variant.name, 0.8)
        write_evaluation(
            folder / "lmms_eval",
            {f"artemo_{cell}": (group, respond(group, right, rng)) for cell, group in by_cell.items()},
        )
        if variant.supervised:
            result = {"conflict": {"auroc": 0.9}, "labels": ["calm", "sad"], "level": 0.9 if calibrated else None}
            for path in MODALITIES:
                predicted = np.clip(true + (1 - right) * rng.normal(size=true.shape), -1, 1)
                result[path] = {
                    "clip_ids": [row["id"] for row in rows],
                    "predicted": predicted.tolist(),
                    "true": true.tolist(),
                    "ece": 0.03,
                    "valence_coverage": 0.9 if calibrated else None,
                    "arousal_coverage": 0.9 if calibrated else None,
                }
            (folder / "emotion.json").write_text(json.dumps(result))
        if variant.name in ablation.RECALLED:
            (folder / "recall.json").write_text(json.dumps({"accuracy": 0.95 if variant.name != "lora" else 0.9}))
    state = {
        "status": "complete",
        "seed": seed,
        "layout": ablation.layout(),
        "train_clips": 2400,
        "versions": {"torch": "2.11.0"},
        "configs": {"stage1_nano": "0"},
        "arguments": {"seed": seed, "scale": "full", "backbone": None},
        "steps": {},
    }
    (out / "steps.json").write_text(json.dumps(state))
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
    # Only what was taught to read valence and arousal is asked for them.
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
    assert captions.paths == stage1.student_modalities
    assert not captions.train_emotion_adapter and captions.emotion_labels is None
    assert {pair["answer"] for pair in captions.instructions} == {"{caption}"}


def test_sizes_reach_the_parts_of_the_clips():
    commands = typed(train_clips=50, stage1_steps=2, stage2_steps=3)
    assert commands["full_10"].endswith("max_clips=5 max_steps=3")
    assert "max_steps=2" in commands["stage1_30"] and "max_clips=15" in commands["stage1_30"]
    assert commands["captions"].endswith("max_steps=2")


def test_scores_and_differences_are_those_of_a_loop_over_clips(runs):
    found = ablation_results.read_runs(runs)
    measured = ablation_results.Ablation(found, draws=200)
    for cell in ("emotion_audio", "ccc_av"):
        expected = {}
        for name in ("full", "no_context"):
            expected[name] = []
            for folder in runs:
                if cell == "ccc_av":
                    row = json.loads((folder / f"eval/{name}/emotion.json").read_text())["av"]
                    predicted, true = np.array(row["predicted"]), np.array(row["true"])
                    expected[name].append(np.mean([ccc(predicted[:, i], true[:, i]) for i in (0, 1)]))
                else:
                    [file] = (folder / f"eval/{name}/lmms_eval").glob(f"**/*_samples_artemo_{cell}.jsonl")
                    expected[name].append(np.mean([json.loads(line)["accuracy"] for line in open(file)]))
        score, difference = measured.score("full", cell), measured.difference(("full", cell), ("no_context", cell))
        np.testing.assert_allclose(score["by_seed"], expected["full"], atol=1e-12)
        assert score["mean"] == pytest.approx(np.mean(expected["full"]))
        np.testing.assert_allclose(difference["by_seed"], np.subtract(*expected.values()), atol=1e-12)
        assert score["ci95"][0] < score["mean"] < score["ci95"][1]
    nothing = measured.difference(("full", "emotion_av"), ("full", "emotion_av"))
    assert nothing["mean"] == 0 and nothing["ci95"] == [0, 0]  # paired: the same draw on both sides


def test_the_interval_of_a_mean_over_seeds_is_that_of_a_plain_bootstrap(runs):
    found = ablation_results.read_runs(runs)
    interval = ablation_results.Ablation(found, draws=4000).score("full", "emotion_audio")["ci95"]
    rng = np.random.default_rng(5)
    means = []
    for _ in range(4000):
        drawn = []
        for seed in rng.integers(3, size=3):
            right = found[seed].right["full"]["emotion_audio"]
            drawn.append(np.mean([right[rng.integers(len(right))] for _ in range(len(right))]))
        means.append(np.mean(drawn))
    np.testing.assert_allclose(interval, np.quantile(means, [0.025, 0.975]), atol=0.01)


def test_report_says_what_helps_and_what_does_not(runs, tmp_path, capsys):
    assert main(["ablation", "report", *map(str, reversed(runs)), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / name) for name in ("ablation.md", "ablation.json", "ablation_parts.png", "ablation_clips.png")
    ]
    found, text = json.loads((tmp_path / "ablation.json").read_text()), (tmp_path / "ablation.md").read_text()
    assert found["seeds"] == [0, 1, 2] and found["benchmark_clips"] == [60, 60, 60]
    assert "**Stage 1** helps content, sound" in text
    assert "**Enhancer**: no difference" in text or "**Enhancer** helps" not in text
    met = {row["name"]: row["passed"] for row in found["asked"]}
    assert met["stage 1 improves emotion accuracy or CCC"] and met["stage 1 does not hurt content"]
    assert not met["Enhancer improves emotion accuracy or CCC"]
    assert met["the conflict score tells clips with another clip's sound"]
    assert met["nothing is forgotten: questions in words, full model minus backbone"]
    assert found["kept"]["lora"]["words"]["mean"] == pytest.approx(-0.05)
    # A baseline of one path is compared on it alone, and one without a Supervisor has no CCC.
    variants = found["variants"]
    assert set(variants["audio_alone"]["cells"]) == {"content_audio", "emotion_audio", "ccc_audio"}
    assert not any(cell.startswith("ccc") for cell in variants["no_supervisor"]["cells"])
    assert (tmp_path / "ablation_parts.png").read_bytes()[:4] == b"\x89PNG"
    again = tmp_path / "again"
    assert main(["ablation", "report", *map(str, runs), "--out", str(again)]) == 0
    for name in ("ablation.md", "ablation.json"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_part_that_hurts_is_named(tmp_path):
    runs = [write_run(tmp_path / str(s), s, {"full": 0.6, "no_enhancer": 0.95}, calibrated=False) for s in (0, 1)]
    found = ablation_results.measure(ablation_results.read_runs(runs), draws=300)
    rows = {row["name"]: row for row in ablation_report.asked(found)}
    assert not rows["the full model is best or tied in every cell"]["passed"]
    assert "without Enhancer" in rows["the full model is best or tied in every cell"]["measured"]
    assert not rows["Enhancer does not hurt content"]["passed"]
    assert rows["90% intervals of valence hold the value"]["measured"] == "n/a"
    assert not rows["90% intervals of valence hold the value"]["passed"]
    [sentence] = [line for line in ablation_report.verdicts(found) if line.startswith("**Enhancer")]
    assert "hurts" in sentence and "helps" not in sentence


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda run: (run / "steps.json").unlink(), "steps.json is missing"),
        (lambda run: edit(run / "steps.json", status="running"), "no finished run"),
        (lambda run: edit(run / "steps.json", seed=0), "the same seed, 0"),
        (lambda run: edit(run / "steps.json", versions={"torch": "2.10.0"}), "differ in versions"),
        (lambda run: (run / "eval/lora/emotion.json").unlink(), "eval/lora/emotion.json is missing"),
        (lambda run: (run / "eval/full/recall.json").unlink(), "recall.json is missing"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(tmp_path, capsys, change, words):
    runs = [write_run(tmp_path / str(seed), seed, {}, n_clips=16) for seed in (0, 1)]
    change(runs[1])
    assert main(["ablation", "report", *map(str, runs), "--out", str(tmp_path / "docs")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "docs").exists()


def test_one_seed_is_reported_as_one(tmp_path):
    [run] = ablation_results.read_runs([write_run(tmp_path / "a", 4, {})])
    found = ablation_results.measure([run], draws=200)
    assert found["seeds"] == [4] and len(found["variants"]["full"]["cells"]["emotion_av"]["by_seed"]) == 1


def run_forked(command, env, log, output, progress) -> int:
    """The step's own program, as a fork where it is one of Python."""
    if command[0] == shutil.which("cp"):
        return child.run_child(command, env, log, output, progress)
    process, started = fork_server.start(command, env, stdout=log, stderr=log), time.monotonic()
    process.join()
    progress(time.monotonic() - started, 0.0)
    return process.exitcode


def test_a_run_on_real_files_is_read_as_it_was_written(tmp_path, monkeypatch, capsys):
    """Fewer variants, each by the commands that users type; half a minute, since these train and answer for real."""
    monkeypatch.setattr(steps, "run_child", run_forked)
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for module in (ablation, ablation_results):
        monkeypatch.setattr(module, "VARIANTS", (ablation.FULL, ablation.BY_NAME["backbone"]))
        monkeypatch.setattr(module, "RECALLED", ("backbone", "full"))
    backbone = tmp_path / "given"
    backbone.mkdir()
    tiny.make_backbone(backbone)
    words = ["ablation", "run", "--scale", "tiny", "--backbone", str(backbone), "--out", "run", "--seed", "5"]
    assert main(words) == 0, capsys.readouterr().out[-3000:]
    [run] = ablation_results.read_runs([Path("run")])
    assert run.seed == 5 and run.clips == 16 and set(run.right) == {"full", "backbone"}
    assert run.state["train_clips"] == 64
    measured = ablation_results.Ablation([run], draws=50)
    assert 0 <= measured.score("full", "emotion_av")["mean"] <= 1
    assert measured.of_full("av", "valence_coverage")["mean"] is not None  # it was calibrated
    assert run.recalled["full"]["n"] == 512
    # Without LoRA the LLM is the backbone's, and no medium enters: every answer in words is the same.
    assert measured.recall_difference("full", "backbone")["mean"] == 0
    assert run.recalled["full"]["responses"] == run.recalled["backbone"]["responses"]
    capsys.readouterr()
    assert main(words) == 0 and "is finished" in capsys.readouterr().out


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_backbones_that_are_given_may_differ_by_seed():
    one, other = {"backbone": "a", "seed": 0}, {"backbone": "b", "seed": 1}
    assert ablation_results._comparable(one) == ablation_results._comparable(other)
    with pytest.raises(InputError, match="no steps|missing"):
        ablation_results.read_runs([Path("nowhere")])
