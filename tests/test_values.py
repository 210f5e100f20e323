"""Numbers, texts and encodings that files of users hold now and then: read, or refused with what is wrong."""

import json
import os
import shutil

import benchmark_files
import pyarrow
import pyarrow.parquet
import pytest
import torch
from media_files import write_png, write_wav

from vaemotionllm import InputError
from vaemotionllm.benchmark import schema
from vaemotionllm.benchmark.questions import read_build_config
from vaemotionllm.cli.main import main
from vaemotionllm.data.collator import emotion_target
from vaemotionllm.data.manifest import read_manifest
from vaemotionllm.train.instructions import prompt_source

DIGITS = "1" * 400
SURROGATE = r'"\ud83d"'  # as JSON and YAML write half a character
ENCODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"]


@pytest.fixture
def row(tmp_path):
    write_wav(tmp_path / "a.wav")
    write_png(tmp_path / "a.png")
    return {"id": "a", "split": "train", "source": "é", "license": "l", "audio": "a.wav", "image": "a.png"}


@pytest.fixture
def manifest(tmp_path, row):
    """Writes a manifest of one clip with these fields, each as JSON, and reads it."""

    def read(**fields: str):
        parts = [
            f"{json.dumps(key)}: {value}"
            for key, value in ({k: json.dumps(v, ensure_ascii=False) for k, v in row.items()} | fields).items()
        ]
        (tmp_path / "manifest.jsonl").write_text("{" + ", ".join(parts) + "}\n", encoding="utf-8")
        return read_manifest(tmp_path / "manifest.jsonl")[0]

    return read


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return benchmark_files.write_benchmark(tmp_path_factory.mktemp("benchmark"), clips=2)


@pytest.fixture
def items(benchmark, tmp_path):
    """Writes a benchmark of one item with these fields, each as JSON, and reads it."""
    copy = shutil.copytree(benchmark, tmp_path / "copy")
    item = {key: json.dumps(value) for key, value in benchmark_files.read_items(benchmark)[0].items()}

    def read(**fields: str):
        parts = [f"{json.dumps(key)}: {value}" for key, value in (item | fields).items()]
        (copy / schema.ITEMS_FILE).write_text("{" + ", ".join(parts) + "}\n", encoding="utf-8")
        return schema.load(copy).items[0]

    return read


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", DIGITS, f"-{DIGITS}", "1" * 5000])
def test_numbers_that_are_none(manifest, items, number):
    for name in ("valence", "arousal", "start_s", "end_s"):
        with pytest.raises(InputError, match="row 1") as error:
            manifest(**{name: number})
        assert len(str(error.value)) < 1000
    with pytest.raises(InputError, match="row 1"):
        manifest(emotion=f'{{"joy": {number}, "fear": 1}}')
    for fields in ({"valence": number}, {"emotion_distribution": f'{{"joy": {number}}}'}):
        with pytest.raises(InputError, match="line 1") as error:
            items(**fields)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_in_parquet(tmp_path, row, value):
    path = tmp_path / "manifest.parquet"
    for change in ({"valence": value}, {"end_s": value}, {"emotion": {"joy": value, "fear": 1.0}}, {"caption": value}):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row | change]), path)
        with pytest.raises(InputError, match=f"row 1 .*{value}"):
            read_manifest(path)


@pytest.mark.parametrize("number", [".nan", "nan", ".inf", "-.inf", "1e400", DIGITS, "1" * 5000])
@pytest.mark.parametrize("field", ["seed", "options", "shard_mb", "max_vote_share"])
def test_numbers_that_are_none_in_configs(tmp_path, field, number):
    (tmp_path / "c.yaml").write_text(f"manifest: m.jsonl\nout: o\nname: n\n{field}: {number}\n")
    with pytest.raises(InputError) as error:
        read_build_config(str(tmp_path / "c.yaml"))
    assert len(str(error.value)) < 1000
    (tmp_path / "c.yaml").write_text("manifest: m.jsonl\nout: o\nname: n\n")
    with pytest.raises(InputError, match=f"`{field}`") as error:
        read_build_config(str(tmp_path / "c.yaml"), [f"{field}={number}"])
    assert len(str(error.value)) < 1000
    assert read_build_config(str(tmp_path / "c.yaml"), ["max_vote_share=5e-324", "name=1e400"]).name == "1e400"


@pytest.mark.parametrize(
    "shares", ['{"joy": 0, "fear": 0}', "{}", '{"joy": null}', '{"joy": 1e308, "fear": 1e308}', "[]"]
)
def test_a_distribution_without_a_finite_positive_sum_is_refused(manifest, shares):
    with pytest.raises(InputError, match="field `emotion`"):
        manifest(emotion=shares)


@pytest.mark.parametrize(
    "shares, target",
    [
        ({"joy": 5e-324}, [1, 0]),
        ({"joy": 1e-46, "fear": 3e-46}, [0.25, 0.75]),
        ({"joy": 1e-310, "fear": 1.0}, [0, 1]),
        ({"joy": 1e39}, [1, 0]),
        ({"joy": 2e38, "fear": 2e38}, [0.5, 0.5]),
    ],
)
def test_small_and_large_shares_are_labels(manifest, shares, target):
    emotion = manifest(emotion=json.dumps(shares)).emotion
    torch.testing.assert_close(emotion_target(emotion, ["joy", "fear"]), torch.tensor(target, dtype=torch.float32))


def test_targets_are_what_they_were_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    labels = [f"l{i}" for i in range(7)]
    for scale in (1.0, 1e-6, 1e6):
        for shares in (torch.rand((50, 7), generator=generator, dtype=torch.float64) * scale).tolist():
            plain = torch.tensor(shares)
            assert torch.equal(emotion_target(dict(zip(labels, shares)), labels), plain / plain.sum())


@pytest.mark.parametrize("shares", [{}, {"joy": 0.0}, {"joy": float("nan")}, {"joy": float("inf")}])
def test_what_is_no_distribution_is_not_taken_for_unlabelled(shares):
    with pytest.raises(InputError, match="sum to"):
        emotion_target(shares, ["joy", "fear"])


def test_lone_surrogates_are_refused(manifest, items, tmp_path):
    for name in ("id", "source", "caption", "emotion", "audio", "column_of_mine"):
        with pytest.raises(InputError, match=r"row 1.*\\ud83d.*surrogate"):
            manifest(**{name: SURROGATE})
    for name in ("id", "question", "audio"):
        with pytest.raises(InputError, match=r"line 1.*\\ud83d.*surrogate"):
            items(**{name: SURROGATE})
    (tmp_path / "c.yaml").write_text(f"name: {SURROGATE}\n")
    with pytest.raises(InputError, match=r"c.yaml.*\\ud83d.*surrogate"):
        read_build_config(str(tmp_path / "c.yaml"))
    with pytest.raises(InputError, match="`name`"):
        read_build_config("art", ["name=caf\udce9"])  # as Python gives an argument that is not UTF-8
    assert manifest(caption=r'"\ud83d\ude00 \\ud83d"').caption == "\N{GRINNING FACE} \\ud83d"


def test_a_file_whose_name_is_not_utf_8_is_refused_with_the_remedy(manifest, tmp_path):
    shutil.copy(tmp_path / "a.wav", os.fsencode(tmp_path) + b"/caf\xe9.wav")
    with pytest.raises(InputError, match=r"row 1.*\\udce9.*change the name"):
        manifest(audio=json.dumps("caf\udce9.wav"))


def test_a_folder_whose_name_is_not_utf_8_is_refused(manifest, items, tmp_path, capsys):
    manifest()
    items()
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    shutil.copytree(tmp_path / "copy", folder)
    for name in ("manifest.jsonl", "a.wav", "a.png"):
        shutil.copy(tmp_path / name, folder)
    with pytest.raises(InputError, match="not in UTF-8. Rename"):
        read_manifest(f"{folder}/manifest.jsonl")
    assert main(["benchmark", "validate", folder, "--no-media"]) == 2
    assert "not in UTF-8. Rename" in capsys.readouterr().err


def test_parquet_with_text_that_is_not_utf_8_is_refused(tmp_path, row):
    buffers = [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xe9")]
    caption = pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers)
    table = pyarrow.Table.from_pylist([row]).append_column("caption", caption)
    pyarrow.parquet.write_table(table, tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match="not a readable parquet file.*utf-8"):
        read_manifest(tmp_path / "manifest.parquet")


def rewrite(path, encoding: str) -> None:
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))


def test_a_byte_order_mark_is_read(manifest, items, tmp_path):
    manifest()
    items()
    copy, config, texts = tmp_path / "copy", tmp_path / "c.yaml", tmp_path / "prompts.txt"
    config.write_text("manifest: m.jsonl\nout: o\nname: é\n", encoding="utf-8")
    texts.write_text("What is it?\n")
    for path in (tmp_path / "manifest.jsonl", copy / schema.ITEMS_FILE, copy / schema.INFO_FILE, config, texts):
        rewrite(path, "utf-8-sig")
    assert read_manifest(tmp_path / "manifest.jsonl")[0].source == "é"
    assert schema.load(copy).name == "test set"
    assert read_build_config(str(config)).name == "é"
    assert "\ufeff" not in prompt_source(str(texts)).identity


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_other_encodings_are_refused_with_the_remedy(manifest, items, tmp_path, encoding):
    manifest()
    items(question='"Qué?"')
    copy, config, texts = tmp_path / "copy", tmp_path / "c.yaml", tmp_path / "prompts.txt"
    config.write_text("name: é\n", encoding="utf-8")
    texts.write_text("Qué?\n", encoding="utf-8")
    kind = "UTF-8" if encoding == "latin-1" else "UTF-16"
    for path, read in (
        (tmp_path / "manifest.jsonl", lambda: read_manifest(tmp_path / "manifest.jsonl")),
        (copy / schema.ITEMS_FILE, lambda: schema.load(copy)),
        (config, lambda: read_build_config(str(config))),
        (texts, lambda: prompt_source(str(texts))),
    ):
        rewrite(path, encoding)
        with pytest.raises(InputError, match=f"{path.name}.*{kind}.*UTF-8"):
            read()


def test_a_command_ends_with_2_and_says_why(manifest, tmp_path, capsys):
    manifest()
    rewrite(tmp_path / "manifest.jsonl", "utf-16")
    (tmp_path / "c.yaml").write_text(
        f"manifest: {tmp_path}/manifest.jsonl\nout: {tmp_path}/o\nname: n\nsplit: train\n"
    )
    assert main(["benchmark", "build", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "UTF-16" in capsys.readouterr().err
    rewrite(tmp_path / "c.yaml", "utf-16")
    assert main(["benchmark", "build", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "UTF-16" in capsys.readouterr().err


def test_labels_that_differ_by_case_or_blanks_are_warned_of(tmp_path, row, items, caplog):
    labels = ["joy", "Joy", {"joy ": 0.5, "calm sea": 0.5}, {"calm  sea": 1.0}, "fear", "joyful"]
    rows = [row | {"id": str(number), "emotion": label} for number, label in enumerate(labels)]
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [clip.emotion for clip in read_manifest(path)] == labels
    (record,) = caplog.records
    text = record.getMessage()
    assert record.levelname == "WARNING" and "`emotion`" in text and "'joy', 'Joy', 'joy '" in text
    assert "'calm sea', 'calm  sea'" in text and "fear" not in text and "joyful" not in text
    caplog.clear()
    items(options='["rain", "Rain", "fire", "drum"]', answer='"rain"')
    assert "'rain', 'Rain'" in caplog.text
    caplog.clear()
    items()
    read_manifest(path, limit=1)
    path.write_text(json.dumps(rows[0]))
    read_manifest(path)
    assert len(caplog.records) == 1
