"""Media that cannot be read, with `on_error=report`: what is missing is said, and never taken for an answer."""

import io
import json
import shutil
from pathlib import Path

import benchmark_files
import fork_server
import numpy as np
import pytest
import speaking_model
from lmms_eval.api.instance import Instance
from lmms_runs import answers, documents_of, instances, lmms_eval
from loguru import logger as eval_logger
from PIL import Image, ImageFile

from vaemotionllm import InputError
from vaemotionllm.benchmark import prompts
from vaemotionllm.evaluation import artemo
from vaemotionllm.evaluation.lmms_model import VAEmotionLLM
from vaemotionllm.evaluation.report import comparison_text
from vaemotionllm.evaluation.scores import compare


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


@pytest.mark.parametrize("batch_size", [1, 4, 36])
def test_bad_media_can_be_reported(model_folder, documents, alone, tmp_path, batch_size):
    """A clip that is cut off in the middle of the evaluation: each of its questions is missing, no other changes."""
    rows = [dict(row) for row in documents["artemo_all"]["test"]]
    (tmp_path / "cut.png").write_bytes(Path(rows[1]["image"]).read_bytes()[:600])
    bad = [i for i, row in enumerate(rows) if row["clip_id"] == rows[1]["clip_id"] and row["image"]]
    for i in bad:
        rows[i]["image"] = str(tmp_path / "cut.png")
    (tmp_path / "cut.mp4").write_bytes(b"no film")
    alone_bad = next(i for i, row in enumerate(rows) if row["video"])
    rows[alone_bad]["video"] = str(tmp_path / "cut.mp4")
    lines: list[str] = []
    sink = eval_logger.add(lines.append, level="WARNING")
    try:
        found = answers(model_folder, {"artemo_all": {"test": rows}}, batch_size, on_error="report")
    finally:
        eval_logger.remove(sink)
    missing = [*bad, alone_bad]
    assert len(bad) == 4 and [i for i, text in enumerate(found) if text == prompts.MISSING] == sorted(missing)
    assert all(a == b for i, (a, b) in enumerate(zip(found, alone)) if i not in missing)
    (report,) = [line for line in lines if "are missing" in line]
    assert f"5 of {len(rows)} questions are missing" in report
    assert all(f"artemo_all, item '{rows[i]['id']}': " in report for i in missing) and report.count("cut.png") == 4


def test_a_picture_in_memory_that_is_cut_off_is_missing(model_folder, documents, monkeypatch):
    """lmms_eval tells PIL for the whole process to fill up what is missing."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(content, "JPEG")

    def to_messages(doc):
        picture = Image.open(io.BytesIO(content.getvalue()[:3000]))
        return [{"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": "?"}]}]

    model = VAEmotionLLM(pretrained=str(model_folder), device="cpu", on_error="report")
    model.task_dict = documents
    for fills in (True, False):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", fills)
        (result,) = model.generate_until(instances(documents, to_messages=to_messages, ids=[0]))
        assert result.text == prompts.MISSING and ImageFile.LOAD_TRUNCATED_IMAGES is fills


def test_tasks_of_others_stop_at_bad_media(model_folder, documents):
    """Some guess where they find no answer: a marker would be scored as right now and then."""
    row = {**documents["artemo_all"]["test"][0], "audio": None, "video": None, "image": "/nowhere.png"}
    model = VAEmotionLLM(pretrained=str(model_folder), device="cpu", on_error="report")
    model.task_dict = {"mmmu_val": {"test": [row]}}
    arguments = ("", artemo.doc_to_messages, {"max_new_tokens": 2}, 0, "mmmu_val", "test")
    request = Instance(request_type="generate_until", arguments=arguments, idx=0,
                       metadata={"task": "mmmu_val", "doc_id": 0, "repeats": 1})  # fmt: skip
    with pytest.raises(InputError, match="mmmu_val, item .*nowhere.png.*: file not found"):
        model.generate_until([request])


def test_what_is_reported_is_bad_media_alone(model_folder, documents, monkeypatch):
    monkeypatch.setattr(VAEmotionLLM, "_decode", lambda self, medium: 1 / 0)
    with pytest.raises(RuntimeError, match="the batch of .* failed with ZeroDivisionError"):
        answers(model_folder, documents, batch_size=4, on_error="report")


def test_two_processes_answer_as_one_and_report_what_is_missing(model_folder, folder, documents, alone, tmp_path):
    """lmms-eval shares the documents out by rank; `accelerate launch` and torchrun tell it to them in the same way."""
    bad = shutil.copytree(folder, tmp_path / "bad")
    picture = bad / "media/clip-1.png"
    picture.write_bytes(picture.read_bytes()[:600])
    task = "artemo_emotion_visual"
    arguments = [
        "--model", "vaemotionllm", "--model_args", f"pretrained={model_folder},on_error=report", "--tasks", task,
        "--batch_size", 4, "--gen_kwargs", "max_new_tokens=6", "--log_samples", "--output_path", "out",
    ]  # fmt: skip
    done = lmms_eval(*arguments, cwd=tmp_path, dataset=bad, run=fork_server.run_ranks, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").glob(f"*/*_samples_{task}.jsonl")
    samples = {row["doc_id"]: row for row in map(json.loads, file.read_text().splitlines())}
    rows = documents["artemo_all"]["test"]
    expected = [alone[i] for i, row in enumerate(rows) if row["id"].endswith("-emotion-visual")]
    expected[1] = prompts.MISSING
    assert [samples[i]["filtered_resps"] for i in range(6)] == expected
    (results_file,) = (tmp_path / "out").glob("*/*_results.json")
    scores = json.loads(results_file.read_text())["results"][task]
    assert scores["missing,none"] == pytest.approx(1 / 6) and scores["accuracy,none"] == pytest.approx(
        np.mean([samples[i]["accuracy"] for i in range(6)])
    )
    assert samples[1]["accuracy"] == samples[1]["unparsable"] == 0 and samples[1]["missing"] == 1
    assert f"{task}, item 'clip-1-emotion-visual'" in done.stdout
    assert "1 answers missing" in comparison_text(compare(results_file, results_file))
