"""Two ranks whose batches hold different media in one step: they do not wait for each other for ever."""

import json
from pathlib import Path

import fork_server
import pytest
from training import losses_of, make_setup, process_environment, stage1_values, stage2_values

HERE = Path(__file__).parent


@pytest.mark.parametrize("values_of", [stage1_values, stage2_values])
def test_ranks_with_different_media_train_alike_under_each_engine(tmp_path, values_of):
    """DDP does not look for parameters without a gradient: it raises where one is without in a step."""
    setup, media = make_setup(tmp_path), {}
    for engine in ("ddp", "fsdp", "zero3"):
        folder = tmp_path / engine
        folder.mkdir()
        values = values_of(
            *setup, folder / "run", max_steps=6, save_steps=6, per_device_train_batch_size=2, cache_media=True,
        )  # fmt: skip
        if engine == "fsdp":
            values["fsdp"] = True
        elif engine == "zero3":
            config = json.loads((HERE.parents[1] / "configs" / "deepspeed" / "zero3.json").read_text())
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
            (folder / "engine.json").write_text(json.dumps(config))
            values["deepspeed"] = str(folder / "engine.json")
        (folder / "values.json").write_text(json.dumps(values))
        words = [HERE / "mixed_ranks.py", "--values", folder / "values.json"]
        result = fork_server.run_ranks(words, process_environment())
        assert result.returncode == 0, result.stderr[-4000:]
        media[engine] = [json.loads((folder / f"media.{rank}.json").read_text()) for rank in (0, 1)]
    first, second = media["zero3"]
    assert all(made == media["ddp"] for made in media.values()) and len(first) == len(second)
    assert sum(one != two for one, two in zip(first, second)) >= 6  # in every step
    if values_of is stage2_values:
        assert any("input_features" in one and "input_features" not in two for one, two in zip(first, second))
    expected = losses_of(tmp_path / "ddp" / "run")
    for engine in ("fsdp", "zero3"):
        found = losses_of(tmp_path / engine / "run")
        assert len(expected) == len(found) == 6
        for left, right in zip(expected, found):
            assert left["loss"] == pytest.approx(right["loss"], rel=1e-4), (engine, left["step"])
            assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3), (engine, left["step"])
