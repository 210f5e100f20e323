"""The versioned schema, and benchmarks in parquet shards with embedded media."""

import json
import os
from pathlib import Path

import benchmark_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vaemotionllm import InputError
from vaemotionllm.benchmark import schema
from vaemotionllm.model.media import load_audio
from vaemotionllm.model.media_images import load_image

MEDIUM = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return benchmark_files.write_benchmark(tmp_path_factory.mktemp("benchmark"), clips=3)


def write_shards(plain: Path, out: Path, change=lambda row: row, shards: int = 2, **info) -> Path:
    """The benchmark in `plain` as parquet shards; `change` may edit a row."""
    rows = benchmark_files.read_items(plain)
    for row in rows:
        for column in schema.MEDIA:
            if row[column]:
                row[column] = {"bytes": (plain / row[column]).read_bytes(), "path": Path(row[column]).name}
    rows = [change(row) for row in rows]
    fields = {column: pa.string() for column in (*schema.REQUIRED, *schema.OPTIONAL)}
    fields |= {column: MEDIUM for column in schema.MEDIA} | {"options": pa.list_(pa.string())}
    fields |= {"valence": pa.float64(), "arousal": pa.float64()}
    fields["emotion_distribution"] = pa.struct([("calm", pa.float64()), ("sad", pa.float64())])
    (out / "data").mkdir(parents=True)
    for i in range(shards):
        part = rows[i * len(rows) // shards : (i + 1) * len(rows) // shards]
        table = pa.Table.from_pylist(part, schema=pa.schema(fields))
        pq.write_table(table, out / f"data/test-{i:05d}-of-{shards:05d}.parquet")
    (out / "benchmark.json").write_text(json.dumps({"format": 1, "name": "in shards"} | info))
    return out


def comparable(benchmark):
    return [
        {
            column: getattr(item, column)
            for column in (*schema.REQUIRED, *schema.OPTIONAL)
            if column not in schema.MEDIA
        }
        | {column: getattr(item, column) and Path(getattr(item, column)).read_bytes() for column in schema.MEDIA}
        for item in benchmark.items
    ]


def test_shards_hold_what_the_folder_holds_and_are_unpacked_once(folder, tmp_path, monkeypatch):
    shards = write_shards(folder, tmp_path / "shards")
    plain, benchmark = schema.load(folder), schema.load(shards)
    assert comparable(benchmark) == comparable(plain)
    assert benchmark.name == "in shards" and benchmark.folder.parent == tmp_path / "cache/benchmarks"
    # lmms-eval reads this file.
    assert (benchmark.folder / schema.ITEMS_FILE).is_file()
    # Three pictures or films and two sounds of their own: each is one file, however many items show it.
    assert len(list((benchmark.folder / "media").iterdir())) == 5
    assert load_audio(benchmark.select(modality="audio")[0].audio).size and load_image(benchmark.items[1].image)
    monkeypatch.setattr(schema, "_plain_rows", lambda *_: pytest.fail("unpacked again"))
    assert schema.load(shards) == benchmark
    monkeypatch.undo()


def test_what_changed_is_unpacked_anew(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))
    first = schema.load(write_shards(folder, tmp_path / "a"))
    second = schema.load(write_shards(folder, tmp_path / "b", lambda row: row | {"question": "What now?"}))
    assert first.folder != second.folder and {item.question for item in second.items} == {"What now?"}


def test_an_unpacking_that_was_killed_goes_on(folder, tmp_path, monkeypatch):
    shards = write_shards(folder, tmp_path / "shards")
    real, calls = schema._written, []

    def killed(*args):
        calls.append(args)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(schema, "_written", killed)
    with pytest.raises(KeyboardInterrupt):
        schema.load(shards)
    monkeypatch.setattr(schema, "_written", real)
    assert len(list((tmp_path / "cache/benchmarks").glob(".*.partial"))) == 1
    assert comparable(schema.load(shards)) == comparable(schema.load(folder))
    assert not list((tmp_path / "cache/benchmarks").glob(".*.partial"))


@pytest.mark.parametrize("path", ["../../../evil.png", "/tmp/evil.png", "a/b\x00.png", "..", ".png/../../x.sh", None])
def test_no_path_of_a_shard_is_trusted(folder, tmp_path, path):
    def change(row):
        for column in schema.MEDIA:
            if row[column]:
                row[column]["path"] = path
        return row

    benchmark = schema.load(write_shards(folder, tmp_path / "shards", change))
    media = {
        Path(getattr(item, column)) for item in benchmark.items for column in schema.MEDIA if getattr(item, column)
    }
    assert {medium.parent for medium in media} == {benchmark.folder / "media"}
    assert {medium.suffix for medium in media} <= {".png", ".wav", ".mp4"}
    written = {found for found in tmp_path.rglob("*") if found.is_file() and "shards" not in found.parts}
    assert all(tmp_path / "cache" in found.parents for found in written)


def test_shards_without_bytes_or_columns_are_refused(folder, tmp_path):
    def path_only(row):
        return row | {"image": row["image"] and {"bytes": None, "path": "media/clip-0.png"}}

    with pytest.raises(InputError, match="item 'clip-0-content-visual'.*media/clip-0.png.*must embed their media"):
        schema.load(write_shards(folder, tmp_path / "a", path_only))
    (tmp_path / "b/data").mkdir(parents=True)
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "b/data/test-00000.parquet")
    with pytest.raises(InputError, match="column 'clip_id': Field required"):
        schema.load(tmp_path / "b")
    (tmp_path / "b/data/test-00000.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="is not a readable parquet file"):
        schema.load(tmp_path / "b")


def test_a_distribution_keeps_the_labels_that_were_voted_for(folder, tmp_path):
    shares = iter([{"calm": 1.0}, {"calm": 0.25, "sad": 0.75}, None])
    benchmark = schema.load(
        write_shards(folder, tmp_path / "a", lambda row: row | {"emotion_distribution": next(shares, None)})
    )
    assert [item.emotion_distribution for item in benchmark.items[:3]] == [
        {"calm": 1.0},
        {"calm": 0.25, "sad": 0.75},
        None,
    ]


@pytest.mark.parametrize("kind", ["plain", "shards"])
def test_a_newer_format_is_refused_with_what_to_upgrade(folder, tmp_path, kind):
    copy = write_shards(folder, tmp_path / "a", format=schema.FORMAT + 1)
    if kind == "plain":
        (copy / schema.ITEMS_FILE).write_text("")
    with pytest.raises(InputError, match="reads format 1 and not 2.*upgrade the package"):
        schema.load(copy)
    assert not os.path.exists(tmp_path / "cache")


@pytest.mark.parametrize("value", ["one", 0, None, [2], 1.5])
def test_other_formats_are_not_known(folder, tmp_path, value):
    with pytest.raises(InputError, match="reads format 1 and not"):
        schema.load(write_shards(folder, tmp_path / "a", format=value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": ["rain"], "answer": "rain"}, "column 'options': Tuple should have at least 2 items"),
        ({"answer": "snow"}, "the answer is 'snow'; different options"),
    ],
)
def test_options_of_one_and_answers_beyond_the_options_are_refused(folder, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        schema.load(write_shards(folder, tmp_path / "a", lambda row: row | change))
