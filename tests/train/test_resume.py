"""A killed run goes on as if it had not been killed."""

import json
import os
import resource
import shutil
import signal
import time

import fork_server
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from training import (
    TRAIN,
    losses_of,
    make_setup,
    process_environment,
    responses_of,
    stage1_values,
    stage2_values,
    train,
    write_config,
)

from vaemotionllm import InputError, utils
from vaemotionllm.cli.main import main
from vaemotionllm.train import checkpoint
from vaemotionllm.utils import RankError


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"))


def kill_when(values, config, condition, timeout_s=fork_server.HANG_S, sent=signal.SIGKILL):
    """Starts the command and sends a signal as soon as `condition()` holds. Returns the process, and its stderr."""
    stderr = config.with_suffix(".err")
    words = [*TRAIN, "--config", write_config(config, values)]
    process = fork_server.start(words, process_environment(), stderr=stderr)
    deadline = time.monotonic() + timeout_s
    try:
        while not condition():
            assert process.exitcode is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        if sent == signal.SIGTERM:
            os.kill(process.pid, signal.SIGSTOP)  # in the middle of a step, for as long as the second run takes
            with pytest.raises(InputError, match=f"{values['output_dir']} is in use by process {process.pid} on "):
                train(values)
            os.kill(process.pid, sent)
            os.kill(process.pid, signal.SIGCONT)
            process.join(timeout_s)
    finally:
        process.kill()
        process.join()
    return process, stderr.read_text()


@pytest.mark.parametrize(
    ("values_of", "sent"), [(stage1_values, signal.SIGKILL), (stage2_values, signal.SIGTERM)]
)  # fmt: skip
def test_a_killed_run_goes_on_with_the_same_losses(setup, tmp_path, values_of, sent, monkeypatch):
    monkeypatch.setattr(utils, "WAIT_S", 0.0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = dict(max_steps=40, save_steps=5)
    train(values_of(*setup, whole, **options))
    # Somewhere after step 12: beyond checkpoint 10, in the third epoch and in the middle of it.
    values = values_of(*setup, broken, **options)
    process, said = kill_when(values, tmp_path / "c.yaml", lambda: len(losses_of(broken)) >= 12, sent=sent)
    assert not (broken / "finished.json").exists()
    if sent == signal.SIGTERM:
        assert process.exitcode == 143
        last = losses_of(broken)[-1]["step"]
        assert f"vaemotionllm train: terminated after step {last}, " in said and last < 40
        assert checkpoint.last_complete(broken) == broken / f"checkpoint-{last}"
    monkeypatch.undo()
    assert train(values_of(*setup, broken, **options)) == "trained"
    assert [row["step"] for row in losses_of(broken)] == list(range(1, 41))
    for one, two in zip(losses_of(whole), losses_of(broken), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert one[name] == pytest.approx(two[name], abs=1e-6), (one["step"], name)
    first, second = load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors")
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-5)


# In step 3 the second rank and its worker get the signal, as SLURM sends it.
RANK = """
import os, subprocess, sys
import psutil
from vaemotionllm.cli.train import end_rank
from vaemotionllm.cli.main import main
from vaemotionllm.train.trainer import StageTrainer

whole = StageTrainer.compute_loss

def compute_loss(self, *args, **kwargs):
    if os.environ["RANK"] == "1" and self.state.global_step == 2:
        whom = [*psutil.Process().children(), psutil.Process()]
        subprocess.run(["kill", "-TERM", *(str(process.pid) for process in whom)], check=True)
    return whole(self, *args, **kwargs)

StageTrainer.compute_loss = compute_loss
end_rank(main(["train", "--config", sys.argv[1]]))
"""


def test_all_ranks_end_after_the_step_in_which_one_is_terminated(setup, tmp_path):
    run = tmp_path / "run"
    options = dict(max_steps=5, save_steps=100, dataloader_num_workers=1, cache_media=False)
    words = ["-c", RANK, write_config(tmp_path / "c.yaml", stage2_values(*setup, run, **options))]
    done = fork_server.run_ranks(words, process_environment())
    assert done.returncode == 143, done.stderr
    assert done.stderr.count("vaemotionllm train: terminated after step 3, ") == 1
    assert list(checkpoint.checkpoints(run)) == [3] and checkpoint.resume_step(run) == 3
    assert not [name for name in utils.OWNER_FILES if (run / name).exists()]
    assert [row["step"] for row in losses_of(run)] == [1, 2, 3]


def test_responses_are_not_generated_twice(setup, tmp_path):
    run = tmp_path / "run"
    values = stage1_values(*setup, run, generation_batch_size=2, responses_per_clip=8, max_steps=2)
    parts = run / "responses.parts"
    kill_when(values, tmp_path / "c.yaml", lambda: len(list(parts.glob("*.arrow"))) >= 3)
    kept = sorted(parts.glob("*.arrow"))
    assert len(kept) < 12
    with pa.ipc.open_file(kept[0]) as file:  # marked, to be known again
        table = file.read_all()
    kinds = pa.array(["kept"] * len(table), pa.large_string())
    marked = table.set_column(table.schema.get_field_index("kind"), "kind", kinds)
    with pa.OSFile(str(kept[0]), "wb") as out, pa.ipc.new_file(out, marked.schema) as writer:
        writer.write_table(marked)
    (parts / f"{kept[-1].name}.1.tmp").write_bytes(b"a part that the kill cut short")
    train(values)
    _, rows = responses_of(run)
    assert len({(row["id"], row["slot"]) for row in rows}) == len(rows) == 96
    assert sum(row["kind"] == "kept" for row in rows) == len(table) == 8
    assert not parts.exists()


def test_a_checkpoint_that_is_half_written_or_damaged_is_passed_over(setup, tmp_path, caplog, capsys):
    run = tmp_path / "run"
    values = stage1_values(*setup, run, max_steps=8, save_steps=2, save_total_limit=None)
    train(values)
    expected = losses_of(run)
    for name in ("finished.json", "model.safetensors", "config.json"):
        (run / name).unlink()
    (run / "checkpoint-8" / "complete.json").unlink()  # killed before the last file
    with open(run / "checkpoint-6" / "optimizer.pt", "r+b") as file:  # a disk that lost the end of a file
        file.truncate(100)
    assert checkpoint.last_complete(run) == run / "checkpoint-4"
    overwrite(run / "checkpoint-4" / "trainable.safetensors", share=0.5, count=8)
    exported = tmp_path / "exported"
    assert main(["export", str(run), "--out", str(exported)]) == 0
    assert str(run / "checkpoint-2") in capsys.readouterr().out
    assert main(["export", str(run), "--out", str(tmp_path / "no"), "--checkpoint", "4"]) == 2
    with caplog.at_level("WARNING"):
        assert train(values) == "trained"
    assert any(str(run / "checkpoint-4") in text and "trainable.safetensors" in text for text in caplog.messages)
    assert losses_of(run) == expected
    assert sorted(checkpoint.checkpoints(run)) == [2, 4, 6, 8] and (run / "checkpoint-4.damaged").is_dir()


def overwrite(file, share=0.0, count=None):
    """Puts other bytes into a file, whose size stays."""
    data = bytearray(file.read_bytes())
    begin, count = int(share * len(data)), len(data) if count is None else count
    data[begin : begin + count] = bytes(255 - byte for byte in data[begin : begin + count])
    file.write_bytes(data)


def test_damage_is_found_in_each_file_that_resuming_reads(setup, tmp_path):
    run = tmp_path / "run"
    train(stage1_values(*setup, run, max_steps=1, save_steps=1))
    folder = run / "checkpoint-1"
    assert checkpoint.damage_of(folder) is None and checkpoint.resume_step(run) == 1
    read = ("trainable.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
    for name in read:
        whole = (folder / name).read_bytes()
        for share, count in ((0, None), (0.5, 256)):
            overwrite(folder / name, share, count)
            assert checkpoint.is_complete(folder) and name in checkpoint.damage_of(folder)
            (folder / name).write_bytes(whole)
    assert checkpoint.damage_of(folder) is None


def test_old_checkpoints_go_only_when_the_new_one_is_whole(tmp_path):
    for step in (2, 4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "x").write_text("x")
        checkpoint.mark_complete(folder)
    (tmp_path / "checkpoint-6" / "complete.json").unlink()
    checkpoint.rotate(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-6"]


def test_a_checkpoint_of_other_parameters_is_refused(setup, tmp_path):
    from vaemotionllm import VAEmotionLLMForConditionalGeneration
    from vaemotionllm.train.model import freeze_all_but

    model = VAEmotionLLMForConditionalGeneration.from_pretrained(setup[0])
    freeze_all_but(model, ["audio_projector"])
    checkpoint.save_trainable(model, tmp_path)
    saved = load_file(tmp_path / checkpoint.TRAINABLE)
    assert saved and all(name.startswith("audio_projector.") for name in saved)
    freeze_all_but(model, ["audio_projector", "audio_tower"])
    with pytest.raises(InputError, match="audio_tower.* is missing there"):
        checkpoint.load_trainable(model, tmp_path)


@pytest.mark.parametrize("values_of", [stage1_values, stage2_values])
def test_a_finished_run_is_made_longer(setup, tmp_path, values_of):
    run = tmp_path / "run"
    values = values_of(*setup, run, max_steps=4, lr_scheduler_type="constant")
    assert train(values) == "trained"
    short = losses_of(run)
    assert train(values | {"max_steps": 6}) == "trained"
    assert train(values | {"max_steps": 6}) == "finished"
    assert losses_of(run)[:4] == short
    # The data of a step are its own, so with a constant rate a longer run is the run that was long from the start.
    train(values | {"max_steps": 6, "output_dir": str(tmp_path / "whole")})
    assert losses_of(run) == losses_of(tmp_path / "whole")
    assert json.loads((run / "run.json").read_text())["max_steps"] == 6
    with pytest.raises(InputError, match="max_steps = 6, this one 4, and it can only be raised"):
        train(values)


def test_a_longer_run_resumes_on_its_own_schedule(setup, tmp_path):
    run = tmp_path / "run"
    values = stage1_values(*setup, run, max_steps=4, lr_scheduler_type="linear", learning_rate=1e-3)
    train(values)
    train(values | {"max_steps": 8})
    rates = [row["learning_rate"] for row in losses_of(run)]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4, 5e-4, 3.75e-4, 2.5e-4, 1.25e-4])


def test_overwrite_starts_again(setup, tmp_path):
    run = tmp_path / "run"
    train(stage1_values(*setup, run, max_steps=2))
    train(stage1_values(*setup, run, max_steps=1, seed=9, overwrite=True))
    assert len(losses_of(run)) == 1
    shutil.rmtree(run)


def test_a_run_that_was_killed_while_it_saved_takes_no_further_step(setup, tmp_path):
    values = stage1_values(*setup, tmp_path / "run", max_steps=5, save_steps=5)
    train(values)
    expected, losses = load_file(tmp_path / "run" / "model.safetensors"), losses_of(tmp_path / "run")
    for name in ("finished.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    assert train(values) == "trained"
    again = load_file(tmp_path / "run" / "model.safetensors")
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["steps"] == 5
    assert losses_of(tmp_path / "run") == losses and expected.keys() == again.keys()
    assert all(torch.equal(expected[name], again[name]) for name in expected)


@pytest.mark.parametrize(
    "largest_file, fails, left",
    [(100_000, "checkpoint-2", []),  # trainable.safetensors
     (300_000, "checkpoint-2", []),  # optimizer.pt
     (500_000, "final", ["checkpoint-4", "checkpoint-6"])],  # model.safetensors
)  # fmt: skip
def test_a_full_disk_is_told_and_nothing_half_written_stays(setup, tmp_path, largest_file, fails, left):
    run = tmp_path / "run"
    values = stage2_values(*setup, run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        with pytest.raises(RankError, match=rf"cannot write {fails} in .*GiB are free there.*run the same command"):
            train(values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == left
    assert train(values) == "trained"
    train(stage2_values(*setup, tmp_path / "whole"))
    assert losses_of(run) == losses_of(tmp_path / "whole")
