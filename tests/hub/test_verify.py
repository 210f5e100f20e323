"""`vaemotionllm verify`: what a whole model shows, and what each kind of damage shows."""

import json
import pickle
import shutil
from pathlib import Path

import benchmark_files
import pytest
import speaking_model
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_compare import CELLS, evaluate

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration
from vaemotionllm.benchmark import schema
from vaemotionllm.cli.main import main
from vaemotionllm.evaluation import run_facts
from vaemotionllm.hub import opening, recording, reproducibility, verification
from vaemotionllm.hub.download import locate
from vaemotionllm.hub.recorded_evaluation import prepare, record_evaluation
from vaemotionllm.hub.tolerances import ANSWERS, PROCESSOR, READINGS_SHARE, TOLERANCES
from vaemotionllm.hub.verification import AGREES, DISAGREES, NOT_CHECKED, verify
from vaemotionllm.nano import select

LOGITS = [
    f"logits: {name}"
    for name in ("text", "picture", "film", "sound", "picture and sound", "mixed batch", "mixed batch, adapter off")
]
ADAPTER = "valence, arousal, emotions"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A tiny model whose logits hang on every part of it, with its recording; not to be changed."""
    folder = tiny.make_vaemotionllm(tmp_path_factory.mktemp("model"), emotion_labels=["joy", "fear", "calm"])
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("emotion_adapter") and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif parameter.ndim >= 2 and ("layers" in name or "audio_projector.linear" in name or "conv" in name):
                parameter.mul_(8)
    model.save_pretrained(folder)
    recording.record(folder)
    return folder


@pytest.fixture
def folder(recorded, tmp_path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "model"))


def results_of(folder: Path, **arguments) -> dict[str, verification.Check]:
    return {check.name: check for check in verify(folder, device="cpu", **arguments).checks}


def disagreeing(folder: Path, **arguments) -> list[str]:
    return [name for name, check in results_of(folder, **arguments).items() if check.result == DISAGREES]


def change_json(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def change_weight(folder: Path, name: str, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_whole_model_agrees(recorded, capsys):
    assert main(["verify", str(recorded), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "run here in float32 with sdpa attention on cpu"
    assert lines[2].startswith("recorded in float32 with eager attention on cpu by ") and "vaemotionllm 0." in lines[2]
    shown = [line[:44].rstrip() for line in lines[4:-2] if not line.startswith(" ")]
    width = len("logits: mixed batch, adapter off")
    names = ["format", "recording", "settings", "processor: film", "processor: picture", "processor: sound",
             "processor: ids", "weights", *LOGITS, ADAPTER, "generation"]  # fmt: skip
    assert shown == [
        f"{'check':{width}}  result",
        f"{'files':{width}}  not checke",
        *(f"{name:{width}}  agrees" for name in names),
    ]
    assert lines[-3].endswith("40 of 40") and lines[-1] == "17 agree, 0 disagree, 1 not checked."
    assert "the folder has no reproducibility.json" in "".join(lines)


def test_the_recording_holds_every_kind_of_input(recorded):
    made = recording.read_recording(recorded)
    mixed = next(case for case in made.cases if case.name == "mixed batch")
    assert [row.media for row in mixed.rows] == [(), ("picture",), ("film",), ("sound",), ("picture", "sound")]
    inputs = made.inputs(mixed)
    assert (inputs["attention_mask"][:, 0] == 0).any() and (inputs["attention_mask"][:, -1] == 1).all()
    assert {"pixel_values", "pixel_values_videos", "input_features", "audio_num_tokens"} <= inputs.keys()
    on, off = (made.part(f"outputs/{name}") for name in ("mixed batch", "mixed batch, adapter off"))
    media = [bool(row.media) for row in mixed.rows]
    assert ((on["logits"] - off["logits"]).abs().amax((1, 2)) > 1e-4).tolist() == media, "the adapter is for media"
    assert on["valence"].isfinite().tolist() == [
        [False, False, False], [False, True, False], [False, True, False], [True, False, False], [True, True, True],
    ] and "valence" not in off  # fmt: skip
    assert made.tensors["generation/ids"].shape == (5, 8)
    size = sum((recorded / name).stat().st_size for name in (recording.JSON_FILE, recording.TENSOR_FILE))
    assert size < 500_000, "small beside any model"


def test_two_recordings_are_alike(recorded, folder):
    recording.record(folder)
    for name in (recording.JSON_FILE, recording.TENSOR_FILE):
        assert (folder / name).read_bytes() == (recorded / name).read_bytes()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes_and_attention_backends_agree(recorded, dtype, attention):
    found = results_of(recorded, dtype=dtype, attn_implementation=attention)
    assert {check.result for name, check in found.items() if name != "files"} == {AGREES}
    largest = max(found[name].difference for name in LOGITS)
    if (dtype, attention) == ("float32", "eager"):
        assert largest == 0, "as it was recorded"
    else:
        assert largest < TOLERANCES[dtype][attention] / 2
        assert largest > 0 or dtype == "float32", "nothing was rounded, nothing to tolerate"
    assert {found[name].tolerance for name in LOGITS} == {TOLERANCES[dtype][attention]}


@pytest.mark.parametrize(("vlm", "audio"), [("qwen3_vl", "whisper"), ("llava_onevision", "ast")])
def test_other_families_agree(tmp_path, vlm, audio):
    folder = tiny.make_vaemotionllm(tmp_path, vlm, audio)
    recording.record(folder)
    assert disagreeing(folder) == [] and results_of(folder)["generation"].count == (40, 40)


def test_a_tolerance_of_lower_precision_is_needed(recorded, monkeypatch):
    monkeypatch.setitem(TOLERANCES, "bfloat16", TOLERANCES["float32"])
    assert set(LOGITS) <= set(disagreeing(recorded, dtype="bfloat16"))


def test_one_altered_value_shows_where_it_counts(folder):
    change_weight(folder, "audio_projector.boundary", lambda weight: weight[0, :2].add_(3.0))
    found = results_of(folder)
    heard = [name for name in LOGITS if "sound" in name or "mixed" in name]
    assert [name for name, check in found.items() if check.result == DISAGREES] == [*heard, ADAPTER]
    assert all(found[name].difference > found[name].tolerance for name in heard)
    assert found["logits: text"].difference < 1e-5, "what has no sound is as it was"
    assert found["generation"].result == NOT_CHECKED and main(["verify", str(folder), "--device", "cpu"]) == 1


def test_one_altered_value_of_a_supervisor_shows_in_its_readings(folder):
    change_weight(folder, "emotion_adapter.supervisor.labels.1.bias", lambda weight: weight[:1].add_(0.5))
    found = results_of(folder)
    assert [name for name, check in found.items() if check.result == DISAGREES] == [ADAPTER]
    assert "picture: " in found[ADAPTER].notes[0] and not any("sound: " == n[:7] for n in found[ADAPTER].notes)


def test_one_altered_bit_shows_in_the_hashes_and_nothing_is_loaded(folder, monkeypatch):
    def flip(weight):
        weight.view(torch.int32)[0, 0] ^= 1

    name = "emotion_adapter.supervisor.planes.0.weight"
    reproducibility.write(folder)
    assert results_of(folder)["files"].result == AGREES
    change_weight(folder, name, flip)
    monkeypatch.setattr(verification, "open_model", lambda *a, **k: pytest.fail("it was loaded"))
    monkeypatch.setattr(verification, "open_processor", lambda *a, **k: pytest.fail("it was loaded"))
    found = results_of(folder)
    assert found["files"].result == DISAGREES and "model.safetensors" in found["files"].notes[0]
    assert {check.result for name, check in found.items() if name != "files"} == {NOT_CHECKED}
    # Without the list of hashes one bit is within rounding.
    monkeypatch.undo()
    (folder / reproducibility.FILE).unlink()
    assert disagreeing(folder) == []


def test_a_list_of_hashes_is_not_made_wrong_by_a_new_recording(folder):
    (folder / "reproducibility.json").write_text("{}")
    with pytest.raises(InputError, match="which lists its files"):
        recording.record(folder)


@pytest.mark.parametrize(
    ("change", "processors", "note"),
    [
        (lambda v: v["image_processor"].update(image_mean=[0.6, 0.6, 0.6]), ["picture"], "image_mean is [0.6, 0.6"),
        (lambda v: v["feature_extractor"].update(hop_length=200), ["sound"], "hop_length is 200, recorded was 160"),
        (lambda v: v.update(samples_per_token=1600), ["sound", "ids"], "samples_per_token is 1600"),
        (lambda v: v.update(max_audio_s=1.5), [], "max_audio_s is 1.5, recorded was 300.0"),
    ],
)
def test_a_changed_processor_setting(folder, change, processors, note):
    change_json(folder / "processor_config.json", change)
    found = results_of(folder)
    disagree = [name for name, check in found.items() if check.result == DISAGREES]
    assert disagree == ["settings", *(f"processor: {name}" for name in processors)]
    assert note in found["settings"].notes[0]
    assert {found[name].result for name in LOGITS} == {AGREES}, "the model is given what was recorded"


def test_a_changed_chat_template(folder):
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant", "<|im_start|>system"))
    found = results_of(folder)
    assert [name for name, check in found.items() if check.result == DISAGREES] == ["settings", "processor: ids"]
    assert "input_ids has shape" in found["processor: ids"].notes[0]


def test_what_no_recorded_prompt_shows(folder):
    """A part of the template that it does not reach, and a token that ends an answer."""
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if never %}{% endif %}")
    change_json(folder / "tokenizer_config.json", lambda v: v.update(eos_token="<|endoftext|>", is_local=False))
    found = results_of(folder)
    assert found["settings"].result == DISAGREES and len(found["settings"].notes) == 2
    assert "chat_template.jinja: sha256" in " ".join(found["settings"].notes)
    assert "tokenizer_config.json: eos_token is '<|endoftext|>'" in " ".join(found["settings"].notes)


@pytest.mark.parametrize(
    ("change", "also"),
    [
        (lambda v: v.update(adapter_enabled=False), []),
        (lambda v: v["vlm_config"]["text_config"].update(rms_norm_eps=1e-2), LOGITS),
        (lambda v: v.update(enhancer_rank=8), ["weights"]),
        (lambda v: v.update(projector_stride=5), ["weights"]),
    ],
)
def test_a_changed_config_value(folder, change, also):
    change_json(folder / "config.json", change)
    found = disagreeing(folder)
    assert found[0] == "settings" and set(also) <= set(found)


def test_a_value_that_a_later_version_adds_is_no_change(folder):
    change_json(folder / "config.json", lambda v: v.update(transformers_version="9.9", attn_logit_cap=None))
    assert "settings" not in disagreeing(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "verification.safetensors"])
def test_a_truncated_file(folder, name, capsys):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) * 2 // 3])
    code = main(["verify", str(folder), "--device", "cpu"])
    printed = capsys.readouterr()
    if name == "config.json":  # nothing says that this is a model at all
        assert code == 2 and "config.json is no JSON file" in printed.err
    else:
        assert code == 1 and "DISAGREES" in printed.out and "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("model.safetensors", "format"), ("processor_config.json", "format"), ("chat_template.jinja", "format"),
        ("tokenizer.json", "processor"), ("verification.json", "recording"), ("verification.safetensors", "recording"),
    ],
)  # fmt: skip
def test_a_missing_file(folder, name, check):
    (folder / name).unlink()
    assert check in disagreeing(folder)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("pytorch_model.bin", lambda path: path.write_bytes(b"anything")),
        ("extra/notes.txt", lambda path: path.write_bytes(pickle.dumps({"a": 1}))),
        ("weights.dat", lambda path: torch.save({"a": torch.zeros(1)}, path)),
        ("extra/a.safetensors", lambda path: torch.save({"a": torch.zeros(1)}, path)),
    ],
)
def test_a_pickle_in_the_folder_and_nothing_is_loaded(folder, name, write, monkeypatch):
    (folder / "extra").mkdir()
    write(folder / name)
    monkeypatch.setattr(verification, "open_model", lambda *a, **k: pytest.fail("it was loaded"))
    found = results_of(folder)
    assert found["format"].result == DISAGREES and found["format"].notes[0].startswith(f"{name} is a pickle")
    assert found["weights"].result == NOT_CHECKED


def test_the_length_of_a_safetensors_header_is_no_pickle(folder):
    header = json.dumps({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode().ljust(0x0280)
    (folder / "other.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert (folder / "other.safetensors").read_bytes().startswith(pickle.dumps(0, protocol=2)[:2])
    assert disagreeing(folder) == []


def test_checkpoints_of_a_run_are_no_part_of_the_model(folder):
    (folder / "checkpoint-5").mkdir()
    torch.save({}, folder / "checkpoint-5" / "optimizer.pt")
    assert disagreeing(folder) == []


def test_a_folder_without_records(folder):
    for name in (recording.JSON_FILE, recording.TENSOR_FILE):
        (folder / name).unlink()
    found = results_of(folder)
    assert {name: check.result for name, check in found.items()} == {
        "files": NOT_CHECKED, "format": AGREES, "recording": NOT_CHECKED, "weights": AGREES,
    }  # fmt: skip
    assert "verify DIR --record" in found["recording"].notes[0]
    assert main(["verify", str(folder), "--device", "cpu"]) == 0


def test_weights_that_are_missing_or_unknown(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["something.else"] = tensors.pop("audio_projector.boundary")
    save_file(tensors, file, metadata={"format": "pt"})
    found = results_of(folder)["weights"]
    assert found.result == DISAGREES and "audio_projector.boundary" in found.notes[0]
    with pytest.raises(InputError, match="audio_projector.boundary"):
        recording.record(folder)


def test_a_sharded_folder(folder):
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and disagreeing(folder) == []
    kept = shards[1].read_bytes()
    shards[1].write_bytes(kept[:-100])
    assert f"{shards[1].name} is truncated" in results_of(folder)["format"].notes[0]
    shards[1].unlink()
    assert results_of(folder)["format"].notes == (
        f"{shards[1].name} is missing, which model.safetensors.index.json names.",
    )
    shutil.copy(shards[0], shards[1])
    assert f"{shards[1].name} lacks" in results_of(folder)["format"].notes[0]
    index = folder / "model.safetensors.index.json"
    change_json(index, lambda v: v["weight_map"].update({"audio_projector.boundary": "../other.safetensors"}))
    assert "'../other.safetensors'; only safetensors files of the folder" in results_of(folder)["format"].notes[0]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda v: v.update(format=2), "has format 2; this release reads format 1"),
        (lambda v: v.pop("cases"), "lacks what a recording holds"),
        (lambda v: v.update(cases=[]), "verification.json lists no cases, so there is nothing to compare."),
        (lambda v: v.update(tensors_sha256="0" * 64), "is not the file that verification.json describes"),
        (lambda v: v["cases"][2].update(spread=float("nan")), "a spread of logits that is no number above 0"),
    ],
)
def test_a_recording_that_cannot_be_used(folder, change, note):
    change_json(folder / recording.JSON_FILE, change)
    found = results_of(folder)
    assert note in found["recording"].notes[0] and found["recording"].result == DISAGREES
    assert found["weights"].result == AGREES and not set(LOGITS) & found.keys()


def test_a_model_that_gives_no_numbers_is_not_recorded(folder):
    change_weight(folder, "vlm.model.norm.weight", lambda weight: weight.fill_(float("nan")))
    before = (folder / recording.JSON_FILE).read_bytes()
    with pytest.raises(InputError, match="not finite.* for the input 'text'"):
        recording.record(folder)
    assert (folder / recording.JSON_FILE).read_bytes() == before


def test_the_models_own_code_runs_only_when_it_is_trusted(folder):
    sign = folder.parent / "it_ran"
    code = folder / "modeling_vaemotionllm.py"
    code.write_text(code.read_text() + f"\nopen({str(sign)!r}, 'w').close()\n")
    assert disagreeing(folder) == [] and not sign.exists()
    assert disagreeing(folder, trust_remote_code=True) == [] and sign.exists()


def test_generation_may_turn_where_two_tokens_are_within_rounding(recorded):
    made = recording.read_recording(recorded)
    ids, margins = made.tensors["generation/ids"], made.tensors["generation/margins"]
    check = verification.generation_check
    assert check(made, ids, 0.0).count == (40, 40) and check(made, ids, 0.0).result == AGREES
    turned = ids.clone()
    turned[2, 3:] += 1
    margin = float(margins[2, 3])
    near, far = check(made, turned, margin), check(made, turned, margin / 2.1)
    assert (near.result, near.count, far.result) == (AGREES, (35, 40), DISAGREES)
    assert near.notes == ("row 2 agrees up to token 3 of 8, where the two best tokens are within rounding.",)


def test_what_is_not_a_number_counts_as_a_difference():
    was = {"a": torch.tensor([1.0, float("nan")])}
    assert verification.largest_difference(was, {"a": torch.tensor([1.5, float("nan")])}, 2.0) == (0.25, [])
    _, notes = verification.largest_difference(was, {"a": torch.tensor([float("inf"), float("nan")])})
    assert "not finite" in notes[0]
    [note] = verification.largest_difference({"a": torch.tensor([torch.inf])}, {"a": torch.tensor([-torch.inf])})[1]
    assert "not finite" in note
    assert "a is missing" in verification.largest_difference(was, {})[1][0]
    assert "a has shape (1,)" in verification.largest_difference(was, {"a": torch.zeros(1)})[1][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "int4"], "the dtype is 'int4'; allowed are float32, float16, bfloat16"),
        (["--dtype", "float32", "--attn-implementation", "flash_attention_2"], "no kernels for float32"),
        (["--dtype", "float16", "--attn-implementation", "quick"], "the attention backend is 'quick'; allowed are"),
        (["--attn-implementation", "flex_attention"], "no attention backend 'flex_attention'; give another"),
        (["--device", "abacus"], "the device 'abacus' cannot be used here"),
        (["--revision", "v1"], "--revision is of models on the Hub"),
        (["--benchmark", "nano"], "--benchmark is read with --evaluation alone"),
        (["--evaluation"], "has no recorded evaluation"),
        (["--batch-size", "0"], "--batch-size is 0"),
    ],
)
def test_bad_arguments(recorded, words, message, capsys):
    assert main(["verify", str(recorded), *words]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_model(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for name, message in (("none", "there is no folder"), ("empty", "no config.json"), ("bert", "of type 'bert'")):
        assert main(["verify", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_a_name_that_is_not_in_the_cache_while_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="the Hub cannot be reached .*, and org/none is not whole in its cache"):
        locate("org/none")


def test_json_holds_every_check(recorded, capsys):
    assert main(["verify", str(recorded), "--device", "cpu", "--dtype", "bfloat16", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["agrees"] is True and printed["dtype"] == "bfloat16" and printed["recorded"]["dtype"] == "float32"
    text = next(check for check in printed["checks"] if check["name"] == "logits: text")
    assert text["result"] == AGREES and 0 < text["difference"] < text["tolerance"]


def test_recording_by_the_command(folder, capsys):
    (folder / recording.JSON_FILE).unlink()
    (folder / recording.TENSOR_FILE).unlink()
    assert main(["verify", str(folder), "--record"]) == 0
    assert recording.read_recording(folder) is not None and "recorded" in capsys.readouterr().out


# The recorded evaluation


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Path:
    return benchmark_files.write_benchmark(tmp_path_factory.mktemp("benchmark"), clips=4)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, benchmark) -> tuple[Path, Path]:
    """A recorded model that answers in letters, and the result files of its answers."""
    from vaemotionllm.evaluation.lmms_model import VAEmotionLLM
    from vaemotionllm.hub.recorded_evaluation import Questions, _ask

    model_folder = speaking_model.make(tmp_path_factory.mktemp("speaking"))
    recording.record(model_folder)
    generation = {"max_new_tokens": 4, "temperature": 0, "do_sample": False}
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAEMOTIONLLM_CACHE", str(out / "cache"))
        patch.setenv(select.VARIABLE, str(benchmark))
        items = {item.id: item for item in schema.load(benchmark).items}
        tasks = {
            f"artemo_{cell}": {
                "items": [i.id for i in items.values() if f"{i.aspect}_{i.modality}" == cell],
                "generation": generation,
            }
            for cell in CELLS
        }
        facts = {"device": "cpu", "dtype": "float32", "attn_implementation": "sdpa"}
        said = _ask(model_folder, Questions({"tasks": tasks}, items), facts, {}, "cpu", 24)
        answers = {name: answer for task, entry in tasks.items() for name, answer in zip(entry["items"], said[task])}
        evaluate(out, lambda task, doc: answers[doc["id"]])
        run = run_facts.facts_of(VAEmotionLLM(str(model_folder), device="cpu"))
    (file,) = out.glob("*/*_results.json")

    def add(values):
        for config in values["configs"].values():
            config["metadata"]["run"], config["generation_kwargs"] = run, generation

    change_json(file, add)
    assert len(set(answers.values())) > 4, "a model that always says the same would prove nothing"
    return model_folder, out


@pytest.fixture
def asked(evaluated, tmp_path) -> Path:
    folder = Path(shutil.copytree(evaluated[0], tmp_path / "model"))
    assert record_evaluation(folder, evaluated[1], items=3) == {f"artemo_{cell}": 3 for cell in CELLS}
    return folder


def test_recorded_answers_come_again(asked, benchmark, capsys):
    words = ["verify", str(asked), "--device", "cpu", "--evaluation", "--benchmark", str(benchmark)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "18 of 18" in printed
    entry = json.loads((asked / recording.JSON_FILE).read_text())["evaluation"]["tasks"]["artemo_emotion_av"]
    accuracy = f"{entry['accuracy']:.3f}"
    assert f"artemo_emotion_av: 3 of 3 answers alike; accuracy {accuracy}, recorded {accuracy}" in printed


def test_other_answers_disagree(asked, benchmark, monkeypatch, capsys):
    monkeypatch.setenv(select.VARIABLE, str(benchmark))

    def change(values):
        entry = values["evaluation"]["tasks"]["artemo_content_audio"]
        entry["answers"] = ["B" if answer[:1] == "A" else "A" for answer in entry["answers"]]

    change_json(asked / recording.JSON_FILE, change)
    assert main(["verify", str(asked), "--device", "cpu", "--evaluation"]) == 1
    printed = capsys.readouterr().out
    assert "15 of 18" in printed and "artemo_content_audio: 0 of 3 answers alike" in printed


def test_another_benchmark_is_refused(asked, tmp_path, capsys):
    other = benchmark_files.write_benchmark(tmp_path / "other", clips=5)
    assert main(["verify", str(asked), "--evaluation", "--benchmark", str(other)]) == 2
    assert "whose items have the hash" in capsys.readouterr().err
    assert main(["verify", str(asked), "--evaluation", "--benchmark", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_results_that_cannot_be_recorded(evaluated, folder, tmp_path):
    model_folder, results = evaluated
    with pytest.raises(InputError, match=r"holds no \*_results.json"):
        record_evaluation(folder, tmp_path)
    copy = Path(shutil.copytree(results, tmp_path / "results"))
    (file,) = copy.glob("*/*_results.json")
    change_json(file, lambda v: [c["metadata"].pop("run") for c in v["configs"].values()])
    with pytest.raises(InputError, match="is of the adapter None"):
        record_evaluation(folder, copy)
    (folder / recording.JSON_FILE).unlink()
    (folder / recording.TENSOR_FILE).unlink()
    with pytest.raises(InputError, match="--record` first"):
        record_evaluation(folder, results)


def test_no_recorded_answers_are_no_agreement(asked, benchmark):
    from vaemotionllm.hub.recorded_evaluation import rerun

    change_json(asked / recording.JSON_FILE, lambda v: v["evaluation"].update(tasks={}))
    (check,) = rerun(asked, prepare(asked, str(benchmark)), verify(asked, device="cpu"))
    assert check.result == NOT_CHECKED and "no answers are recorded" in check.notes


def test_a_broken_model_is_not_asked(asked, benchmark):
    change_weight(asked, "audio_projector.boundary", lambda weight: None)
    (asked / "tokenizer.json").write_text("{")
    (asked / "model.safetensors").write_bytes(b"\0" * 100)
    questions = prepare(asked, str(benchmark))
    from vaemotionllm.hub.recorded_evaluation import rerun

    (check,) = rerun(asked, questions, verify(asked, device="cpu"))
    assert check.result == NOT_CHECKED


def test_opening_names_the_file_and_the_error(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(opening.Unusable, match="a.json holds no JSON object but list"):
        opening.read_json_object(tmp_path / "a.json")


def test_the_page_about_it_has_the_tolerances_of_the_code():
    page = (Path(__file__).resolve().parents[2] / "docs" / "verify.md").read_text()
    for dtype, of in TOLERANCES.items():
        flash = f"{of['flash_attention_2']:g}" if "flash_attention_2" in of else "no kernels"
        assert of["eager"] == of["sdpa"] and of.get("flash_attention_2") == of.get("flash_attention_3")
        assert f"| {dtype} | {of['eager']:g} | {flash} | {of['flex_attention']:g} |" in page
    assert all(f"{value:g}" in page for value in PROCESSOR.values())
    assert all(f"{share:.0%}" in page for share in ANSWERS.values()) and READINGS_SHARE == 0.25
