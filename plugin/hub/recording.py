"""Records what a model gives for a fixed set of inputs, so that whoever downloads it can see that theirs gives it too.

`verification.json` says what was recorded, by which versions and how far another run may be from it;
`verification.safetensors` holds the bytes of the media, the tensors that the processor made of them, and the outputs.
All of a large vocabulary would be megabytes a position: logits are kept at the last positions of each row, for a fixed
draw of the vocabulary and for the most probable tokens, beside the log-sum-exp over all.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..utils import InputError
from .opening import Unusable, exact_arithmetic, open_model, open_processor, read_json_object
from .recorded_inputs import CASES, KINDS, MIXED, Case, Row, make_media
from .tolerances import ANSWERS, PROCESSOR, READINGS_SHARE, TOLERANCES

FORMAT = 1
JSON_FILE, TENSOR_FILE = "verification.json", "verification.safetensors"
MANIFEST = "reproducibility.json"
ATTENTION = "eager"
POSITIONS, VOCABULARY_IDS, TOP, NEW_TOKENS = 4, 256, 8, 8
# Files whose values are recorded, without those that say where a model lies or by what it was saved or is to be run.
SETTINGS = ("config.json", "processor_config.json", "generation_config.json", "tokenizer_config.json")
TEMPLATE = "chat_template.jinja"
_OF_NO_EFFECT = (
    "_name_or_path", "auto_map", "transformers_version", "dtype", "attn_implementation", "_attn_implementation",
    "format_version", "is_local", "local_files_only",
)  # fmt: skip
_OF_BACKBONE = "backbone_"
READINGS = ("valence", "arousal", "emotion_logits")
PACKAGES = ("torch", "torchaudio", "transformers", "tokenizers")
WHAT = (
    "Logits at the last positions of each row, valence, arousal and emotion logits, and a greedy generation, in "
    "float32 on a CPU with eager attention. `vaemotionllm verify` runs the same inputs again."
)


@dataclass(frozen=True)
class Recording:
    """What was recorded.

    Args:
        about: the content of verification.json.
        cases: the batches, in order.
        tensors: the content of verification.safetensors, see `record`.
    """

    about: dict[str, Any]
    cases: tuple[Case, ...]
    tensors: dict[str, torch.Tensor]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors below a prefix, without it."""
        start = f"{prefix}/"
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    def inputs(self, case: Case) -> dict[str, torch.Tensor]:
        """The model inputs of a case, as the processor gave them."""
        media = [self.part(f"features/{name}") for row in case.rows for name in row.media]
        return self.part(f"inputs/{case.name}") | joined(media)


def record(folder: Path) -> None:
    """Writes verification.json and verification.safetensors into a saved model folder.

    The model is loaded in float32 on the CPU: 4 bytes a parameter of memory. A recording that is there is replaced,
    and an evaluation that it holds goes with it: it was of the model before.

    Raises:
        InputError: the folder holds no whole model, its logits are not finite, or its files are listed in a
            reproducibility.json already.
    """
    if (folder / MANIFEST).is_file():
        raise InputError(
            f"{folder} holds a {MANIFEST}, which lists its files: a new recording would not be one of them. Record "
            "first and write the list afterwards, as `vaemotionllm push` does."
        )
    model, processor = open_model(folder, torch.float32, ATTENTION), open_processor(folder)
    tensors: dict[str, torch.Tensor] = {}
    media = make_media()
    for name, content in media.items():
        tensors[f"media/{name}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    features = encode(processor, {name: (KINDS[name], content) for name, content in media.items()})
    for name, encoded in features.items():
        tensors |= {f"features/{name}/{key}": value for key, value in encoded.inputs.items()}
    spreads = {}
    with torch.inference_mode(), exact_arithmetic():
        for case in CASES:
            ids = assemble(processor, case, features)
            inputs = ids | joined([features[name].inputs for row in case.rows for name in row.media])
            logits, readings = run_case(model, inputs, case.use_adapter)
            vocabulary = tensors.setdefault("vocabulary_ids", _drawn_ids(logits.shape[-1]))
            kept = {**of_logits(logits, vocabulary, logits.topk(min(TOP, logits.shape[-1])).indices), **readings}
            spreads[case.name] = float(logits.std(-1).mean())
            if not logits.isfinite().all() or not spreads[case.name] > 0:
                raise InputError(
                    f"the model of {folder} gives logits that are not finite, or all the same, for the input "
                    f"{case.name!r}; nothing could be compared with them. Look for NaN in its weights."
                )
            tensors |= {f"inputs/{case.name}/{key}": value for key, value in ids.items()}
            tensors |= {f"outputs/{case.name}/{key}": value for key, value in kept.items()}
            if case.name == MIXED:
                tensors["generation/ids"], tensors["generation/margins"] = generate(model, processor, inputs)
    about = {
        "format": FORMAT,
        "what": WHAT,
        "dtype": "float32",
        "attn_implementation": ATTENTION,
        "device": "cpu",
        "versions": _versions(),
        "settings": read_settings(folder),
        "media": KINDS,
        "cases": [
            {
                "name": case.name,
                "use_adapter": case.use_adapter,
                "spread": spreads[case.name],
                "rows": [{"media": list(row.media), "text": row.text} for row in case.rows],
            }
            for case in CASES
        ],
        "generation": {"case": MIXED, "max_new_tokens": NEW_TOKENS},
        "tolerances": {
            "logits": TOLERANCES,
            "readings_share": READINGS_SHARE,
            "processor": PROCESSOR,
            "answers": ANSWERS,
        },
    }
    write(folder, about, tensors)


def write(folder: Path, about: dict, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes both files, the description last, with the hash of the other: a write that is cut off leaves none."""
    from ..utils import write_json

    (folder / JSON_FILE).unlink(missing_ok=True)
    temporary = folder / f"{TENSOR_FILE}.tmp"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    os.replace(temporary, folder / TENSOR_FILE)
    write_json(folder / JSON_FILE, {**about, "tensors_sha256": _sha256(folder / TENSOR_FILE)})


def read_recording(folder: Path) -> Recording | None:
    """The recording of a folder, None where it holds none.

    Raises:
        Unusable: it is of a newer format, incomplete, or its two files are not of one recording.
    """
    if not (folder / JSON_FILE).is_file() and not (folder / TENSOR_FILE).is_file():
        return None
    about = read_json_object(folder / JSON_FILE)
    if about.get("format") != FORMAT:
        raise Unusable(
            f"{JSON_FILE} has format {about.get('format')!r}; this release reads format {FORMAT}. Upgrade the package "
            "vaemotionllm where it is newer."
        )
    try:
        if _sha256(folder / TENSOR_FILE) != about.get("tensors_sha256"):
            raise Unusable(f"{TENSOR_FILE} is not the file that {JSON_FILE} describes.")
        cases = tuple(
            Case(
                case["name"],
                tuple(Row(tuple(row["media"]), str(row["text"])) for row in case["rows"]),
                bool(case["use_adapter"]),
            )
            for case in about["cases"]
        )
        if not cases:
            raise Unusable(f"{JSON_FILE} lists no cases, so there is nothing to compare.")
        if not all(0 < float(case["spread"]) < float("inf") for case in about["cases"]):
            raise Unusable(f"{JSON_FILE} has a spread of logits that is no number above 0.")
        about["media"].items(), about["generation"]["case"]
        [of.items() for of in about["settings"].values()]
        return Recording(about, cases, load_file(folder / TENSOR_FILE))
    except Unusable:  # a ValueError too
        raise
    except FileNotFoundError as error:
        raise Unusable(f"{TENSOR_FILE} is missing.") from error
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise Unusable(f"{JSON_FILE} or {TENSOR_FILE} lacks what a recording holds ({error!r}).") from error


def read_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """File -> dotted name -> value, of the `SETTINGS` that a folder has, and the hash of its chat template.

    Raises:
        Unusable: a file is no JSON object.
    """
    found = {name: dict(_flat(read_json_object(folder / name))) for name in SETTINGS if (folder / name).is_file()}
    if (folder / TEMPLATE).is_file():
        found[TEMPLATE] = {"sha256": hashlib.sha256((folder / TEMPLATE).read_bytes()).hexdigest()}
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in nested objects; a list is one value."""
    for name, value in values.items():
        if name in _OF_NO_EFFECT or name.startswith(_OF_BACKBONE):
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def encode(processor, media: Mapping[str, tuple[str, bytes]]) -> dict:
    """`MediaFeatures` by name, from kind and bytes of each medium."""
    return {name: processor.encode_media(kind, content) for name, (kind, content) in media.items()}


def assemble(processor, case: Case, features: Mapping) -> dict[str, torch.Tensor]:
    """What the processor makes of a case's conversations beside the media: ids, masks, token types."""
    texts = processor.apply_chat_template(
        [row.conversation() for row in case.rows], tokenize=False, add_generation_prompt=True
    )
    encoded = [features[name] for row in case.rows for name in row.media]
    inputs = processor.assemble(texts, encoded, padding_side="left")
    of_media = {key for medium in encoded for key in medium.inputs}
    return {name: value for name, value in inputs.items() if name not in of_media}


def joined(media: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Inputs of several media in one batch: rows along the first axis, in order."""
    names = dict.fromkeys(name for inputs in media for name in inputs)
    return {name: torch.cat([inputs[name] for inputs in media if name in inputs]) for name in names}


def run_case(
    model, inputs: Mapping[str, torch.Tensor], use_adapter: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits (B, P, V) float32 at the last positions, and the readings that the model gives, on the CPU."""
    given = {name: value.to(model.device) for name, value in inputs.items()}
    output = model(**given, use_adapter=use_adapter, use_cache=False, logits_to_keep=POSITIONS)
    readings = {name: getattr(output, name) for name in READINGS}
    return (
        output.logits[:, -POSITIONS:].float().cpu(),
        {name: value.float().cpu() for name, value in readings.items() if value is not None},
    )


def of_logits(logits: torch.Tensor, vocabulary: torch.Tensor, top_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is kept of logits (B, P, V): a part of the vocabulary (n,), `top_ids` (B, P, k), and the sum over all."""
    return {
        "logits": logits[..., vocabulary],
        "top_ids": top_ids,
        "top_logits": logits.gather(-1, top_ids),
        "logsumexp": logits.logsumexp(-1),
    }


def generate(model, processor, inputs: Mapping[str, torch.Tensor], new_tokens: int = NEW_TOKENS):
    """Greedy answers (B, N) int64 that go on over their end, and (B, N) float32 how far the second best token was
    behind; on the CPU."""
    given = {name: value.to(model.device) for name, value in inputs.items()}
    # What a checkpoint may say of sampling is named, or the library warns that a greedy search has no use for it.
    greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
    output = model.generate(
        **given, **greedy, max_new_tokens=new_tokens, min_new_tokens=new_tokens, use_adapter=True,
        pad_token_id=processor.tokenizer.pad_token_id, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    best = torch.stack(output.scores, dim=1).float().topk(2).values  # (B, N, 2)
    ids = output.sequences[:, given["input_ids"].shape[1] :]
    return ids.cpu(), (best[..., 0] - best[..., 1]).cpu()


def _drawn_ids(vocabulary_size: int) -> torch.Tensor:
    """The ids whose logits are kept, (n,): all of a small vocabulary, else a fixed draw."""
    drawn = torch.randperm(vocabulary_size, generator=torch.Generator().manual_seed(0))
    return drawn[:VOCABULARY_IDS].sort().values


def _versions() -> dict[str, str]:
    from .. import __version__

    return {"vaemotionllm": __version__, **{name: version(name) for name in PACKAGES}}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
