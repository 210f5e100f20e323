import json
import shutil

import pytest
import torch
from media_files import write_png, write_video, write_wav
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from training import command, losses_of, make_setup, responses_of, stage1_values, stage2_values, train, write_config

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.cli.main import main
from vaemotionllm.config_file import build_config, read_config
from vaemotionllm.train.config import Stage1Config, Stage2Config


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"))


@pytest.fixture(scope="module")
def stage1(setup, tmp_path_factory):
    """The folder of a finished stage 1."""
    output_dir = tmp_path_factory.mktemp("runs") / "stage1"
    assert train(stage1_values(*setup, output_dir, max_steps=24, student_modalities={"audio": 1.0})) == "trained"
    return output_dir


def weights(folder):
    return load_file(folder / "model.safetensors")


# ---- stage 1


def test_stage1_teaches_the_student_and_touches_only_the_audio_pathway(setup, stage1):
    rows = losses_of(stage1)
    assert [row["step"] for row in rows] == list(range(1, 25))
    first, last = (sum(row["kl_audio_loss"] for row in part) / 6 for part in (rows[:6], rows[-6:]))
    assert last < 0.8 * first
    assert all(row["loss"] == pytest.approx(row["kl_audio_loss"], rel=1e-4) for row in rows)
    assert {"grad_norm", "learning_rate", "top1_audio"} <= rows[0].keys()
    before, after = weights(setup[0]), weights(stage1)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed == {"audio_projector", "audio_tower"}


def test_the_result_loads_as_a_model_and_says_that_it_is_finished(setup, stage1):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(stage1)
    assert VAEmotionLLMProcessor.from_pretrained(stage1).audio_token
    saved = weights(stage1)
    for name, parameter in model.audio_projector.named_parameters():
        torch.testing.assert_close(parameter.data, saved[f"audio_projector.{name}"])
    values = stage1_values(*setup, stage1, max_steps=24, student_modalities={"audio": 1.0})
    assert train(values) == "finished"
    with pytest.raises(InputError, match="seed = 1, this one 2.*overwrite=true"):
        train(values | {"seed": 2})


def test_responses_are_the_teacher_s_own_from_the_picture_alone(setup, stage1):
    header, rows = responses_of(stage1)
    assert header["hash"] and {"backbone", "preprocessing", "prompts", "num_frames"} <= header["depends_on"].keys()
    assert sorted((row["id"], row["slot"]) for row in rows) == sorted(
        (f"train-{i}", s) for i in range(12) for s in (0, 1)
    )
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(setup[0]).eval()
    processor = VAEmotionLLMProcessor.from_pretrained(setup[0])
    row = next(row for row in rows if row["id"] == "train-2")
    content = [
        {"type": "image", "path": str(setup[1].parent / "train-2.png")},
        {"type": "text", "text": row["prompt"]},
    ]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content}]], tokenize=True, return_dict=True, add_generation_prompt=True,
        return_tensors="pt",
    )  # fmt: skip
    generated = model.generate(**inputs, use_adapter=False, do_sample=False, max_new_tokens=6)
    assert generated[0, inputs["input_ids"].shape[1] :].tolist()[: len(row["tokens"])] == row["tokens"]


def test_stage1_reads_no_label(setup, stage1, tmp_path):
    shutil.copytree(setup[1].parent, tmp_path / "world")
    manifest = tmp_path / "world" / "manifest.jsonl"
    bare = []
    for line in manifest.read_text().splitlines():
        row = json.loads(line)
        for name in ("content", "emotion", "valence", "arousal", "caption", "art_form"):
            del row[name]
        bare.append(json.dumps(row) + "\n")
    manifest.write_text("".join(bare))
    train(stage1_values(setup[0], manifest, tmp_path / "run", max_steps=24, student_modalities={"audio": 1.0}))
    assert losses_of(tmp_path / "run") == losses_of(stage1)
    labelled, unlabelled = weights(stage1), weights(tmp_path / "run")
    assert all(torch.equal(labelled[name], unlabelled[name]) for name in labelled)


def test_responses_of_another_setting_are_refused(setup, stage1, tmp_path):
    run = tmp_path / "run"
    values = stage1_values(*setup, run, max_steps=1)
    train(values)
    (run / "finished.json").unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"max_response_tokens": 4}))
    with pytest.raises(InputError, match="holds rows with hash .* this run needs .*max_response_tokens changed"):
        train(values | {"max_response_tokens": 4})


def test_accumulation_does_not_change_the_losses(setup, tmp_path):
    train(stage1_values(*setup, tmp_path / "a", max_steps=4))
    train(
        stage1_values(
            *setup, tmp_path / "b", max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2
        )
    )
    assert losses_of(tmp_path / "a")[0]["loss"] > 0.1  # teacher and student differ, or there is nothing to compare
    for one, two in zip(losses_of(tmp_path / "a"), losses_of(tmp_path / "b"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-2)


# ---- stage 2


def test_stage2_trains_adapter_and_lora_and_saves_a_plain_model(setup, stage1, tmp_path):
    run = tmp_path / "run"
    train(stage2_values(stage1, setup[1], run, max_steps=16))
    rows = losses_of(run)
    names = set().union(*rows)
    for modality in ("audio", "visual", "av"):
        assert {f"{term}_{modality}_loss" for term in ("ce", "valence", "arousal", "emotion")} <= names
    for row in rows:
        terms = sum(row[n] * (1.0 if n.startswith("ce_") else 0.5) for n in row if n.endswith("_loss"))
        assert row["loss"] == pytest.approx(terms, rel=1e-4)
    before, after = weights(stage1), weights(run)
    assert before.keys() <= after.keys()
    assert all(name.startswith("emotion_adapter.supervisor.labels.") for name in after.keys() - before.keys())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("emotion_adapter.enhancers") for name in changed)
    assert any(name.startswith("emotion_adapter.supervisor") for name in changed)
    in_llm = {name for name in changed if name.startswith("vlm.")}
    assert in_llm and all("_proj.weight" in name and "visual" not in name for name in in_llm)
    assert not list(run.glob("final.tmp"))


def test_frozen_parts_stay_in_eval_mode(setup):
    from vaemotionllm.train.model import set_modes

    model = VAEmotionLLMForConditionalGeneration.from_pretrained(setup[0])
    model.gradient_checkpointing_enable()
    model.train()
    set_modes(model, ("audio_projector",))
    assert model.audio_projector.training and not model.audio_tower.training and not model.vlm.training
    layer = model.vlm.get_decoder().layers[0]
    assert layer.training and not layer.mlp.training and not layer.self_attn.training


# ---- configs and errors


def test_config_values_are_read_by_their_type(tmp_path):
    file = write_config(tmp_path / "c.yaml", stage1_values("org/m", "man", tmp_path))
    config = build_config(Stage1Config, read_config(str(file), ["learning_rate=1e-4", "max_steps=9", "temperature=2"]))
    assert (config.learning_rate, config.max_steps, config.temperature) == (1e-4, 9, 2.0)
    assert read_config("stage2_nano")["stage"] == 2
    for name in ("stage1_nano", "stage1_qwen2_5_vl_7b"):
        build_config(Stage1Config, read_config(name) | {
            "vlm": "v", "audio": "a", "manifest": "m", "output_dir": str(tmp_path), "bf16": False,
        })  # fmt: skip
    for name in ("stage2_nano", "stage2_qwen2_5_vl_7b"):
        build_config(Stage2Config, read_config(name) | {
            "model": "v", "manifest": "m", "output_dir": str(tmp_path), "bf16": False,
        })  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temprature": 1}, ["temprature", "did you mean `temperature`"]),
        ({"temperature": 0}, ["temperature", "greater than 0"]),
        ({"temperature": "hot"}, ["temperature", "'hot'", "valid number"]),
        ({"max_steps": 1.5}, ["max_steps", "1.5", "valid integer"]),
        ({"cache_media": "yes, please"}, ["cache_media", "valid boolean"]),
        ({"student_modalities": {"visual": 1}}, ["visual", "audio, av"]),
        ({"student_modalities": {"audio": 0}}, ["student_modalities", "above 0"]),
        ({"prompts": None}, ["prompts", "missing"]),
        ({"manifest": None}, ["manifest", "missing"]),
        ({"vlm": "x"}, ["either `model`", "vlm='x'"]),
        ({"train_audio_tower": False, "train_audio_projector": False}, ["nothing to train"]),
        ({"lr_scheduler_type": "cosin"}, ["cosin"]),
        ({"learning_rate": "nan"}, ["learning_rate", "nan", "finite"]),
        ({"learning_rate": float("inf")}, ["learning_rate", "inf", "finite"]),
        ({"max_steps": "1e400"}, ["max_steps", "1e400", "valid integer"]),
        ({"max_steps": 10**400}, ["max_steps", "2**63"]),
        ({"num_train_epochs": float("inf"), "max_steps": -1}, ["num_train_epochs", "finite"]),
        ({"student_modalities": {"audio": float("inf")}}, ["student_modalities", "finite"]),
        ({"report_to": "nosuch"}, ["report_to", "nosuch", "none, all", "tensorboard"]),
        ({"report_to": ["tensorboard", "nosuch"]}, ["report_to", "names nosuch;"]),
        ({"weight_decay": -1}, ["weight_decay", "at least 0"]),
        ({"max_grad_norm": float("nan")}, ["max_grad_norm", "finite"]),
        ({"adam_beta1": 2}, ["beta"]),
        ({"audio_tower_lr": -1}, ["audio_tower_lr", "greater than 0"]),
        ({"seed": -1}, ["seed", "at least 0"]),
        ({"save_steps": 0}, ["save_steps", "above 0"]),
        ({"save_total_limit": -1}, ["save_total_limit", "greater than 0"]),
        ({"dataloader_num_workers": -1}, ["dataloader_num_workers", "at least 0"]),
        ({"lr_scheduler_kwargs": {"a": 1}}, ["unexpected keyword argument 'a'"]),
        ({"eval_strategy": "steps"}, ["eval_strategy", "steps"]),
    ],
)
def test_bad_config_values_are_named(tmp_path, change, words):
    values = stage1_values("m", "man", tmp_path) | change
    with pytest.raises(InputError) as error:
        build_config(Stage1Config, {name: value for name, value in values.items() if value is not None})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("instructions", "words"),
    [
        ([{"prompt": "?", "answer": "{mood}"}], ["{mood}", "emotion"]),
        ([{"prompt": "?"}], ["entry 1", "answer"]),
        ([{"prompt": "?", "answer": "{"}], ["entry 1", "template"]),
        ("some text", ["some text", "nano"]),
    ],
)
def test_bad_instructions_are_named(setup, tmp_path, instructions, words):
    with pytest.raises(InputError) as error:
        train(stage2_values(*setup, tmp_path / "run", instructions=instructions))
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "run").exists()


def world_with(folder, row, media):
    """A world of four good clips and one row more."""
    from media_files import write_world

    manifest = write_world(folder, clips=4, videos=False)
    media(folder)
    base = {
        "id": "odd",
        "split": "train",
        "source": "s",
        "license": "l",
        "image": "train-0.png",
        "audio": "train-0.wav",
    }
    row = {name: value for name, value in (base | row).items() if value is not None}
    with open(manifest, "a") as out:
        out.write(json.dumps(row) + "\n")
    return manifest


def truncate(modality, share=0.5):
    data = modality.read_bytes()
    modality.write_bytes(data[: int(len(data) * share)])


BAD_CLIPS = {
    "missing": ({"audio": "none.wav"}, lambda d: None, ["'odd'", "none.wav", "not found"]),
    "truncated": ({"audio": "x.wav"}, lambda d: truncate(write_wav(d / "x.wav")), ["'odd'", "x.wav", "truncated"]),
    "truncated picture": (
        {"image": "x.png"},
        lambda d: truncate(write_png(d / "x.png")),
        ["'odd'", "x.png", "truncated"],
    ),
    "empty": ({"audio": "x.wav"}, lambda d: write_wav(d / "x.wav", 0.0), ["'odd'", "x.wav", "0 s"]),
    "ten minutes": (
        {"audio": "x.wav"}, lambda d: write_wav(d / "x.wav", 600, 8000), ["'odd'", "x.wav", "600.0 s", "max_audio_s"],
    ),
    "silent video": (
        {"audio": "x.mp4", "video": "x.mp4", "image": None}, lambda d: write_video(d / "x.mp4", sound=False),
        ["'odd'", "x.mp4", "no audio track"],
    ),
    "field missing": ({"license": None}, lambda d: None, ["row 5", "'odd'", "license", "missing"]),
    "no audio": ({"audio": None}, lambda d: None, ["row 5", "'odd'", "`audio` is missing"]),
    "outside": ({"audio": "../x.wav"}, lambda d: write_wav(d.parent / "x.wav"), ["'odd'", "outside", "../x.wav"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_a_bad_clip_ends_the_run_before_anything_is_written(setup, tmp_path, name):
    row, media, words = BAD_CLIPS[name]
    manifest = world_with(tmp_path / "world", row, media)
    with pytest.raises(InputError) as error:
        train(stage1_values(setup[0], manifest, tmp_path / "run"))
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "run").exists()


def test_stereo_48_khz_trains(setup, tmp_path):
    manifest = world_with(
        tmp_path / "world", {"audio": "x.wav"}, lambda d: write_wav(d / "x.wav", 1.0, 48_000, channels=2)
    )
    assert train(stage1_values(setup[0], manifest, tmp_path / "run", max_steps=1, responses_per_clip=1)) == "trained"


def test_a_model_folder_without_its_config(setup, tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=f"cannot load a model from {path}: "):
            train(stage1_values(path, setup[1], tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_output_folder_of_something_else(setup, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="not of a training run"):
        train(stage1_values(*setup, tmp_path, overwrite=True))
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_the_command_prints_one_line_and_ends_with_code_2(setup, tmp_path):
    manifest = world_with(tmp_path / "world", *BAD_CLIPS["truncated"][:2])
    # The clip is found by a worker process of the loader, in the middle of training.
    values = stage1_values(
        setup[0],
        manifest,
        tmp_path / "run",
        cache_media=False,
        dataloader_num_workers=1,
        per_device_train_batch_size=5,
    )
    result = command("--config", write_config(tmp_path / "c.yaml", values))
    assert result.returncode == 2
    assert "finished" not in result.stdout
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("vaemotionllm train: error: clip 'odd': ") and "x.wav: truncated" in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "config.json").exists() and not list((tmp_path / "run").glob("checkpoint-*"))
    result = command("--config", tmp_path / "c.yaml", "sede=1")
    assert result.returncode == 2 and "did you mean `seed`" in result.stderr
    result = command("--fields")
    assert result.returncode == 0
    for line in ("manifest: str | None = None", "student_modalities: dict[str, float] = {'audio': 0.5, 'av': 0.5}",
                 "valence_weight: float = 0.5\n      Weight of the Supervisor's valence loss."):  # fmt: skip
        assert result.stdout.count(line) == 1


@pytest.mark.parametrize("words", [
    ["train", "--config", "stage1_nano", "--learning_rate", "1e-4"], ["train"], ["inspect", "split=train"],
    ["inspect", "--model", "m", "--manifest", "x.jsonl", "--top", "0"],
])  # fmt: skip
def test_arguments_that_are_none_are_refused(capsys, words):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2 and ": error: " in capsys.readouterr().err


def test_a_run_that_failed_before_its_first_step_takes_corrected_settings(setup, tmp_path, monkeypatch):
    values = stage1_values(*setup, tmp_path / "run", max_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr("vaemotionllm.train.run.make_trainer", lambda *of: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(values | {"learning_rate": 1.0})
    assert train(values) == "trained"
    with pytest.raises(InputError, match="holds a run with learning_rate"):
        train(values | {"learning_rate": 1.0})


@pytest.mark.parametrize("change", [{"max_steps": 0}, {"max_steps": -1, "num_train_epochs": 0}])
def test_a_run_of_no_steps_is_refused_before_it_takes_its_folder(setup, tmp_path, change):
    with pytest.raises(InputError, match=f"config field `{list(change)[-1]}` is 0.* must be above 0"):
        train(stage1_values(*setup, tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_a_clip_that_only_one_rank_meets_is_named_by_that_rank(monkeypatch, capsys):
    from vaemotionllm.cli import train as commands
    from vaemotionllm.utils import ClipError

    for rank, error, lines in (
        ("0", InputError("same"), 1),
        ("3", InputError("same"), 0),
        ("3", ClipError("clip 'x' is bad"), 1),
        ("0", PermissionError(13, "Permission denied", "/x"), 1),
    ):

        def fail(args, error=error):
            raise error

        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(commands, "run_train", fail)
        assert main(["train", "--local_rank=3", "--config", "x"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_what_the_model_is_trained_with_is_what_its_processor_gives(setup, tmp_path):
    from vaemotionllm import VAEmotionLLMProcessor

    values = stage2_values(*setup, tmp_path / "run", max_steps=1, num_frames=2, max_audio_s=7.0)
    assert train(values) == "trained"
    processor = VAEmotionLLMProcessor.from_pretrained(tmp_path / "run")
    assert (processor.num_frames, processor.max_audio_s) == (2, 7.0)


def test_half_precision_weights_ask_for_the_field_they_need(setup, tmp_path):
    from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor

    half = tmp_path / "half"
    VAEmotionLLMForConditionalGeneration.from_pretrained(setup[0], dtype=torch.bfloat16).save_pretrained(half)
    VAEmotionLLMProcessor.from_pretrained(setup[0]).save_pretrained(half)
    with pytest.raises(InputError, match="weights are bfloat16.*bf16: true"):
        train(stage1_values(half, setup[1], tmp_path / "run"))
    assert train(stage1_values(half, setup[1], tmp_path / "run", bf16=True, use_cpu=True, max_steps=2)) == "trained"


def test_clips_without_labels_leave_no_parameter_without_a_gradient(setup, tmp_path):
    rows = [json.loads(line) for line in setup[1].read_text().splitlines()]
    manifest = setup[1].with_name("unlabelled.jsonl")
    manifest.write_text("".join(json.dumps(row | {"valence": None, "arousal": None}) + "\n" for row in rows))
    seen = []

    def look(trainer_class):
        step = trainer_class.training_step

        def training_step(self, model, *args, **kwargs):
            loss = step(self, model, *args, **kwargs)
            seen.append([name for name, p in model.named_parameters() if p.requires_grad and p.grad is None])
            return loss

        return training_step

    from vaemotionllm.train.trainer import Stage2Trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage2Trainer, "training_step", look(Stage2Trainer))
        train(stage2_values(setup[0], manifest, tmp_path / "run", max_steps=3))
    assert seen == [[], [], []]


def test_other_settings_and_another_manifest_are_no_finished_run(setup, tmp_path):
    manifest = setup[1].with_name("changing.jsonl")
    manifest.write_text(setup[1].read_text())
    values = stage1_values(setup[0], manifest, tmp_path / "run", max_steps=1)
    train(values)
    assert train(values) == "finished"
    for changes in ({"student_modalities": {"av": 1.0}}, {"optim": "adafactor"}):
        with pytest.raises(InputError, match=next(iter(changes))):
            train(values | changes)
    manifest.write_text(setup[1].read_text().replace('"source": "', '"source": "other '))
    with pytest.raises(InputError, match="manifest_sha256"):
        train(values)


def test_fields_of_a_new_model_are_checked(setup, tmp_path):
    from tiny import make_audio, make_vlm

    vlm, audio = make_vlm("qwen2_5_vl", tmp_path), make_audio("whisper", tmp_path)
    for fields, word in (
        ({"projector_strid": 3}, "'projector_strid' is no field"),
        ({"enhancer_rank": "big"}, "enhancer_rank"),
        ({"audio_token_id": 5}, "'audio_token_id' is no field"),
    ):
        values = stage1_values(None, setup[1], tmp_path / "run", model_fields=fields, vlm=str(vlm), audio=str(audio))
        with pytest.raises(InputError, match=word):
            train(values | {"model": None})


def test_compiled_layers_have_the_losses_and_gradients_of_the_plain_ones(setup, tmp_path):
    # Without the last compiler, which takes minutes here: what is captured is run by torch's own operators.
    options = dict(max_steps=4, train_audio_tower=False)
    train(stage1_values(*setup, tmp_path / "plain", **options))
    torch._dynamo.reset()
    counters["stats"].clear()
    train(stage1_values(*setup, tmp_path / "compiled", torch_compile_backend="aot_eager", **options))
    # One graph of a layer for the teacher, without a gradient, and one for the student, whatever the lengths.
    assert counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()
    for one, two in zip(losses_of(tmp_path / "plain"), losses_of(tmp_path / "compiled"), strict=True):
        for name in ("loss", "grad_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-4)
