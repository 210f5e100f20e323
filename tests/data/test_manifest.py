import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from media_files import write_png, write_wav, write_world

from vaemotionllm import InputError
from vaemotionllm.data.manifest import read_manifest


@pytest.fixture
def row(tmp_path):
    write_wav(tmp_path / "a.wav")
    write_png(tmp_path / "a.png")
    return {"id": "a", "split": "train", "source": "s", "license": "l", "audio": "a.wav", "image": "a.png"}


def write(tmp_path, *rows):
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_become_clips_with_absolute_paths(tmp_path):
    manifest = write_world(tmp_path, clips=4)
    clips = read_manifest(manifest, "train", need=("audio", "visual", "emotion"))
    assert [clip.id for clip in clips] == [f"train-{i}" for i in range(4)]
    assert clips[0].image == str(tmp_path / "train-0.png") and clips[0].visual == "image"
    assert clips[1].video == clips[1].audio == str(tmp_path / "train-1.mp4") and clips[1].visual == "video"
    assert clips[1].valence == pytest.approx(0.54) and clips[1].emotion == "calm"


def test_parquet_holds_paths_or_bytes(tmp_path, row):
    data = (tmp_path / "a.wav").read_bytes()
    rows = [row, row | {"id": "b", "audio": {"bytes": data, "path": None}, "valence": -1.0}]
    rows[0] = row | {"audio": {"bytes": None, "path": "a.wav"}, "valence": None}
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "manifest.parquet")
    first, second = read_manifest(tmp_path / "manifest.parquet")
    assert first.audio == str(tmp_path / "a.wav") and first.valence is None
    assert second.audio == data and second.valence == -1.0


def test_labels_can_be_taken_off(tmp_path):
    clip = read_manifest(write_world(tmp_path, clips=1))[0]
    bare = clip.without_labels()
    assert bare.audio == clip.audio and bare.image == clip.image
    assert (bare.content, bare.emotion, bare.valence, bare.arousal, bare.caption, bare.art_form) == (None,) * 6


def test_val_is_validation(tmp_path, row):
    path = write(tmp_path, row, row | {"id": "b", "split": "val"}, row | {"id": "c", "split": "validation"})
    for split in ("val", "validation"):
        assert [(clip.id, clip.split) for clip in read_manifest(path, split)] == [
            ("b", "validation"), ("c", "validation")
        ]  # fmt: skip


def test_emotion_as_a_distribution(tmp_path, row):
    clips = read_manifest(write(tmp_path, row | {"emotion": {"joy": 0.75, "fear": 0.25, "calm": None}}))
    assert clips[0].emotion == {"joy": 0.75, "fear": 0.25}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": None}, ["split", "missing"]),
        ({"license": ""}, ["license", "missing"]),
        ({"split": "training"}, ["training", "train, validation"]),
        ({"audio": None, "image": None}, ["no medium"]),
        ({"video": "a.png"}, ["`video` and `image`"]),
        ({"audio": "../a.wav"}, ["audio", "outside", "../a.wav"]),
        ({"audio": "x/../../a.wav"}, ["audio", "outside"]),
        ({"audio": "/etc/passwd"}, ["audio", "outside"]),
        ({"audio": "b.wav"}, ["audio", "not found", "b.wav"]),
        ({"audio": 7}, ["audio", "7"]),
        ({"valence": 1.5}, ["valence", "1.5", "[-1, 1]"]),
        ({"arousal": float("nan")}, ["arousal", "nan"]),
        ({"valence": "high"}, ["valence", "high"]),
        ({"start_s": 2.0, "end_s": 1.0}, ["end_s", "start_s"]),
        ({"start_s": -1.0}, ["start_s", "-1"]),
        ({"emotion": 3}, ["emotion", "3"]),
        ({"emotion": {}}, ["emotion", "distribution"]),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, change, words):
    path = write(tmp_path, row, row | {"id": "bad"} | change)
    with pytest.raises(InputError) as error:
        read_manifest(path)
    for word in ["row 2", "'bad'", *words]:
        assert word in str(error.value)


def test_other_errors(tmp_path, row):
    with pytest.raises(InputError, match="not found"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="row 2: id 'a' was already used in row 1"):
        read_manifest(write(tmp_path, row, row))
    with pytest.raises(InputError, match="unknown split 'dev': allowed are train, validation, test, benchmark"):
        read_manifest(write(tmp_path, row), "dev")
    with pytest.raises(InputError, match="no clip with split 'test'"):
        read_manifest(write(tmp_path, row), "test")
    with pytest.raises(InputError, match="`valence` is missing"):
        read_manifest(write(tmp_path, row), "train", need=("valence",))
    with pytest.raises(InputError, match="`video` or `image` is missing"):
        read_manifest(write(tmp_path, row | {"image": None}), "train", need=("visual",))
    (tmp_path / "manifest.jsonl").write_text('{"id": "a"\n')
    with pytest.raises(InputError, match="row 1: not valid JSON"):
        read_manifest(tmp_path / "manifest.jsonl")
    (tmp_path / "m.parquet").write_text("no")
    with pytest.raises(InputError, match="parquet"):
        read_manifest(tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("no")
    with pytest.raises(InputError, match=".csv"):
        read_manifest(tmp_path / "m.csv")
