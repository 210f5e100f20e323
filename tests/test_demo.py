"""The demo: its plan, its command, and the whole way at a size that means nothing."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from vaemotionllm.cli import demo as command
from vaemotionllm.cli.main import main
from vaemotionllm.errors import InputError
from vaemotionllm.evaluation import demo
from vaemotionllm.evaluation.results import STAGES
from vaemotionllm.evaluation.steps import Step


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """A folder as `nano backbone --out` leaves it, with random weights."""
    folder = tmp_path_factory.mktemp("backbone")
    tiny.make_vlm("qwen2_5_vl", folder).rename(folder / "vlm")
    tiny.make_audio("whisper", folder).rename(folder / "audio")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    return folder


def by_name(steps: list[Step]) -> dict[str, Step]:
    return {step.name: step for step in steps}


def test_plan_is_what_a_user_would_type(backbone):
    steps = demo.plan(Path("runs/demo"), 3, demo.Sizes(backbone=str(backbone)))
    evaluations = [f"{kind}_{stage}" for stage in STAGES for kind in ("eval", "va")]
    names = [
        "world",
        "backbone",
        "assemble",
        *evaluations[:2],
        "stage1",
        *evaluations[2:4],
        "stage2",
        *evaluations[4:],
        "report",
    ]
    assert [step.name for step in steps] == names
    typed = {step.name: step.typed() for step in steps}
    assert typed["world"] == "vaemotionllm nano world --out runs/demo/world --seed 3"
    assert typed["eval_stage2"] == (
        "ARTEMO_DATASET=runs/demo/world/benchmark lmms-eval --model vaemotionllm "
        "--model_args pretrained=runs/demo/stage2 --tasks artemo,artemo_controls --batch_size 64 "
        "--output_path runs/demo/eval/stage2/lmms_eval --log_samples"
    )
    assert "--tasks artemo --batch_size" in typed["eval_backbone"]
    for stage, before in (("stage1", "backbone"), ("stage2", "stage1")):
        words = shlex.split(typed[stage])
        assert words[:4] == ["vaemotionllm", "train", "--config", f"{stage}_nano"]
        assert {f"model=runs/demo/{before}", f"output_dir=runs/demo/{stage}", "seed=3"} <= set(words)
    # Stage 1 reads no label and stage 2 starts from stage 1; both go on from their own checkpoints.
    assert by_name(steps)["stage1"].resumes and by_name(steps)["stage2"].resumes
    # Every step writes into the output folder only, and is told where.
    for step in steps:
        assert step.makes and all("runs/demo" in str(path) for path in (*step.makes, *step.owns))


def test_seed_reaches_every_step_that_draws(backbone):
    one, two = (demo.plan(Path("x"), seed, demo.Sizes(backbone=str(backbone))) for seed in (1, 2))
    differing = {a.name for a, b in zip(one, two, strict=True) if a.command != b.command}
    assert differing == {"world", "assemble", "stage1", "stage2"}


def test_sizes_reach_the_commands(backbone):
    sizes = demo.Sizes(24, 4, 16, 5, 6, batch_size=7, backbone=str(backbone), stage1=("logging_steps=1",))
    typed = {step.name: step.typed() for step in demo.plan(Path("x"), 0, sizes)}
    assert typed["world"].endswith("--train 24 --validation 4 --benchmark 16")
    assert typed["stage1"].endswith("max_steps=5 logging_steps=1") and typed["stage2"].endswith("max_steps=6")
    assert "--batch_size 7 " in typed["eval_stage1"]


@pytest.mark.parametrize("name, value", [("train_clips", 0), ("batch_size", -1)])
def test_sizes_below_one_are_refused(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} is {value}"):
        demo.Sizes(**{name: value})


def test_a_backbone_folder_that_lacks_a_part_is_named(tmp_path):
    (tmp_path / "vlm").mkdir()
    with pytest.raises(InputError, match="has no audio"):
        demo.plan(Path("x"), 0, demo.Sizes(backbone=str(tmp_path)))


def test_versions_are_those_that_are_installed():
    import torch

    facts = demo.facts(5)
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0] and facts["seed"] == 5
    assert set(demo.PACKAGES) == set(facts["versions"]) and facts["machine"]["cpus"] >= 1


def use_plan(monkeypatch, *codes: str) -> None:
    """Replaces the demo's steps by small programs."""
    steps = [Step(f"s{i}", "", ("python", "-c", code)) for i, code in enumerate(codes)]
    monkeypatch.setattr(demo, "plan", lambda out, seed, sizes: steps)
    # The command sets variables for its steps; they must not stay for other tests.
    for name in demo.environment({}):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def test_a_failing_step_ends_the_demo_with_its_code_and_its_last_lines(tmp_path, monkeypatch, capsys):
    use_plan(monkeypatch, "print('fine')", "import sys; print('the disk is full'); sys.exit(9)", "print('never')")
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 9
    said = capsys.readouterr()
    assert "step 's1' ended with exit code 9" in said.err and "the disk is full" in said.err
    assert str(out / "logs" / "s1.log") in said.err and not (out / "logs" / "s2.log").exists()
    assert "[1/3] s0" in said.out and "FAILED" in said.out


def test_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    out, flag = tmp_path / "demo", tmp_path / "flag"
    use_plan(monkeypatch, "print('once')", f"import os, sys; sys.exit(0 if os.path.exists({str(flag)!r}) else 4)")
    monkeypatch.setattr(command, "show", lambda out: print("shown"))
    assert main(["demo", "--out", str(out)]) == 4
    flag.touch()
    capsys.readouterr()
    assert main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "going on after the last complete step" in said and "s0               already done" in said
    assert said.endswith("shown\n")


def test_a_foreign_folder_is_refused(tmp_path, monkeypatch, capsys):
    use_plan(monkeypatch, "print('never')")
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "did not write" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_init_refuses_what_it_cannot_use(tmp_path, backbone, capsys):
    parts = ["init", "--vlm", str(backbone / "vlm"), "--audio", str(backbone / "audio")]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for words, said in (
        (["--out", str(tmp_path / "full")], "is not an empty folder"),
        (["--out", str(tmp_path / "new"), "projector_strid=3"], "no field of VAEmotionLLMConfig"),
        (["--out", str(tmp_path / "new"), "projector_stride"], "not of the form FIELD=VALUE"),
        (["--out", str(tmp_path / "new"), "projector_stride=0"], "projector_stride is 0"),
    ):
        assert main([*parts, *words]) == 2
        assert said in capsys.readouterr().err
    assert (
        main(
            [
                "init",
                "--vlm",
                str(tmp_path / "full"),
                "--audio",
                str(backbone / "audio"),
                "--out",
                str(tmp_path / "new"),
            ]
        )
        == 2
    )
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_init_makes_model_and_processor_that_agree(tmp_path, backbone):
    out = tmp_path / "model"
    words = ["--vlm", str(backbone / "vlm"), "--audio", str(backbone / "audio"), "--out", str(out)]
    assert main(["init", *words, "--like", "stage1_nano", "--seed", "4", "enhancer_rank=8"]) == 0
    from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor

    model = VAEmotionLLMForConditionalGeneration.from_pretrained(out)
    processor = VAEmotionLLMProcessor.from_pretrained(out)
    assert model.config.projector_stride == 10 and model.config.enhancer_rank == 8
    assert processor.num_frames == 4 and processor.max_audio_s == 10
    # The model counts the placeholders that the processor made, and raises where they do not fit its own tokens.
    sound = np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    inputs = processor(text=[f"{processor.audio_token} what?"], audio=[sound], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.audio_token_id).sum() > 1
    assert model(**inputs).logits.isfinite().all()
    again = tmp_path / "again"
    words[-1] = str(again)
    assert main(["init", *words, "--like", "stage1_nano", "--seed", "4", "enhancer_rank=8"]) == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_the_whole_way(tmp_path, backbone):
    """Media files to report through the commands that users type; a minute, most of it the start of processes."""
    out = tmp_path / "demo"
    arguments = ["demo", "--scale", "tiny", "--backbone", str(backbone), "--out", str(out), "--seed", "1"]
    run = subprocess.run(
        [sys.executable, "-m", "vaemotionllm.cli.main", *arguments],
        env={**os.environ, "VAEMOTIONLLM_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    report = json.loads((out / "report.json").read_text())
    assert report["seed"] == 1 and report["nano"] is True
    for stage in STAGES:
        cells = report["stages"][stage]["cells"]
        assert len(cells) == 6 and all(cell["n"] == 16 and cell["chance"] == 0.25 for cell in cells.values())
    assert set(report["controls"]) == {"silence", "noise", "mismatch"}
    state = json.loads((out / "demo.json").read_text())
    assert state["status"] == "complete" and all(entry["status"] == "done" for entry in state["steps"].values())
    assert all(cost["wall_s"] > 0 and cost["peak_rss_mb"] > 5 for cost in report["cost"].values())
    assert set(report["cost"]) == set(state["steps"]) - {"report"}
    # Weights that nobody taught know nothing, and the report says so.
    assert "not a public leaderboard" in run.stdout and "not met" in run.stdout
    assert f"{out / 'report.html'}\n" in run.stdout
    before = (out / "report.json").read_text()
    assert main(["report", str(out)]) == 0
    assert json.loads((out / "report.json").read_text())["stages"] == json.loads(before)["stages"]
    example = (Path(__file__).parents[1] / "README.md").read_text().split("```python\n")[1].split("```")[0]
    film = sorted((out / "world" / "benchmark" / "media").glob("*.mp4"))[0]
    example = example.replace("runs/demo/world/benchmark/media/benchmark-00000.mp4", str(film))
    example = example.replace("runs/demo", str(out))
    run = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "tensor([[" in run.stdout  # valence on three paths
