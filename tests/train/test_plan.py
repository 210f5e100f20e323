"""The plan: models at full size without weights, counts against running models, what is refused."""

import json
from pathlib import Path

import full_size
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from vaemotionllm import VAEmotionLLMConfig, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.cli.main import main
from vaemotionllm.data.collator import ConversationRenderer, modality_inputs
from vaemotionllm.data.dataset import Sample
from vaemotionllm.train import plan as planner
from vaemotionllm.train.losses import divergence
from vaemotionllm.train.model import freeze_all_but, meta_model, set_modes
from vaemotionllm.train.plan import count_clip, count_parameters, memory_by_engine, read_plan_config
from vaemotionllm.train.teacher import states_of

FULL_SIZE = ("stage1_qwen2_5_vl_7b", "stage1_qwen3_vl_8b", "stage1_qwen2_5_vl_3b")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder in which the names of the shipped configs are folders with a config.json."""
    folder = tmp_path_factory.mktemp("hub")
    for name in full_size.MAKERS:
        full_size.write_config(name, folder)
    (folder / "Qwen" / "README.md").write_text("no JSON")
    return folder


@pytest.fixture
def plan(hub, monkeypatch, capsys):
    """Runs the command in that folder: (exit code, what it printed, what it complained of)."""
    monkeypatch.chdir(hub)

    def run(*words):
        code = main(["plan", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def plan_json(plan, monkeypatch):
    """The plan as values. The counts, which take seconds at full size, are made once for the same sizes."""
    counted = {}

    def count_once(model, *sizes):
        key = (model.config.to_json_string(), *sizes)
        if key not in counted:
            counted[key] = count_clip(model, *sizes)
        return counted[key]

    monkeypatch.setattr(planner, "count_clip", count_once)

    def run(*words):
        code, out, err = plan(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.mark.parametrize("name", FULL_SIZE)
def test_shipped_configs_make_their_models_at_full_size_without_memory(hub, monkeypatch, name):
    monkeypatch.chdir(hub)
    config, _ = read_plan_config(name, [])
    model = meta_model(config)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert model.config.projector_stride == config.model_fields["projector_stride"]
    counts = {part: sum(kinds.values()) for part, kinds in count_parameters(model).items()}
    backbone = sum(counts.get(part, 0) for part in ("vision_tower", "llm", "head"))
    assert backbone == full_size.PUBLISHED[config.vlm]
    assert counts["audio_tower"] == full_size.PUBLISHED[config.audio]
    text, audio = model.config.get_text_config(), model.config.audio_config
    stacked = audio.hidden_size * config.model_fields["projector_stride"]
    # Norm, two linear layers with bias, two boundary tokens.
    width = text.hidden_size
    assert counts["audio_projector"] == 2 * stacked + (stacked + 1) * width + (width + 1) * width + 2 * width


def test_every_shipped_config_of_stage_1_is_looked_at():
    shipped = {file.stem for file in (Path(__file__).parents[2] / "configs" / "train").glob("stage1_*.yaml")}
    assert shipped == {*FULL_SIZE, "stage1_nano"}


def test_throughput_memory_and_disk_at_full_size(plan_json):
    """Counting takes some seconds at full size."""
    words = ("--config", "stage1_qwen2_5_vl_7b", "--peak-tflops", 312, "max_audio_s=10")
    one = plan_json(*words, "--gpus", 1, "--clips", 1000, "responses_per_clip=3")
    eight = plan_json(*words, "--gpus", 8, "--mfu", 0.7, "deepspeed=zero2")
    for teacher, online in (("cached", 0), ("online", 1)):
        rate = one["throughput"][teacher]["clips_per_s"]
        assert eight["throughput"][teacher]["clips_per_s"] == pytest.approx(16 * rate)
        parts = one["flops_per_clip"]
        count = sum(parts[name] for name in parts if online or not name.endswith("_teacher"))
        assert rate == pytest.approx(312e12 * 0.35 / count)
    # 1,000 clips, 2 epochs
    assert one["throughput"]["cached"]["hours"] * rate < one["throughput"]["online"]["hours"] * rate
    assert one["throughput"]["online"]["hours"] * rate == pytest.approx(2000 / 3600)
    # A frozen LLM: 2 FLOPs a weight and token forward, as many backward, and attention.
    llm = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18_944)
    assert parts["llm_teacher"] == pytest.approx(2 * llm * one["tokens"]["row_teacher"], rel=0.1)
    assert one["cache_bytes"] == 1000 * 3 * 128 * 3584 * 2
    assert (one["memory"]["configured"], eight["memory"]["configured"]) == ("ddp", "zero2")
    counts = [part[kind] for part in one["parameters"].values() for kind in ("trainable", "frozen")]
    assert one["memory"]["teacher"] == 2 * sum(counts)


def test_the_text_has_the_numbers(hub, tmp_path, capsys):
    vlm, audio = tiny.make_vlm("qwen2_5_vl", tmp_path), tiny.make_audio("whisper", tmp_path)
    words = ["plan", "--config", "stage1_nano", f"vlm={vlm}", f"audio={audio}", "--gpu-memory-gb", "24"]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"{found['parameters']['llm']['frozen']:,}" in text
    assert f"{found['throughput']['online']['clips_per_s']:.2f}" in text and "for 700 steps" in text
    assert "the config is ddp" in text
    # Of a tiny model they are small, and no zeros.
    section = text.partition("TFLOP a clip")[2]
    numbers = [float(word) for word in section.split() if word.replace(".", "").replace("e-", "").isdecimal()]
    assert len(numbers) > 12 and 0 not in numbers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "--gpus is 0; it must be above 0"),
        (["--gpu-memory-gb", "-8"], "--gpu-memory-gb is -8.0; it must be above 0"),
        (["--gpu-memory-gb", "nan"], "--gpu-memory-gb is nan"),
        (["--peak-tflops", "0"], "--peak-tflops is 0.0"),
        (["vlm=/nowhere/x"], "config field `vlm` is /nowhere/x: the folder /nowhere/x does not exist"),
        (["vlm=nobody/none"], "cannot make a model of the config of nobody/none"),
        (["vlm=openai/whisper-large-v3"], "cannot make a model of the config of openai/whisper-large-v3"),
        (
            ["audio=Qwen/Qwen3-VL-8B-Instruct"],
            "cannot make a model of the config of Qwen/Qwen2.5-VL-3B-Instruct and Qwen",
        ),
        (["model_fields={projector_strid: 4}"], "'projector_strid' is no field"),
        (["deepspeed=zero9"], "config not found: zero9"),
        (["deepspeed=Qwen/README.md"], "Qwen/README.md (a DeepSpeed config) is no valid JSON"),
        (["num_frame=4"], "unknown config field `num_frame`: did you mean `num_frames`?"),
        (["stage=2"], "config field `stage` is 2; only stage 1 can be planned"),
    ],
)
def test_bad_input_is_named(plan, words, message):
    code, out, err = plan("--config", "stage1_qwen2_5_vl_3b", *words)
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err


def test_bytes_of_weights_gradients_and_optimizer():
    parameters = {"llm": {"trainable": 0, "frozen": 1000}, "audio_projector": {"trainable": 100, "frozen": 0}}
    rows = {row["engine"]: tuple(row.values())[1:-1] for row in memory_by_engine(parameters, 4)}
    assert rows["ddp"] == (2 * 1000 + 4 * 100, 0, 2 * 4 * 100, 8 * 100)
    assert rows["zero2"] == (2 * 1100, 0, 4 * 25, 12 * 25)
    assert rows["zero3"] == (2 * 275, 2 * 825, 4 * 25, 12 * 25)
    assert rows["fsdp"] == (2 * 250 + 4 * 25, 2 * 750 + 4 * 75, 4 * 25, 8 * 25)
    assert rows["zero3_offload"] == (0, 2 * 1100, 0, 0)


@pytest.mark.parametrize(
    ("billions", "engine", "teacher_fits"), [(7, "ddp", True), (32, "zero3", True), (72, "zero3", False)]
)
def test_the_engine_that_fits_eight_gpus_of_80_gb(billions, engine, teacher_fits):
    frozen = {
        "llm": {"trainable": 0, "frozen": round(billions * 1e9)},
        "audio_tower": {"trainable": 0, "frozen": 635_000_000},
    }
    parameters = frozen | {"audio_projector": {"trainable": 30_000_000, "frozen": 0}}
    memory = planner.plan_memory(parameters, gpus=8, gpu_memory=80 * planner.GIB)
    assert (memory["recommended"], memory["teacher_fits"]) == (engine, teacher_fits)
    assert engine in planner.advice(memory).lower()
    alone = planner.plan_memory(parameters, gpus=1, gpu_memory=80 * planner.GIB)
    assert alone["recommended"] == (engine if billions == 7 else "zero3_offload")


# ---- counts on the meta device against a real forward and backward pass

FAMILIES = [("qwen2_5_vl", "whisper"), ("qwen3_vl", "whisper"), ("qwen2_5_vl", "ast")]


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize(("vlm", "audio"), FAMILIES, ids="-".join)
def test_counts_are_those_of_a_running_model(tmp_path, vlm, audio, frames):
    folder = tiny.make_vaemotionllm(tmp_path, vlm, audio)
    # torch counts the products of eager attention, and none of the kernel that sdpa takes on a CPU.
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    processor = VAEmotionLLMProcessor.from_pretrained(folder)
    trained = ("audio_projector", "audio_tower")
    seconds = 4.7
    if frames == 1:
        visual = processor.encode_image(Image.fromarray(np.zeros((56, 56, 3), dtype=np.uint8)))
    else:
        visual = processor.encode_video(np.zeros((frames, 56, 56, 3), dtype=np.uint8), 1.0, range(frames))
    waveform = np.full(round(seconds * 16_000), 0.1, dtype=np.float32)
    sample = Sample(None, None, {"audio": processor.encode_audio(waveform), "visual": visual})
    renderer, answer = ConversationRenderer(processor), [[20, 30, 40, 2]]
    grid = visual.inputs["image_grid_thw" if frames == 1 else "video_grid_thw"][
        0
    ].tolist()  # as the processor scaled it
    pixels = grid[1] * grid[2] * model.config.vlm_config.vision_config.patch_size**2

    def inputs_of(modality):
        return modality_inputs(processor, renderer, [sample], modality, ["What is it?"], answer)

    rows = {name: inputs_of(name)["input_ids"].shape[1] for name in ("audio", "visual", "av", "text")}
    freeze_all_but(model, trained)
    set_modes(model, trained)

    def loss(states, head):
        return divergence(torch.randn_like(states), states, head)["divergence_loss"]

    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            model(**inputs_of("visual"), use_adapter=False, response_fn=states_of)
        teacher = counter.get_total_flops()
        model(**inputs_of("av"), use_adapter=False, response_fn=loss).response.backward()
        student = counter.get_total_flops() - teacher

    config = VAEmotionLLMConfig.from_pretrained(folder)
    with torch.device("meta"):
        meta = VAEmotionLLMForConditionalGeneration(config)
    freeze_all_but(meta, trained)
    answered = len(answer[0])
    tokens, flops = count_clip(meta, seconds, frames, pixels, rows["text"] - answered, answered)
    assert tokens["audio"] == sample.media["audio"].replacement.count(processor.audio_token)
    times = visual.replacement.count("seconds>") * planner.TIME_TOKENS
    assert tokens["visual"] == visual.replacement.count(visual.placeholder) + times
    parts = ("audio_tower", "audio_projector", "vision_tower", "llm_av", "head_and_loss")
    assert sum(flops[name] for name in parts) == pytest.approx(student, rel=0.05)
    assert flops["vision_tower"] + flops["llm_teacher"] == pytest.approx(teacher, rel=0.15)
