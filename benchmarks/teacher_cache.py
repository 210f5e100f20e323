"""Stage 1 with a cached teacher against the teacher online: equal gradients, and the time of a step.

    python benchmarks/teacher_cache.py [--steps 4] [--rounds 3]

The real trainer runs on real media files with a Qwen2.5-VL and a Whisper encoder of random weights, small in width and
true in their sequence lengths: clips of 10 s (125 audio tokens), videos of 4 frames of 336 x 336 pixels (288 visual
tokens), half of the steps with audio alone and half with both. Clips are decoded before, so that no decoding is timed.
Goals: gradients equal within 1e-6 in fp32; a cached step takes at most 0.60 of the time of an online one, 0.68 with
gradient checkpointing.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from common import against_goals, last_line, machine, quiet, table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # the builders of small models and media

GOALS = {"gradient_error": 1e-6, "step_time": 0.60, "step_time_checkpointing": 0.68}
CLIPS, FRAME_PX, AUDIO_S, RESPONSE_TOKENS, BATCH = 8, 336, 10.0, 48, 2


def make_model(folder: Path) -> Path:
    """A model whose LLM has three layers at a width of 256, with its processor."""
    import tiny
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    from vaemotionllm import VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor

    torch.manual_seed(0)
    tokenizer = tiny.tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tiny.SPECIAL}
    text = tiny.TEXT | dict(
        hidden_size=256, intermediate_size=704, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4,
        head_dim=32, rope_parameters=tiny.MROPE | {"mrope_section": [4, 6, 6]},
        eos_token_id=tiny.VOCAB - 1,  # no token of the tokenizer, so that responses have their full length
    )  # fmt: skip
    vision = dict(
        depth=3, hidden_size=96, num_heads=4, intermediate_size=256, out_hidden_size=256, patch_size=14,
        spatial_merge_size=2, temporal_patch_size=2, fullatt_block_indexes=[2], window_size=112,
    )  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    size = dict(patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=28**2, max_pixels=FRAME_PX**2)
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**size), tokenizer, Qwen2VLVideoProcessor(**size), chat_template=tiny.QWEN_TEMPLATE
    )
    vlm = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():  # so that the teacher answers by what it sees; else teacher and student hardly differ
        for layer in vlm.get_decoder().layers:
            layer.self_attn.v_proj.weight.mul_(8)
            layer.self_attn.o_proj.weight.mul_(8)
        vlm.get_decoder().norm.weight.mul_(6)
    vlm.save_pretrained(folder / "vlm")
    processor.save_pretrained(folder / "vlm")
    whisper = WhisperConfig(
        d_model=96, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=256, decoder_layers=1,
        decoder_attention_heads=4, decoder_ffn_dim=96, num_mel_bins=80, max_source_positions=500, vocab_size=20,
        max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    WhisperModel(whisper).save_pretrained(folder / "audio")
    WhisperFeatureExtractor(feature_size=80, chunk_length=10).save_pretrained(folder / "audio")
    model = VAEmotionLLMForConditionalGeneration.from_backbone(folder / "vlm", folder / "audio")
    model.save_pretrained(folder / "model")
    VAEmotionLLMProcessor.from_backbone(folder / "vlm", folder / "audio").save_pretrained(folder / "model")
    return folder / "model"


def make_clips(folder: Path) -> Path:
    import json

    from media_files import write_video

    rows = []
    for i in range(CLIPS):
        write_video(folder / f"{i}.mp4", AUDIO_S, size_px=FRAME_PX, fps=4, seed=i, pitch_hz=200 + 20 * i)
        common = {"split": "train", "source": "benchmark", "license": "CC0-1.0"}
        rows.append({"id": str(i), "video": f"{i}.mp4", "audio": f"{i}.mp4", **common})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def step_times(values: dict) -> list[float]:
    """Seconds of each step but the first, from the run's own log."""
    from training import train

    from vaemotionllm.train.checkpoint import complete_rows

    with contextlib.redirect_stdout(io.StringIO()):  # the library prints its logs where there is no bar
        train(values)
    walls = [row["wall_s"] for row in complete_rows(Path(values["output_dir"]) / "metrics.jsonl")]
    return [after - before for before, after in zip(walls, walls[1:])]


def gradient_error(values: dict) -> float:
    """Largest relative difference of the projector's gradient over the first steps' batches."""
    from vaemotionllm.config_file import build_config
    from vaemotionllm.data.samplers import SampleKey
    from vaemotionllm.train.config import Stage1Config
    from vaemotionllm.train.data import Stage1Data
    from vaemotionllm.train.losses import divergence
    from vaemotionllm.train.model import load_model
    from vaemotionllm.train.teacher import states_of

    gradients: dict[str, list[torch.Tensor]] = {}
    for name, cache in (("cached", values["teacher_cache"]), ("online", None)):
        output_dir = str(Path(values["output_dir"]).with_name(f"gradients-{name}"))
        config = build_config(Stage1Config, values | {"teacher_cache": cache, "output_dir": output_dir})
        Path(output_dir).mkdir()
        data = Stage1Data(config)
        model, processor = load_model(config)
        model.eval().requires_grad_(False)
        model.audio_projector.requires_grad_(True)
        data.prepare(model, processor)
        dataset, collator, _ = data.batches(model, processor)
        gradients[name] = []
        for step in range(4):
            batch = collator([dataset[SampleKey((BATCH * step + i) % len(dataset), 0, step)] for i in range(BATCH)])
            teacher = batch.get("teacher_states")
            if teacher is None:
                with torch.no_grad():
                    teacher = model(**batch["teacher"], use_adapter=False, response_fn=states_of).response

            def loss(states, head, teacher=teacher):
                return divergence(teacher, states, head)["divergence_loss"]

            model.zero_grad()
            model(**batch["student"], use_adapter=False, response_fn=loss).response.backward()
            gradients[name].append(torch.cat([p.grad.flatten() for p in model.audio_projector.parameters()]))
    pairs = zip(gradients["cached"], gradients["online"], strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def main() -> None:
    from training import stage1_values

    from vaemotionllm.config_file import build_config
    from vaemotionllm.train.config import Stage1Config
    from vaemotionllm.train.data import Stage1Data
    from vaemotionllm.train.model import load_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each variant, in turn")
    args = parser.parse_args()
    quiet()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        values = stage1_values(
            make_model(folder), make_clips(folder / "clips"), folder / "run", teacher_cache=str(folder / "cache"),
            responses_per_clip=1, max_response_tokens=RESPONSE_TOKENS, train_audio_tower=False, max_audio_s=60,
            max_steps=args.steps + 1, save_steps=1000, generation_batch_size=8, per_device_train_batch_size=BATCH,
        )  # fmt: skip
        config = build_config(Stage1Config, values)
        Stage1Data(config).fill_teacher_cache(*load_model(config))
        measured = {"gradient_error": gradient_error(values)}
        times: dict[str, list[list[float]]] = {}
        for number in range(args.rounds):
            for checkpointing in (False, True):
                for name, cache in (("online", None), ("cached", str(folder / "cache"))):
                    key = name + checkpointing * "_checkpointing"
                    options = {"teacher_cache": cache, "activation_checkpointing": checkpointing}
                    options["output_dir"] = str(folder / f"{key}-{number}")
                    times.setdefault(key, []).append(step_times(values | options))
    for suffix in ("", "_checkpointing"):
        # Steps of equal number hold equal batches; the sums are over a round.
        pairs = zip(times[f"cached{suffix}"], times[f"online{suffix}"], strict=True)
        measured[f"step_time{suffix}"] = statistics.median(sum(cached) / sum(online) for cached, online in pairs)
    rows = [[name, f"{statistics.median(sum(found, [])):.3f}"] for name, found in times.items()]
    table(["step", "median seconds"], rows)
    against_goals(measured, GOALS)
    last_line(measured)


if __name__ == "__main__":
    main()
