"""The model card and `reproducibility.json`: what a run, its evaluation and its parts hold, and nothing else."""

import json
import shutil

import pytest
from compared import A, chosen, evaluate, folder, knows  # noqa: F401  (fixtures)
from huggingface_hub import ModelCard
from report_files import make_rows, write_va
from training import make_setup, stage1_values, stage2_values, train

from vaemotionllm.benchmark.intervals import wilson
from vaemotionllm.cli.main import main
from vaemotionllm.hub.model_folder import REPRODUCIBILITY, check_files, write_reproducibility
from vaemotionllm.hub.push import push
from vaemotionllm.train import checkpoint
from vaemotionllm.utils import InputError, sha256_of_file, sha256_of_json


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(root, manifest): `root/stage1` and `root/stage2` are finished runs of a few steps."""
    root = tmp_path_factory.mktemp("runs")
    model, manifest = make_setup(root, clips=8)
    short = {"max_steps": 2, "save_steps": 2}
    train(stage1_values(model, manifest, root / "stage1", responses_per_clip=1, **short))
    train(stage2_values(root / "stage1", manifest, root / "stage2", **short))
    return root, manifest


@pytest.fixture
def stage2(runs, tmp_path):
    return shutil.copytree(runs[0] / "stage2", tmp_path / "stage2")


@pytest.fixture
def results(tmp_path):
    """A demo's evaluation of `stage2`: 4, 6 and 9 of 12 clips right, by sound, by sight and by both."""
    out = tmp_path / "eval" / "stage2"
    evaluate(out / "lmms_eval", A, model="stage2")
    evaluate(out / "lmms_eval", knows(*range(3)), ("emotion_audio_silence",), model="stage2", date="20260101_000000")
    import numpy as np

    write_va(out / "emotion.json", make_rows(12, 0), 0.1, np.random.default_rng(0))
    return out


def dry(model, **options):
    return push(model, "org/name", dry_run=True, recorded=False, **options)


def test_a_run_tells_its_whole_history(runs, tmp_path):
    root, manifest = runs
    moved = shutil.copytree(root / "stage2", tmp_path / "elsewhere")
    first, second = checkpoint.stages_of(moved)  # though stage 1 does not lie beside it
    assert [stage["settings"]["stage"] for stage in (first, second)] == [1, 2]
    assert [stage["settings"]["seed"] for stage in (first, second)] == [1, 3]
    assert [stage["steps"] for stage in (first, second)] == [2, 2]
    assert first["quality"] == {"responses": 8, "responses_dropped": 0} and second["last"]["step"] == 2
    expected = {"clips": 8, "split": "train", "sources": {"test": 8}, "licenses": {"CC0-1.0": 8},
                "media": {"audio": 8, "video": 4, "image": 4}}  # fmt: skip
    for stage in (first, second):
        assert {name: stage["data"][name] for name in expected} == expected
        assert stage["settings"]["manifest_sha256"] == sha256_of_file(manifest)
        assert {"torch", "transformers", "vaemotionllm"} < set(stage["versions"])
        assert stage["settings_sha256"] == sha256_of_json(stage["settings"])
    assert first["data"]["labels"] == {} and second["data"]["labels"]["emotion"] == 8  # stage 1 is given none
    assert second["data"]["art_forms"] == {"painting": 8}


def test_a_run_without_a_record_has_settings_alone(runs, tmp_path):
    moved = shutil.copytree(runs[0] / "stage2", tmp_path / "stage2")
    (moved / checkpoint.RECORD).unlink()
    (stage,) = checkpoint.stages_of(moved)
    assert stage["settings"]["stage"] == 2 and "data" not in stage and "versions" not in stage
    assert "What it lists is not recorded, and the manifest is not at hand." in dry(moved).card


def test_an_exported_model_keeps_the_history(runs, tmp_path, capsys):
    assert main(["export", str(runs[0] / "stage2"), "--out", str(tmp_path / "exported")]) == 0
    assert checkpoint.stages_of(tmp_path / "exported") == checkpoint.stages_of(runs[0] / "stage2")
    (tmp_path / "exported" / checkpoint.RECORD).write_text("{")
    assert main(["push", str(tmp_path / "exported"), "--repo", "a/b", "--dry-run", "--no-recording"]) == 2
    assert "training.json" in capsys.readouterr().err


def test_the_card_says_what_the_run_and_its_evaluation_say(stage2, results, runs, tmp_path):
    root, manifest = runs
    done = dry(stage2, license="cc-by-4.0", results=results)
    card = ModelCard(done.card)
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert card.data.license == "cc-by-4.0" and "base_model" not in card.data.to_dict()
    of = {(r.dataset_config, r.metric_type): r for r in card.data.eval_results}
    # By hand, see `results`; the control is in the table alone.
    assert of["artemo_content_audio", "accuracy"].metric_value == pytest.approx(4 / 12, abs=1e-6)
    assert of["artemo_emotion_av", "accuracy"].metric_value == pytest.approx(9 / 12, abs=1e-6)
    assert len(of) == 6 + 6 and ("supervisor_av", "valence_ccc") in of
    assert of["artemo_content_audio", "accuracy"].dataset_name == "test set, version 1"
    low, high = wilson(4, 12)
    assert f"| artemo_content_audio | accuracy | 0.333 | {low:.3f} to {high:.3f} | 12 |" in done.card
    assert "| artemo_emotion_audio_silence | accuracy (control) | 0.250 |" in done.card
    for line in (
        "- Sources: test 8",
        "- Licences: CC0-1.0 8",
        "- Clips: 8, split `train`",
        f"SHA-256 `{sha256_of_file(manifest)}`",
        "**Stage 1, VG-Align**",
        "| teacher's responses | 8 |",
        "| lora | rank 2",
        "merged into the weights; alone, for PEFT, in `adapter/`",
        ", ".join(json.loads((stage2 / "config.json").read_text())["emotion_labels"]),
        "- Stated by who uploaded it: cc-by-4.0.",
        "No number in this card is the paper's.",
        "AutoModel, AutoProcessor",
    ):
        assert line in done.card, line
    assert str(root) not in done.card and str(tmp_path) not in done.card
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < set(done.files)


def test_what_is_not_known_is_said_and_not_made_up(runs, tmp_path):
    done = dry(next((runs[0] / "models").glob("vaemotionllm_*")))
    card = ModelCard(done.card)
    assert card.data.eval_results is None and card.data.license is None
    assert done.card.count("Not known: the folder holds no record of a training run.") == 2
    assert "No results were given when this card was made." in done.card
    assert "no evaluation of" in done.notes[0] and "--results" in done.notes[0]
    assert "- Training data: its licences are not known here." in done.card
    assert "No stage-2 run is recorded" in done.card and "- Whoever uploaded it stated none." in done.card


def test_results_are_named_and_checked_against_their_samples(stage2, results):
    assert "No results were given" in dry(stage2).card
    assert "| artemo_content_audio |" in dry(stage2, results=results).card
    assert "| artemo_content_audio |" in dry(stage2, results=results.parents[1]).card  # a demo's folder
    file = next(f for f in results.glob("**/*_results.json") if "artemo_content_audio" in f.read_text())
    written = json.loads(file.read_text())
    written["results"]["artemo_content_audio"]["accuracy,none"] = 0.99
    file.write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"0\.99 for artemo_content_audio, but its samples say"):
        dry(stage2, results=results)


@pytest.fixture
def written(stage2, runs):
    """A model folder with its `reproducibility.json`."""
    for path in stage2.glob("checkpoint-*"):
        shutil.rmtree(path)
    write_reproducibility(stage2, checkpoint.stages_of(stage2), {"tasks": {}})
    return stage2


def test_reproducibility_names_versions_settings_seeds_data_results_and_files(written, runs):
    text = (written / REPRODUCIBILITY).read_text()
    found = json.loads(text)
    assert found["format"] == 1 and found["seeds"] == {"stage 1": 1, "stage 2": 3}
    assert {"python", "torch", "transformers", "vaemotionllm"} < set(found["versions"])
    stages = checkpoint.stages_of(written)
    assert found["configs"] == {f"stage {i + 1}": stage["settings_sha256"] for i, stage in enumerate(stages)}
    assert found["data"]["stage 2"]["manifest_sha256"] == sha256_of_file(runs[1])
    assert found["data"]["stage 1"]["licenses"] == {"CC0-1.0": 8} and found["results"] == {"tasks": {}}
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert set(found["files"]) == names - {REPRODUCIBILITY}
    weights = written / "model.safetensors"
    assert found["files"][weights.name] == {"sha256": sha256_of_file(weights), "size": weights.stat().st_size}
    assert str(runs[0]) not in text  # no place on this machine
    write_reproducibility(written, stages, {"tasks": {}})
    assert (written / REPRODUCIBILITY).read_text() == text


def test_a_recording_of_before_does_not_go_out(written):
    for name in ("verification.json", "verification.safetensors"):
        (written / name).write_text("of the model before")
    (written / "README.md").write_text("# org/name, before")
    assert "verification.json" not in dry(written).files  # one is made in its place, unless --no-recording is given
    assert any("README.md is taken as the card; look whether" in note for note in dry(written).notes)


def test_files_that_differ_are_named(written):
    assert check_files(written) == []
    (written / "README.md").write_text("# A card")
    (written / "figure.png").write_bytes(b"drawn")
    (written / ".gitattributes").write_text("")
    assert check_files(written) == []
    weights = written / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (written / "media.py").unlink()
    (written / "config.json").write_text("{}")
    (written / "adapter" / "extra.bin").write_bytes(b"x")
    size = json.loads((written / REPRODUCIBILITY).read_text())["files"]["config.json"]["size"]
    assert check_files(written) == [
        f"config.json has 2 bytes instead of {size:,}.",
        "media.py is missing.",
        "model.safetensors was altered: its SHA-256 is another.",
        "adapter/extra.bin is not of this model: reproducibility.json does not list it.",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "cannot read .*reproducibility.json"),
        ({"format": 2}, "is of format 2, and 1 is known; upgrade"),
        ({"files": {"config.json": "abc"}}, "lacks the hashes"),
        ({"files": []}, "lacks the hashes"),
        ("{", "is no valid JSON"),
    ],
)
def test_a_file_of_hashes_that_cannot_be_used(written, change, words):
    file = written / REPRODUCIBILITY
    if change is None:
        file.unlink()
    else:
        file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=words):
        check_files(written)


@pytest.mark.parametrize("name", ["../stage2/config.json", "/etc/passwd"])
def test_a_listed_name_that_leads_out_of_the_folder_is_missing(written, name):
    found = json.loads((written / REPRODUCIBILITY).read_text())
    found["files"][name] = {"sha256": "0", "size": 1}
    (written / REPRODUCIBILITY).write_text(json.dumps(found))
    assert check_files(written) == [f"{name} is missing."]
