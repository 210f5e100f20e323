"""transformers' own common checks of its models, run on VAEmotionLLM at tiny size.

    python benchmarks/transformers_checks.py [--source DIR] [--families qwen2_5_vl ...] [--only WORD] [--traces]

The checks are those that transformers holds every model against: `ModelTesterMixin`, `TrainingTesterMixin` and
`ConfigTester`. They are not in its wheel: the source distribution of the installed version is downloaded into
build/transformers_checks once (`--source` names one that is unpacked already). It lacks the checks of `generate` and
of `torch.export`: tests/model/test_conformity_*.py has ours.

Every check counts as passed, failed, or skipped with the reason that it gave itself; one that finds nothing to check
in a model of this kind counts as passed. `LEFT_OUT` names those that do not apply, and `ON_PURPOSE` those that fail
because this model is stricter. Goal: at least 95% of the
checks that ran pass. Under 2 minutes on one core, the download not counted.
"""

import argparse
import collections
import copy
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from importlib.metadata import version
from pathlib import Path

import torch
from common import last_line, machine, quiet, table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # the builders of small models

FOLDER = ROOT / "build" / "transformers_checks"
NEEDED = "parameterized==0.9.0"  # what transformers' tests import beside pytest
GOAL = 0.95
# Modules that the tests import and the source distribution leaves out, with the names that they need.
NOT_IN_SDIST = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}
# check -> why it says nothing about this model.
LEFT_OUT = {"test_generation_tester_mixin_inheritance": "is about the test class, not about the model"}
# check -> why it fails, and is meant to.
ON_PURPOSE = {
    "test_correct_missing_keys": "a backbone's folder is none of ours and is refused: `from_backbone` is for that",
    "test_model_weights_reload_no_missing_tied_weights": "a folder that lacks its weights is refused, not filled",
}


def source() -> Path:
    """The folder of the source distribution of the installed transformers, downloaded and unpacked where it is not."""
    name = f"transformers-{version('transformers')}"
    folder = FOLDER / name
    if not folder.is_dir():
        pip("download", "--no-deps", "--no-binary", "transformers", "--dest", str(FOLDER), name.replace("-", "=="))
        partly = FOLDER / "unpacked"
        shutil.rmtree(partly, ignore_errors=True)
        with tarfile.open(FOLDER / f"{name}.tar.gz") as archive:
            archive.extractall(partly, filter="data")
        (partly / name).rename(folder)
    return folder


def pip(*arguments: str) -> None:
    if subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]).returncode:
        sys.exit(f"pip {' '.join(arguments)} failed: see above; the network is needed once.")


def import_checks(folder: Path) -> types.ModuleType:
    """transformers' package `tests`, with empty modules in place of those that the source distribution leaves out."""
    if not (FOLDER / "site").is_dir():
        pip("install", "--no-deps", "--target", str(FOLDER / "site"), NEEDED)
    sys.path.insert(0, str(FOLDER / "site"))
    (folder / "tests" / "__init__.py").touch()  # left out too, and one of the checks loads it
    package = types.ModuleType("tests")
    package.__path__ = [str(folder / "tests")]
    sys.modules["tests"] = package
    for name, contents in NOT_IN_SDIST.items():
        if not (folder / "tests" / f"{name.replace('.', '/')}.py").is_file():
            for module in (f"tests.{name.split('.')[0]}", f"tests.{name}"):
                if module not in sys.modules:
                    sys.modules[module] = types.ModuleType(module)
                    sys.modules[module].__path__ = []
            vars(sys.modules[f"tests.{name}"]).update(contents)
    common = importlib.import_module("tests.test_modeling_common")
    steady = common.set_config_for_less_flaky_test

    def steady_parts(config):
        # It writes fields of norms into a config; ours has none, but its parts do.
        for part in (config.vlm_config, config.vlm_config.get_text_config(), config.audio_config):
            steady(part)

    common.set_config_for_less_flaky_test = steady_parts
    return common


class Tester:
    """The tester that transformers' checks need of a model: a tiny config, and a batch for it.

    Each row holds one image of one patch and one audio of one window, so that a row of any input is a sample.
    """

    batch_size, is_training = 7, True  # 7 rows are what the comparison of attentions fills a batch up to

    def __init__(self, config):
        text = config.get_text_config()
        self._config = config
        self.hidden_size, self.vocab_size = text.hidden_size, text.vocab_size
        self.num_hidden_layers, self.num_attention_heads = text.num_hidden_layers, text.num_attention_heads
        self.seq_length = 12

    def get_config(self):
        return copy.deepcopy(self._config)

    def prepare_config_and_inputs_for_common(self):
        config, generator = self.get_config(), torch.Generator().manual_seed(0)
        vlm, audio, batch = config.vlm_config, config.audio_config, self.batch_size
        ids = torch.randint(100, 200, (batch, self.seq_length), generator=generator)
        tiled = vlm.model_type == "llava_onevision"  # the image whole, its one tile, and the end of its line
        ids[:, 1 : 4 if tiled else 2] = config.visual_token_ids[0]
        ids[:, 5:9] = config.audio_token_id  # begin, two audio tokens, end
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "input_features": torch.randn(
                batch, audio.num_mel_bins, 2 * audio.max_source_positions, generator=generator
            ),
            "audio_num_tokens": torch.full((batch,), 2),
        }
        if tiled:
            size = vlm.vision_config.image_size
            inputs["pixel_values"] = torch.randn(batch, 2, 3, size, size, generator=generator)
            inputs["image_sizes"] = torch.full((batch, 2), size)
        else:
            vision = vlm.vision_config
            width = 3 * vision.temporal_patch_size * vision.patch_size**2
            inputs["pixel_values"] = torch.randn(batch, width, generator=generator)
            inputs["image_grid_thw"] = torch.ones(batch, 3, dtype=torch.long)
            inputs["mm_token_type_ids"] = (ids == vlm.image_token_id).long()
        return config, inputs


def tiny_config(family: str, folder: Path):
    """The config of a tiny model whose images have one patch, which is one token."""
    import tiny

    from vaemotionllm import VAEmotionLLMConfig

    config = VAEmotionLLMConfig.from_pretrained(tiny.make_vaemotionllm(folder, family))
    vision = config.vlm_config.vision_config
    for name in ("image_token_id", "video_token_id", "image_token_index", "video_token_index"):
        if name in config.vlm_config.to_dict():  # away from the low ids, which the checks write as text
            setattr(config.vlm_config, name, 280 + name.startswith("video"))
    if family == "llava_onevision":
        vision.image_size = vision.patch_size
        config.vlm_config.image_grid_pinpoints = [[vision.patch_size] * 2]
    else:
        vision.spatial_merge_size = 1
    return config


def test_case(family: str, folder: Path, common) -> type[unittest.TestCase]:
    """The checks of one backbone family."""
    from vaemotionllm import VAEmotionLLMConfig, VAEmotionLLMForConditionalGeneration

    configuration = importlib.import_module("tests.test_configuration_common")
    training = importlib.import_module("tests.test_training_mixin")
    config = tiny_config(family, folder)

    class Checks(
        common.ModelTesterMixin, common.GenerationTesterMixin, training.TrainingTesterMixin, unittest.TestCase
    ):
        all_model_classes = (VAEmotionLLMForConditionalGeneration,)
        _is_composite = True
        model_tester = None
        additional_model_inputs = (
            "pixel_values", "image_grid_thw", "image_sizes", "mm_token_type_ids", "input_features", "audio_num_tokens",
        )  # fmt: skip
        # The Supervisor learns from a loss of its own, which `labels` do not give.
        test_all_params_have_gradient = False
        # Not only of models whose files have a year in their head.
        test_can_init_all_missing_weights_before_2023 = True

        def setUp(self):
            self.model_tester = Tester(config)
            self.config_tester = configuration.ConfigTester(
                self, config_class=VAEmotionLLMConfig, has_text_modality=False
            )

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs_dict, model_class)
            # transformers finds by the name of the class that a model takes labels; it does not know ours.
            return {**inputs, "labels": torch.zeros_like(inputs["input_ids"])} if return_labels else inputs

        def test_training_overfit(self):
            text = config.get_text_config()  # it reads the vocabulary, which a composite config has in a part
            self.model_tester.get_config = lambda: setattr(config, "vocab_size", text.vocab_size) or config
            super().test_training_overfit()

    for name in dir(configuration.ConfigTester):
        if name.startswith(("create_and_test_", "check_")):
            check = f"test_{name.removeprefix('create_and_test_').removeprefix('check_')}"
            setattr(Checks, check, lambda self, name=name: getattr(self.config_tester, name)())
    Checks.__name__ = Checks.__qualname__ = f"Checks[{family}]"
    return Checks


class Outcomes(unittest.TestResult):
    """Every check's outcome, as (family, check, outcome, reason)."""

    def __init__(self):
        super().__init__()
        self.rows: list[tuple[str, str, str, str]] = []
        self.traces: list[str] = []

    def _add(self, test, outcome: str, reason: str = ""):
        family, _, check = test.id().removesuffix(")").partition("].")
        self.rows.append((family.rpartition("[")[2], check, outcome, reason))

    def startTest(self, test):
        super().startTest(test)
        print(test.id().rpartition(".")[2], file=sys.stderr, flush=True)

    def addSuccess(self, test):
        self._add(test, "passed")

    def addSkip(self, test, reason):
        self._add(test, "skipped", reason)

    def addFailure(self, test, err):
        self._add(test, "failed", f"{err[0].__name__}: {err[1]}")
        self.traces.append(f"{test.id()}\n{self._exc_info_to_string(err, test)}")

    addError = addFailure

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.addFailure(test, err)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="unpacked source distribution of transformers")
    parser.add_argument("--families", nargs="+", default=["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
    parser.add_argument("--only", default="", help="run the checks whose name holds this word")
    parser.add_argument("--traces", action="store_true", help="print the tracebacks of failed checks")
    arguments = parser.parse_args()
    os.environ.setdefault("RUN_TRAINING_TESTS", "1")
    quiet()
    common = import_checks(arguments.source or source())
    outcomes, absent = (
        Outcomes(),
        [name for name in NOT_IN_SDIST if not hasattr(sys.modules[f"tests.{name}"], "__file__")],
    )
    with tempfile.TemporaryDirectory() as folder:
        for family in arguments.families:
            case = test_case(family, Path(folder) / family, common)
            names = [name for name in unittest.TestLoader().getTestCaseNames(case) if arguments.only in name]
            unittest.TestSuite(case(name) for name in names if name not in LEFT_OUT).run(outcomes)
    print(f"{machine()}\n")
    report(outcomes, arguments, absent)
    return 0


def _short(reason: str) -> str:
    """On one line, without the names of temporary folders, which differ."""
    return re.sub(r"/tmp\S*", "...", " ".join(reason.split()))[:200]


def report(outcomes: Outcomes, arguments, absent: list[str]) -> None:
    """Prints counts, reasons, and the JSON object."""
    counts = {family: collections.Counter() for family in arguments.families}
    for family, _, outcome, _ in outcomes.rows:
        counts[family][outcome] += 1
    kinds = ("passed", "failed", "skipped")
    table(["checks", *kinds], [[family, *(str(count[kind]) for kind in kinds)] for family, count in counts.items()])
    for kind in ("failed", "skipped"):
        reasons: dict[tuple[str, str], list[str]] = {}
        for family, check, outcome, reason in outcomes.rows:
            if outcome == kind:
                reasons.setdefault((check, _short(reason)), []).append(family)
        for (check, reason), families in sorted(reasons.items()):
            where = "" if len(families) == len(arguments.families) else f" ({', '.join(families)})"
            reason = f"{ON_PURPOSE[check]} ({reason})" if check in ON_PURPOSE else reason
            print(f"{kind}  {check}{where}: {reason}")
        print()
    for check, why in LEFT_OUT.items():
        print(f"left out  {check}: {why}")
    for name in absent:
        print(f"not in the source distribution: tests/{name.replace('.', '/')}.py")
    if arguments.traces:
        print("\n".join(["", *outcomes.traces]))
    total = sum(counts.values(), collections.Counter())
    ran = total["passed"] + total["failed"]
    share = total["passed"] / max(ran, 1)
    last_line(
        {**{kind: total[kind] for kind in kinds}, "left_out": len(LEFT_OUT), "share_passed": share, "goal": GOAL}
    )


if __name__ == "__main__":
    sys.exit(main())
