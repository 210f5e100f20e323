"""The plan: models at full size without weights, memory, sizes of a clip, what is printed, what is refused."""

import json
from pathlib import Path

import full_size
import numpy as np
import pytest
import tiny
import torch
from media_files import write_png, write_wav, write_world
from PIL import Image
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    ASTConfig,
    LlavaOnevisionConfig,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    WhisperConfig,
)

from vaemotionllm import VAEmotionLLMConfig, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.cli.main import main
from vaemotionllm.cli.plan import read_stage1
from vaemotionllm.data.manifest import write_manifest
from vaemotionllm.train import flops, memory
from vaemotionllm.train.freezing import freeze_all_but, set_modes
from vaemotionllm.train.meta_model import meta_model, model_config
from vaemotionllm.train.plan import count_parameters
from vaemotionllm.train.plan_sizes import TIME_TOKENS, Assumptions, clip_sizes

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"
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


def plan_json(plan, *words):
    code, out, err = plan(*words, "--json")
    assert code == 0, err
    return json.loads(out)


# ---- the shipped configs at full size


@pytest.mark.parametrize("name", FULL_SIZE)
def test_shipped_configs_make_their_models_at_full_size_without_memory(hub, monkeypatch, name):
    monkeypatch.chdir(hub)
    config, _, _ = read_stage1(name, [])
    model = meta_model(model_config(config))
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


# ---- what is printed


def test_output_snapshot(plan):
    code, out, _ = plan("--config", "stage1_qwen2_5_vl_7b", "--gpus", 8, "--gpu-memory-gb", 80, "deepspeed=zero2")
    file = SNAPSHOTS / "plan_stage1_qwen2_5_vl_7b.txt"
    assert (code, out) == (0, file.read_text(encoding="utf-8"))


def test_json_is_one_object_with_the_same_numbers(plan):
    words = ("--config", "stage1_qwen2_5_vl_3b", "--gpus", 1, "--gpu-memory-gb", 24)
    found, text = plan_json(plan, *words), plan(*words)[1]
    assert f"{found['parameters']['llm']['frozen']:,}" in text
    assert f"{found['flops_per_step']['cached']['parts']['llm']['forward'] / 1e15:.3f}" in text
    assert f"{found['throughput']['online']['clips_per_s']:.1f} clips/s" in text
    assert f"{found['cache_bytes']['teacher'] / 1e9:.1f} GB" in text


def test_throughput_follows_gpus_and_mfu_and_a_cached_teacher_is_faster(plan):
    words = ("--config", "stage1_qwen2_5_vl_7b", "--gpu", "A100")
    one, eight = plan_json(plan, *words, "--gpus", 1), plan_json(plan, *words, "--gpus", 8, "--mfu", 0.7)
    for teacher in ("cached", "online"):
        rate = one["throughput"][teacher]["clips_per_s"]
        assert eight["throughput"][teacher]["clips_per_s"] == pytest.approx(16 * rate)
        step = one["flops_per_step"][teacher]
        assert rate == pytest.approx(312e12 * 0.35 / (step["model"] / one["clips_per_step"]))
    assert one["throughput"]["cached"]["hours"] < one["throughput"]["online"]["hours"]
    # 100,000 clips, 2 epochs
    assert one["throughput"]["cached"]["hours"] * one["throughput"]["cached"]["clips_per_s"] == pytest.approx(
        2e5 / 3600
    )


def test_disk_of_the_caches(plan):
    found = plan_json(
        plan, "--config", "stage1_qwen2_5_vl_7b", "--clips", 1000, "--audio-s", 10, "responses_per_clip=3"
    )
    assert found["cache_bytes"]["teacher"] == 1000 * 3 * 128 * 3584 * 2
    assert found["cache_bytes"]["audio_features"] == 1000 * 500 * 1280 * 2  # 50 positions a second


def test_what_the_manifest_says_is_taken_from_it(plan, tmp_path):
    write_world(tmp_path / "world", clips=6)
    found = plan_json(plan, "--config", "stage1_qwen2_5_vl_3b", f"manifest={tmp_path}/world/manifest.jsonl")
    assert found["assumptions"]["clips"] == 6 and found["assumptions"]["media"] == "video"
    assert found["assumptions"]["audio_s"] == 30  # the rows give no times: max_audio_s
    write_png(tmp_path / "a.png")
    write_wav(tmp_path / "a.wav", 4.0)
    row = {"split": "train", "source": "test", "license": "CC0-1.0", "image": "a.png", "audio": "a.wav"}
    times = [{"id": "a", "start_s": 0, "end_s": 1.5}, {"id": "b", "start_s": 1, "end_s": 4}]
    write_manifest(tmp_path / "pictures.jsonl", [row | time for time in times])
    found = plan_json(plan, "--config", "stage1_qwen2_5_vl_3b", f"manifest={tmp_path}/pictures.jsonl")
    taken = {name: found["assumptions"][name] for name in ("clips", "media", "audio_s")}
    assert taken == {"clips": 2, "media": "image", "audio_s": 3}


# ---- what does not fit, and what is refused


@pytest.mark.parametrize(
    ("gpus", "memory_gb", "words"),
    [
        (1, 13, ["activation_checkpointing=false"]),
        (4, 24, ["per_device_train_batch_size=16", "activation_checkpointing=false"]),
        (8, 14, ["per_device_train_batch_size=16"]),
        (8, 24, ["per_device_train_batch_size=16", "generation_batch_size=256"]),
    ],
)
def test_the_remedy_of_a_warning_helps(plan, gpus, memory_gb, words):
    arguments = ("--config", "stage1_qwen2_5_vl_3b", "--gpus", gpus, "--gpu-memory-gb", memory_gb, *words)
    found = plan_json(plan, *arguments)
    assert found["warnings"] and "WARNING" in plan(*arguments)[1]
    for warning in found["warnings"]:
        remedy = warning.partition(" for it: ")[2].rstrip(".").split(", or ")[0].split()
        again = plan_json(plan, *arguments, *remedy)
        if "generation_batch_size" in remedy[0]:
            assert again["memory"]["generation"]["fits"] and not found["memory"]["generation"]["fits"]
            continue
        now = again["memory"]["checkpointing"]
        stage = warning.removeprefix("ZeRO stage ").partition(" needs")[0].split(" and ")[0]
        if remedy[0].startswith("deepspeed="):
            stage = remedy[0][-1]
        assert next(row for row in again["memory"]["stages"] if row["zero_stage"] == stage)["fits"][now]
        assert again["clips_per_step"] >= found["clips_per_step"]


def test_a_model_that_fits_nowhere_is_told_so(plan):
    found = plan_json(plan, "--config", "stage1_qwen3_vl_8b", "--gpus", 2, "--gpu-memory-gb", 9)
    assert not any(fits for row in found["memory"]["stages"] for fits in row["fits"].values())
    assert any("zero3_offload" in warning for warning in found["warnings"])
    assert found["notes"] == []


def test_a_row_longer_than_the_context_and_a_sound_that_is_refused_are_warned_of(plan):
    found = plan_json(plan, "--config", "stage1_qwen2_5_vl_3b", "--audio-s", 31, "num_frames=1024")
    assert [warning for warning in found["warnings"] if "the context of the LLM 128000" in warning]
    assert [warning for warning in found["warnings"] if "longer than max_audio_s (30)" in warning]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "--gpus is 0; it must be above 0"),
        (["--gpu-memory-gb", "-8"], "--gpu-memory-gb is -8.0; it must be above 0"),
        (["--gpu-memory-gb", "nan"], "--gpu-memory-gb is nan"),
        (["--reserve-gb", "90"], "--reserve-gb is 90.0; it must be at least 0 and below --gpu-memory-gb"),
        (["--mfu", "35"], "--mfu is 35.0; it is a share"),
        (["--peak-tflops", "0"], "--peak-tflops is 0.0"),
        (["--gpu", "abacus"], "--gpu abacus is not known; known are B200"),
        (["vlm=/nowhere"], "config field `vlm`: folder not found: /nowhere"),
        (["vlm=nobody/none"], "cannot read the config of nobody/none"),
        (["vlm=openai/whisper-large-v3"], "`vlm` is a 'whisper', which is no image-text-to-text model"),
        (["audio=Qwen/Qwen3-VL-8B-Instruct"], "Audio towers of type 'qwen3_vl' are not supported"),
        (["model_fields={projector_strid: 4}"], "'projector_strid' is no field"),
        (["manifest=none.jsonl"], "manifest not found: none.jsonl"),
        (["deepspeed=zero9"], "config not found: zero9"),
        (["deepspeed=Qwen/README.md"], "Qwen/README.md holds no DeepSpeed config"),
        (["num_frame=4"], "unknown config field `num_frame`: did you mean `num_frames`?"),
        (["stage=2"], "config field `stage` is 2; only stage 1 can be planned"),
    ],
)
def test_bad_input_is_named(plan, words, message):
    code, out, err = plan("--config", "stage1_qwen2_5_vl_3b", *words)
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err


# ---- sizes of a clip


@pytest.mark.parametrize("audio", ["whisper", "ast"])
@pytest.mark.parametrize("media", ["image", "video"])
@pytest.mark.parametrize("vlm", tiny.FAMILIES)
def test_sizes_of_a_clip_are_the_processor_s(tmp_path, vlm, media, audio):
    folder = tiny.make_vaemotionllm(tmp_path, vlm, audio)
    processor = VAEmotionLLMProcessor.from_pretrained(folder)
    config = VAEmotionLLMConfig.from_pretrained(folder)
    if media == "image":
        picture = processor.encode_image(Image.fromarray(np.zeros((56, 56, 3), dtype=np.uint8)))
    else:
        picture = processor.encode_video(np.zeros((4, 56, 56, 3), dtype=np.uint8), 1.0, range(4))
    inputs = {"input_ids": torch.zeros(1, 1), **picture.inputs}
    grids = flops.input_sizes(config, inputs).grids
    pixels = grids[0][1] * grids[0][2] * config.vlm_config.vision_config.patch_size**2  # as the processor scaled it
    for seconds in (0.3, 2.0, 4.7):
        assumed = Assumptions(
            gpus=1, gpu_memory_gib=8, reserve_gib=1, peak_tflops=1, mfu=1, clips=1, audio_s=seconds, media=media,
            pixels_per_frame=pixels, prompt_tokens=1, response_tokens=1,
        )  # fmt: skip
        clip = clip_sizes(config, assumed, num_frames=4)
        sound = processor.encode_audio(np.full(round(seconds * 16_000), 0.1, dtype=np.float32))
        assert sound.replacement == processor.audio_token * clip.audio_tokens
        assert sound.inputs["input_features"].shape[0] == clip.audio_windows
        assert clip.grids == grids
        times = picture.replacement.count("seconds>") * TIME_TOKENS
        assert clip.visual_tokens == picture.replacement.count(picture.placeholder) + times


# ---- memory


def test_bytes_of_weights_gradients_and_optimizer():
    trainable, frozen = 100, 1000
    totals = {stage: memory.state_bytes(trainable, frozen, 4, stage) for stage in memory.STAGES}
    assert totals["0"] == memory.StateBytes(2 * 1100, 0, 2 * 100, 12 * 100)
    assert totals["1"] == memory.StateBytes(2 * 1100, 0, 2 * 100, 12 * 25)
    assert totals["2"] == memory.StateBytes(2 * 1100, 0, 2 * 25, 12 * 25)
    assert totals["3"] == memory.StateBytes(2 * 275, 2 * 825, 2 * 25, 12 * 25)
    assert totals["3, frozen weights whole"] == memory.StateBytes(2 * 1025, 2 * 75, 2 * 25, 12 * 25)
    big = memory.state_bytes(10**7, 10**10, 8, "3")
    assert big.gathered == 2 * memory.MAX_LIVE_PARAMETERS
    alone = {memory.state_bytes(trainable, frozen, 1, stage) for stage in memory.STAGES}
    assert len(alone) == 1  # one GPU has nobody to share with


TEXT = dict(
    hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=64, vocab_size=300, max_position_embeddings=2048, bos_token_id=None, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}
VISION = dict(
    depth=1, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=256, patch_size=14,
    spatial_merge_size=2, temporal_patch_size=2,
)  # fmt: skip


def backbone(family):
    """Wide enough that what the estimate leaves out (rotary tables, one number a token) stays small."""
    if family == "qwen2_5_vl":
        vision = {**VISION, "fullatt_block_indexes": [0], "window_size": 56}
        return Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": MROPE}, vision_config=vision)
    if family == "qwen3_vl":
        vision = {**VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
        text = {**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
        return Qwen3VLConfig(text_config=text, vision_config=vision)
    vision = dict(
        model_type="siglip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, image_size=28, patch_size=14, vision_use_head=False,
    )  # fmt: skip
    return LlavaOnevisionConfig(text_config={"model_type": "qwen2", **TEXT}, vision_config=vision)


def tower(family):
    if family == "ast":
        return ASTConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256, max_length=200,
            num_mel_bins=32,
        )  # fmt: skip
    return WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=256, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=48, num_mel_bins=16, max_source_positions=100, vocab_size=20,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip


def saved_bytes(model, run):
    """Bytes of the distinct tensors that autograd keeps of a forward pass, parameters left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor takes its address
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("trained", [("audio_projector",), ("audio_projector", "audio_tower")], ids=len)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize(
    ("vlm", "audio", "attention"),
    [
        ("qwen2_5_vl", "whisper", "sdpa"), ("qwen2_5_vl", "ast", "sdpa"), ("qwen2_5_vl", "whisper", "eager"),
        ("qwen3_vl", "whisper", "sdpa"), ("llava_onevision", "whisper", "sdpa"),
    ],
)  # fmt: skip
def test_estimate_of_activations_against_what_autograd_keeps(vlm, audio, attention, checkpointing, trained):
    config = VAEmotionLLMConfig(
        vlm_config=backbone(vlm), audio_config=tower(audio), audio_token_id=299, projector_stride=4
    )
    torch.manual_seed(0)
    model = VAEmotionLLMForConditionalGeneration(config).to(torch.bfloat16)
    model.set_attn_implementation(attention)
    freeze_all_but(model, trained)
    if checkpointing:
        model.activation_checkpointing_enable()
    set_modes(model, trained)
    rows, width = 2, 120
    tokens = -(-flops.audio_positions(config.audio_config) // config.projector_stride)
    ids = torch.randint(3, 200, (rows, width))
    ids[:, 10 : 12 + tokens] = 299
    mask, response_mask = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    mask[0, :5], response_mask[:, -20:] = 0, True
    frames = (rows, 16, 200) if audio == "whisper" else (rows, 200, 32)
    inputs = {
        "input_ids": ids, "attention_mask": mask, "input_features": torch.randn(frames),
        "audio_num_tokens": torch.full((rows,), tokens), "response_mask": response_mask,
    }  # fmt: skip
    if vlm != "llava_onevision":
        inputs["mm_token_type_ids"] = torch.zeros_like(ids)
    measured = saved_bytes(model, lambda: model(**inputs, use_adapter=False).logits)
    sizes = flops.InputSizes((width,) * rows, (), rows, rows * tokens)
    trains_tower = "audio_tower" in trained
    estimate = memory.activation_bytes(config, sizes, None, 40, trains_tower, checkpointing, attention).saved
    if checkpointing:
        # The layer that is run again comes on top of what the forward pass has kept.
        estimate -= rows * memory.llm_layer_bytes(config.get_text_config(), width, attention)
        estimate -= rows * memory.tower_layer_bytes(config.audio_config) * trains_tower
    assert estimate == pytest.approx(measured, rel=0.05)
