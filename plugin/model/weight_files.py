"""The files of saved models: found, weights read tensor by tensor and compared with those of a backbone."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, extract_commit_hash
from transformers.utils.hub import get_checkpoint_shard_files

from .input_error import InputError

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
"""Arguments of `from_pretrained` that say how to fetch, whatever is fetched."""

# Values of each tensor in a fingerprint, evenly over it: any training changes some, and reading them is cheap.
_SAMPLES = 8


def weight_files(name: str | Path, **where) -> list[str]:
    """The safetensors files of a saved model, fetched where they are not here yet.

    Args:
        name: folder or Hub name.
        **where: `revision`, `subfolder` and `HUB_ARGUMENTS`, as in `from_pretrained`.

    Raises:
        OSError: the name, its revision or its weights cannot be found.
        ValueError: an index that cannot be read.
    """
    for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        found = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False, **where)
        if found is None:
            continue
        if file == SAFE_WEIGHTS_NAME:
            return [found]
        try:
            return get_checkpoint_shard_files(str(name), found, **where)[0]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{found} is no index of weights ({error}); fetch or copy it again.") from error
    raise OSError(f"{name} holds no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}.")


def check_files(name: str | Path, files: Iterable[str], remedy: str, **where) -> None:
    """Checks that a folder or Hub repository has files that the library would do without in silence.

    Raises:
        InputError: naming the file that is not there.
        OSError: the name or its revision cannot be found.
    """
    for file in files:
        if cached_file(str(name), file, _raise_exceptions_for_missing_entries=False, **where) is None:
            raise InputError(f"{name} holds no {file}; {remedy}.")


class Weights(Mapping[str, torch.Tensor]):
    """Tensors of safetensors files by name, each read when it is asked for.

    Raises:
        InputError: a file that is not there or cannot be read.
    """

    def __init__(self, files: Iterable[str | Path]):
        self._of: dict[str, safe_open] = {}
        for file in map(Path, files):
            if not file.is_file():
                raise InputError(
                    f"the weight file {file} is not there, and the index beside it names it: the folder is "
                    "incomplete. Fetch or copy it again."
                )
            try:
                opened = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"the weight file {file} is cut off or altered ({error}). Fetch or copy it again."
                ) from error
            self._of.update(dict.fromkeys(opened.keys(), opened))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._of[name].get_tensor(name)

    def __iter__(self):
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._of[name].get_slice(name).get_shape())


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Hash of names, dtypes, shapes and some values of each tensor, the same however they are spread over files."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.flatten()[:: max(1, tensor.numel() // _SAMPLES)]
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def commit_of(name: str | Path, **where) -> str | None:
    """The commit that a Hub name stands for; None for a folder."""
    return extract_commit_hash(cached_file(str(name), "config.json", **where), None)


class Backbone:
    """The saved backbone that a config refers to.

    Args:
        name: folder or Hub name of the backbone.
        revision: commit, tag or branch on the Hub.
        **where: `HUB_ARGUMENTS`.

    Raises:
        InputError: it cannot be found or fetched, or its files cannot be read.
    """

    def __init__(self, name: str | None, revision: str | None = None, **where):
        self.name, self.where = name, {**where, **({} if revision is None else {"revision": revision})}
        self.label = f"{name!r}" + ("" if revision is None else f" at revision {revision!r}")
        if name is None:
            raise InputError(
                "the config names no backbone (backbone_name), without which its weights cannot be left out or "
                "fetched; give backbone_name, and backbone_revision for one on the Hub."
            )
        try:
            self.weights = Weights(weight_files(name, **self.where))
        except InputError as error:
            raise InputError(f"the backbone {self.label} cannot be read: {error}") from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"the weights of the backbone {self.label} cannot be fetched: {' '.join(str(error).split())} Give "
                "another backbone_name or backbone_revision to from_pretrained where they have moved."
            ) from error
        self.fingerprint = fingerprint(self.weights)

    def check_holds(self, weights: Mapping[str, torch.Tensor], prefix: str) -> None:
        """Checks that a model's backbone can be left out: that its tensors are this one's bit for bit.

        Args:
            weights: of a whole model, under the names that are saved. A tensor of another dtype must be what the
                backbone's becomes in it.
            prefix: of the backbone's among these names.

        Raises:
            InputError: tensors that differ, with their number.
        """
        names = sorted(name for name in weights if name.startswith(prefix))
        saved: Mapping[str, torch.Tensor] = self.weights
        if any(name.removeprefix(prefix) not in saved for name in names):
            saved = self._renamed()
        changed = [
            name
            for name in names
            if (own := name.removeprefix(prefix)) not in saved or not _equal(weights[name], saved[own])
        ]
        if changed or not names:
            raise InputError(
                f"{len(changed)} of {len(names)} tensors of the backbone are not those of {self.label}, "
                f"{', '.join(changed[:2])} among them; as after a stage 2 with LoRA, which is merged into the "
                "backbone. Save or push the model whole; a run's `adapter` folder has LoRA and what was trained alone."
            )

    def _renamed(self) -> dict[str, torch.Tensor]:
        """The weights under the names that this library saves: releases have had others."""
        from transformers import AutoModelForImageTextToText
        from transformers.core_model_loading import revert_weight_conversion

        model = AutoModelForImageTextToText.from_pretrained(self.name, dtype="auto", **self.where)
        model._weight_conversions = None  # those of its files are the names that were not found
        return revert_weight_conversion(model, model.state_dict())


def _equal(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    if tensor.shape != other.shape:
        return False
    pair = (part.to("cpu", tensor.dtype).contiguous().flatten().view(torch.uint8) for part in (tensor, other))
    return torch.equal(*pair)
