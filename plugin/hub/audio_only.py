"""A saved model without its backbone: megabytes beside the whole model, with the name of what completes them."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from ..model.checkpoint import BACKBONE, Backbone, Weights, commit_of, weight_files
from ..model.loading import check_model_folder
from ..utils import InputError, new_folder, read_json
from .model_folder import is_pickle_name

TEMPLATES = "additional_chat_templates"
# Hashes of the whole folder's files, and what its weights were listed in.
_LEFT_OUT = ("reproducibility.json", "*.index.json")


def write_audio_only(folder: Path, out: Path, backbone: str | None = None, revision: str | None = None) -> None:
    """Write a model without its backbone's weights, which `from_pretrained` then fetches by name and revision.

    Files are read tensor by tensor: no more is held than the parts that are written. Of subfolders only that of the
    processor's chat templates is taken over.

    Args:
        folder: a saved model with its backbone.
        out: folder to write into; it must not exist, or be empty.
        backbone: folder or Hub name of the backbone; the config's `backbone_name` if not given.
        revision: its commit on the Hub; the config's, or the newest one of a backbone that is given.

    Raises:
        InputError: a folder without a whole model, a backbone that is not known or cannot be fetched, or one that has
            other weights than the model, bit by bit.
    """
    check_model_folder(folder)
    config = read_json(folder / "config.json", "the model's config")
    if not config.get("backbone_included", True):
        raise InputError(f"{folder} holds no weights of its backbone already; push it as it is.")
    try:
        files = [Path(file) for file in weight_files(folder)]
        if backbone is not None:
            revision = revision or commit_of(backbone)
        else:
            backbone, revision = config.get("backbone_name"), revision or config.get("backbone_revision")
    except OSError as error:
        raise InputError(f"{folder}, backbone {backbone!r}: {' '.join(str(error).split())}") from error
    weights, saved = Weights(files), Backbone(backbone, revision)
    saved.check_holds(weights, prefix=BACKBONE)
    own = {name: weights[name] for name in weights if not name.startswith(BACKBONE)}
    config |= {
        "backbone_included": False,
        "backbone_name": backbone,
        "backbone_revision": revision,
        "backbone_fingerprint": saved.fingerprint,
    }
    ignored = shutil.ignore_patterns(*_LEFT_OUT, *(file.name for file in files))
    with new_folder(out, "out") as partial:
        names = [file.name for file in folder.iterdir() if file.is_file()]
        for name in sorted(set(names) - ignored(str(folder), names)):
            if not is_pickle_name(name):
                shutil.copyfile(folder / name, partial / name)
        if (folder / TEMPLATES).is_dir():
            shutil.copytree(folder / TEMPLATES, partial / TEMPLATES)
        save_file(own, partial / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"  # as the library writes it
        (partial / "config.json").write_text(text, encoding="utf-8")
