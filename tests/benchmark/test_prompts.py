"""The exact prompt of every task, as lmms-eval hands it to a chat model and to a simple model, pinned by a snapshot.

`python tests/benchmark/test_prompts.py` writes the snapshot; a changed prompt makes scores incomparable: it belongs in
the changelog.
"""

import os
import re
import tempfile
from pathlib import Path

import benchmark_files
import numpy as np
import pytest
from PIL import Image

from vaemotionllm.nano import select
from vaemotionllm.patches import lmms_eval_tasks

SNAPSHOT = Path(__file__).parents[1] / "snapshots" / "artemo_prompts.txt"
TASKS_FOLDER = Path(lmms_eval_tasks.tasks_folder()) / "artemo"


def task_names() -> list[str]:
    return sorted(
        path.stem for path in TASKS_FOLDER.glob("artemo*.yaml") if not re.search("^group:", path.read_text(), re.M)
    )


def shown(folder: Path) -> str:
    """For each task: media and text of the third document, its generation arguments and target."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    names = task_names()
    tasks = get_task_dict(names, TaskManager("ERROR"), "chat")
    lines = []
    for name in names:
        task = tasks[name]
        doc = task.test_docs()[2]
        (turn,) = task.doc_to_messages(doc)
        assert turn["role"] == "user"
        *media, text = turn["content"]
        # A simple model gets the same text, and the same media decoded or as a path.
        assert text == {"type": "text", "text": task.doc_to_text(doc)}
        for part, visual in zip(media, task.doc_to_visual(doc), strict=True):
            if part["type"] == "image":
                assert isinstance(visual, Image.Image)
            elif part["type"] == "video":
                assert visual == part["url"]
            else:
                assert isinstance(visual["array"], np.ndarray) and visual["sampling_rate"] == 16_000
        named = [f"{part['type']} {place(part['url'], folder)}" for part in media]
        arguments = {key: value for key, value in sorted(task.config.generation_kwargs.items()) if key != "until"}
        lines += [
            f"## {name}",
            f"media: {', '.join(named) or 'none'}",
            f"generation: {arguments}",
            f"target: {task.doc_to_target(doc)}",
            text["text"],
            "",
        ]
    return "\n".join(lines)


def place(path: str, folder: Path) -> str:
    path = Path(path)
    return (
        str(path.relative_to(folder)) if path.is_relative_to(folder) else f"control sound of kind {path.parent.name}"
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = benchmark_files.write_benchmark(tmp_path / "benchmark")
    monkeypatch.setenv(select.VARIABLE, str(folder))
    return folder


def test_every_task_is_pinned(folder):
    found = shown(folder)
    assert found.count("## artemo") == len(task_names()) == 24
    assert found == SNAPSHOT.read_text(encoding="utf-8"), "a prompt changed: see the docstring of this file"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["VAEMOTIONLLM_CACHE"] = f"{temporary}/cache"
        os.environ[select.VARIABLE] = str(benchmark_files.write_benchmark(Path(temporary) / "benchmark"))
        SNAPSHOT.write_text(shown(Path(os.environ[select.VARIABLE])), encoding="utf-8")
