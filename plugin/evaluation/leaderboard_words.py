"""Words, notes and cells that the parts of the report about models share."""

import math
from collections.abc import Iterable, Mapping

from ..benchmark.schema import ASPECTS
from ..model.configuration_vaemotionllm import MODALITIES
from . import plots
from .report_blocks import Cell
from .report_words import CONTROL_WORDS, MODALITY_WORDS, percent, small_share, span

NOT_RUN, NOT_STATED = "not run", "not stated"
SOUND_WORDS = {"own": "the clip's own sound", **CONTROL_WORDS, "blind": "nothing at all"}
FOLLOW_WORDS = {
    "follows_sight": "follows sight", "follows_sound": "follows sound", "neither": "another option",
    "unparsable": "no option", "missing": "missing",
}  # fmt: skip
CELL_WORDS = {f"{aspect}_{path}": f"{aspect}, {MODALITY_WORDS[path]}" for aspect in ASPECTS for path in MODALITIES}
SHORT_WORDS = {
    f"{aspect}_{path}": f"{aspect}, {plots.MODALITY_LABELS[path]}" for aspect in ASPECTS for path in MODALITIES
}

# Facts of a run that change its answers, as the pins call them: where they differ, figures do not compare.
WAY_WORDS = {
    "system_instruction": "system instruction", "chat_template_sha256": "hash of the chat template",
    "num_fewshot": "examples before a question", "num_frames": "frames of a film, at most",
    "sampling_rate_hz": "sampling rate, Hz", "max_audio_s": "longest sound, s", "use_adapter": "use_adapter",
}  # fmt: skip
# Of a longer name a part is shown, where the whole would leave no room.
LONGEST_NAME = 40


def cut_short(value: str) -> str:
    return value if len(value) <= LONGEST_NAME else f"{value[:LONGEST_NAME]}..."


def short_names(names: Iterable[str]) -> list[str]:
    """Names for figures: of long ones the middle is left out; those that would then be equal are numbered there."""
    found: list[str] = []
    for name in names:
        half = (LONGEST_NAME - 3) // 2
        short = name if len(name) <= LONGEST_NAME else f"{name[:half]}...{name[-half:]}"
        number = 1
        while short in found:
            number += 1
            short = f"{name[: half - 2]}..{number}..{name[-half + 2 :]}"
        found.append(short)
    return found


def score_parts(cell: dict) -> tuple[str, str, str]:
    """An accuracy, its interval, and the shares of answers without an option and of missing ones, where there are."""
    unclear = [f"no option: {small_share(cell['unparsable'])}"] if cell["unparsable"] else []
    unclear += [f"missing: {small_share(cell['missing'])}"] if cell.get("missing") else []
    return percent(cell["accuracy"]), span(cell["ci95"]), ", ".join(unclear)


def score(cell: dict | None) -> Cell:
    """The parts of a score, or that it was not run."""
    return NOT_RUN if cell is None else score_parts(cell)


def counted(cell: dict | None) -> Cell:
    """A score with the number of questions, where some are in this group."""
    if cell is None:
        return "none"
    main, interval, unclear = score_parts(cell)
    return main, f"{interval} of {cell['n']}", unclear


def difference(found: dict, plain: bool = False) -> Cell:
    """A difference and its interval, of shares in points, or `plain` as it is."""
    if math.isnan(found["value"]):
        return "not defined"
    if plain:
        low, high = found["ci95"]
        return f"{found['value']:+.2f}", f"[{low:+.2f}, {high:+.2f}]"
    return f"{100 * found['value']:+.1f}", span(found["ci95"], signed=True)


def commands(entries: Mapping[str, dict]) -> str:
    """The commands of all models, one a line."""
    return "\n".join(
        entry["pins"]["command"] or f"# {label}: the command is {NOT_STATED}" for label, entry in entries.items()
    )
