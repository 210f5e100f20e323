"""A demo's output folder with the files that lmms-eval and the other steps write, made from drawn answers."""

import json
import shutil
from pathlib import Path

import numpy as np
from media_files import write_png, write_wav

from vaemotionllm.benchmark.prompts import multiple_choice, parse_choice
from vaemotionllm.demo.demo import CONTROL_STAGES, STAGES
from vaemotionllm.evaluation.scores import CELLS, KINDS, MODALITIES
from vaemotionllm.nano.clips import ART_FORMS, CONTENTS, emotion_of
from vaemotionllm.nano.world import benchmark_items

DATE = "20260102_030405"
# How often a stage answers right, by input; what is left out is 0.25, the chance of four options.
SKILL = {
    "backbone": {"visual": 0.95},
    "stage1": {"audio": 0.86, "visual": 0.95, "av": 0.94},
    "stage2": {"audio": 0.88, "visual": 0.93, "av": 0.98},
}


def make_rows(n_clips: int, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(n_clips):
        angle, radius = 2 * np.pi * (index + rng.uniform(0.1, 0.9)) / n_clips, rng.uniform(0.5, 1)
        valence, arousal = radius * np.cos(angle), radius * np.sin(angle)
        rows.append(
            {
                "id": f"clip-{index:04d}",
                "content": CONTENTS[index % len(CONTENTS)],
                "emotion": emotion_of(valence, arousal),
                "valence": valence,
                "arousal": arousal,
                "art_form": ART_FORMS[index % len(ART_FORMS)],
                "license": "CC0-1.0",
                "source": "test",
                "audio": f"media/clip-{index:04d}.wav",
                "image": f"media/clip-{index:04d}.png",
            }
        )
    return rows


def write_evaluation(folder: Path, tasks: dict[str, tuple[list[dict], list[str]]], date: str = DATE) -> None:
    """Writes what `lmms-eval --output_path FOLDER --log_samples` writes (0.7.3): one result file, samples a task.

    `tasks` is name -> (items, responses).
    """
    folder = folder / "runs__model"
    folder.mkdir(parents=True, exist_ok=True)
    results = {"results": {}, "configs": {}, "n-samples": {}, "config": {"model": "vaemotionllm", "model_args": "x"}}
    for task, (items, responses) in tasks.items():
        lines = []
        for doc_id, (item, response) in enumerate(zip(items, responses, strict=True)):
            predicted = parse_choice(response, item["options"])
            correct = float(predicted == item["answer"])
            about = {"accuracy": correct, "clip_id": item["clip_id"], "item_id": item["id"]}
            labels = {"predicted": predicted, "true": item["answer"]}
            lines.append(
                {
                    "doc_id": doc_id,
                    "target": "ABCD"[item["options"].index(item["answer"])],
                    "filtered_resps": response,
                    "accuracy": correct,
                    "macro_f1": labels,
                    "unparsable": float(predicted is None),
                    "missing": 0.0,
                    "ci95_low": about,
                    "ci95_high": about,
                    "input": multiple_choice(item["question"], item["options"]),
                }
            )
        mean = float(np.mean([line["accuracy"] for line in lines]))
        (folder / f"{date}_samples_{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        results["results"][task] = {"alias": task, "accuracy,none": mean, "accuracy_stderr,none": 0.01}
        results["configs"][task] = {"task": task, "metadata": {"benchmark": "nano", "version": "1"}}
        results["n-samples"][task] = {"original": len(items), "effective": len(items)}
    (folder / f"{date}_results.json").write_text(json.dumps(results, indent=2))


def respond(items: list[dict], skill: float, rng) -> list[str]:
    """Letters; the answer with probability `skill`, else one of the other three."""
    letters = []
    for item in items:
        answer = item["options"].index(item["answer"])
        wrong = [i for i in range(4) if i != answer]
        letters.append("ABCD"[answer if rng.random() < skill else wrong[rng.integers(3)]])
    return letters


def write_va(path: Path, rows: list[dict], noise: float, rng) -> None:
    """What `vaemotionllm evaluate-emotion` writes; with noise 1 the predictions know nothing of the truth."""
    result: dict = {"prompt": "Which emotion does this artwork express?", "benchmark": "nano", "level": 0.9}
    knows = noise < 1
    n = len(rows)
    agreeing, disagreeing = rng.uniform(0, 0.5, n), rng.uniform(0.25 * knows, 0.5 + 0.5 * knows, n)
    result["conflict"] = {
        "auroc": float(np.mean(disagreeing[:, None] > agreeing[None, :])),
        "clip_ids": [row["id"] for row in rows],
        "agreeing": agreeing.tolist(),
        "disagreeing": disagreeing.tolist(),
        "reason": None,
    }
    true = np.array([[row["valence"], row["arousal"]] for row in rows])
    for name in MODALITIES:
        predicted = np.clip(true * (noise < 1) + noise * rng.normal(size=true.shape), -1, 1)
        result[name] = {
            "valence_ccc": None,
            "arousal_ccc": None,
            "n": len(rows),
            "clip_ids": [row["id"] for row in rows],
            "predicted": predicted.tolist(),
            "true": true.tolist(),
            "accuracy": 0.7 if knows else 0.125,
            "ece": 0.04,
            "valence_coverage": 0.875,
            "arousal_coverage": 0.9375,
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))


def write_run(out: Path, n_clips: int = 48, seed: int = 0, skill: dict | None = None) -> Path:
    """A complete run; answers are drawn with the skill of each stage."""
    skill = skill or SKILL
    rng = np.random.default_rng(seed)
    rows = make_rows(n_clips, seed)
    items = benchmark_items(rows, seed)
    benchmark = out / "world/benchmark"
    benchmark.mkdir(parents=True)
    for row in rows:
        write_wav(benchmark / row["audio"], seconds=0.2)
        write_png(benchmark / row["image"])
    (benchmark / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (benchmark / "benchmark.json").write_text(json.dumps({"format": 1, "name": "nano", "nano": True, "seed": seed}))
    by_cell = {cell: [item for item in items if f"{item['aspect']}_{item['modality']}" == cell] for cell in CELLS}
    for stage in STAGES:
        tasks = {
            f"artemo_{cell}": (group, respond(group, skill[stage].get(cell.split("_")[1], 0.25), rng))
            for cell, group in by_cell.items()
        }
        if stage in CONTROL_STAGES:
            for control in KINDS:
                for cell in ("content_audio", "emotion_audio"):
                    tasks[f"artemo_{cell}_{control}"] = (by_cell[cell], respond(by_cell[cell], 0.25, rng))
        write_evaluation(out / f"eval/{stage}/lmms_eval", tasks)
        if stage == "stage2":
            write_va(out / f"eval/{stage}/emotion.json", rows, 0.2, rng)
        folder = out / ("nano_backbone" if stage == "backbone" else stage)
        folder.mkdir(parents=True)
        curve = [
            {
                "step": step,
                "loss": 3 / (1 + step / 40) + 0.05 * rng.random(),
                "learning_rate": 1e-3,
                "wall_s": step / 9,
            }
            for step in range(1, 400, 20)
        ]
        if stage == "stage2":
            curve = [
                {
                    **row,
                    "ce_loss": row["loss"] * 0.7,
                    "valence_ccc_loss": row["loss"] * 0.2,
                    "arousal_ccc_loss": row["loss"] * 0.1,
                }
                for row in curve
            ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
    names = [
        "world",
        "backbone",
        "assemble",
        "stage1",
        "stage2",
        *(f"eval_{stage}" for stage in STAGES),
        "emotion_stage2",
    ]
    commands = {name: f"vaemotionllm {name} --seed {seed}" for name in names}
    arguments = {"seed": seed, "scale": "full", "train_clips": None, "backbone": None, "batch_size": 64}
    write_markers(out, arguments, commands)
    return out


def write_markers(out: Path, arguments: dict, commands: dict[str, str], **changes) -> None:
    """`run.json` and the markers of a run all of whose steps are done."""
    about = {
        "arguments": arguments,
        "versions": {"vaemotionllm": "0.1.0", "torch": "2.11.0"},
        "configs": {"stage1_nano": "0"},
        "machine": {"cpus": 2, "platform": "Linux"},
        "arithmetic": {"MKL_CBWR": "COMPATIBLE"},
        "commands": commands,
    }
    (out / "run.json").write_text(json.dumps(about | changes))
    (out / "steps").mkdir()
    for index, (name, command) in enumerate(commands.items()):
        marker = {
            "title": name,
            "command": command,
            "done": True,
            "wall_s": 10.0 + index,
            "peak_rss_mb": 500.0 + index,
        }
        (out / "steps" / f"{name}.json").write_text(json.dumps(marker))


def copy_run(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
