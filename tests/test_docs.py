"""README.md, CONTRIBUTING.md and docs/: the Python runs, the commands are understood, the API has docstrings.

A Python block that begins with ```python notest needs what only a full run has.
"""

import argparse
import dataclasses
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
import tiny
import torch
from media_files import write_png, write_wav

from vaemotionllm import VAEmotionLLMForConditionalGeneration
from vaemotionllm.benchmark.build import BuildConfig
from vaemotionllm.cli import main as entry
from vaemotionllm.train.config import Stage1Config, Stage2Config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIELDS = {field.name for kind in (Stage1Config, Stage2Config, BuildConfig) for field in dataclasses.fields(kind)}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with what the examples name: a model that stage 2 has trained, as far as a tiny one can, and media."""
    folder = tmp_path_factory.mktemp("docs")
    made = tiny.make_vaemotionllm(folder / "made", emotion_labels=["calm", "fear", "joy", "sadness"])
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(made)
    with torch.no_grad():
        for head in model.emotion_adapter.supervisor.parameters():
            head.normal_()
    model.save_pretrained(made)
    media = folder / "runs" / "demo" / "world" / "benchmark" / "media"
    media.mkdir(parents=True)
    made.rename(folder / "runs" / "demo" / "stage2")
    for target in (media / "a.wav", folder / "song.wav"):
        write_wav(target, 1.0)
    write_png(folder / "painting.png")
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_of_a_page_runs(page, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    # No hub is at hand: tiny models of the same families stand for those that are named.
    names = {
        "Qwen/Qwen2.5-VL-7B-Instruct": workplace / "made_vlm" / "qwen2_5_vl",
        "openai/whisper-large-v3": workplace / "made_audio" / "whisper",
    }
    code = "\n".join(blocks(page, "python"))
    for name, folder in names.items():
        if name in code and not folder.exists():
            make = tiny.make_vlm if "vlm" in folder.parent.name else tiny.make_audio
            make(folder.name, folder.parent)
        code = code.replace(name, str(folder))
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
    assert page.stem != "README" or "tensor([[" in capsys.readouterr().out  # valence of the three modalities


def commands(page: Path) -> list[list[str]]:
    """The words after `vaemotionllm` of each command of a page, also of those that a launcher starts."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for launched in ("-m", "--module"):
                if launched in words and words[words.index(launched) + 1] == "vaemotionllm.cli.train":
                    rest = words[words.index(launched) + 2 :]
                    words = ["vaemotionllm", *([] if rest[0] == "cache-teacher" else ["train"]), *rest]
            if words[:1] == ["vaemotionllm"]:
                found.append(words[1:])
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_commands_of_a_page_are_understood(page):
    for name, *words in commands(page):
        parser = argparse.ArgumentParser(prog=f"vaemotionllm {name}", exit_on_error=False)
        entry.functions_of(name)[0](parser)
        arguments = parser.parse_args(words)
        for word in getattr(arguments, "overrides", None) or ():
            assert word.partition("=")[0] in FIELDS, f"{page.name}: {name} {word}"


def targets() -> list[str]:
    """Dotted names of docs/api.md, with the members that it lists."""
    found = []
    for name, options in re.findall(
        r"^::: (\S+)\n((?:    .*\n)*)", (ROOT / "docs" / "api.md").read_text(), flags=re.M
    ):
        members = re.search(r"members: \[(.*)\]", options)
        found += [name, *(f"{name}.{member}" for member in members[1].split(", "))] if members else [name]
    return found


def test_the_api_has_docstrings():
    assert len(targets()) > 20
    for name in targets():
        module, attributes = name, []
        while True:
            try:
                thing = importlib.import_module(module)
                break
            except ModuleNotFoundError:
                module, _, last = module.rpartition(".")
                attributes.insert(0, last)
        for attribute in attributes:
            thing = getattr(thing, attribute)
        assert inspect.getdoc(thing), f"{name} has no docstring"


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
