"""The data set card of a built benchmark: what is in it, by which rules it was made, and how to evaluate on it."""

from collections.abc import Mapping
from typing import Any

import yaml

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# Identifiers of licences that the Hub knows and that manifests are likely to name; others are "other" with a name.
_HUB_LICENCES = frozenset(
    "apache-2.0 mit cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 "
    "cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 odbl pddl".split()
)


def card(info: Mapping[str, Any]) -> str:
    """README.md of a benchmark, from what its benchmark.json says; YAML front matter for the Hub."""
    matter = {
        "pretty_name": info["name"],
        **_licence(info["licenses"]),
        "task_categories": ["question-answering"],
        "tags": ["art", "emotion", "audio", "video", "image", "multiple-choice", "lmms-eval", "vaemotionllm"],
        "size_categories": [next((name for limit, name in _SIZES if info["items"] < limit), "n>1M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "test", "path": "data/test-*.parquet"}]}],
    }
    rules = info["rules"]
    lines = [
        "---",
        yaml.safe_dump(matter, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {info['name']}",
        "",
        *([info["description"], ""] if info["description"] else []),
        f"{info['items']} multiple-choice items about {info['clips']} clips, version {info['version']}: "
        f"{' and '.join(rules['aspects'])} under {', '.join(rules['modalities'])}. Every clip is asked about with the "
        "same options under each modality, so that modalities are compared in pairs. A sound carries no picture and a "
        "film no sound track; each item carries only what its modality may see.",
        "",
        "```bash",
        "vaemotionllm benchmark use OWNER/NAME",
        "lmms-eval --model vaemotionllm --model_args pretrained=MODEL --tasks artemo --output_path scores",
        "```",
        "",
        "## Answers",
        "",
    ]
    for aspect, answers in info["answers"].items():
        lines += [f"| {aspect} | questions |", "| --- | ---: |"]
        lines += [f"| {_cell(answer)} | {count} |" for answer, count in answers.items()] + [""]
    if info["art_forms"]:
        lines += [f"Art forms: {', '.join(info['art_forms'])}.", ""]
    lines += ["## Rules", "", f"- {rules['options']} options; each position holds the answer equally often."]
    if "content" in rules["aspects"]:
        pool = "of the same art form" + (", or of all where it has too few" * (rules["content_pool"] == "widen"))
        lines.append(f"- Content: distractors are contents {pool}.")
    if "emotion" in rules["aspects"]:
        bands = ", ".join(f"{low:g} to {high:g}" for low, high in rules["emotion_distances"])
        lines += [
            f"- Emotion: one distractor from each band of distances on the valence-arousal plane: {bands}. Where sets "
            "allow it, this holds whichever of the options is the answer, so that the rule does not tell it.",
            f"- A label that over {rules['max_vote_share']:.0%} of a clip's annotators chose is no distractor for it.",
            "- Where several annotators spoke, the answer is the strongest emotion, and `emotion_distribution` keeps "
            "the shares.",
            "",
            "| emotion | valence | arousal |",
            "| --- | ---: | ---: |",
            *(f"| {_cell(k)} | {v:.3f} | {a:.3f} |" for k, (v, a) in info["emotion_positions"].items()),
        ]
    lines.append("")
    if info["counts"]:
        lines += ["Left out or widened:", ""]
        lines += [f"- {name.replace('_', ' ')}: {count}" for name, count in info["counts"].items()] + [""]
    lines += ["## Licences of the clips", ""]
    lines += [f"- {name}: {count} clips" for name, count in info["licenses"].items()]
    return "\n".join(lines) + "\n"


def _licence(licences: Mapping[str, int]) -> dict[str, str]:
    if len(licences) == 1 and (name := next(iter(licences)).lower()) in _HUB_LICENCES:
        return {"license": name}
    return {"license": "other", "license_name": "per-clip"}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
