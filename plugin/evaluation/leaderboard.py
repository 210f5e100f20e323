"""The report about one or many models, from lmms-eval's result files: all figures as one dictionary, and its files.

Models stand beside each other only where they were asked the same items. Where they were asked of another revision of
the data, in other words or with other decoding, the report says so above its leaderboard.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils import InputError
from .benchmark_rows import BenchmarkRows, find_rows
from .compare import as_json, compare_task, refuse_missing_items
from .leaderboard_pins import metadata_of, pins_of
from .leaderboard_scores import CELL_TASKS, VA_TASKS, missing_of, scores_of
from .leaderboard_words import LONGEST_NAME, WAY_WORDS, cut_short
from .steps import STATE_FILE
from .task_samples import Evaluation, read_evaluation

FORMAT = 1
KIND = "evaluations"
INTERVAL_NOTE = (
    "Brackets are 95% intervals: Wilson's for an accuracy with one question a clip, else a bootstrap that draws whole "
    "clips (10,000 draws), the same ones for both sides of a difference. They cover the choice of clips alone."
)


def read_models(paths: Sequence[Path], names: Sequence[str] | None = None) -> dict[str, Evaluation]:
    """The evaluations by the names of their models.

    Args:
        paths: folders that `lmms-eval --output_path` was given, or `*_results.json` files in them.
        names: one a path; else what the results files call the models, as short as tells them apart.

    Raises:
        InputError: see `read_evaluation`; two names are equal, or their number is another; the models were asked other
            items.
    """
    if names is not None and len(names) != len(paths):
        raise InputError(f"--names has {len(names)} names for {len(paths)} results; give one for each, in order.")
    evaluations = [read_evaluation(path) for path in paths]
    if names is None:
        names = [str(e.results.get("model_name") or e.model) for e in evaluations]
        short = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
        names = short if len(set(short)) == len(short) else names
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InputError(
            f"several results are of a model called {twice[0]!r}; give each a name of its own by --names."
        )
    models = dict(zip(names, evaluations, strict=True))
    for number, other in enumerate(evaluations):
        for first in evaluations[:number]:
            for task in first.tasks:
                if task in other.tasks:
                    refuse_missing_items(first, other, task)
    return models


def build(models: Mapping[str, Evaluation], rows: BenchmarkRows | None, no_rows: str) -> dict[str, Any]:
    """All figures of the report.

    Args:
        models: label -> evaluation, see `read_models`.
        rows: the benchmark's items, or None.
        no_rows: why there are none.

    Returns:
        What `report.json` holds: "models" (label -> `scores_of`, "pins", "minus_first": paired differences of cells
        and valence-arousal tasks from the first model), "notices" (what tells that figures are not of one kind),
        "benchmark", "benchmark_missing" (why breakdown by art form and examples are left out, or None).
    """
    art_forms = rows.art_forms if rows else None
    entries = {
        label: {"pins": pins_of(evaluation), **scores_of(evaluation, art_forms)}
        for label, evaluation in models.items()
    }
    (first_label, first), *others = models.items()
    entries[first_label]["minus_first"] = None
    for label, evaluation in others:
        entries[label]["minus_first"] = {
            task: compare_task(first.tasks[task], evaluation.tasks[task])["difference"]
            for task in (*CELL_TASKS.values(), *VA_TASKS.values())
            if task in first.tasks and task in evaluation.tasks
        }
    return {
        "format": FORMAT,
        "kind": KIND,
        "benchmark": entries[first_label]["pins"]["benchmark"],
        "benchmark_missing": None if rows else no_rows,
        "notices": notices(models, {label: entry["pins"] for label, entry in entries.items()}),
        "intervals": INTERVAL_NOTE,
        "models": entries,
    }


def notices(models: Mapping[str, Evaluation], pins: Mapping[str, dict]) -> list[str]:
    """What a reader must know before the first figure."""
    found = list(dict.fromkeys(n for e in models.values() if (n := metadata_of(e).get("notice"))))
    for name, words in (("name", "benchmarks"), ("version", "versions of the benchmark"), ("sha256", "items files")):
        stated = {label: of["benchmark"][name] for label, of in pins.items() if of["benchmark"][name]}
        if len(set(stated.values())) > 1:
            each = ", ".join(f"{label} {str(value)[:LONGEST_NAME]}" for label, value in stated.items())
            found.append(f"The models were asked of different {words}: {each}.")
    scoring: dict[str, list[str]] = {}
    for label, of in pins.items():
        scoring.setdefault(of["scoring"] or "generate", []).append(label)
    if len(scoring) > 1:
        each = "; ".join(f"{name}: {', '.join(labels)}" for name, labels in scoring.items())
        found.append(f"The models were scored in different ways ({each}), and such scores do not compare.")
    for name, words in WAY_WORDS.items():
        stated = {label: of[name] for label, of in pins.items() if of[name] is not None}
        if len(set(stated.values())) > 1:
            each = ", ".join(f"{label} {cut_short(str(value))}" for label, value in stated.items())
            found.append(f"The models were not run alike ({words}: {each}).")
    unstated = [label for label, of in pins.items() if not of["benchmark"]["sha256"]]
    if unstated:
        found.append(f"The results of {', '.join(unstated)} do not state the revision of the data.")
    for name, words in (("prompt_sha256", "other words"), ("generation", "other decoding")):
        odd: dict[tuple[str, str], list[str]] = {}
        tasks = dict.fromkeys(task for of in pins.values() for task in of["tasks"])
        for task in tasks:
            of_task = {label: of["tasks"][task][name] for label, of in pins.items() if task in of["tasks"]}
            first = next(iter(of_task.values()))
            for label, value in of_task.items():
                if value != first:
                    odd.setdefault((next(iter(of_task)), label), []).append(task)
        for (one, other), where in odd.items():
            found.append(f"{other} was asked with {words} than {one} in {', '.join(where)}.")
    for label, of in pins.items():
        missing = sum(missing_of(samples) for samples in models[label].tasks.values())
        if missing:
            found.append(
                f'{label} was not asked {missing} questions, whose media could not be read: they are "missing" and '
                "count as not right."
            )
        cut = [task for task, facts in of["tasks"].items() if facts["documents"] < facts["documents_of_task"]]
        if cut:
            facts = of["tasks"][cut[0]]
            found.append(
                f"{label} answered a part of the questions only (--limit): {facts['documents']} of "
                f"{facts['documents_of_task']} in {cut[0]}" + (f", and {len(cut) - 1} more tasks." if cut[1:] else ".")
            )
    return found


def write(models: Mapping[str, Evaluation], out: Path, benchmark: str | None = None) -> dict[str, Any]:
    """Writes `report.json`, `report.md` with its figures, and `report.html` into a folder.

    Args:
        models: label -> evaluation, see `read_models`.
        out: the folder, made if need be.
        benchmark: where the benchmark is, see `find_rows`.

    Returns:
        The content of `report.json`.

    Raises:
        InputError: `benchmark` is not the one that was asked, or matplotlib is not installed; nothing has been written
            then. Or the folder cannot be written.
    """
    from . import leaderboard_text, report_blocks
    from .figures import require_matplotlib

    require_matplotlib()
    if (out / STATE_FILE).is_file():
        raise InputError(
            f"{out} is the folder of a finished `vaemotionllm demo`, whose own report stands there; name another by "
            "--out."
        )
    rows, reason = find_rows(list(models.values()), benchmark)
    report = build(models, rows, reason)
    # Rendered before the first file is written, so that an error leaves no half report.
    blocks = leaderboard_text.blocks_of(report, models, rows)
    pictures = report_blocks.files_of(blocks)
    report["figures"] = sorted(pictures)
    files = {
        out / "report.json": (as_json(report) + "\n").encode(),
        out / "report.md": report_blocks.to_markdown(blocks).encode(),
        out / "report.html": report_blocks.to_html(leaderboard_text.title(report), blocks).encode(),
        **{out / "figures" / name: content for name, content in pictures.items()},
    }
    try:
        # Of an earlier report about more models.
        old = {out / "figures" / name for name in figures_of(out / "report.json")} - set(files)
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_bytes(content)
            os.replace(temporary, path)
        for path in old:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"the report cannot be written into {out} ({error}); name another folder by --out."
        ) from error
    return report


def figures_of(file: Path) -> list[str]:
    """The names of the figures that an earlier `report.json` of this kind lists; none where there is none."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return []
    if not isinstance(report, dict) or report.get("kind") != KIND:
        return []
    return [name for name in report.get("figures", []) if Path(str(name)).name == name and name.endswith(".png")]
