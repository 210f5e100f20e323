"""lmms-eval's own adapter `qwen2_5_omni` on our tasks, unchanged: a tiny model with random weights, on the CPU."""

import json
import os
import shutil
import sys
import types

import benchmark_files
import pytest
import tiny_omni
import torch
from lmms_runs import lmms_eval
from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniProcessor

from vaemotionllm.patches import lmms_eval_qwen2_5_omni

# What the adapter imports and is not among our pins. Of librosa, moviepy and decord it uses nothing for our items;
# qwen_omni_utils opens the media that stand in the messages, here with our decoders.
STAND_INS = {
    "librosa.py": "resample = None",
    "moviepy.py": "VideoFileClip = None",
    "decord.py": "VideoReader = cpu = None",
    "qwen_omni_utils.py": """
import torch
from vaemotionllm.model.media import load_audio, load_video
from vaemotionllm.model.media_images import load_image


def process_mm_info(conversation, use_audio_in_video):
    assert not use_audio_in_video, "a film would be heard"
    found = {"audio": [], "image": [], "video": []}
    for turn in conversation:
        for part in turn["content"]:
            if part["type"] == "audio":
                found["audio"].append(load_audio(part["audio"], sampling_rate=16_000))
            elif part["type"] == "image":
                found["image"].append(load_image(part["image"]))
            elif part["type"] == "video":
                found["video"].append(torch.from_numpy(load_video(part["video"], 4)[0]).permute(0, 3, 1, 2))
    return tuple(media or None for media in found.values())
""",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_omni.make(tmp_path_factory.mktemp("omni"))


def test_the_adapter_sees_and_hears(models, tmp_path):
    model, processor = models
    folder = benchmark_files.write_benchmark(tmp_path / "benchmark")
    # The adapter takes its processor from this name, whatever the model is.
    shutil.copytree(processor, tmp_path / "Qwen/Qwen2.5-Omni-7B")
    (tmp_path / "stand_in").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "stand_in" / name).write_text(text)
    paths = [path for path in (os.environ.get("PYTHONPATH"), str(tmp_path / "stand_in")) if path]
    tasks = ("emotion_audio", "emotion_audio_noise", "emotion_visual", "emotion_av", "conflict", "content_blind")
    done = lmms_eval(
        "--model", "qwen2_5_omni", "--model_args", f"pretrained={model},device=cpu",
        "--tasks", ",".join(f"artemo_{task}" for task in tasks), "--gen_kwargs", "max_new_tokens=8", "--log_samples",
        "--output_path", "out", cwd=tmp_path, dataset=folder, PYTHONPATH=os.pathsep.join(paths),
    )  # fmt: skip
    answers = {}
    for file in (tmp_path / "out").glob("*/*_samples_*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        answers[file.stem.partition("_samples_artemo_")[2]] = [row["filtered_resps"] for row in rows]
    said = done.stdout[-2000:] + done.stderr[-4000:]
    assert {task: len(given) for task, given in answers.items()} == {
        task: 4 if task == "conflict" else 6 for task in tasks
    }, said
    # The adapter makes an empty answer of every error.
    assert "Error in generating" not in done.stderr + done.stdout, said
    assert answers["emotion_audio"] != answers["emotion_audio_noise"], "the model did not get the sound"
    assert len({str(answer) for answer in answers["emotion_visual"]}) > 1, "the model did not get the picture"


def test_without_the_patch_there_is_no_text(models):
    """Where this fails, transformers gives text without a talker: see whether the patch can go."""
    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(models[0])
    processor = Qwen2_5OmniProcessor.from_pretrained(models[1])
    inputs = processor(text="Which emotion?", return_tensors="pt")
    model.disable_talker()
    with pytest.raises(ValueError, match="Cannot use talker"):
        model.generate(**inputs, return_audio=False)
    with pytest.raises(AttributeError, match="talker"):
        model.generate(**inputs, generation_mode="text")
    generate = lmms_eval_qwen2_5_omni.text_of(model)
    found = generate(**inputs, return_audio=False, max_new_tokens=9, thinker_max_new_tokens=4, talker_top_k=3)
    expected = model.thinker.generate(**inputs, max_new_tokens=4)
    assert torch.equal(found, expected) and found.shape[1] == inputs["input_ids"].shape[1] + 4
    with pytest.raises(ValueError, match="removed the talker"):
        generate(**inputs, return_audio=True)


def adapter_module(source_of_answers):
    module = types.ModuleType("lmms_eval.models.simple.qwen2_5_omni")
    module.Qwen2_5OmniForConditionalGeneration = Qwen2_5OmniForConditionalGeneration

    class Qwen2_5_Omni:
        device_map = "auto"

        def __init__(self):
            self.model = types.SimpleNamespace(device=torch.device("cpu"), thinker=None)

        generate_until = source_of_answers

    module.Qwen2_5_Omni = Qwen2_5_Omni
    return module


def in_the_words_of_transformers_4(self, requests):
    return self.model.generate(requests, return_audio=False)


def in_the_words_of_transformers_5(self, requests):
    return self.model.generate(requests, generation_mode="text")


def in_other_words(self, requests):
    return self.model.write(requests)


def test_the_patch_is_applied_once_and_only_where_it_fits(monkeypatch):
    module = adapter_module(in_the_words_of_transformers_4)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert lmms_eval_qwen2_5_omni.apply()
    patched = module.Qwen2_5_Omni.__init__
    assert lmms_eval_qwen2_5_omni.apply() and module.Qwen2_5_Omni.__init__ is patched
    made = module.Qwen2_5_Omni()
    assert made.device_map == "cpu" and made.model.generate.__module__ == lmms_eval_qwen2_5_omni.__name__

    for answers, fits in ((in_the_words_of_transformers_5, True), (in_other_words, False)):
        module = adapter_module(answers)
        before = module.Qwen2_5_Omni.__init__
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if fits:
            assert lmms_eval_qwen2_5_omni.apply()
        else:
            with pytest.warns(RuntimeWarning, match="requests text in a way that is not known"):
                assert not lmms_eval_qwen2_5_omni.apply()
        assert module.Qwen2_5_Omni.__init__ is before
