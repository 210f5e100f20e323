"""FLOPs of a stage-1 micro-batch against torch's own counter, on real forward and backward passes of tiny models."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.data.collator import ConversationRenderer, modality_inputs
from vaemotionllm.data.dataset import Sample
from vaemotionllm.train import flops
from vaemotionllm.train.freezing import freeze_all_but, set_modes
from vaemotionllm.train.losses import divergence
from vaemotionllm.train.teacher import states_of

TOLERANCE = 0.002  # the goal is 2%
TOWERS = [("qwen2_5_vl", "whisper"), ("qwen3_vl", "whisper"), ("llava_onevision", "whisper"), ("qwen2_5_vl", "ast")]
NAME = "VAEmotionLLMForConditionalGeneration"
# Names by which torch's counter knows a part; the teacher runs through the same modules.
MODULES = {
    "audio_tower": [f"{NAME}.audio_tower"],
    "audio_projector": [f"{NAME}.audio_projector"],
    "vision": [f"{NAME}.vlm.model.{name}" for name in ("visual", "vision_tower", "multi_modal_projector")],
}


@pytest.fixture(scope="module", params=TOWERS, ids="-".join)
def setup(request, tmp_path_factory):
    vlm, audio = request.param
    folder = tiny.make_vaemotionllm(tmp_path_factory.mktemp(vlm), vlm, audio)
    # torch counts the products of eager attention, and none of the kernel that sdpa takes on a CPU.
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    processor = VAEmotionLLMProcessor.from_pretrained(folder)
    if vlm != "llava_onevision":  # pictures of several windows, so that the smaller ones at the edge count
        processor.image_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 200 * 200}
    return model, processor


def make_batch(processor, modality, media="image", teacher=True):
    """Two clips of different length, with pictures of different shapes where the backbone can take them."""
    rng = np.random.default_rng(0)
    samples = []
    for seconds, size in ((1.0, (112, 140)), (2.5, (56, 84))):
        waveform = (rng.standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)
        if media == "image":
            visual = processor.encode_image(Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)))
        else:
            visual = processor.encode_video(rng.integers(0, 255, (4, 56, 56, 3), dtype=np.uint8), 1.0, range(4))
        samples.append(Sample(None, None, {"audio": processor.encode_audio(waveform), "visual": visual}))
    renderer = ConversationRenderer(processor)
    prompts, responses = ["What is it?", "And this one?"], [[20, 30, 40, 2], [50, 60, 2]]
    batch = {
        "modality": modality,
        "student": modality_inputs(processor, renderer, samples, modality, prompts, responses),
    }
    if teacher:
        batch["teacher"] = modality_inputs(processor, renderer, samples, "visual", prompts, responses)
    return batch


def run_step(model, batch, teacher_hidden=None):
    """Forward and backward pass as the trainer does them; a cached teacher still runs the head on its states."""
    if teacher_hidden is None:
        with torch.no_grad():
            teacher_hidden = model(**batch["teacher"], use_adapter=False, response_fn=states_of).response
    model(
        **batch["student"],
        use_adapter=False,
        response_fn=lambda states, head: divergence(teacher_hidden, states, head)["divergence_loss"],
    ).response.backward()


def count_step(model, batch, trained, gradient_checkpointing):
    """FLOPs by part as torch counts them."""
    freeze_all_but(model, trained)
    model.zero_grad()
    for module in model.modules():  # the library has no way back
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    set_modes(model, trained)
    hidden = None
    if "teacher" not in batch:
        hidden = torch.randn(int(batch["student"]["response_mask"].sum()), model.config.get_text_config().hidden_size)
    with FlopCounterMode(depth=None, display=False) as counter:
        run_step(model, batch, hidden)
    head_and_loss = count_loss(model, int(batch["student"]["response_mask"].sum()))
    if gradient_checkpointing:
        model.disable_input_require_grads()
    counts = {name: sum(by_operation.values()) for name, by_operation in counter.get_flop_counts().items()}
    parts = {part: sum(counts.get(name, 0) for name in names) for part, names in MODULES.items()}
    # The head is no module's call. What runs backward after the LLM, whose inputs are keywords, the counter books to
    # it as well: it is the rest.
    parts["head_and_loss"] = head_and_loss
    parts["llm"] = counter.get_total_flops() - sum(parts.values())
    return parts


def count_loss(model, tokens):
    """FLOPs of the loss alone, as torch counts them."""
    width = model.config.get_text_config().hidden_size
    teacher, student = torch.randn(tokens, width), torch.randn(tokens, width, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        divergence(teacher, student, model.get_output_embeddings())["divergence_loss"].backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("trained", [("audio_projector",), ("audio_projector", "audio_tower")], ids=len)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("teacher", [True, False], ids=["online", "cached"])
@pytest.mark.parametrize(("modality", "media"), [("audio", "image"), ("av", "image"), ("av", "video")])
def test_agrees_with_the_counter_of_torch(setup, modality, media, teacher, checkpointing, trained):
    model, processor = setup
    batch = make_batch(processor, modality, media, teacher)
    counted = count_step(model, batch, trained, checkpointing)
    costs = flops.model_costs(model.config)
    step = flops.microbatch_flops(costs, flops.batch_sizes(model.config, batch), trained, checkpointing)
    assert step.hardware == pytest.approx(sum(counted.values()), rel=TOLERANCE)
    ours = dict.fromkeys(counted, 0)
    for name, part in step.parts.items():
        group = "vision" if name.startswith("vision_tower") else "llm" if name.startswith("llm") else name
        ours[group] += part.model + part.recompute
    assert ours == pytest.approx(counted, rel=TOLERANCE)


def test_recomputation_is_no_model_flop_and_frozen_towers_have_no_backward(setup):
    model, processor = setup
    sizes = flops.batch_sizes(model.config, make_batch(processor, "av"))
    costs = flops.model_costs(model.config)
    plain = flops.microbatch_flops(costs, sizes)
    checkpointed = flops.microbatch_flops(costs, sizes, activation_checkpointing=True)
    assert plain.model == plain.hardware == checkpointed.model < checkpointed.hardware
    assert {name for name, part in plain.parts.items() if part.backward} == {
        "audio_projector", "llm", "head_and_loss",
    }  # fmt: skip
    assert [name for name, part in checkpointed.parts.items() if part.recompute] == ["llm"]


def test_packed_rows_attend_within_themselves(setup):
    model, processor = setup
    costs = flops.model_costs(model.config)
    padded = flops.BatchSizes(flops.InputSizes((100, 100)), None, 8)
    packed = flops.BatchSizes(flops.InputSizes((100, 40)), None, 8)
    joined = flops.BatchSizes(flops.InputSizes((140,)), None, 8)
    cost = [flops.microbatch_flops(costs, sizes).model for sizes in (packed, joined, padded)]
    assert cost == sorted(cost) and len(set(cost)) == 3


def test_packed_rows_count_at_their_own_length(setup):
    model, processor = setup
    batch = make_batch(processor, "audio", teacher=False)
    lengths = tuple(batch["student"]["attention_mask"].sum(1).tolist())
    assert flops.batch_sizes(model.config, batch).student.row_tokens == (max(lengths),) * 2
    assert flops.batch_sizes(model.config, batch, packing=True).student.row_tokens == lengths
    assert min(lengths) < max(lengths)


def test_weights_are_counted_where_a_zero3_run_has_begun(setup):
    """There the library would shard every model that it makes, and ask for ranks to do so."""
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    model, _ = setup
    expected = flops.model_costs(model.config)
    begun = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    assert is_deepspeed_zero3_enabled()
    assert flops.model_costs(model.config) == expected
    assert is_deepspeed_zero3_enabled()
    del begun
    assert not is_deepspeed_zero3_enabled()


def test_features_from_a_cache_cost_no_tower(setup):
    model, processor = setup
    batch = make_batch(processor, "audio", teacher=False)
    del batch["student"]["input_features"]
    batch["student"]["audio_states"] = torch.zeros(1)
    step = flops.microbatch_flops(flops.model_costs(model.config), flops.batch_sizes(model.config, batch))
    assert list(step.parts) == ["audio_projector", "llm", "head_and_loss"]


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA H100 80GB HBM3", 989.0), ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0), ("NVIDIA H200", 989.0), ("NVIDIA A10", 125.0), ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0), ("NVIDIA GeForce RTX 4090", 165.2), ("h100", 989.0), ("NVIDIA A10G", None),
        ("cpu", None), ("", None),
    ],
)  # fmt: skip
def test_peak_of_a_device_by_its_name(device, peak):
    assert flops.peak_tflops_of(device) == peak
