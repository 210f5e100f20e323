"""Recorded outputs of a model, and the checks that a folder still gives them: hashes, parts, processor, logits.

`verification.json` holds what was recorded and by which versions; `verification.safetensors` holds the bytes of small
media, the tensors that the processor made of them, and the model's outputs. All of a large vocabulary would be
megabytes a position: logits are kept at the last positions of each row, for a fixed draw of the vocabulary and for the
most probable tokens, beside the log-sum-exp over all.

Each check comes only after those that it rests on: nothing is loaded of a folder whose files were altered or whose
parts are damaged, and no code of the folder runs.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import revert_weight_conversion

from .. import __version__
from ..model.emotion_prediction import PROMPT
from ..model.loading import check_model_folder, device_of, load_model, load_processor
from ..nano.clips import WorldConfig, sample_clip
from ..nano.world import write_clip
from ..utils import InputError, atomic_file, read_json, sha256_of_file, write_json
from . import model_folder
from .model_folder import RECORDED, REPRODUCIBILITY, one_line

Tensors = Mapping[str, torch.Tensor]

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
POSITIONS, VOCABULARY_IDS, TOP = 4, 256, 8
EMOTION_OUTPUTS = ("valence", "arousal", "emotion_logits")
PACKAGES = ("torch", "torchaudio", "transformers", "tokenizers")
# 12 kHz is the rate of no audio tower: the audio is resampled, as most that users have.
WORLD = WorldConfig(seed=0, clip_s=1.0, sampling_rate=12_000)
CLIPS = (1, 0)  # the first painting, and the first clip of another form
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
    model, processor = load_model(folder, "cpu", "float32", ATTENTION), load_processor(folder)
    drawn = torch.randperm(model.get_output_embeddings().weight.shape[0], generator=torch.Generator().manual_seed(0))
    tensors = {"vocabulary_ids": drawn[:VOCABULARY_IDS].sort().values}
    features = {}
    for kind, content in make_media().items():
        tensors[f"media/{kind}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        features[kind] = processor.encode_media(kind, content)
        tensors |= {f"features/{kind}/{name}": value for name, value in features[kind].inputs.items()}
    cases = []
    for case in CASES:
        name = case["name"]
        tensors |= {f"inputs/{name}/{key}": value for key, value in assembled(processor, case, features).items()}
        logits, emotions = outputs_of(model, inputs_of(tensors, case), case["use_adapter"])
        spread = float(logits.std(-1).mean())
        if not logits.isfinite().all() or not spread > 0:
            raise InputError(
                f"the model of {folder} gives logits that are not finite, or all the same, for the input {name!r}; "
                "nothing could be compared with them. Look for NaN in its weights."
            )
        top_ids = logits.topk(min(TOP, logits.shape[-1])).indices
        kept = kept_of(logits, tensors["vocabulary_ids"], top_ids) | emotions
        tensors |= {f"outputs/{name}/{key}": value for key, value in kept.items()}
        cases.append({**case, "spread": spread})
    # The description comes last, with the hash of the tensors: a write that is cut off leaves no recording.
    (folder / JSON_FILE).unlink(missing_ok=True)
    with atomic_file(folder / TENSOR_FILE) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    about = {
        "format": FORMAT,
        "dtype": "float32",
        "attn_implementation": ATTENTION,
        "device": "cpu",
        "versions": {"vaemotionllm": __version__, **{name: version(name) for name in PACKAGES}},
        "cases": cases,
        "tensors_sha256": sha256_of_file(folder / TENSOR_FILE),
    }
    write_json(folder / JSON_FILE, about)


def read_recording(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The content of verification.json and of verification.safetensors, see `record`.

    Raises:
        InputError: it is of another format, incomplete, or its two files are not of one recording.
    """
    about, file = read_json(folder / JSON_FILE, "the description of recorded outputs"), folder / TENSOR_FILE
    if about.get("format") != FORMAT:
        raise InputError(
            f"{JSON_FILE} has format {about.get('format')!r}; this release knows format {FORMAT}. Upgrade the package "
            "vaemotionllm where it is newer, or record again."
        )
    if not about.get("cases"):
        raise InputError(f"{JSON_FILE} lists no cases; record again.")
    if not file.is_file() or sha256_of_file(file) != about.get("tensors_sha256"):
        raise InputError(f"{TENSOR_FILE} is not the file that {JSON_FILE} describes.")
    return about, load_file(file)


def make_media() -> dict[str, bytes]:
    """Bytes of a PNG (56 px), an mp4 of 8 frames without audio and a WAV of 1 s at 12 kHz, by kind.

    The nano world draws and composes them from its seed; a recording holds the files, so that other releases and
    encoders change nothing.
    """
    with tempfile.TemporaryDirectory() as name:
        painting, moving = (write_clip(WORLD, sample_clip(WORLD, "validation", clip), Path(name)) for clip in CLIPS)
        files = {"image": painting["image"], "video": moving["video"], "audio": painting["audio"]}
        return {kind: (Path(name) / file).read_bytes() for kind, file in files.items()}


def part(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors below a prefix, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def inputs_of(tensors: Tensors, case: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The model inputs of a case, as the processor gave them; several media stand along the first axis, in order."""
    media = [part(tensors, f"features/{kind}") for kind in media_of(case)]
    names = dict.fromkeys(name for inputs in media for name in inputs)
    joined = {name: torch.cat([inputs[name] for inputs in media if name in inputs]) for name in names}
    return part(tensors, f"inputs/{case['name']}") | joined


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


def outputs_of(model, inputs: Tensors, use_adapter: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits (B, P, V) float32 at the last positions, and the emotion outputs that the model gives, on the CPU."""
    given = {name: value.to(model.device) for name, value in inputs.items()}
    # By default cuDNN rounds the factors of its float32 convolutions to ten bits (TF32).
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=False)
    with torch.inference_mode(), exact:
        output = model(**given, use_adapter=use_adapter, use_cache=False, logits_to_keep=POSITIONS)
    emotions = {name: getattr(output, name) for name in EMOTION_OUTPUTS}
    return (
        output.logits[:, -POSITIONS:].float().cpu(),
        {name: value.float().cpu() for name, value in emotions.items() if value is not None},
    )


def kept_of(logits: torch.Tensor, vocabulary: torch.Tensor, top_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is kept of logits (B, P, V): a part of the vocabulary (n,), `top_ids` (B, P, k), and the sum over all."""
    return {
        "logits": logits[..., vocabulary],  # (B, P, n)
        "top_ids": top_ids,
        "top_logits": logits.gather(-1, top_ids),  # (B, P, k)
        "logsumexp": logits.logsumexp(-1),  # (B, P)
    }


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
    folder: Path, dtype: str | None = None, attn_implementation: str | None = None, device: str | None = None
) -> tuple[list[Check], dict[str, Any]]:
    """Checks a model folder against its hashes, its form and what was recorded of it.

    Args:
        folder: a model folder.
        dtype: of the weights, one of `TOLERANCES`; float32 on a CPU, else what the checkpoint says.
        attn_implementation: attention backend; the library's choice if not given.
        device: the first GPU, or the CPU where there is none.

    Returns:
        The checks in the order in which they were made; and dtype, attention backend and device that were used, with
        what the recording says of itself as "recorded", as far as they are known.

    Raises:
        InputError: no model folder; a dtype or device that cannot be used.
    """
    if dtype not in (None, *TOLERANCES):
        raise InputError(f"--dtype is {dtype!r}; allowed are {', '.join(TOLERANCES)}.")
    device_of(device)  # before hashes are made
    check_model_folder(folder)
    run: dict[str, Any] = {}
    if (folder / REPRODUCIBILITY).is_file():
        checks = list(_safely("files", lambda: [_simple("files", model_folder.check_files(folder))]))
    else:
        why = f"the folder has no {REPRODUCIBILITY}, which lists the hashes of its files; `push` writes one"
        checks = [Check("files", NOT_CHECKED, (why,))]
    if checks[-1].result != DISAGREES:
        checks.append(_simple("format", [*model_folder.pickles(folder), *model_folder.part_problems(folder)]))
    if checks[-1].result == DISAGREES:
        why = f"nothing is loaded; {checks[-1].name}: see above"
        return [*checks, Check("weights", NOT_CHECKED, (why,))], run
    recording = None
    if any((folder / name).is_file() for name in RECORDED):
        try:
            recording = read_recording(folder)
            checks.append(_simple("recording"))
        except InputError as error:
            checks.append(_simple("recording", [str(error)]))
    else:
        why = f"the folder has no {JSON_FILE}, which holds recorded outputs; `verify DIR --record` writes one"
        checks.append(Check("recording", NOT_CHECKED, (why,)))
    if recording is not None:
        about = ("dtype", "attn_implementation", "device", "versions")
        run["recorded"] = {name: recording[0][name] for name in about if name in recording[0]}
        checks += _safely("processor", lambda: processor_checks(load_processor(folder), *recording))
    try:
        model = load_model(folder, device, dtype or "auto", attn_implementation)
    except Exception as error:
        return [*checks, _simple("weights", [one_line(error)])], run
    checks.append(_simple("weights", unknown_weights(model, folder)))
    run["dtype"] = str(model.dtype).removeprefix("torch.")
    run["attn_implementation"] = attn_implementation or str(model.vlm.config._attn_implementation)
    run["device"] = str(model.device)
    if recording is not None:
        tolerance = TOLERANCES.get(run["dtype"], TOLERANCES["float32"])
        checks += _safely("logits", lambda: model_checks(model, *recording, tolerance))
    return checks, run


def _safely(name: str, make: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks as they come; an error that ends them is one that disagrees: altered files can raise anything."""
    try:
        yield from make()
    except Exception as error:
        yield _simple(name, [one_line(error)])


def unknown_weights(model, folder: Path) -> list[str]:
    """A sentence about weights in the files that no part of the model takes; those that lack end the loading."""
    held, weights = model_folder.tensor_names(folder), model.state_dict()
    unknown = sorted(held - weights.keys())
    if unknown:  # in a model transformers names weights in other ways than in files
        unknown = sorted(held - weights.keys() - revert_weight_conversion(model, weights).keys())
    return [f"{len(unknown)} weights are not those of this model, {unknown[0]} among them."] if unknown else []


def processor_checks(processor, about: Mapping[str, Any], tensors: Tensors) -> Iterator[Check]:
    """Whether the processor makes the recorded tensors of the recorded media and conversations."""
    features: dict[str, Any] = {}
    ids: dict[str, torch.Tensor] = {}
    for kind in sorted({kind for case in about["cases"] for kind in media_of(case)}):
        features[kind] = processor.encode_media(kind, bytes(tensors[f"media/{kind}"].numpy()))
        recorded = part(tensors, f"features/{kind}")
        yield _compared(f"processor: {kind}", recorded, features[kind].inputs, PROCESSOR[kind])
    for case in about["cases"]:
        ids |= {f"{case['name']}/{name}": of for name, of in assembled(processor, case, features).items()}
    yield _compared("processor: ids", part(tensors, "inputs"), ids, 0.0)


def model_checks(model, about: Mapping[str, Any], tensors: Tensors, tolerance: float) -> Iterator[Check]:
    """Whether the model gives the recorded outputs for the recorded inputs, whatever the processor makes now."""
    recorded, found = {}, {}
    for case in about["cases"]:
        expected = part(tensors, f"outputs/{case['name']}")
        logits, emotions = outputs_of(model, inputs_of(tensors, case), case["use_adapter"])
        for name in expected.keys() & set(EMOTION_OUTPUTS):
            was, key = expected.pop(name), f"{case['name']}/{name}"
            finite = was[was.isfinite()]
            spread = float(finite.std(unbiased=False)) if name == "emotion_logits" and len(finite) else 0.0
            recorded[key], found[key] = was / max(spread, 1.0), emotions[name] / max(spread, 1.0)
        kept = kept_of(logits, tensors["vocabulary_ids"], expected["top_ids"])
        yield _compared(f"logits: {case['name']}", expected, kept, tolerance, case["spread"])
    yield _compared("valence, arousal, emotions", recorded, found, tolerance * EMOTION_SHARE)


def _compared(name: str, recorded: Tensors, found: Tensors, tolerance: float, scale: float = 1.0) -> Check:
    """Whether all tensors are alike within `tolerance` times `scale`; what is NaN has to be so on both sides."""
    pairs = [(of.double(), found[key].double()) for key, of in recorded.items() if key in found]
    pairs = [(was, now) for was, now in pairs if was.shape == now.shape]
    largest = max((float((was - now).abs().nan_to_num(0).max()) for was, now in pairs), default=0.0)
    notes: list[str] = []
    try:
        torch.testing.assert_close(dict(found), dict(recorded), atol=tolerance * scale, rtol=0, equal_nan=True)
    except AssertionError as error:
        notes.append(one_line(error))
    return Check(name, DISAGREES if notes else AGREES, tuple(notes), largest / scale, tolerance)


def _simple(name: str, problems: Sequence[str] = ()) -> Check:
    """A check without a measure: it disagrees where there are problems."""
    return Check(name, DISAGREES if problems else AGREES, tuple(problems))
