"""A model that cannot hear is refused the tasks with sound, before it is asked anything."""

import subprocess
import sys
import types
import warnings

import benchmark_files
import pytest
import tiny
from lmms_runs import lmms_eval
from transformers import (
    AutoConfig,
    AutoProcessor,
    LlavaOnevisionConfig,
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2AudioConfig,
    WhisperConfig,
)

from vaemotionllm import InputError
from vaemotionllm.evaluation import artemo, refusals
from vaemotionllm.nano import select
from vaemotionllm.patches import lmms_eval_hearing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return benchmark_files.write_benchmark(tmp_path_factory.mktemp("benchmark"))


def adapter(**members):
    return types.SimpleNamespace(**members)


def test_who_hears(tmp_path):
    ours = tiny.make_vaemotionllm(tmp_path)
    assert refusals.takes_audio(adapter(config=AutoConfig.from_pretrained(ours))) is True
    assert refusals.takes_audio(adapter(processor=AutoProcessor.from_pretrained(ours))) is True
    for config in (Qwen2AudioConfig(), WhisperConfig()):
        assert refusals.takes_audio(adapter(_config=config)) is True
    for config in (Qwen2_5_VLConfig(), LlavaOnevisionConfig()):
        assert refusals.takes_audio(adapter(config=config)) is False
        assert refusals.takes_audio(adapter(model=adapter(config=config))) is False
    # A package of its own says so in its own words.
    assert refusals.takes_audio(adapter(config=PretrainedConfig(mm_speech_tower="beats"))) is True
    assert refusals.takes_audio(adapter(client="api")) is None
    assert refusals.takes_audio(adapter(config={"audio": 1})) is None


class Task:
    def __init__(self, name: str):
        self.name = name

    def test_docs(self):
        return artemo.yaml_value(f"documents_{self.name}")(None)


def tasks(*names: str) -> dict:
    return {f"artemo_{name}": Task(name) for name in names}


def test_only_tasks_with_sound_are_refused(folder, monkeypatch, caplog):
    monkeypatch.setenv(select.VARIABLE, str(folder))
    deaf, unknown = adapter(config=Qwen2_5_VLConfig()), adapter()
    refusals.refuse_without_audio(deaf, {"group": tasks("content_visual", "emotion_blind", "va_visual")})
    refusals.refuse_without_audio(deaf, {"mmmu": None, "other_audio": object()})
    mixed = {"group": {**tasks("content_visual", "content_av"), "inner": tasks("emotion_blind", "va_audio")}}
    with pytest.raises(InputError) as refused:
        refusals.refuse_without_audio(deaf, mixed)
    text = str(refused.value)
    assert "its answers to artemo_content_av, artemo_va_audio would be scored" in text
    assert "--tasks artemo_content_visual,artemo_emotion_blind." in text
    with pytest.raises(InputError, match="--tasks artemo_content_visual,artemo_emotion_visual,artemo_blind"):
        refusals.refuse_without_audio(deaf, tasks("emotion_audio_circular"))
    refusals.refuse_without_audio(unknown, mixed)
    assert "takes audio is unknown; compare its audio tasks with artemo_silence" in caplog.text
    monkeypatch.setenv(refusals.VARIABLE, "1")
    refusals.refuse_without_audio(deaf, mixed)
    monkeypatch.setenv(refusals.VARIABLE, "0")
    with pytest.raises(InputError, match="takes no audio"):
        refusals.refuse_without_audio(unknown, mixed)
    monkeypatch.setenv(refusals.VARIABLE, "yes")
    with pytest.raises(InputError, match="ARTEMO_MODEL_HEARS is 'yes'; allowed are 0 and 1"):
        refusals.refuse_without_audio(deaf, mixed)


def test_a_stock_adapter_is_refused_by_the_command(folder, tmp_path):
    deaf = tiny.make_vlm("qwen2_5_vl", tmp_path / "vlm")
    done = lmms_eval(
        "--model", "huggingface", "--model_args", f"pretrained={deaf},device=cpu,device_map=cpu", "--tasks",
        "artemo_content_audio,artemo_content_visual", "--output_path", "out", cwd=tmp_path, dataset=folder,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lmms-eval: error: the model Huggingface takes no audio")
    assert "--tasks artemo_content_visual." in last and not (tmp_path / "out").exists()


def test_the_patch_wraps_once_and_warns_where_it_does_not_fit(monkeypatch):
    asked = []
    module = types.ModuleType("lmms_eval.evaluator")
    module.evaluate = lambda lm, task_dict, limit=None: (lm, limit)
    module.simple_evaluate = lambda model, model_args=None, tasks=None, gen_kwargs=None: gen_kwargs
    monkeypatch.setitem(sys.modules, "lmms_eval.evaluator", module)
    monkeypatch.setattr(refusals, "refuse_without_audio", lambda lm, task_dict: asked.append((lm, task_dict)))
    assert lmms_eval_hearing.apply() and lmms_eval_hearing.apply()
    assert module.evaluate("model", task_dict={}, limit=3) == ("model", 3) and asked == [("model", {})]
    with pytest.raises(InputError, match="max_tokens.*did you mean max_new_tokens"):
        module.simple_evaluate("vaemotionllm", gen_kwargs="max_tokens=3")
    assert module.simple_evaluate("qwen2_5_vl", gen_kwargs="max_tokens=3") == "max_tokens=3"
    module.evaluate = lambda model, tasks: None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not lmms_eval_hearing.apply()
    assert "takes ['model', 'tasks'] where lm, task_dict" in str(caught[0].message)


def test_it_is_applied_with_no_import_of_ours(tmp_path):
    code = "import lmms_eval.evaluator as e; print(getattr(e.evaluate, '_vaemotionllm_hearing', False))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip().endswith("True"), done.stderr
