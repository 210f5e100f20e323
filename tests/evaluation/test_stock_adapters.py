"""lmms-eval's own generic adapter on our tasks, unchanged: tiny models with random weights, on the CPU."""

import json
import os
import sys
import types
import warnings

import benchmark_files
import numpy as np
import pytest
import speaking_model
import tiny
from lmms_runs import documents_of, lmms_eval
from transformers import AutoModelForImageTextToText, AutoProcessor

from vaemotionllm.evaluation import artemo
from vaemotionllm.model.media import load_audio
from vaemotionllm.patches import lmms_eval_huggingface


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return benchmark_files.write_benchmark(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def hearing_folder(tmp_path_factory):
    return speaking_model.make(tmp_path_factory.mktemp("model"))


def direct_answer(model, processor, document) -> str:
    """What transformers alone makes of a document."""
    inputs = processor.apply_chat_template(
        artemo.doc_to_messages(document), tokenize=True, add_generation_prompt=True, return_dict=True,
        return_tensors="pt", processor_kwargs={"num_frames": 4},
    )  # fmt: skip
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def run(model, tasks: str, folder, place) -> dict[str, list[str]]:
    """The answers to each task of `lmms-eval --model huggingface`."""
    done = lmms_eval(
        "--model", "huggingface", "--model_args", f"pretrained={model},device=cpu,device_map=cpu,max_num_frames=4",
        "--tasks", tasks, "--gen_kwargs", "max_new_tokens=4", "--log_samples", "--output_path", "out",
        cwd=place, dataset=folder,
    )  # fmt: skip
    # The command ends with 0 whatever happens; a results file is the sign that nothing did.
    assert list((place / "out").glob("*/*_results.json")), done.stdout[-2000:] + done.stderr[-2000:]
    answers = {}
    for file in (place / "out").glob("*/*_samples_*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        answers[file.stem.partition("_samples_artemo_")[2]] = [row["filtered_resps"] for row in rows]
    return answers


def test_a_model_that_sees_answers_what_it_can_see(folder, tmp_path):
    model = tiny.make_vlm("qwen2_5_vl", tmp_path / "vlm")
    answers = run(model, "artemo_content_visual,artemo_emotion_visual,artemo_va_visual,artemo_blind", folder, tmp_path)
    assert {task: len(given) for task, given in answers.items()} == {
        "content_visual": 6, "emotion_visual": 6, "va_visual": 6, "content_blind": 6, "emotion_blind": 6
    }  # fmt: skip


def test_a_model_that_hears_gets_the_sound(hearing_folder, folder, tmp_path):
    """Sound alone, picture or film alone, and both: the answers are those of the model itself."""
    tasks = "artemo_emotion_audio,artemo_emotion_audio_noise,artemo_emotion_visual,artemo_emotion_av,artemo_conflict"
    answers = run(hearing_folder, tasks, folder, tmp_path)
    assert {task: len(given) for task, given in answers.items()} == {
        "emotion_audio": 6, "emotion_audio_noise": 6, "emotion_visual": 6, "emotion_av": 6, "conflict": 4
    }  # fmt: skip
    assert answers["emotion_audio"] != answers["emotion_audio_noise"], "the model did not get the sound"
    assert len(set(answers["emotion_visual"])) > 1, "a model that always says the same would prove nothing"
    model = AutoModelForImageTextToText.from_pretrained(hearing_folder).eval()
    processor = AutoProcessor.from_pretrained(hearing_folder)
    rows = documents_of(folder)["artemo_all"]["test"]
    for task in ("emotion_audio", "emotion_av"):
        ending = "-" + task.replace("_", "-")
        expected = [direct_answer(model, processor, row) for row in rows if row["id"].endswith(ending)]
        assert answers[task] == expected and len(set(expected)) > 2


def test_the_adapter_of_qwen2_5_vl_sees_and_is_refused_sound(tmp_path):
    """It drops sound without a word: with the check overruled it answers all the same, see `refusals`."""
    folder = benchmark_files.write_benchmark(tmp_path / "paintings", clips=2)
    model = tiny.make_vlm("qwen2_5_vl", tmp_path / "vlm")
    # The adapter imports decord, which it needs for films alone; where it is not installed a name stands for it.
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "decord.py").write_text("VideoReader = cpu = None")
    paths = [path for path in (os.environ.get("PYTHONPATH"), str(tmp_path / "stand_in")) if path]

    def evaluate(tasks: str, out: str, **environment):
        return lmms_eval(
            "--model", "qwen2_5_vl", "--model_args", f"pretrained={model},device=cpu,device_map=cpu",
            "--tasks", tasks, "--gen_kwargs", "max_new_tokens=4", "--output_path", out,
            cwd=tmp_path, dataset=folder, PYTHONPATH=os.pathsep.join(paths), **environment,
        )  # fmt: skip

    done = evaluate("artemo_content_visual,artemo_blind", "out")
    assert list((tmp_path / "out").glob("*/*_results.json")), done.stdout[-2000:] + done.stderr[-2000:]
    done = evaluate("artemo_content_audio", "refused")
    assert done.returncode == 2 and "Qwen2_5_VL takes no audio" in done.stderr and not (tmp_path / "refused").exists()
    done = evaluate("artemo_content_audio", "deaf", ARTEMO_MODEL_HEARS="1")
    assert list((tmp_path / "deaf").glob("*/*_results.json")), "the adapter refuses sound itself: drop our check"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_models_are_loaded_with_a_head(family, tmp_path):
    model = lmms_eval_huggingface.Model.from_pretrained(str(tiny.make_vlm(family, tmp_path)))
    assert model.can_generate()


def test_the_processor_gets_waveforms_and_frames(hearing_folder, folder):
    processor = AutoProcessor.from_pretrained(hearing_folder)
    wrapped = lmms_eval_huggingface.Processor(processor, num_frames=4)
    assert wrapped.tokenizer is processor.tokenizer
    sound, film = str(folder / "media/clip-1.wav"), str(folder / "media/clip-2.mp4")

    def text(*kinds):
        turn = [{"role": "user", "content": [{"type": kind} for kind in kinds]}]
        return wrapped.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)

    arguments = {"padding": True, "return_tensors": "pt"}
    found = wrapped(text=[text("audio")], images=[], videos=[], audios=[sound], **arguments)
    expected = processor(text=[text("audio")], audio=[load_audio(sound)], **arguments)
    assert set(found) == set(expected) and all((found[key] == expected[key]).all() for key in expected)
    found = wrapped(text=[text("video", "audio")], images=[], videos=[film], audios=[film], **arguments)
    # Frames are taken in pairs: four of them are two steps in time.
    assert found["video_grid_thw"][0, 0] == 2 and np.isfinite(found["input_features"]).all()
    plain = wrapped(text=[text("text")], images=[], videos=[], audios=[], **arguments)
    assert set(plain) == set(processor(text=[text("text")], **arguments))


def test_the_patch_warns_where_it_does_not_fit(monkeypatch):
    module = types.ModuleType("lmms_eval.models.chat.huggingface")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not lmms_eval_huggingface.apply()
    assert "hands audio to its processor in a way that is not known" in str(caught[0].message)


def test_the_patch_is_applied_once():
    from lmms_eval.models.chat import huggingface

    patched = huggingface.Huggingface.__init__
    assert getattr(patched, lmms_eval_huggingface.MARK) and lmms_eval_huggingface.apply()
    assert huggingface.Huggingface.__init__ is patched and huggingface.AutoModel is lmms_eval_huggingface.Model
