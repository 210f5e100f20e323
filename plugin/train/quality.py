"""Which of the teacher's responses teach, and how much: clips whose sound has nothing to do with what is seen teach
wrong hearing.

A rule names a score (see `teacher_scores`, or a number that the manifest has in a column of that name) and where it
counts nothing and where it counts in full:

    quality:
      grounding: {min: 0.02}            # below 0.02 dropped, else weight 1
      entropy: {max: 4.0, full: 2.5}    # above 4 dropped, weight rising to 1 at 2.5 and below
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.manifest import Clip
from ..utils import InputError
from .shard_store import Row

Rules = Mapping[str, Mapping[str, float]]
EMPTY = "empty response"


def check_rules(rules: Any) -> None:
    """Raises InputError where a rule is not {min or max: number, full: number} in that order of size."""
    if not isinstance(rules, Mapping):
        raise InputError(f"config field `quality` is {rules!r}; give rules such as {{grounding: {{min: 0.02}}}}.")
    for name, rule in rules.items():
        bounds = set(rule) - {"full"} if isinstance(rule, Mapping) else set()
        if bounds not in ({"min"}, {"max"}):
            raise InputError(
                f"config field `quality.{name}` is {rule!r}; give {{min: a}} or {{max: a}}, and `full` for a weight "
                "that rises from 0 at a to 1 at full."
            )
        for value in rule.values():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"config field `quality.{name}` holds {value!r}; a number is needed.")
        if "full" in rule and not (rule["full"] > rule["min"] if "min" in rule else rule["full"] < rule["max"]):
            raise InputError(f"config field `quality.{name}` is {dict(rule)}; `full` must lie beyond the threshold.")


def weight_of(score: float, rule: Mapping[str, float]) -> float:
    """Weight in [0, 1] that a rule gives a score."""
    sign, bound = (1, rule["min"]) if "min" in rule else (-1, rule["max"])
    above = sign * (score - bound)
    if "full" not in rule:
        return float(above >= 0)
    return min(max(above / (sign * (rule["full"] - bound)), 0.0), 1.0)


def columns_of(clips: Sequence[Clip], rules: Rules) -> dict[str, dict[str, Any]]:
    """Clip id -> the manifest's own columns that rules name."""
    return {clip.id: {name: value for name, value in clip.extra.items() if name in rules} for clip in clips}


def judge(rows: Sequence[Row], columns: Mapping[str, Mapping[str, Any]], rules: Rules) -> list[dict[str, Any]]:
    """Verdicts on the teacher's rows: id, slot, weight, reasons (what lowered the weight), scores.

    Args:
        rows: see `teacher`.
        columns: see `columns_of`.
        rules: score -> threshold.

    A rule whose score a row does not have, such as the agreement of frames for a picture, leaves the weight as it is
    and is counted in the report. An empty response has weight 0.

    Raises:
        InputError: a rule names a score that no row and no clip has, or a column that holds no number.
    """
    verdicts: list[dict[str, Any]] = []
    known: set[str] = set()
    for row in rows:
        found = {**columns[row["id"]], **row["scores"]}
        known |= found.keys()
        scores = {name: value for name, value in found.items() if value is not None}
        weight, reasons = (0.0, [EMPTY]) if row["empty"] else (1.0, [])
        for name, rule in rules.items():
            if name not in scores:
                continue
            value = scores[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"clip {row['id']!r}: its column `{name}` is {value!r}; a finite number is needed.")
            factor = weight_of(scores[name], rule)
            weight *= factor
            if factor < 1:
                reasons.append(name)
        verdicts.append({"id": row["id"], "slot": row["slot"], "weight": weight, "reasons": reasons, "scores": scores})
    for name in rules:
        if name not in known:
            raise InputError(
                f"config field `quality` has a rule for `{name}`, which is no score of the teacher's responses and no "
                f"column of the manifest. Scores are {', '.join(sorted(known)) or 'none'}; more by `teacher_scores`."
            )
    return verdicts


def summary(verdicts: Sequence[Mapping[str, Any]], rules: Rules) -> dict[str, Any]:
    """What the gate did, for the report: counts, reasons, quantiles of each score."""
    dropped = [verdict for verdict in verdicts if verdict["weight"] == 0]
    kept = {verdict["id"] for verdict in verdicts if verdict["weight"] > 0}
    scores: dict[str, list[float]] = {}
    for verdict in verdicts:
        for name, value in verdict["scores"].items():
            scores.setdefault(name, []).append(value)
    return {
        "rules": {name: dict(rule) for name, rule in rules.items()},
        "responses": len(verdicts),
        "responses_dropped": len(dropped),
        "responses_weighted": sum(0 < verdict["weight"] < 1 for verdict in verdicts),
        "clips": len({verdict["id"] for verdict in verdicts}),
        "clips_dropped": sorted({verdict["id"] for verdict in verdicts} - kept),
        "dropped_by": dict(Counter(reason for verdict in dropped for reason in verdict["reasons"]).most_common()),
        "without_score": {name: sum(name not in verdict["scores"] for verdict in verdicts) for name in rules},
        "quantiles": {name: _quantiles(values) for name, values in sorted(scores.items())},
    }


def write_report(folder: Path, verdicts: Sequence[Mapping[str, Any]], rules: Rules) -> dict[str, Any]:
    """`quality.md` for people, `quality.json`, and `quality.jsonl` with every verdict. Returns the summary."""
    found = summary(verdicts, rules)
    (folder / "quality.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    with open(folder / "quality.jsonl", "w", encoding="utf-8") as out:
        out.writelines(json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in verdicts)
    lines = [
        "# Teacher quality", "",
        f"{found['responses']} responses to {found['clips']} clips; {found['responses_dropped']} responses dropped, "
        f"{found['responses_weighted']} with a lower weight, {len(found['clips_dropped'])} clips left with none. "
        "Every verdict is in `quality.jsonl`.", "",
        "| rule | threshold | dropped | without this score |", "| --- | --- | ---: | ---: |",
    ]  # fmt: skip
    for name, rule in rules.items():
        threshold = ", ".join(f"{key} {value:g}" for key, value in rule.items())
        lines.append(f"| {name} | {threshold} | {found['dropped_by'].get(name, 0)} | {found['without_score'][name]} |")
    lines += [f"| {EMPTY} | | {found['dropped_by'].get(EMPTY, 0)} | |", ""]
    lines += ["| score | lowest | 5% | 25% | median | 75% | 95% | highest |", "| --- |" + " ---: |" * 7]
    lines += [f"| {name} | " + " | ".join(f"{v:.3g}" for v in q) + " |" for name, q in found["quantiles"].items()]
    dropped = [verdict for verdict in verdicts if verdict["weight"] == 0]
    lines += ["", f"## Dropped ({len(dropped)}, the first 50)", "", "| clip | slot | why | scores |"]
    lines += ["| --- | ---: | --- | --- |"]
    for verdict in dropped[:50]:
        scores = ", ".join(f"{name} {value:.3g}" for name, value in verdict["scores"].items())
        lines.append(f"| {verdict['id']} | {verdict['slot']} | {', '.join(verdict['reasons'])} | {scores} |")
    (folder / "quality.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


def _quantiles(values: Sequence[float]) -> list[float]:
    return np.quantile(np.asarray(values, float), [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).round(5).tolist()
