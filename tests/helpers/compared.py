"""Results of lmms-eval about models that know stated clips, and the selected benchmark that they answer."""

import json
import math
from pathlib import Path

import benchmark_files
import numpy as np
import pytest

from vaemotionllm.evaluation import artemo
from vaemotionllm.nano import select

CELLS = [f"{aspect}_{path}" for aspect in ("content", "emotion") for path in ("audio", "visual", "av")]


DATE = "20260102_030405"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("benchmark"))


def write_benchmark(folder: Path) -> Path:
    """Twelve clips around the valence-arousal space; the first six are paintings, the others not."""
    benchmark_files.write_benchmark(folder, clips=12)
    rows = benchmark_files.read_items(folder)
    for row in rows:
        number = int(row["clip_id"].split("-")[1])
        row.update(valence=round(0.9 * math.cos(number), 3), arousal=round(0.9 * math.sin(number), 3))
        row["art_form"] = "painting" if number < 6 else "short_film"
    benchmark_files.write_items(folder, rows)
    return folder


@pytest.fixture(autouse=True)
def chosen(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(select.VARIABLE, str(folder))


def kind_of(task: str) -> tuple[str, tuple[str, ...]]:
    """Prefix of a task's functions in its YAML, and the metrics that it aggregates itself."""
    if task.startswith("va_"):
        return "va_", artemo.VA_METRICS
    if task == "conflict":
        return "conflict_", ()
    return ("circular_", ("circular_accuracy",)) if task.endswith("_circular") else ("", ())


def evaluate(out: Path, respond, tasks=(*CELLS,), model="model", limit=None, date=DATE) -> Path:
    """What `lmms-eval --log_samples --output_path OUT` writes (0.7.3) about a model that says `respond(task, doc)`."""
    place = out / f"org__{model}"
    place.mkdir(parents=True, exist_ok=True)
    written = {"results": {}, "configs": {}, "n-samples": {}, "config": {"model": model, "model_args": "x=1"}}
    for task in tasks:
        prefix, metrics = kind_of(task)
        own = {name.removeprefix(prefix): function for name, function in artemo.YAML_FUNCTIONS.items()}
        functions = artemo.YAML_FUNCTIONS | own
        text, target = (functions[name] for name in ("doc_to_text", "doc_to_target"))
        name, rows = f"artemo_{task}", []
        for doc_id, doc in enumerate(list(artemo.yaml_value(f"documents_{task}")(None))[:limit]):
            answer = respond(task, doc)
            scores = functions["process_results"](doc, [answer])
            rows.append(
                {"doc_id": doc_id, "target": target(doc), "filtered_resps": answer, **scores, "input": text(doc)}
            )
        results = {"alias": name}
        for metric, value in rows[0].items():
            if metric in metrics or isinstance(value, float):
                aggregate = functions[metric] if metric in metrics else np.mean
                results[f"{metric},none"] = float(aggregate([row[metric] for row in rows]))
        written["results"][name] = results
        written["configs"][name] = {"metadata": artemo.metadata()}
        written["n-samples"][name] = {"original": len(rows), "effective": len(rows)}
        (place / f"{date}_samples_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / f"{date}_results.json").write_text(json.dumps(written))
    return out


def knows(*clips, by_path=None):
    """Answers right about these clips (by path, where given), and else with the option behind the right one."""

    def respond(task, doc):
        right = doc["options"].index(doc["answer"])
        known = by_path.get(task.split("_")[1], ()) if by_path else clips
        return "ABCD"[right if int(doc["clip_id"].split("-")[1]) in known else (right + 1) % 4]

    return respond


A = knows(by_path={"audio": range(4), "visual": range(6), "av": range(9)})


B = knows(by_path={"audio": range(8), "visual": range(6), "av": range(7)})
