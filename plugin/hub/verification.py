"""Checks a model folder against what it says of itself: its hashes, its form, and what was recorded of it.

Each check comes only after those that it rests on: nothing is loaded of a folder whose files were altered or whose
form is broken, and nothing is run of its code unless the caller trusts it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..utils import InputError
from .folder_checks import altered_files, check_is_model, format_problems
from .opening import Unusable, exact_arithmetic, open_model, open_processor, usable_device
from .recording import (
    READINGS,
    Recording,
    assemble,
    encode,
    generate,
    of_logits,
    read_recording,
    read_settings,
    run_case,
)
from .tolerances import DTYPES, PROCESSOR, READINGS_SHARE, tolerance_of

AGREES, DISAGREES, NOT_CHECKED = "agrees", "disagrees", "not checked"
_NO_MANIFEST = "the folder has no reproducibility.json, which lists the hashes of its files; `push` writes one"
_NO_RECORDING = "the folder has no verification.json, which holds recorded outputs; `verify DIR --record` writes one"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: what.
        result: `AGREES`, `DISAGREES` or `NOT_CHECKED`.
        difference: the largest one found, in the units of `tolerance`; None where the check has no measure.
        tolerance: the largest one allowed.
        notes: what disagrees, or why it was not checked, a sentence each.
        count: how many of how many are alike, where that is counted.
    """

    name: str
    result: str
    difference: float | None = None
    tolerance: float | None = None
    notes: tuple[str, ...] = ()
    count: tuple[int, int] | None = None


@dataclass(frozen=True)
class Verification:
    """checks: in the order in which they were made. facts: dtype, attention backend and device that were used, and
    those and the versions of the recording; only what is known."""

    checks: tuple[Check, ...]
    facts: dict[str, Any]

    @property
    def agrees(self) -> bool:
        """Whether all that was checked agrees."""
        return all(check.result != DISAGREES for check in self.checks)


def verify(
    folder: Path,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    left: Sequence[str] = (),
) -> Verification:
    """Looks at everything but the recorded evaluation, see `recorded_evaluation`.

    Args:
        folder: a model folder.
        dtype: of the weights, one of `DTYPES`; float32 on a CPU, else what the checkpoint says.
        attn_implementation: attention backend; the library's choice if not given.
        device: the first GPU, or the CPU where there is none.
        trust_remote_code: run the modelling files of the folder in place of this package's.
        left: names of files of the same model that were not fetched since they may be pickles.

    Raises:
        InputError: no model folder; a dtype, backend or device that cannot be used.
    """
    if dtype is not None and attn_implementation is not None:
        tolerance_of(dtype, attn_implementation)
    elif dtype is not None and dtype not in DTYPES:
        raise InputError(f"the dtype is {dtype!r}; allowed are {', '.join(DTYPES)}.")
    place = usable_device(device)
    check_is_model(folder)
    checks = [_files_check(folder)]
    if checks[0].result == DISAGREES:
        return _stopped(checks, ("format", "recording", "weights"), "files disagree, so nothing of them is loaded")
    problems = [*format_problems(folder), *(f"{name} is in the repository and may hold a pickle." for name in left)]
    checks.append(_told("format", problems))
    if problems:
        return _stopped(checks, ("recording", "weights"), "the format disagrees, so nothing is loaded")
    try:
        recording = read_recording(folder)
        checks.append(
            _told("recording", (), NOT_CHECKED, (_NO_RECORDING,)) if recording is None else _told("recording")
        )
    except Unusable as error:
        recording = None
        checks.append(_told("recording", (str(error),)))
    facts: dict[str, Any] = {} if recording is None else {"recorded": _recorded_facts(recording)}
    checks += [] if recording is None else [_told("settings", changed_settings(folder, recording))]
    try:
        processor = open_processor(folder, trust_remote_code)
        checks += [] if recording is None else processor_checks(processor, recording)
    except Unusable as error:
        processor = None
        checks.append(_told("processor", (str(error),)))
    try:
        wanted = dtype or ("float32" if place.type == "cpu" else "auto")
        model = open_model(folder, wanted, attn_implementation, place, trust_remote_code)
    except Unusable as error:
        return Verification((*checks, _told("weights", (str(error),))), facts)
    checks.append(_told("weights"))
    facts |= {
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": attn_implementation or str(model.vlm.config._attn_implementation),
        "device": str(model.device),
    }
    if recording is not None:
        tolerance = tolerance_of(facts["dtype"], facts["attn_implementation"])
        checks += model_checks(model, processor, recording, tolerance)
    return Verification(tuple(checks), facts)


def changed_settings(folder: Path, recording: Recording) -> list[str]:
    """One sentence for each recorded value of the config files that is another now. What was added does not count."""
    now = read_settings(folder)
    return [
        f"{file}: {name} is {now.get(file, {}).get(name, 'missing')!r}, recorded was {value!r}."
        for file, values in recording.about["settings"].items()
        for name, value in values.items()
        if name not in now.get(file, {}) or now[file][name] != value
    ]


def processor_checks(processor, recording: Recording) -> list[Check]:
    """Whether the processor makes the recorded tensors of the recorded media and conversations."""
    checks: list[Check] = []
    features: dict[str, Any] = {}
    for name, kind in recording.about["media"].items():
        content = bytes(recording.tensors[f"media/{name}"].numpy())
        try:
            features |= encode(processor, {name: (kind, content)})
        except (InputError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            checks.append(_told(f"processor: {name}", (f"it cannot be encoded ({error}).",)))
            continue
        checks.append(_compared(f"processor: {name}", recording.part(f"features/{name}"), features[name].inputs,
                                PROCESSOR[kind]))  # fmt: skip
    for case in recording.cases:
        name = f"processor: ids of {case.name}"
        if any(medium not in features for row in case.rows for medium in row.media):
            checks.append(_told(name, (), NOT_CHECKED, ("a medium of it cannot be encoded",)))
            continue
        try:
            found = assemble(processor, case, features)
            checks.append(_compared(name, recording.part(f"inputs/{case.name}"), found, 0.0))
        except (InputError, ValueError, RuntimeError, TypeError, KeyError) as error:
            checks.append(_told(name, (f"the conversation cannot be encoded ({error}).",)))
    return _together(checks, "processor: ids of ", "processor: ids")


def model_checks(model, processor, recording: Recording, tolerance: float) -> list[Check]:
    """Whether the model gives the recorded outputs for the recorded inputs, whatever the processor makes now."""
    checks, readings = [], []
    spreads = {case["name"]: float(case["spread"]) for case in recording.about["cases"]}
    with torch.inference_mode(), exact_arithmetic():
        for case in recording.cases:
            expected, name = recording.part(f"outputs/{case.name}"), f"logits: {case.name}"
            try:
                logits, found_readings = run_case(model, recording.inputs(case), case.use_adapter)
                found = of_logits(logits, recording.tensors["vocabulary_ids"], expected["top_ids"])
            except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
                checks.append(_told(name, (f"the model cannot be run on it ({' '.join(str(error).split())}).",)))
                continue
            scale = max(spreads[case.name], 1e-9)
            of_readings = {key: expected.pop(key) for key in READINGS if key in expected}
            checks.append(_compared(name, expected, found, tolerance, scale))
            readings.append(
                _compared(f"readings: {case.name}", of_readings, found_readings, tolerance * READINGS_SHARE)
            )
        checks += _together(readings, "readings: ", "valence, arousal, emotions")
        generated = recording.about["generation"]["case"]
        chosen = next((case for case in recording.cases if case.name == generated), None)
        if chosen is not None and processor is not None and all(check.result == AGREES for check in checks):
            ids, _ = generate(model, processor, recording.inputs(chosen))
            checks.append(generation_check(recording, ids, tolerance * spreads[chosen.name]))
        else:
            checks.append(_told("generation", (), NOT_CHECKED, ("what it rests on disagrees",)))
    return checks


def generation_check(recording: Recording, found: torch.Tensor, tolerance: float) -> Check:
    """Whether greedy decoding gives the recorded tokens.

    Args:
        found: (B, N) token ids.
        tolerance: of a logit, absolute. Where the two best of the recording were nearer than twice that, rounding may
            choose the other: all before counts, and what follows in that row is another text and is not compared.
    """
    expected, margins = recording.tensors["generation/ids"], recording.tensors["generation/margins"]
    if found.shape != expected.shape:
        note = f"{tuple(found.shape)} tokens were generated, {tuple(expected.shape)} recorded."
        return _told("generation", (note,))
    alike, notes, fine = 0, [], True
    for row, (was, now, margin) in enumerate(zip(expected.tolist(), found.tolist(), margins.tolist())):
        agreed = next((k for k, (a, b) in enumerate(zip(was, now)) if a != b), len(was))
        alike += agreed
        if agreed < len(was):
            near = margin[agreed] <= 2 * tolerance
            fine = fine and near
            why = (
                "where the two best tokens are within rounding" if near else f"with {margin[agreed]:.3g} between them"
            )
            notes.append(f"row {row} agrees up to token {agreed} of {len(was)}, {why}.")
    return Check("generation", AGREES if fine else DISAGREES, notes=tuple(notes), count=(alike, expected.numel()))


def largest_difference(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], scale: float = 1.0
) -> tuple[float, list[str]]:
    """The largest difference of any value, divided by `scale`, and what cannot be compared, a sentence each.

    A value that is not a number has to be so on both sides: a reading that a sample lacks. Label logits are divided by
    their own spread where that is above 1.
    """
    notes: list[str] = []
    if missing := sorted(expected.keys() - found.keys()):
        notes.append(f"{', '.join(missing)} is missing.")
    if added := sorted(found.keys() - expected.keys()):
        notes.append(f"{', '.join(added)} was not there.")
    largest = 0.0
    for name in expected.keys() & found.keys():
        was, now = expected[name].double(), found[name].double()
        if was.shape != now.shape:
            notes.append(f"{name} has shape {tuple(now.shape)}, recorded was {tuple(was.shape)}.")
            continue
        both = was.isfinite() & now.isfinite()
        if not ((was == now) | (was.isnan() & now.isnan()))[~both].all():
            notes.append(f"{name} holds other values that are not finite than the recorded ones.")
        if both.any():
            of = max(float(was[both].std(unbiased=False)), 1.0) if name == "emotion_logits" else scale
            largest = max(largest, float((was - now)[both].abs().max()) / of)
    return largest, notes


def _compared(name: str, expected, found, tolerance: float, scale: float = 1.0) -> Check:
    difference, notes = largest_difference(expected, found, scale)
    fine = not notes and difference <= tolerance
    return Check(name, AGREES if fine else DISAGREES, difference, tolerance, tuple(notes))


def _together(checks: Sequence[Check], prefix: str, name: str) -> list[Check]:
    """The checks with those whose names begin with `prefix` as one, the worst of them, at the end."""
    ours = [check for check in checks if check.name.startswith(prefix)]
    others = [check for check in checks if not check.name.startswith(prefix)]
    if not ours:
        return others
    order = (DISAGREES, NOT_CHECKED, AGREES)
    result = min((check.result for check in ours), key=order.index)
    notes = [
        f"{check.name.removeprefix(prefix)}: {' '.join(check.notes) or f'{check.difference:.3g} apart.'}"
        for check in ours
        if check.result == result != AGREES
    ]
    differences = [check.difference for check in ours if check.difference is not None]
    tolerances = [check.tolerance for check in ours if check.tolerance is not None]
    largest = max(differences, default=None)
    return [*others, Check(name, result, largest, max(tolerances, default=None), tuple(notes))]


def _files_check(folder: Path) -> Check:
    try:
        altered = altered_files(folder)
    except InputError as error:  # the list itself cannot be read
        altered = [str(error)]
    return _told("files", (), NOT_CHECKED, (_NO_MANIFEST,)) if altered is None else _told("files", altered)


def _told(name: str, problems: Iterable[str] = (), result: str = AGREES, notes: Iterable[str] = ()) -> Check:
    """A check without a measure: it disagrees where there are problems."""
    problems = tuple(problems)
    return Check(name, DISAGREES if problems else result, notes=problems or tuple(notes))


def _stopped(checks: Sequence[Check], rest: Sequence[str], why: str) -> Verification:
    return Verification((*checks, *(_told(name, (), NOT_CHECKED, (why,)) for name in rest)), {})


def _recorded_facts(recording: Recording) -> dict[str, Any]:
    names = ("dtype", "attn_implementation", "device", "versions")
    return {name: recording.about[name] for name in names if name in recording.about}
