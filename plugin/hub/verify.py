"""Recorded outputs of a model, and the checks that a folder still gives them: hashes, parts, processor, logits, text.

`verification.json` holds what was recorded and by which versions; `verification.safetensors` holds the bytes of small
media, the tensors that the processor made of them, and the model's outputs. All of a large vocabulary would be
megabytes a position: logits are kept at the last positions of each row, for a fixed draw of the vocabulary and for the
most probable tokens, beside the log-sum-exp over all.

Each check comes only after those that it rests on: nothing is loaded of a folder whose files were altered or whose
parts are damaged, and no code of the folder runs.
"""

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import revert_weight_conversion

from .. import __version__
from ..model.emotion_prediction import PROMPT
from ..model.loading import check_model_folder, load_model, load_processor
from ..nano.clips import Clip, WorldConfig, sample_clip
from ..nano.world import write_clip
from ..utils import InputError, atomic_file, read_json, sha256_of_file, write_json
from . import model_folder
from .model_folder import RECORDED, REPRODUCIBILITY, loaded, one_line

# ---- tolerances

# How far logits may be from the recorded ones, by dtype, as a share of their spread (the standard deviation over the
# vocabulary). All values are ours. A recording is made in float32 on a CPU with eager attention. What is computed
# elsewhere adds in another order, and in half precision rounds each product: the unit roundoff is 6e-8 in float32,
# 5e-4 in float16 and 4e-3 in bfloat16. Through the layers of an LLM that grows to some tens of units at the worst of
# the recorded logits. For the model of the demo the largest difference on a CPU is about a tenth of the tolerances of
# half precision, and a hundredth of that of float32; the rest is for deeper models and for the kernels of other
# devices and attention backends. It hides small changes, which the files' hashes show.
TOLERANCES = {"float32": 2e-4, "float16": 0.04, "bfloat16": 0.3}
# Of the Supervisor's outputs: they are means over tokens, squeezed into [-1, 1].
EMOTION_SHARE = 0.25
# Between processor and recording, in the units of the features. One grey level of 255, divided by the standard
# deviation of the pixels (0.22 and more), is at most 0.018: a decoder or a resize of another version may round the
# other way. Log-mel energies are float32 sums over a window.
PROCESSOR = {"image": 0.02, "video": 0.02, "audio": 1e-3}

# ---- what is recorded

FORMAT = 2
JSON_FILE, TENSOR_FILE = RECORDED
ATTENTION = "eager"
POSITIONS, VOCABULARY_IDS, TOP, NEW_TOKENS = 4, 256, 8, 8
EMOTION_OUTPUTS = ("valence", "arousal", "emotion_logits")
PACKAGES = ("torch", "torchaudio", "transformers", "tokenizers")
# 12 kHz is the rate of no audio tower: the audio is resampled, as most that users have.
WORLD = WorldConfig(seed=0, clip_s=1.0, sampling_rate=12_000)
# Of another length than the prompt for emotion, so that the mixed batch is padded by more than media.
TEXT = "What is seen or heard here, and which emotion does it express?"  # words: a prompt, fixed
ROWS: list[dict[str, Any]] = [
    {"media": [], "text": TEXT},
    *({"media": media, "text": PROMPT} for media in (["image"], ["video"], ["audio"], ["image", "audio"])),
]
MIXED = "mixed batch"
# Batches of conversations, padded on the left, each of one pass through the model, with EmoAdapter or without.
CASES: list[dict[str, Any]] = [
    *({"name": " and ".join(row["media"]) or "text", "use_adapter": True, "rows": [row]} for row in ROWS),
    {"name": MIXED, "use_adapter": True, "rows": ROWS},
    {"name": f"{MIXED}, adapter off", "use_adapter": False, "rows": ROWS},
]


@dataclass(frozen=True)
class Recording:
    """The content of verification.json and of verification.safetensors, see `record`."""

    about: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors below a prefix, without it."""
        start = f"{prefix}/"
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def inputs(self, case: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The model inputs of a case, as the processor gave them."""
        return self.part(f"inputs/{case['name']}") | joined([self.part(f"features/{kind}") for kind in media_of(case)])


def record(folder: Path) -> None:
    """Writes verification.json and verification.safetensors into a saved model folder, in place of earlier ones.

    The model is loaded in float32 on the CPU: 4 bytes a parameter of memory.

    Raises:
        InputError: the folder holds no whole model, its logits are not finite, or its files are listed in a
            reproducibility.json already.
    """
    check_model_folder(folder.absolute())
    if (folder / REPRODUCIBILITY).is_file():
        raise InputError(f"{folder} holds a {REPRODUCIBILITY}, which lists its files; remove it and record again.")
    model, processor = load_model(str(folder), "cpu", "float32", ATTENTION), load_processor(str(folder))
    tensors: dict[str, torch.Tensor] = {}
    features = {}
    for kind, content in make_media().items():
        tensors[f"media/{kind}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        features[kind] = processor.encode_media(kind, content)
        tensors |= {f"features/{kind}/{name}": value for name, value in features[kind].inputs.items()}
    cases = []
    for case in CASES:
        name, ids = case["name"], assembled(processor, case, features)
        inputs = ids | joined([features[kind].inputs for kind in media_of(case)])
        logits, emotions = outputs_of(model, inputs, case["use_adapter"])
        if "vocabulary_ids" not in tensors:
            drawn = torch.randperm(logits.shape[-1], generator=torch.Generator().manual_seed(0))
            tensors["vocabulary_ids"] = drawn[:VOCABULARY_IDS].sort().values
        top_ids = logits.topk(min(TOP, logits.shape[-1])).indices
        spread = float(logits.std(-1).mean())
        if not logits.isfinite().all() or not spread > 0:
            raise InputError(
                f"the model of {folder} gives logits that are not finite, or all the same, for the input {name!r}; "
                "nothing could be compared with them. Look for NaN in its weights."
            )
        kept = kept_of(logits, tensors["vocabulary_ids"], top_ids) | emotions
        tensors |= {f"inputs/{name}/{key}": value for key, value in ids.items()}
        tensors |= {f"outputs/{name}/{key}": value for key, value in kept.items()}
        cases.append({**case, "spread": spread})
        if name == MIXED:
            tensors["generation/ids"], tensors["generation/margins"] = generated(model, inputs)
    about = {
        "format": FORMAT,
        "dtype": "float32",
        "attn_implementation": ATTENTION,
        "device": "cpu",
        "versions": {"vaemotionllm": __version__, **{name: version(name) for name in PACKAGES}},
        "cases": cases,
    }
    # The description comes last, with the hash of the tensors: a write that is cut off leaves no recording.
    (folder / JSON_FILE).unlink(missing_ok=True)
    with atomic_file(folder / TENSOR_FILE) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    write_json(folder / JSON_FILE, {**about, "tensors_sha256": sha256_of_file(folder / TENSOR_FILE)})


def read_recording(folder: Path) -> Recording | None:
    """The recording of a folder, None where it holds none.

    Raises:
        InputError: it is of another format, incomplete, or its two files are not of one recording.
    """
    if not any((folder / name).is_file() for name in RECORDED):
        return None
    about = read_json(folder / JSON_FILE, "the description of recorded outputs")
    if about.get("format") != FORMAT:
        raise InputError(
            f"{JSON_FILE} has format {about.get('format')!r}; this release knows format {FORMAT}. Upgrade the package "
            "vaemotionllm where it is newer, or record again."
        )
    try:
        if sha256_of_file(folder / TENSOR_FILE) != about["tensors_sha256"]:
            raise InputError(f"{TENSOR_FILE} is not the file that {JSON_FILE} describes.")
        if not about["cases"] or not all(0 < float(case["spread"]) < float("inf") for case in about["cases"]):
            raise InputError(f"{JSON_FILE} lists no cases, or one whose spread of logits is no number above 0.")
        recording = Recording(about, load_file(folder / TENSOR_FILE))
        for case in about["cases"]:
            recording.inputs(case), case["use_adapter"], [row["text"] for row in case["rows"]]
        return recording
    except (OSError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(f"{JSON_FILE} or {TENSOR_FILE} lacks what a recording holds ({error!r}).") from error


def make_media() -> dict[str, bytes]:
    """Bytes of a PNG (56 px), an mp4 of 8 frames without audio and a WAV of 1 s at 12 kHz, by kind.

    The nano world draws and composes them from its seed; a recording holds the files, so that other releases and
    encoders change nothing.
    """

    def first(painting: bool) -> Clip:
        clips = (sample_clip(WORLD, "validation", index) for index in itertools.count())
        return next(clip for clip in clips if (clip.art_form == "painting") == painting)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        painting, moving = (write_clip(WORLD, first(kind), folder) for kind in (True, False))
        files = {"image": painting["image"], "video": moving["video"], "audio": painting["audio"]}
        return {kind: (folder / file).read_bytes() for kind, file in files.items()}


def media_of(case: Mapping[str, Any]) -> list[str]:
    """The kinds of a case's media, in order."""
    return [kind for row in case["rows"] for kind in row["media"]]


def assembled(processor, case: Mapping[str, Any], features: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What the processor makes of a case's conversations beside the media: ids, masks, token types."""
    conversations = [
        [{"role": "user", "content": [*({"type": k} for k in row["media"]), {"type": "text", "text": row["text"]}]}]
        for row in case["rows"]
    ]
    texts = processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
    encoded = [features[kind] for kind in media_of(case)]
    inputs = processor.assemble(texts, encoded, padding_side="left")
    of_media = {name for medium in encoded for name in medium.inputs}
    return {name: value for name, value in inputs.items() if name not in of_media}


def joined(media: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Inputs of several media in one batch: rows along the first axis, in order."""
    names = dict.fromkeys(name for inputs in media for name in inputs)
    return {name: torch.cat([inputs[name] for inputs in media if name in inputs]) for name in names}


def outputs_of(
    model, inputs: Mapping[str, torch.Tensor], use_adapter: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits (B, P, V) float32 at the last positions, and the emotion outputs that the model gives, on the CPU."""
    given = {name: value.to(model.device) for name, value in inputs.items()}
    with torch.inference_mode(), _exact():
        output = model(**given, use_adapter=use_adapter, use_cache=False, logits_to_keep=POSITIONS)
    emotions = {name: getattr(output, name) for name in EMOTION_OUTPUTS}
    return (
        output.logits[:, -POSITIONS:].float().cpu(),
        {name: value.float().cpu() for name, value in emotions.items() if value is not None},
    )


def _exact():
    """float32 stays float32: by default cuDNN rounds the factors of its convolutions to ten bits (TF32)."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=False)


def kept_of(logits: torch.Tensor, vocabulary: torch.Tensor, top_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is kept of logits (B, P, V): a part of the vocabulary (n,), `top_ids` (B, P, k), and the sum over all."""
    return {
        "logits": logits[..., vocabulary],  # (B, P, n)
        "top_ids": top_ids,
        "top_logits": logits.gather(-1, top_ids),  # (B, P, k)
        "logsumexp": logits.logsumexp(-1),  # (B, P)
    }


def generated(model, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy answers (B, N) int64 that continue over their end, and (B, N) float32 how far the second best token was
    behind; on the CPU."""
    given = {name: value.to(model.device) for name, value in inputs.items()}
    # What a checkpoint may say of sampling is named, or the library warns that a greedy search has no use for it.
    greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
    with torch.inference_mode(), _exact():
        output = model.generate(
            **given, **greedy, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, use_adapter=True,
            pad_token_id=0, return_dict_in_generate=True, output_scores=True,  # no row ends early to be padded
        )  # fmt: skip
    best = torch.stack(output.scores, dim=1).float().topk(2).values  # (B, N, 2)
    ids = output.sequences[:, given["input_ids"].shape[1] :]
    return ids.cpu(), (best[..., 0] - best[..., 1]).cpu()


# ---- checks

AGREES, DISAGREES, NOT_CHECKED = "agrees", "disagrees", "not checked"


@dataclass(frozen=True)
class Check:
    """One check and its result.

    Args:
        name: what was looked at.
        result: `AGREES`, `DISAGREES` or `NOT_CHECKED`.
        notes: what disagrees, or why it was not checked, a sentence each.
        difference: the largest one found, in the units of `tolerance`; None where the check has no measure.
        tolerance: the largest one allowed.
    """

    name: str
    result: str
    notes: tuple[str, ...] = ()
    difference: float | None = None
    tolerance: float | None = None


def verify(
    folder: Path,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    device: str | None = None,
    left: Sequence[str] = (),
) -> tuple[list[Check], dict[str, Any]]:
    """Checks a model folder against its hashes, its form and what was recorded of it.

    Args:
        folder: a model folder.
        dtype: of the weights, one of `TOLERANCES`; float32 on a CPU, else what the checkpoint says.
        attn_implementation: attention backend; the library's choice if not given.
        device: the first GPU, or the CPU where there is none.
        left: names of files of the same model that were not fetched since they may be model_folder.pickles.

    Returns:
        The checks in the order in which they were made; and dtype, attention backend and device that were used, with
        those and the versions of the recording as "recorded", as far as they are known.

    Raises:
        InputError: no model folder; a dtype, backend or device that cannot be used.
    """
    if dtype not in (None, *TOLERANCES):
        raise InputError(f"--dtype is {dtype!r}; allowed are {', '.join(TOLERANCES)}.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device!r} cannot be used here ({str(error).splitlines()[0]}).") from error
    check_model_folder(folder)
    run: dict[str, Any] = {}
    checks = [_files_check(folder)]
    if checks[0].result != DISAGREES:
        of_left = [f"{name} is in the repository and may hold a pickle." for name in left]
        checks.append(
            _simple("format", [*model_folder.pickles(folder), *model_folder.part_problems(folder), *of_left])
        )
    if checks[-1].result == DISAGREES:
        rest, why = ("format", "recording", "weights")[len(checks) - 1 :], f"{checks[-1].name}: see above"
        return [*checks, *(Check(name, NOT_CHECKED, (f"nothing is loaded; {why}",)) for name in rest)], run
    recording = None
    try:
        recording = read_recording(folder)
        why = f"the folder has no {JSON_FILE}, which holds recorded outputs; `verify DIR --record` writes one"
        checks.append(_simple("recording") if recording else Check("recording", NOT_CHECKED, (why,)))
    except InputError as error:
        checks.append(_simple("recording", [str(error)]))
    try:
        processor = loaded(load_processor, folder)
        checks += processor_checks(processor, recording) if recording else []
    except InputError as error:
        checks.append(_simple("processor", [str(error)]))
    try:
        model = loaded(lambda name: load_model(name, device, dtype or "auto", attn_implementation), folder)
    except InputError as error:
        if attn_implementation is not None:
            raise InputError(f"--attn-implementation {attn_implementation}: {error}") from error
        return [*checks, _simple("weights", [str(error)])], run
    checks.append(_simple("weights", unknown_weights(model, folder)))
    run["dtype"] = str(model.dtype).removeprefix("torch.")
    run["attn_implementation"] = attn_implementation or str(model.vlm.config._attn_implementation)
    run["device"] = str(model.device)
    if recording is not None:
        names = ("dtype", "attn_implementation", "device", "versions")
        run["recorded"] = {name: recording.about[name] for name in names if name in recording.about}
        checks += model_checks(model, recording, TOLERANCES.get(run["dtype"], TOLERANCES["float32"]))
    return checks, run


def _files_check(folder: Path) -> Check:
    if not (folder / REPRODUCIBILITY).is_file():
        why = f"the folder has no {REPRODUCIBILITY}, which lists the hashes of its files; `push` writes one"
        return Check("files", NOT_CHECKED, (why,))
    try:
        return _simple("files", model_folder.check_files(folder))
    except InputError as error:  # the list itself cannot be used
        return _simple("files", [str(error)])


def unknown_weights(model, folder: Path) -> list[str]:
    """A sentence about weights in the files that no part of the model takes; those that lack end the loading."""
    held, weights = model_folder.tensor_names(folder), model.state_dict()
    unknown = sorted(held - weights.keys())
    if unknown:  # in a model transformers names weights in other ways than in files
        unknown = sorted(held - weights.keys() - revert_weight_conversion(model, weights).keys())
    return [f"{len(unknown)} weights are not those of this model, {unknown[0]} among them."] if unknown else []


def processor_checks(processor, recording: Recording) -> list[Check]:
    """Whether the processor makes the recorded tensors of the recorded media and conversations."""
    checks: list[Check] = []
    features: dict[str, Any] = {}
    for kind in sorted({kind for case in recording.about["cases"] for kind in media_of(case)}):
        name = f"processor: {kind}"
        try:
            features[kind] = processor.encode_media(kind, bytes(recording.tensors[f"media/{kind}"].numpy()))
            found = features[kind].inputs
            checks.append(_compared(name, recording.part(f"features/{kind}"), found, PROCESSOR[kind]))
        except Exception as error:  # an altered setting makes the libraries raise anything
            checks.append(_simple(name, [f"it cannot be encoded ({one_line(error)})."]))
    ids = []
    for case in recording.about["cases"]:
        try:
            found = assembled(processor, case, features)
            ids.append(_compared(case["name"], recording.part(f"inputs/{case['name']}"), found, 0.0))
        except Exception as error:
            ids.append(_simple(case["name"], [f"it cannot be encoded ({type(error).__name__}: {one_line(error)})."]))
    return [*checks, _together("processor: ids", ids)]


def model_checks(model, recording: Recording, tolerance: float) -> list[Check]:
    """Whether the model gives the recorded outputs for the recorded inputs, whatever the processor makes now."""
    checks, emotions, tokens = [], [], Check("generation", NOT_CHECKED, ("what it rests on disagrees",))
    for case in recording.about["cases"]:
        name, expected = f"logits: {case['name']}", recording.part(f"outputs/{case['name']}")
        try:
            logits, found_emotions = outputs_of(model, recording.inputs(case), case["use_adapter"])
            found = kept_of(logits, recording.tensors["vocabulary_ids"], expected["top_ids"])
        except Exception as error:  # a changed config makes the libraries raise anything
            checks.append(_simple(name, [f"the model cannot be run on it ({one_line(error)})."]))
            continue
        of_emotion = {key: expected.pop(key) for key in EMOTION_OUTPUTS if key in expected}
        checks.append(_compared(name, expected, found, tolerance, case["spread"]))
        emotions.append(_compared(case["name"], of_emotion, found_emotions, tolerance * EMOTION_SHARE))
    if emotions:
        checks.append(_together("valence, arousal, emotions", emotions))
    if all(check.result == AGREES for check in checks):
        mixed = next(case for case in recording.about["cases"] if case["name"] == MIXED)
        ids, _ = generated(model, recording.inputs(mixed))
        tokens = generation_check(recording, ids, tolerance * mixed["spread"])
    return [*checks, tokens]


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
        return _simple("generation", [note])
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
    return Check("generation", AGREES if fine else DISAGREES, (f"{alike} of {expected.numel()} tokens", *notes))


def largest_difference(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], scale: float = 1.0
) -> tuple[float, list[str]]:
    """The largest difference of any value, divided by `scale`, and what cannot be compared, a sentence each.

    A value that is not a number has to be so on both sides: an output that a sample lacks. Label logits are divided by
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
    return Check(name, AGREES if fine else DISAGREES, tuple(notes), difference, tolerance)


def _together(name: str, checks: Sequence[Check]) -> Check:
    """Several checks as one: the worst result, the largest difference, and the notes of those that disagree."""
    worse = [check for check in checks if check.result == DISAGREES]
    notes = tuple(f"{of.name}: {' '.join(of.notes) or f'{of.difference:.3g} apart.'}" for of in worse)
    largest = max((check.difference for check in checks if check.difference is not None), default=None)
    return Check(name, DISAGREES if worse else AGREES, notes, largest, checks[0].tolerance)


def _simple(name: str, problems: Sequence[str] = ()) -> Check:
    """A check without a measure: it disagrees where there are problems."""
    return Check(name, DISAGREES if problems else AGREES, tuple(problems))
