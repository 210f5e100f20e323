"""What only a GPU would show, by emulators: waits of the host, tensors on two devices, FlashAttention packed."""

from unittest import mock

import emulated_flash
import numpy as np
import pytest
import tiny
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_execution_device_hook
from emulated_cuda import Cuda, OtherDevice
from training import make_setup, stage1_values, stage2_values

from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor
from vaemotionllm.config_file import build_config
from vaemotionllm.data.collator import ConversationRenderer, build_inputs
from vaemotionllm.train import run as runs
from vaemotionllm.train.config import CONFIGS
from vaemotionllm.train.host_inputs import with_host_inputs
from vaemotionllm.train.model import freeze_all_but, load_model, set_modes

PARTS = ("audio_projector", "emotion_adapter")


@pytest.fixture(scope="module")
def flash():
    # In float32, so that sdpa can be compared with.
    with emulated_flash.installed(half_only=False) as calls:
        yield calls


def make_trainer(values):
    config = build_config(CONFIGS[values["stage"]], values)
    data = runs.STAGES[config.stage][0](config)
    model, processor = load_model(config)
    data.prepare(model, processor)
    return runs.make_trainer(config, model, processor, *data.batches(model, processor))


@pytest.mark.parametrize("values_of, most", [(stage1_values, 8), (stage2_values, 15)])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_host_hardly_waits(flash, tmp_path, family, values_of, most):
    values = values_of(*make_setup(tmp_path, vlm=family), tmp_path / "run", attn_implementation="flash_attention_2")
    trainer = make_trainer(values)
    trainer.same_modules.attach(agree=False)
    batches = {batch["modality"]: batch for batch in trainer.get_train_dataloader()}
    assert set(batches) >= {"audio", "av"} and trainer.packing
    with Cuda() as cuda, mock.patch.object(type(trainer.args), "device", torch.device("cuda:0")):
        cuda.move(trainer.model)
        for batch in batches.values():
            trainer._micro_batch, trainer._step_rows = 0, [None]
            cuda.syncs.clear()
            inputs = trainer._prepare_inputs(batch)
            assert not cuda.syncs, "copies to the device are not waited for"
            count = cuda.tensor(torch.tensor(7.0))
            trainer.compute_loss(trainer.model, inputs, num_items_in_batch=count).backward()
            # DeepStack of Qwen3-VL indexes by masks in the library, twice a layer, and so does its backward pass.
            deepstack = sum(
                n for (kind, _), n in cuda.syncs.items() if family == "qwen3_vl" and kind == "boolean index"
            )
            assert cuda.syncs.total() - deepstack <= most, cuda.syncs
            ours = {
                place: n for (_, place), n in cuda.syncs.items() if place.startswith(("model/", "train/", "data/"))
            }
            assert sum(ours.values()) <= 4, ours  # three of labels, and the terms of a step


def batch_of(processor):
    """Three samples of audio and video of different lengths, with responses."""
    rng, render = np.random.default_rng(0), ConversationRenderer(processor)
    sizes = ((4, 56, 56, 1.3), (4, 56, 84, 3.7), (2, 56, 56, 0.4))
    media = []
    for frames, height, width, seconds in sizes:
        video = rng.integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
        audio = 0.1 * rng.normal(size=int(16_000 * seconds)).astype(np.float32)
        media.append([processor.encode_video(video, 2.0, list(range(frames))), processor.encode_audio(audio)])
    prompts = zip(media, ("what?", "how do you feel", "x"))
    texts = [render.prompt([medium.kind for medium in row], text) for row, text in prompts]
    responses = [[70, 71, 72, 2], [80, 2], [90, 91, 92, 93, 94, 95, 2]]
    return build_inputs(processor, texts, [medium for row in media for medium in row], responses)


def load(folder, attention):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder, attn_implementation=attention)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.startswith(PARTS):
            parameter.data.normal_(std=0.2)  # the Enhancer starts at zero
    freeze_all_but(model, PARTS)
    return model


def results(model, batch, packing, checkpointing=False):
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    set_modes(model, PARTS)
    output = model(**batch, packing=packing, use_adapter=True)
    emotion = output.valence.nan_to_num().sum() + output.arousal.nan_to_num().sum()
    (output.logits.log_softmax(-1)[:, 5].sum() + emotion).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": output.logits.detach(), "valence": output.valence.detach(), **gradients}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("tower", ["whisper", "ast"])
def test_packed_attention_equals_padded(flash, tmp_path, family, tower):
    folder = tiny.make_vaemotionllm(tmp_path, family, tower, enhancer_layers=[0, 1])
    batch = with_host_inputs(load(folder, "sdpa"), batch_of(VAEmotionLLMProcessor.from_pretrained(folder)))
    plain = {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask", "response_mask")}
    plain |= {name: value for name, value in batch.items() if name.endswith(("features", "tokens", "videos", "_thw"))}
    plain |= {name: batch[name] for name in ("mm_token_type_ids", "second_per_grid_ts") if name in batch}
    expected = results(load(folder, "sdpa"), plain, packing=False)
    for attention, packing, checkpointing in (
        ("sdpa", False, False), ("sdpa", True, True), ("flash_attention_2", False, False),
        ("flash_attention_2", True, False), ("flash_attention_2", True, True),
    ):  # fmt: skip
        flash.clear()
        found = results(load(folder, attention), batch, packing, checkpointing)
        assert found.keys() == expected.keys() and len(found) > 10
        for name, value in expected.items():
            error = (found[name] - value).nan_to_num().norm() / value.nan_to_num().norm().clamp(min=1e-3)
            assert error < 2e-4, (attention, packing, name)
        assert ("packed" in flash) == (attention != "sdpa")


def test_a_model_on_two_devices(tmp_path):
    """As `device_map="auto"` leaves it: the LLM's layers on one each, what is ours on the last."""
    folder = tiny.make_vaemotionllm(tmp_path, enhancer_layers=[0, 1])
    batch = batch_of(VAEmotionLLMProcessor.from_pretrained(folder))
    expected = results(load(folder, "sdpa"), batch, packing=False)
    model = load(folder, "sdpa")
    first, last = "cuda:0", "cuda:1"
    decoder = model.get_decoder()
    parts = {model.vlm.base_model.visual: first, decoder.embed_tokens: first, decoder.layers[0]: first}
    parts |= {module: last for module in (decoder.layers[1], decoder.norm, decoder.rotary_emb, model.vlm.lm_head)}
    parts |= {module: last for module in (model.audio_tower, model.audio_projector, model.emotion_adapter)}
    with Cuda() as cuda:
        for module, device in parts.items():
            attach_execution_device_hook(cuda.move(module, device), torch.device(device))
        add_hook_to_module(model, AlignDevicesHook(execution_device=torch.device(first), io_same_device=True))
        for packing in (False, True):
            model.zero_grad()
            found = results(model, {name: cuda.tensor(value, first) for name, value in batch.items()}, packing)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name].plain, value, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_the_emulator_refuses_two_devices_and_counts_waits():
    with Cuda() as cuda:
        one, two = (cuda.tensor(torch.ones(3), f"cuda:{number}") for number in (0, 1))
        with pytest.raises(OtherDevice, match="cuda:0, cuda:1"):
            one + two
        assert (one + two.to("cuda:0", non_blocking=True)).device == torch.device("cuda", 0) and not cuda.syncs
        assert one[one > 0].sum().item() == 3 and cuda.syncs.total() == 2
