"""The lmms-eval model and tasks, from files to the table: real runs with a tiny random model."""

import contextlib
import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import benchmark_files
import numpy as np
import pytest
import speaking_model
from lmms_runs import GREEDY, answers, documents_of, instances, lmms_eval
from loguru import logger as eval_logger
from PIL import Image
from transformers import AutoConfig

from vaemotionllm import InputError
from vaemotionllm.cli.main import main
from vaemotionllm.evaluation import artemo, refusals
from vaemotionllm.evaluation.lmms_model import VAEmotionLLM
from vaemotionllm.evaluation.media_cache import EncodedMedia
from vaemotionllm.evaluation.requests import Request, batches, cut, generation_arguments
from vaemotionllm.evaluation.scores import compare
from vaemotionllm.model import media_sources
from vaemotionllm.model.media import load_audio


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return speaking_model.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return benchmark_files.write_benchmark(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def documents(folder):
    return documents_of(folder)


@pytest.fixture(scope="module")
def alone(model_folder, documents):
    return answers(model_folder, documents)


# Of the states of clips nothing, some or all is kept for later batches.
@pytest.mark.parametrize(("batch_size", "cache_gb"), [(1, 0), (3, 1e-5), (3, 0), (8, 1), (8, 1e-5), (36, 1)])
def test_answers_are_the_same_at_every_batch_size(model_folder, documents, alone, batch_size, cache_gb):
    assert len(set(alone)) > 12 and len({len(answer) for answer in alone}) > 2, (
        "a model that always says the same would prove nothing"
    )
    model = VAEmotionLLM(pretrained=str(model_folder), batch_size=batch_size, device="cpu")
    model.task_dict, model.pipeline.kept = documents, EncodedMedia(int(cache_gb * 1e9))
    for _ in ("cold", "warm"):
        assert [result.text for result in model.generate_until(instances(documents))] == alone
        assert model.pipeline.kept.num_bytes <= cache_gb * 1e9
    assert bool(model.pipeline.kept.num_bytes) == bool(cache_gb)


def test_the_towers_run_once_a_clip(model_folder, documents, monkeypatch):
    model = VAEmotionLLM(pretrained=str(model_folder), batch_size=5, device="cpu")
    model.task_dict = documents
    heard, seen = [], []
    hear, see = model.model.audio_tower.forward, model.model.vlm.base_model.visual.forward
    monkeypatch.setattr(
        model.model.audio_tower, "forward", lambda x, *a, **k: heard.append(x.shape[0]) or hear(x, *a, **k)
    )
    monkeypatch.setattr(
        model.model.vlm.base_model.visual, "forward",
        lambda x, grid_thw, **k: seen.append(grid_thw.shape[0]) or see(x, grid_thw=grid_thw, **k),
    )  # fmt: skip
    model.generate_until(instances(documents))
    windows = sum(
        -(-len(load_audio(path)) // model.processor.window_samples)
        for path in {row["audio"] for row in documents["artemo_all"]["test"] if row["audio"]}
    )
    assert sum(heard) == windows and sum(seen) == 6


def test_answers_depend_on_the_sound(model_folder, documents, alone, tmp_path):
    import soundfile

    from vaemotionllm.benchmark.controls import replaced

    muted = []
    for row in documents["artemo_all"]["test"]:
        row = dict(row)
        if row["audio"]:
            target = tmp_path / f"{row['clip_id']}.wav"
            soundfile.write(target, replaced(load_audio(row["audio"]), row["clip_id"], "noise"), 16_000)
            row["audio"] = str(target)
        muted.append(row)
    changed = answers(model_folder, {"artemo_all": {"test": muted}}, batch_size=36)
    rows = documents["artemo_all"]["test"]
    assert any(a != b for a, b, row in zip(alone, changed, rows) if row["audio"])
    assert all(a == b for a, b, row in zip(alone, changed, rows) if not row["audio"])


def test_generation_arguments_may_differ_between_requests(model_folder, documents):
    model = VAEmotionLLM(pretrained=str(model_folder), batch_size=4, device="cpu")
    model.task_dict = documents
    short = instances(documents, {**GREEDY, "max_new_tokens": 1}, ids=[0, 1, 2])
    long = instances(documents, {**GREEDY, "max_new_tokens": 6}, ids=[0, 1, 2])
    mixed = [request for pair in zip(short, long) for request in pair]
    results = model.generate_until(mixed)
    assert [len(result.text) for result in results[::2]] == [1, 1, 1]
    assert all(b.text.startswith(a.text) for a, b in zip(results[::2], results[1::2]))
    assert max(result.token_counts.output_tokens for result in results[::2]) == 1
    assert all(result.token_counts.input_tokens > 20 for result in results)


def test_media_in_memory_are_taken(model_folder, documents, alone):
    """What tasks of others give: PIL images, arrays with their rate, bytes."""
    rows = documents["artemo_all"]["test"]
    av = next(i for i, row in enumerate(rows) if row["audio"] and row["image"])

    def to_messages(doc):

        return [
            {
                "role": "user",
                "content": [
                    {"type": "image", "url": Image.open(doc["image"])},
                    {
                        "type": "audio",
                        "url": {"array": load_audio(doc["audio"]).astype(np.float64), "sampling_rate": 16_000},
                    },
                    {"type": "text", "text": artemo.doc_to_text(doc)},
                ],
            }
        ]

    def as_bytes(doc):
        media = [
            {"type": kind, "url": {"bytes": Path(doc[kind]).read_bytes(), "path": None}} for kind in ("image", "audio")
        ]
        return [{"role": "user", "content": [*media, {"type": "text", "text": artemo.doc_to_text(doc)}]}]

    model = VAEmotionLLM(pretrained=str(model_folder), device="cpu")
    model.task_dict = documents
    requests = instances(documents, to_messages=to_messages, ids=[av]) + instances(
        documents, to_messages=as_bytes, ids=[av]
    )
    assert [result.text for result in model.generate_until(requests)] == [alone[av]] * 2


def test_media_in_memory_are_not_held_until_the_end(model_folder, documents, alone, monkeypatch):
    """A task's pictures may be more than memory: each is there while its batch is prepared."""
    rows = documents["artemo_all"]["test"]
    chosen = [i for i, row in enumerate(rows) if row["image"] and not row["audio"]]
    opened: list[weakref.ref] = []
    most = 0

    def to_messages(doc):
        nonlocal most
        picture = Image.open(doc["image"])
        opened.append(weakref.ref(picture))
        most = max(most, sum(known() is not None for known in opened))
        text = {"type": "text", "text": artemo.doc_to_text(doc)}
        return [{"role": "user", "content": [{"type": "image", "url": picture}, text]}]

    model = VAEmotionLLM(pretrained=str(model_folder), device="cpu")
    model.task_dict, model.pipeline.workers = documents, 1
    results = model.generate_until(instances(documents, to_messages=to_messages, ids=chosen))
    assert [result.text for result in results] == [alone[i] for i in chosen]
    assert len(opened) == 2 * len(chosen) and len(chosen) >= 6 and most <= 3


def test_a_row_that_cannot_be_read_ends_the_evaluation(model_folder):
    class Rows:
        def __getitem__(self, number):
            raise OSError("the row cannot be decoded")

    model = VAEmotionLLM(pretrained=str(model_folder), device="cpu")
    model.task_dict = {"artemo_all": {"test": Rows()}}
    with pytest.raises(RuntimeError, match="parsing the questions failed with OSError: the row cannot be decoded"):
        model.generate_until(instances(None, ids=[0]))


def test_a_clip_is_decoded_once(model_folder, documents, monkeypatch):
    decoded = []
    original = media_sources.load_audio
    monkeypatch.setattr(
        media_sources, "load_audio", lambda source, *a, **k: decoded.append(source) or original(source, *a, **k)
    )
    answers(model_folder, documents, batch_size=4)
    assert len(decoded) == len(set(decoded)) == 6


@pytest.mark.parametrize("damage", ["missing", "truncated picture", "truncated video", "empty sound"])
def test_bad_media_stop_the_run_and_name_the_item(model_folder, documents, tmp_path, damage):
    rows = [dict(row) for row in documents["artemo_all"]["test"]]
    if damage == "missing":
        rows[3]["audio"] = str(tmp_path / "none.wav")
    elif damage == "truncated video":
        number = next(i for i, row in enumerate(rows) if row["video"])
        (tmp_path / "cut.mp4").write_bytes(Path(rows[number]["video"]).read_bytes()[:2000])
        rows[3] = {**rows[number], "video": str(tmp_path / "cut.mp4"), "id": rows[3]["id"]}
    elif damage == "truncated picture":
        number = next(i for i, row in enumerate(rows) if row["image"])
        (tmp_path / "cut.png").write_bytes(Path(rows[number]["image"]).read_bytes()[:600])
        rows[3] = {**rows[number], "image": str(tmp_path / "cut.png"), "id": rows[3]["id"]}
    else:
        import soundfile

        soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
        rows[3]["audio"] = str(tmp_path / "empty.wav")
    with pytest.raises(InputError, match=f"artemo_all, item '{rows[3]['id']}': .*{tmp_path.name}"):
        answers(model_folder, {"artemo_all": {"test": rows}}, batch_size=4)


def test_bad_arguments_are_named(model_folder, tmp_path):
    with pytest.raises(InputError, match="holds no config.json"):
        VAEmotionLLM(pretrained=str(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        VAEmotionLLM(pretrained=str(tmp_path / "none"))
    with pytest.raises(InputError, match="--model_args has fps; allowed are pretrained"):
        VAEmotionLLM(pretrained=str(model_folder), fps=1)
    with pytest.raises(InputError, match="batch_size is 'auto'"):
        VAEmotionLLM(pretrained=str(model_folder), batch_size="auto")
    with pytest.raises(InputError, match="on_error is 'skip'; allowed are stop and report"):
        VAEmotionLLM(pretrained=str(model_folder), on_error="skip")
    with pytest.raises(InputError, match="num_frames is 0"):
        VAEmotionLLM(pretrained=str(model_folder), num_frames=0)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(InputError, match="a model of type 'qwen2_5_vl'"):
        VAEmotionLLM(pretrained=str(tmp_path))


def cut_weights(model_folder, tmp_path) -> Path:
    cut = shutil.copytree(model_folder, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return cut


def test_a_model_file_that_is_cut_off_is_named(model_folder, folder, tmp_path, capsys):
    bad = cut_weights(model_folder, tmp_path)
    with pytest.raises(InputError, match=f"the model '{bad}' cannot be loaded"):
        VAEmotionLLM(pretrained=str(bad), device="cpu")
    out = str(tmp_path / "va.json")
    assert main(["evaluate-emotion", "--model", str(bad), "--benchmark", str(folder), "--out", out]) == 2
    assert f"the model '{bad}' cannot be loaded" in capsys.readouterr().err


def test_what_is_not_bad_input_ends_the_evaluation_with_the_batch(model_folder, documents, monkeypatch):
    monkeypatch.setattr(VAEmotionLLM, "_decode", lambda self, medium: 1 / 0)
    with pytest.raises(RuntimeError, match="the batch of .*item 'clip-.* failed with ZeroDivisionError"):
        answers(model_folder, documents, batch_size=4)
    # Inside lmms-eval's command that error is the exit code.
    monkeypatch.setattr(refusals, "in_lmms_eval_command", lambda: True)
    with pytest.raises(SystemExit) as ended:
        answers(model_folder, documents, batch_size=4)
    assert ended.value.code == refusals.FAILURE


def test_a_too_long_sound_names_the_remedy(model_folder, documents):
    with pytest.raises(InputError, match="item 'clip-.*max_audio_s"):
        answers(model_folder, documents, max_audio_s=0.4)


def test_generation_arguments_and_stop_strings():
    one = {"num_return_sequences": 1}
    arguments, until = generation_arguments({"max_gen_toks": 5, "until": "\n", "temperature": 0, "top_p": 0.9})
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    assert arguments == {"max_new_tokens": 5, **greedy, **one}
    assert cut(" A\nB ", until) == "A"
    arguments, until = generation_arguments({"temperature": 0.7})
    assert arguments == {"max_new_tokens": 128, "do_sample": True, "temperature": 0.7, **one} and until == []
    assert generation_arguments({"until": "x", "stop_sequences": ["y", "z"]})[1] == ["x", "y", "z"]


@pytest.mark.parametrize(
    "value",
    [{"max_new_tokens": "many"}, {"max_new_tokens": 0}, {"max_new_tokens": float("inf")}, {"temperature": "hot"},
     {"temperature": float("nan")}, {"temperature": -1}, {"top_p": 2}, {"num_beams": 0}, {"do_sample": "perhaps"},
     {"max_gen_toks": -1}],
)  # fmt: skip
def test_generation_arguments_that_cannot_be_used_are_named_before_a_question_is_answered(
    model_folder, documents, value, monkeypatch
):
    model = VAEmotionLLM(pretrained=str(model_folder), device="cpu")
    model.task_dict = documents
    monkeypatch.setattr(model, "_answer", lambda *of: pytest.fail("a question was answered"))
    kept = {} if "max_gen_toks" in value else GREEDY
    bad = instances(documents, {**kept, **value}, ids=[1])
    with pytest.raises(InputError, match=f"generation_kwargs.*{next(iter(value)).replace('gen_toks', 'new_tokens')}"):
        model.generate_until(instances(documents, ids=[0]) + bad)


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--gen_kwargs", "max_new_tokens"), "--gen_kwargs is 'max_new_tokens'; write NAME=VALUE"),
     (("--gen_kwargs", "max_new_tokens=many"), "max_new_tokens is 'many'"),
     (("--num_fewshot", "2"), "--num_fewshot is 2, and questions of artemo_content_visual")],
)  # fmt: skip
def test_arguments_of_the_command_that_cannot_be_used_end_it_with_code_2(model_folder, folder, tmp_path, words, said):
    done = lmms_eval(
        "--model", "vaemotionllm", "--model_args", f"pretrained={model_folder},device=cpu",
        "--tasks", "artemo_content_visual", *words, cwd=tmp_path, dataset=folder,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lmms-eval: error: ") and said in last


def test_examples_are_refused_where_they_would_not_be_in_the_question(model_folder):
    def task(**config):
        return SimpleNamespace(config=SimpleNamespace(**{"doc_to_messages": None, "doc_to_visual": None} | config))

    ours = SimpleNamespace(config=AutoConfig.from_pretrained(model_folder))
    text, visual = {"gsm8k": task()}, {"mmmu": task(doc_to_visual=print)}
    for model, tasks, refused in (
        (ours, text, False), (ours, visual, True), (SimpleNamespace(), visual, False),
        (SimpleNamespace(), {"artemo_emotion_av": task(doc_to_messages=print)}, True),
    ):  # fmt: skip
        with pytest.raises(InputError, match="--num_fewshot is 1") if refused else contextlib.nullcontext():
            refusals.refuse_examples(model, {"group": tasks}, 1)
        refusals.refuse_examples(model, tasks, None)
        refusals.refuse_examples(model, tasks, 0)


def test_generation_kwargs_of_other_adapters_are_left_out_and_said(model_folder, documents, alone):
    """Tasks of lmms-eval name `image_aspect_ratio` and others, which `generate` refuses."""
    model = VAEmotionLLM(pretrained=str(model_folder), device="cpu")
    model.task_dict = documents
    lines: list[str] = []
    sink = eval_logger.add(lines.append, level="WARNING")
    try:
        given = {**GREEDY, "image_aspect_ratio": "original", "seed": 3}
        found = [result.text for result in model.generate_until(instances(documents, given, ids=[0, 1]))]
    finally:
        eval_logger.remove(sink)
    assert found == alone[:2]
    assert len([line for line in lines if "generation_kwargs image_aspect_ratio, seed" in line]) == 1


def test_texts_are_sorted_by_length():
    def prompt(position, text, *media):
        turn = {"role": "user", "content": [{"type": "text", "text": text}]}
        return Request(position, str(position), position, [turn], tuple(media), {})

    texts = [prompt(i, "x" * length) for i, length in enumerate((10, 9000, 20, 8000, 30, 7000))]
    assert [[len(p.text) for p in batch] for batch in batches(texts, 3)] == [[9000, 8000, 7000], [30, 20, 10]]


def test_outside_the_command_errors_are_raised():
    with pytest.raises(InputError), refusals.stopping("a step"):
        raise InputError("x")


def test_a_run_of_the_command(model_folder, folder, documents, alone, tmp_path):
    """`python -m lmms_eval` with no flag and no import of ours: table, results file, samples, notice."""
    nano = shutil.copytree(folder, tmp_path / "nano")
    info = json.loads((nano / "benchmark.json").read_text())
    (nano / "benchmark.json").write_text(json.dumps({**info, "nano": True}))
    done = lmms_eval(
        "--model", "vaemotionllm", "--model_args", f"pretrained={model_folder},device=cpu",
        "--tasks", "artemo,artemo_controls,artemo_circular,artemo_va", "--batch_size", 5,
        "--gen_kwargs", "max_new_tokens=6", "--log_samples", "--output_path", "out", cwd=tmp_path, dataset=nano,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "artemo (nano set, not a leaderboard number)" in done.stdout
    assert "belong on no leaderboard" in done.stderr
    (results_file,) = (tmp_path / "out").glob("*/*_results.json")
    results = json.loads(results_file.read_text())
    assert "belong on no leaderboard" in results["configs"]["artemo_emotion_av"]["metadata"]["notice"]
    assert "not a leaderboard number" in results["results"]["artemo_emotion_av"]["alias"]
    assert results["n-samples"]["artemo_content_audio_noise"] == {"original": 6, "effective": 6}
    rows = documents["artemo_all"]["test"]
    for task in ("artemo_content_audio", "artemo_emotion_visual", "artemo_emotion_av"):
        _, aspect, modality = task.split("_")
        indices = [i for i, row in enumerate(rows) if row["id"].endswith(f"-{aspect}-{modality}")]
        (samples_file,) = (tmp_path / "out").glob(f"*/*_samples_{task}.jsonl")
        samples = [json.loads(line) for line in samples_file.read_text().splitlines()]
        assert [sample["doc_id"] for sample in samples] == list(range(6))
        assert [sample["filtered_resps"] for sample in samples] == [alone[i] for i in indices]
        scores = results["results"][task]
        expected = [artemo.process_results(rows[i], [alone[i]]) for i in indices]
        for metric in ("accuracy", "unparsable"):
            assert scores[f"{metric},none"] == pytest.approx(np.mean([score[metric] for score in expected]))
            assert isinstance(scores[f"{metric}_stderr,none"], float)
        assert scores["ci95_low,none"] <= scores["accuracy,none"] <= scores["ci95_high,none"]
    follows = results["results"]["artemo_conflict"]
    shares = [follows[f"{name},none"] for name in ("follows_sight", "follows_sound", "neither", "unparsable")]
    assert sum(shares) == pytest.approx(1) and results["n-samples"]["artemo_conflict"]["effective"] == 4
    assert results["n-samples"]["artemo_emotion_av_circular"]["effective"] == 4 * 6
    assert {"artemo_blind", "artemo_silence", "artemo_circular", "artemo_va"} <= set(results["groups"])
    # The model knows no numbers; none is made up.
    assert results["results"]["artemo_va"]["unparsable,none"] == 1
    assert np.isnan(results["results"]["artemo_va_av"]["ccc,none"])
    found = compare(tmp_path / "out", results_file)
    rows = [row for row in found["scores"] if row["measure"].endswith("_minus_first")]
    assert len(rows) == len(results["n-samples"]) + 1 + 6 == 31, "each task, all six cells, and three gains an aspect"
    assert all(row.get("value", 0) == 0 for row in rows)


def test_a_wrong_column_ends_the_command_with_2(model_folder, folder, tmp_path):
    bad = shutil.copytree(folder, tmp_path / "bad")
    (bad / "test.jsonl").write_text((bad / "test.jsonl").read_text().replace('"answer"', '"reply"'))
    done = lmms_eval("--model", "vaemotionllm", "--model_args", f"pretrained={model_folder},device=cpu", "--tasks",
                     "artemo_content_audio", "--output_path", "out", cwd=tmp_path, dataset=bad)  # fmt: skip
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "column 'answer': Field required" in last and "clip-0-content-audio" in last
    assert not (tmp_path / "out").exists()


def test_a_model_file_that_is_cut_off_ends_the_command_with_2(model_folder, folder, tmp_path):
    bad = cut_weights(model_folder, tmp_path)
    done = lmms_eval("--model", "vaemotionllm", "--model_args", f"pretrained={bad},device=cpu", "--tasks",
                     "artemo_content_audio", "--output_path", "out", cwd=tmp_path, dataset=folder)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert str(bad) in done.stderr.strip().splitlines()[-1]
