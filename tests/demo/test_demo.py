"""The demo: its plan, its command, and the whole way at a size that means nothing."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import fork_server
import numpy as np
import pandas
import pytest
import tiny

from vaemotionllm.cli.main import main
from vaemotionllm.demo import demo
from vaemotionllm.demo.steps import Step
from vaemotionllm.evaluation.scores import pick, table_of
from vaemotionllm.utils import InputError


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return tiny.make_backbone(tmp_path_factory.mktemp("backbone"))


def by_name(steps: list[Step]) -> dict[str, Step]:
    return {step.name: step for step in steps}


def test_plan_is_what_a_user_would_type(backbone):
    steps = demo.plan(3, demo.Sizes(backbone=str(backbone)))
    names = ["world", "backbone", "assemble", "eval_backbone", "stage1", "eval_stage1", "stage2", "calibrate_stage2"]
    names += ["eval_stage2", "emotion_stage2", "report"]
    assert [step.name for step in steps] == names
    typed = {step.name: step.typed(Path("runs/demo")) for step in steps}
    assert typed["world"] == "vaemotionllm nano world --out runs/demo/world --seed 3"
    assert typed["eval_stage2"] == (
        "env ARTEMO_DATASET=runs/demo/world/benchmark lmms-eval --model vaemotionllm "
        "--model_args pretrained=runs/demo/stage2 --tasks artemo,artemo_controls --batch_size 64 "
        "--output_path runs/demo/eval/stage2/lmms_eval --log_samples"
    )
    assert "--tasks artemo --batch_size" in typed["eval_backbone"]
    assert "--tasks artemo,artemo_controls --batch_size" in typed["eval_stage1"]
    for stage, before in (("stage1", "backbone"), ("stage2", "stage1")):
        words = shlex.split(typed[stage])
        assert words[:4] == ["vaemotionllm", "train", "--config", f"{stage}_nano"]
        assert {f"model=runs/demo/{before}", f"output_dir=runs/demo/{stage}", "seed=3"} <= set(words)
    # Stage 1 reads no label and stage 2 starts from stage 1; both go on from their own checkpoints.
    assert by_name(steps)["stage1"].resumes and by_name(steps)["stage2"].resumes
    # Every step writes into the output folder only, and is told where.
    for step in steps:
        assert step.makes and "runs/demo" in step.typed(Path("runs/demo"))


def test_seed_reaches_every_step_that_draws(backbone):
    one, two = (demo.plan(seed, demo.Sizes(backbone=str(backbone))) for seed in (1, 2))
    differing = {a.name for a, b in zip(one, two, strict=True) if a.command != b.command}
    assert differing == {"world", "assemble", "stage1", "stage2"}


def test_sizes_reach_the_commands(backbone):
    sizes = demo.Sizes(24, 40, 16, 5, 6, batch_size=7, backbone=str(backbone), stage1=("logging_steps=1",))
    typed = {step.name: step.typed(Path("x")) for step in demo.plan(0, sizes)}
    assert typed["world"].endswith("--train 24 --validation 40 --benchmark 16")
    assert typed["stage1"].endswith("max_steps=5 logging_steps=1") and typed["stage2"].endswith("max_steps=6")
    assert "--batch_size 7 " in typed["eval_stage1"]


@pytest.mark.parametrize("name, value", [("train_clips", 0), ("batch_size", -1)])
def test_sizes_below_one_are_refused(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} is {value}"):
        demo.Sizes(**{name: value})


def test_too_few_clips_to_fit_intervals_on_are_refused_before_an_hour():
    with pytest.raises(InputError, match="--validation-clips is 4; give at least 30"):
        demo.Sizes(validation_clips=4)


def test_a_backbone_folder_that_lacks_a_part_is_named(tmp_path):
    (tmp_path / "vlm").mkdir()
    with pytest.raises(InputError, match="has no audio"):
        demo.plan(0, demo.Sizes(backbone=str(tmp_path)))


def test_versions_are_those_that_are_installed():
    import torch

    about = demo.metadata({"seed": 5})
    assert about["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(demo.PACKAGES) == set(about["versions"]) and about["machine"]["cpus"] >= 1


REPORT = "{'scores': [], 'statement': 's', 'checks': []}"


def use_plan(monkeypatch, out: Path, *codes: str) -> None:
    """Replaces the demo's steps by small programs, and a report that says nothing."""
    report = f"import json; json.dump({REPORT}, open({str(out / 'report.json')!r}, 'w'))"
    steps = [Step(f"s{i}", "", shlex.join(["python", "-c", code])) for i, code in enumerate(codes)]
    steps.append(Step("report", "", shlex.join(["python", "-c", report]), owns=("report.json",)))
    monkeypatch.setattr(demo, "plan", lambda seed, sizes: steps)
    # The command sets variables for its steps; they must not stay for other tests.
    for name in demo.environment({}):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def test_a_failing_step_ends_the_demo_with_its_code_and_its_last_lines(tmp_path, monkeypatch, capsys):
    out = tmp_path / "demo"
    codes = "print('fine')", "import sys; print('the disk is full'); sys.exit(9)", "print('never')"
    use_plan(monkeypatch, out, *codes)
    assert main(["demo", "--out", str(out)]) == 9
    said = capsys.readouterr()
    assert "step 's1' ended with exit code 9" in said.err and "the disk is full" in said.err
    assert str(out / "logs" / "s1.log") in said.err and not (out / "logs" / "s2.log").exists()
    assert "[1/4] s0: done in" in said.out


def test_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    out, flag = tmp_path / "demo", tmp_path / "flag"
    use_plan(monkeypatch, out, "print('once')", f"import os, sys; sys.exit(0 if os.path.exists({str(flag)!r}) else 4)")
    assert main(["demo", "--out", str(out)]) == 4
    flag.touch()
    capsys.readouterr()
    assert main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "s0: already done" in said
    assert said.endswith(f"{out / 'report.html'}\n")


def test_a_finished_run_is_kept_until_it_is_to_be_replaced(tmp_path, monkeypatch, capsys):
    out, count = tmp_path / "demo", tmp_path / "count"
    use_plan(monkeypatch, out, f"open({str(count)!r}, 'a').write('x')")
    assert main(["demo", "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "the run is finished" in said and str(out / "report.html") in said and count.read_text() == "x"
    assert main(["demo", "--out", str(out), "--seed", "1"]) == 2
    said = capsys.readouterr().err
    for words in (f"{out} holds a run of other arguments", "seed 0 and not 1", "--overwrite"):
        assert words in said
    assert count.read_text() == "x"
    # What `make demo` and `make demo SEED=1` after it say.
    for seed, runs in ((0, "xx"), (1, "xxx")):
        assert main(["demo", "--out", str(out), "--seed", str(seed), "--overwrite"]) == 0
        assert f"replacing the run in {out}\n" in capsys.readouterr().out
        assert count.read_text() == runs


def test_overwrite_does_not_touch_an_interrupted_run_of_the_same_arguments(tmp_path, monkeypatch, capsys):
    out, flag, count = tmp_path / "demo", tmp_path / "flag", tmp_path / "count"
    use_plan(
        monkeypatch,
        out,
        f"open({str(count)!r}, 'a').write('x')",
        f"import os, sys; sys.exit(0 if os.path.exists({str(flag)!r}) else 4)",
    )
    assert main(["demo", "--out", str(out), "--overwrite"]) == 4
    assert main(["demo", "--out", str(out), "--seed", "1"]) == 2
    assert "a run of other arguments" in capsys.readouterr().err
    flag.touch()
    assert main(["demo", "--out", str(out), "--overwrite"]) == 0
    said = capsys.readouterr().out
    assert "already done" in said and "replacing" not in said and count.read_text() == "x"


def test_a_run_of_another_release_does_not_go_on(tmp_path, monkeypatch, capsys):
    out, metadata, configs = tmp_path / "demo", demo.metadata, demo.metadata({})["configs"]
    use_plan(monkeypatch, out, "print('once')", "import sys; sys.exit(4)")
    assert main(["demo", "--out", str(out)]) == 4
    for change in ({"versions": {"vaemotionllm": "99"}}, {"configs": {"stage1_nano": "0"}}):
        monkeypatch.setattr(demo, "metadata", lambda arguments, change=change: metadata(arguments) | change)
        assert main(["demo", "--out", str(out)]) == 2
        assert f"a run of other {next(iter(change))}" in capsys.readouterr().err
    assert set(configs) == {"stage1_nano", "stage2_nano"} and len(set(configs.values())) == 2


def test_a_foreign_folder_is_refused(tmp_path, monkeypatch, capsys):
    use_plan(monkeypatch, tmp_path / "demo", "print('never')")
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "did not write" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_init_refuses_what_it_cannot_use(tmp_path, backbone, capsys):
    parts = ["init", "--vlm", str(backbone / "vlm"), "--audio", str(backbone / "audio")]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for words, said in (
        (["--out", str(tmp_path / "full")], "is not an empty folder"),
        (["--out", str(tmp_path / "new"), "projector_strid=3"], "'projector_strid' is no field"),
        (["--out", str(tmp_path / "new"), "projector_stride"], "not of the form key=value"),
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
    """Media files to report through the commands that users type; two minutes, most of it the start of processes."""
    out = tmp_path / "runs" / "demo"
    arguments = ["demo", "--scale", "tiny", "--backbone", str(backbone), "--out", "runs/demo", "--seed", "1"]
    run = subprocess.run(
        [sys.executable, "-m", "vaemotionllm.cli.main", *arguments],
        cwd=tmp_path,
        env={**os.environ, "VAEMOTIONLLM_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    report = json.loads((out / "report.json").read_text())
    assert report["seed"] == 1 and report["benchmark"]["nano"] is True
    scores = table_of(report["scores"])
    for cell in ("content_audio", "content_visual", "content_av", "emotion_audio", "emotion_visual", "emotion_av"):
        for stage in ("backbone", "stage 1", "stage 2"):
            aspect, modality = cell.split("_")
            row = pick(scores, model=stage, measure="accuracy", aspect=aspect, modality=modality)
            assert row.n == 16 and row.chance == 0.25
    controls = scores[(scores.measure == "accuracy") & (scores.model == "stage 1") & (scores.condition != "")]
    assert set(controls.condition) == {"silence", "noise", "mismatch", "blind"}
    assert "--scale tiny: these numbers mean nothing" in report["statement"] and str(backbone) in report["statement"]
    assert "million parameters" not in report["statement"] and report["arguments"]["train_clips"] is None
    markers = {path.stem: json.loads(path.read_text()) for path in (out / "steps").iterdir()}
    assert all(marker["done"] for marker in markers.values()) and set(report["cost"]) == set(markers) - {"report"}
    assert all(cost["wall_s"] > 0 for cost in report["cost"].values())
    assert all(cost["peak_rss_mb"] > 5 for cost in report["cost"].values())
    # Weights that nobody taught know nothing, and the report says so.
    assert "not a public leaderboard" in run.stdout and "not met" in run.stdout
    assert "runs/demo/report.html\n" in run.stdout
    # Made again by `vaemotionllm report`, here without the demo's arithmetic.
    assert fork_server.run(["-m", "vaemotionllm.cli.main", "report", out]).returncode == 0
    again = table_of(json.loads((out / "report.json").read_text())["scores"])
    pandas.testing.assert_frame_equal(again, scores, rtol=1e-9)
    example = (Path(__file__).parents[2] / "README.md").read_text().split("```python\n")[1].split("```")[0]
    run = fork_server.run(["-c", example], cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "tensor([[" in run.stdout  # valence on three paths
