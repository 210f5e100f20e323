"""The teacher cache: what it holds, how it grows, what it refuses, and that training by it equals the teacher."""

import json
import os
import re
import resource
import shutil
import time

import fork_server
import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from media_files import write_wav
from safetensors.torch import load_file, save_file
from training import (
    losses_of,
    make_model,
    make_setup,
    process_environment,
    responses_of,
    stage1_values,
    train,
    write_config,
)
from transformers import LogitsProcessor

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration, VAEmotionLLMProcessor, utils
from vaemotionllm.cli.main import main
from vaemotionllm.config_file import build_config
from vaemotionllm.data.dataset import ClipEncoder
from vaemotionllm.data.manifest import Clip
from vaemotionllm.data.samplers import SampleKey
from vaemotionllm.train import teacher, teacher_cache
from vaemotionllm.train.answers import read_answers, write_prompts
from vaemotionllm.train.config import Stage1Config
from vaemotionllm.train.data import Stage1Data
from vaemotionllm.train.model import load_model
from vaemotionllm.train.teacher_cache import FILES, WORK, PartStore, Rows, ShardReader, processor_hash
from vaemotionllm.utils import RankError


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"))


def cache_values(setup, folder, **changes):
    return stage1_values(*setup, folder / "run", teacher_cache=str(folder / "cache"), **changes)


def fill(values):
    """Fills the cache in this process; returns its rows."""
    folder = values["teacher_cache"]
    assert main(["cache-teacher", "--config", str(write_config_beside(values)), "disable_tqdm=true"]) == 0
    return responses_of(folder)


def bytes_of(folder):
    """Name -> content of the cache's files, but for what is known of media."""
    return {path.name: path.read_bytes() for path in folder.glob("responses*") if path.name != FILES}


def rows_of(folder):
    return responses_of(folder)[1]


def write_config_beside(values):
    path = os.path.join(os.path.dirname(values["teacher_cache"]), "config.yaml")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    from pathlib import Path

    return write_config(Path(path), values)


@pytest.fixture(scope="module")
def filled(setup, tmp_path_factory):
    """(folder with `cache/`, values)"""
    folder = tmp_path_factory.mktemp("filled")
    values = cache_values(setup, folder, teacher_scores=["entropy", "grounding", "audio_dbfs"])
    fill(values)
    return folder, values


def batches_of(values, setup, count=4):
    """Model, trainer-ready batches of the first steps."""
    config = build_config(Stage1Config, values)
    data = Stage1Data(config)
    model, processor = load_model(config)
    data.prepare(model, processor)
    os.makedirs(config.output_dir, exist_ok=True)
    dataset, collator, _ = data.batches(model, processor)
    keys = [[SampleKey((4 * step + i) % len(dataset), 0, step) for i in range(4)] for step in range(count)]
    return model, [collator([dataset[key] for key in row]) for row in keys]


def gradients(model, batch):
    from vaemotionllm.train.losses import divergence
    from vaemotionllm.train.teacher import states_of

    model.requires_grad_(False)
    model.audio_projector.requires_grad_(True)
    model.zero_grad()
    if "teacher_states" in batch:
        teacher = batch["teacher_states"]
    else:
        with torch.no_grad():
            teacher = model(**batch["teacher"], use_adapter=False, response_fn=states_of).response
    output = model(
        **batch["student"],
        use_adapter=False,
        response_fn=lambda s, head: divergence(teacher, s, head, temperature=2.0),
    )
    output.response["divergence_loss"].backward()
    return torch.cat([p.grad.flatten() for p in model.audio_projector.parameters()])


def test_cached_and_online_gradients_are_equal(setup, filled, tmp_path):
    _, values = filled
    model, cached = batches_of(values | {"output_dir": str(tmp_path / "a")}, setup)
    online = values | {"output_dir": str(tmp_path / "b"), "teacher_cache": None}
    _, computed = batches_of(online, setup)
    paths = set()
    for one, two in zip(cached, computed, strict=True):
        assert one["ids"] == two["ids"] and torch.equal(one["student"]["input_ids"], two["student"]["input_ids"])
        assert "teacher" not in one and "teacher_states" not in two
        first, second = gradients(model, one), gradients(model, two)
        assert first.norm() > 1e-3
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)
        paths.add(one["modality"])
    assert paths == {"audio", "av"}


def test_training_by_the_cache_follows_training_by_the_teacher(setup, filled, tmp_path):
    _, values = filled
    train(values | {"output_dir": str(tmp_path / "cached")})
    train(values | {"teacher_cache": None, "output_dir": str(tmp_path / "online")})
    assert losses_of(tmp_path / "online")[0]["loss"] > 0.1
    for one, two in zip(losses_of(tmp_path / "cached"), losses_of(tmp_path / "online"), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-5), (one["step"], name)


def test_the_cache_holds_the_teacher_s_states_at_its_own_responses(setup, filled):
    folder, _ = filled
    rows = rows_of(folder / "cache")
    assert len(rows) == 24 and not any(row["empty"] for row in rows)
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(setup[0]).eval()
    processor = VAEmotionLLMProcessor.from_pretrained(setup[0])
    reader = ShardReader(folder / "cache")
    row = next(row for row in rows if row["id"] == "train-2")
    content = [
        {"type": "image", "path": str(setup[1].parent / "train-2.png")},
        {"type": "text", "text": row["prompt"]},
    ]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content}]], tokenize=True, return_dict=True, add_generation_prompt=True,
        return_tensors="pt",
    )  # fmt: skip
    assert inputs["input_ids"].shape[1] == row["text_tokens"] + row["visual_tokens"]
    ids = torch.cat([inputs["input_ids"], torch.tensor([row["tokens"]])], dim=1)
    inputs = dict(inputs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(row["tokens"])))
    with torch.no_grad():
        logits = model(**inputs, use_adapter=False).logits[0, -len(row["tokens"]) - 1 : -1]
        cached = model.get_output_embeddings()(reader(row))
    torch.testing.assert_close(cached, logits, atol=1e-4, rtol=1e-4)
    p = torch.softmax(logits, -1)
    assert row["scores"]["entropy"] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-3)
    assert logits.argmax(-1).tolist() == row["tokens"]  # the teacher's own greedy words


def test_scores_say_what_they_promise(setup, filled):
    folder, _ = filled
    rows = rows_of(folder / "cache")
    for row in rows:
        scores = row["scores"]
        assert scores["grounding"] >= 0 and -120 <= scores["audio_dbfs"] < 0
        if row["visual_tokens"] and row["id"].endswith(("0", "2", "4")):
            assert scores["grounding"] > 0  # the tiny model answers by what it sees


def test_a_cache_grows_by_clips_and_responses_and_keeps_what_it_has(setup, tmp_path):
    values = cache_values(setup, tmp_path, max_clips=5, responses_per_clip=1)
    _, first = fill(values)
    shards = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")}
    _, second = fill(values | {"max_clips": 8, "responses_per_clip": 2})
    assert len(first) == 5 and len(second) == 16
    keys = {(row["id"], row["slot"]): row for row in second}
    assert all(keys[row["id"], row["slot"]] == row for row in first)
    assert all((tmp_path / "cache" / name).stat().st_mtime_ns == time_ns for name, time_ns in shards.items())
    train(values | {"max_clips": 6, "max_steps": 1})  # a part of it is enough for a run
    with pytest.raises(InputError, match=r"lacks 4 of 12 .* the first, of clip 'train-8', response 0, is not there"):
        train(values | {"max_clips": 12, "max_steps": 1, "output_dir": str(tmp_path / "other")})


def test_sampled_responses_depend_on_seed_and_clip_alone(setup, tmp_path):
    options = dict(teacher_temperature=1.0, teacher_top_p=0.95, max_clips=6)
    _, one = fill(cache_values(setup, tmp_path / "a", **options, generation_batch_size=5))
    _, two = fill(cache_values(setup, tmp_path / "b", **options, generation_batch_size=3))
    _, other = fill(cache_values(setup, tmp_path / "c", **options, teacher_seed=1))
    _, greedy = fill(cache_values(setup, tmp_path / "d", max_clips=6))
    said = [[row["tokens"] for row in rows] for rows in (one, two, other, greedy)]
    assert said[0] == said[1] and said[0] != said[2] and said[0] != said[3]


class Eager(LogitsProcessor):
    """Makes some tokens likelier than all others."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        scores[:, self.tokens] += 1e4
        return scores


def test_no_response_holds_a_placeholder(setup, tmp_path, monkeypatch):
    values = cache_values(setup, tmp_path, max_clips=4)
    config = build_config(Stage1Config, values)
    model, processor = load_model(config)
    ids = model.config.media_token_ids
    monkeypatch.setattr(teacher.Teacher, "_sampling", lambda self, chunk: [Eager([*ids, 70])])
    Stage1Data(config).fill_teacher_cache(model, processor)
    tokens = [row["tokens"] for row in rows_of(tmp_path / "cache")]
    assert not {*sum(tokens, [])} & {*ids} and all(70 in row for row in tokens)


# ---- answers from elsewhere


class Scripted(LogitsProcessor):
    """Makes a teacher say given tokens, a list for each row."""

    def __init__(self, texts):
        self.texts, self.step = texts, 0

    def __call__(self, input_ids, scores):
        for row, tokens in enumerate(self.texts):
            scores[row, tokens[min(self.step, len(tokens) - 1)]] += 1e4
        self.step += 1
        return scores


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_answers_from_elsewhere_give_the_cache_of_the_same_text(setup, tmp_path, monkeypatch, capsys):
    """To the last bit: some end by themselves, some at the limit."""
    values = cache_values(setup, tmp_path / "own", generation_batch_size=4)
    texts = ("Joy.", "A sea", "Gloomy", "no", "a longer one")

    def scripted(self, keys):
        ids = self.renderer.answer_ids
        return [Scripted([ids(texts[(2 * index + slot) % len(texts)]) for index, slot in keys])]

    with monkeypatch.context() as patch:
        patch.setattr(teacher.Teacher, "_sampling", scripted)
        _, rows = fill(values)
    assert {row["response"] for row in rows} == {*texts[:4], "a long"}  # 6 tokens are the limit
    own = bytes_of(tmp_path / "own" / "cache")

    def given(name, file, *words):
        values = cache_values(setup, tmp_path / name, generation_batch_size=4)
        config = str(write_config_beside(values))
        return main(["cache-teacher", "--config", config, *words, str(file)])

    lines = [{"id": row["id"], "prompt": row["prompt"], "response": row["response"]} for row in rows]
    assert given("lines", write_lines(tmp_path / "lines.jsonl", lines[::-1]), "--answers") == 0
    assert bytes_of(tmp_path / "lines" / "cache") == own
    # The same by a server that takes batch files: half of the answers first.
    assert given("batch", tmp_path / "prompts.jsonl", "--prompts-only") == 0
    requests = [json.loads(line) for line in open(tmp_path / "prompts.jsonl")]
    assert not (tmp_path / "batch" / "cache").exists() and len(requests) == 24
    text_of = {f"{row['slot']}/{row['id']}": row for row in rows}
    for request in requests:
        body, row = request["body"], text_of[request["custom_id"]]
        medium, text = body["messages"][0]["content"]
        url = medium[medium["type"]]["url"]
        assert text["text"] == row["prompt"] and url.startswith("file:///") and row["id"] in url
        assert (body["max_tokens"], body["temperature"], body["model"]) == (6, 0.0, str(setup[0]))
    answers = [
        {"custom_id": request["custom_id"], "error": None, "response": {"status_code": 200, "body": {
            "choices": [{"message": {"content": text_of[request["custom_id"]]["response"]}}]}}}
        for request in requests
    ]  # fmt: skip
    capsys.readouterr()
    assert given("batch", write_lines(tmp_path / "half.jsonl", answers[:10]), "--answers") == 0
    assert "14 have no answer yet" in capsys.readouterr().out
    assert given("batch", write_lines(tmp_path / "all.jsonl", answers), "--answers") == 0
    _, again = responses_of(tmp_path / "batch" / "cache")
    assert [row["tokens"] for row in again] == [row["tokens"] for row in rows]


OUTPUT = {"status_code": 200, "body": {"choices": [{"message": {"content": "Joy."}}]}}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"id": "nobody"}, "'nobody' is no clip"),
        ({"prompt": None}, "`prompt` is missing"),
        ({"prompt": "Another?"}, "no prompt of this run for clip 'train-1'"),
        ({"response": " "}, "the response is ' '"),
        ({"response": None}, "the response is None"),
        ({"response": "a <|video_pad|> b"}, "'train-1' holds <|video_pad|>"),
        ({"id": "train-0"}, "already answered in line 1"),
        ({"custom_id": "7/train-0", "response": OUTPUT}, "no prompt of this run for clip 'train-0'"),
        ({"custom_id": "0/train-0", "response": {"status_code": 500}, "error": "x"}, "no answer (x)"),
    ],
)  # fmt: skip
def test_a_bad_answer_is_named_with_its_line(setup, tmp_path, line, words):
    config = build_config(Stage1Config, cache_values(setup, tmp_path, prompts=["Describe it."], responses_per_clip=1))
    data = Stage1Data(config)
    good = {"prompt": "Describe it.", "response": "Joy."}
    file = write_lines(tmp_path / "a.jsonl", [good | {"id": "train-0"}, good | {"id": "train-1"} | line])
    with pytest.raises(InputError, match=re.escape(f"{file}, line 2: ") + ".*" + re.escape(words)):
        read_answers(file, data.clips, data.source, config, ["<|video_pad|>"])


def test_a_part_of_a_file_is_no_request(setup, tmp_path):
    config = build_config(Stage1Config, cache_values(setup, tmp_path))
    clip = Clip(id="a", split="train", source="s", license="l", audio="/a.mp4", video="/a.mp4", start_s=1.0)
    with pytest.raises(InputError, match="clip 'a' is a part of a file"):
        write_prompts(tmp_path / "p.jsonl", [clip], Stage1Data(config).source, config)


def test_a_cached_response_that_holds_a_placeholder_is_refused(setup, tmp_path):
    values = cache_values(setup, tmp_path, max_clips=4)
    header, rows = fill(values)
    for row in rows:
        if row["id"] == "train-2":
            row["tokens"][1] = 6  # <|video_pad|>
    table = pa.concat_tables([teacher_cache.table_of([row], row["shard"]) for row in rows])
    teacher_cache._write_table(tmp_path / "cache" / "responses.arrow", table, header)
    with pytest.raises(InputError, match=r"response to clip 'train-2' holds <\|video_pad\|>"):
        train(values)


# ---- unhappy paths


def test_a_cache_of_another_backbone_or_preprocessing_is_refused_with_both_hashes(setup, filled, tmp_path):
    folder, values = filled
    values = values | {"output_dir": str(tmp_path / "run")}
    other = make_model(tmp_path / "models")
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(other)
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.up_proj.weight.mul_(1.01)
    model.save_pretrained(other)
    found = responses_of(folder / "cache")[0]["hash"][:12]
    pattern = rf"holds rows with hash {found}, this run needs (?!{found})\w{{12}}: "
    with pytest.raises(InputError, match=pattern + "backbone changed"):
        train(values | {"model": str(other)})
    with pytest.raises(InputError, match=pattern + "num_frames changed"):
        train(values | {"num_frames": 2})
    with pytest.raises(InputError, match=pattern + "prompts changed"):
        train(values | {"prompts": ["Another?"]})
    assert not (tmp_path / "run").exists()
    processor = VAEmotionLLMProcessor.from_pretrained(setup[0])
    processor.image_processor.size["longest_edge"] = 28 * 28
    again = tmp_path / "again"
    shutil.copytree(setup[0], again)
    train(values | {"model": str(again), "max_steps": 1, "output_dir": str(tmp_path / "copy")})  # a copy is no other
    processor.save_pretrained(again)
    with pytest.raises(InputError, match=pattern + "preprocessing changed"):
        train(values | {"model": str(again)})


def test_a_processor_has_one_hash_before_and_after_it_is_saved(tmp_path):
    vlm, audio = tiny.make_vlm("qwen2_5_vl", tmp_path), tiny.make_audio("whisper", tmp_path)
    processor = VAEmotionLLMProcessor.from_backbone(vlm, audio)
    before = processor_hash(processor)
    processor.save_pretrained(tmp_path / "saved")
    saved = VAEmotionLLMProcessor.from_pretrained(tmp_path / "saved")
    assert processor_hash(processor) == processor_hash(saved) == before
    saved.image_processor.size["longest_edge"] += 28
    assert processor_hash(saved) != before


def test_a_changed_file_is_named_and_its_rows_are_made_again(setup, tmp_path):
    shutil.copytree(setup[1].parent, tmp_path / "world")
    inside = (setup[0], tmp_path / "world" / "manifest.jsonl")
    values = cache_values(inside, tmp_path, max_clips=4)
    _, rows = fill(values)
    write_wav(tmp_path / "world" / "train-2.wav", seconds=0.7)
    with pytest.raises(InputError, match=r"lacks 2 of 8 .*clip 'train-2', response 0, is of other files"):
        train(values)
    _, again = fill(values)  # makes anew what changed
    assert [row["tokens"] for row in again] == [row["tokens"] for row in rows]
    changed = {row["id"] for one, row in zip(rows, again) if one["audio_hash"] != row["audio_hash"]}
    assert changed == {"train-2"}  # its level and its length are those of the new sound
    assert [row["audio_tokens"] for row in again] != [row["audio_tokens"] for row in rows]
    train(values | {"max_steps": 1})
    with pytest.raises(InputError, match="num_frames changed. .*overwrite=true"):
        config = build_config(Stage1Config, values | {"num_frames": 2})
        Stage1Data(config).fill_teacher_cache(*load_model(config))
    _, other = fill(values | {"num_frames": 2, "overwrite": True})
    assert len(other) == len(rows)


def test_training_without_a_finished_cache_says_which_command_makes_it(setup, tmp_path):
    with pytest.raises(InputError, match="holds no finished cache of the teacher. Run `vaemotionllm cache-teacher`"):
        train(cache_values(setup, tmp_path))


def test_a_damaged_shard_is_refused_and_made_again(setup, tmp_path):
    values = cache_values(setup, tmp_path, max_clips=4)
    fill(values)
    shard = next((tmp_path / "cache").glob("responses-*.safetensors"))
    whole = {name: tensor.clone() for name, tensor in load_file(shard).items()}
    with open(shard, "r+b") as file:  # a disk that lost the end of a file
        file.truncate(shard.stat().st_size - 10)
    with pytest.raises(InputError, match=f"{shard.name} is missing or damaged .*cache-teacher"):
        train(values)
    (tmp_path / "cache" / "responses-00000000-00009.safetensors").write_bytes(b"written by nobody")
    fill(values)
    again = {}
    for path in sorted((tmp_path / "cache").glob("responses-*.safetensors")):
        again |= load_file(path)
    assert again.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(again[name], whole[name], atol=1e-5, rtol=1e-5)
    train(values | {"max_steps": 1})


def test_a_killed_cache_goes_on(setup, tmp_path):
    values = cache_values(setup, tmp_path, responses_per_clip=8, generation_batch_size=2)
    config = write_config(tmp_path / "c.yaml", values)
    words = ["-m", "vaemotionllm.cli.main", "cache-teacher", "--config", config]
    process = fork_server.start(words, process_environment())
    parts, deadline = tmp_path / "cache" / "responses.parts", time.monotonic() + fork_server.HANG_S
    while len(kept := list(parts.glob("*.arrow"))) < 3:
        assert process.exitcode is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
    assert len(kept) < 12
    made_ns = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("responses-*.safetensors")}
    (tmp_path / "cache" / "responses-00000000-00099.safetensors.tmp").write_bytes(b"half a shard")
    _, rows = fill(values)
    assert len({(row["id"], row["slot"]) for row in rows}) == len(rows) == 96
    assert not list((tmp_path / "cache").glob("*.tmp")) and not parts.exists()
    again_ns = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("responses-*.safetensors")}
    assert made_ns.items() <= again_ns.items()  # what was made is kept
    fill(values | {"teacher_cache": str(tmp_path / "whole" / "cache"), "output_dir": str(tmp_path / "whole" / "run")})
    assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "whole" / "cache")  # as if nobody had killed it
    reader = ShardReader(tmp_path / "cache")
    assert all(reader(row).shape == (len(row["tokens"]), 32) for row in rows)


HEADER = {"hash": "h", "depends_on": {}}


def add_rows(folder, rows, write=True):
    """Makes rows, (id, slot) -> (score, tensor), one a part; returns the store and its plan."""
    clips = [Clip(id=name, split="train", source="s", license="l") for name in sorted({name for name, _ in rows})]
    index = {clip.id: n for n, clip in enumerate(clips)}

    def missing(table):
        there = dict(zip(zip(table["id"].to_pylist(), table["slot"].to_pylist()), table["entropy"].to_pylist()))
        return np.array([(index[k[0]], k[1], "v", "a") for k in sorted(rows) if there.get(k) != rows[k][0]], WORK)

    store = PartStore(folder, HEADER)
    plan = store.plan(missing, clips, 1, ["entropy"])
    for number in {*range(len(plan.parts))} - plan.done if write else ():
        for n, slot, *_ in plan.parts[number].tolist():
            score, tensor = rows[clips[n].id, slot]
            row = dict.fromkeys(("kind", "prompt", "response", "visual_hash", "audio_hash"), "")
            row |= dict.fromkeys(("text_tokens", "visual_tokens", "audio_tokens"), 0) | {"empty": False, "tokens": [1]}
            row |= {"id": clips[n].id, "slot": slot, "scores": {"entropy": score}}
            store.add(plan, number, [(row, tensor)])
    return store, plan


def closed(folder, rows):
    store, plan = add_rows(folder, rows)
    made = sum(len(part) for number, part in enumerate(plan.parts) if number not in plan.done)
    return list(Rows(store.close(plan, made, torch.device("cpu"))))


def test_a_full_disk_is_told_and_nothing_half_written_stays(tmp_path):
    rows = {("a", 0): (1.0, torch.zeros(10)), ("b", 0): (1.0, torch.ones(100_000))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write responses-\w+-00001.*GiB are free.*run the same command"):
            add_rows(tmp_path, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = sorted(path.name.rsplit("-")[-1] for path in tmp_path.glob("responses*"))
    assert found == ["00000.safetensors", "responses.parts"]
    assert add_rows(tmp_path, rows, write=False)[1].done == {0}
    rows = closed(tmp_path, rows)
    assert [row["id"] for row in rows] == ["a", "b"] and ShardReader(tmp_path)(rows[1]).sum() == 100_000


def test_nothing_is_deleted_before_every_row_is_in_sight(tmp_path, monkeypatch):
    """As on a node that does not see yet, or never, what another has written."""
    monkeypatch.setattr(teacher_cache, "_VISIBLE_S", 0)
    store, plan = add_rows(tmp_path, {("a", 0): (1.0, torch.zeros(2)), ("b", 0): (1.0, torch.ones(2))})
    part = store.parts / f"{plan.name}-00001.arrow"
    hidden = part.rename(tmp_path / "hidden")
    before = {path.name for path in tmp_path.rglob("*")}
    with pytest.raises(RankError, match="lacks rows that another rank has written"):
        store.close(plan, 2, torch.device("cpu"))
    assert {path.name for path in tmp_path.rglob("*")} == before
    hidden.rename(part)
    assert len(store.close(plan, 2, torch.device("cpu"))) == 2


def test_a_reader_names_a_shard_that_vanished(tmp_path):
    save_file({"0/a": torch.zeros(1)}, tmp_path / "s.safetensors")
    reader = ShardReader(tmp_path)
    assert reader({"id": "a", "slot": 0, "shard": "s.safetensors"}).shape == (1,)
    with pytest.raises(InputError, match="t.safetensors cannot be read"):
        reader({"id": "a", "slot": 0, "shard": "t.safetensors"})


def test_a_prompt_longer_than_the_context_is_named(setup, tmp_path):
    values = cache_values(setup, tmp_path, max_response_tokens=2030)
    with pytest.raises(InputError, match=r"clip 'train-0': its prompt of \d+ tokens and a response of 2030 .*2048"):
        config = build_config(Stage1Config, values)
        Stage1Data(config).fill_teacher_cache(*load_model(config))


def test_the_command_tells_the_size_before_it_works(setup, tmp_path, capsys):
    values = cache_values(setup, tmp_path)
    config = write_config(tmp_path / "c.yaml", values)
    assert main(["cache-teacher", "--config", str(config), "--estimate"]) == 0
    # 12 clips * 2 responses * 6 tokens * 32 dimensions * 4 bytes
    assert "At most 0.02 MiB for 24 responses of up to 6 tokens; " in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
    assert main(["cache-teacher", "--config", str(config), "teacher_cache=null"]) == 2
    assert "`teacher_cache` is missing" in capsys.readouterr().err


def test_a_cache_is_filled_by_one_process_at_a_time(setup, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(utils, "WAIT_S", 0.0)
    config = str(write_config(tmp_path / "c.yaml", cache_values(setup, tmp_path)))
    with utils.owned(tmp_path / "cache", "teacher_cache"):
        assert main(["cache-teacher", "--config", config]) == 2
    assert f"teacher_cache {tmp_path / 'cache'} is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_two_ranks_fill_one_cache(setup, tmp_path, filled):
    values = cache_values(setup, tmp_path, generation_batch_size=4, dataloader_num_workers=1, cache_media=False)
    config = write_config(tmp_path / "c.yaml", values)
    words = ["-m", "vaemotionllm.cli.train", "cache-teacher", "--config", config]
    result = fork_server.run_ranks(words, process_environment())
    assert result.returncode == 0, result.stderr[-3000:]
    rows = rows_of(tmp_path / "cache")
    alone = rows_of(filled[0] / "cache")
    assert [(row["id"], row["slot"], row["tokens"]) for row in rows] == [
        (row["id"], row["slot"], row["tokens"]) for row in alone
    ]
    fill(cache_values(setup, tmp_path / "alone", generation_batch_size=4))
    assert bytes_of(tmp_path / "cache") == bytes_of(tmp_path / "alone" / "cache")


def test_a_response_that_is_nothing_but_its_end_is_empty_and_teaches_nothing(setup, tmp_path):
    """A teacher that is made to end at once on half of the clips."""

    class Silent(teacher.SeededSampling):
        def __call__(self, input_ids, scores):
            scores[::2, 2] = 1e4  # the end token
            return scores

    class Half(teacher.Teacher):
        def _sampling(self, chunk):
            return [Silent([])]

    values = cache_values(setup, tmp_path, max_clips=4, generation_batch_size=4, responses_per_clip=1)
    config = build_config(Stage1Config, values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "Teacher", Half)
        Stage1Data(config).fill_teacher_cache(*load_model(config))
    rows = rows_of(tmp_path / "cache")
    assert [row["empty"] for row in rows] == [True, False, True, False] and rows[0]["tokens"] == [2]
    train(values | {"max_steps": 1})
    report = json.loads((tmp_path / "run" / "quality.json").read_text())
    assert report["dropped_by"] == {"empty response": 2} and report["clips_dropped"] == ["train-0", "train-2"]


def test_rows_that_were_made_again_replace_those_of_a_killed_run(tmp_path):
    """Of a killed pass over other work what is whole is kept, and a row that is made anew replaces the old one."""
    add_rows(tmp_path, {("a", 0): (1.0, torch.zeros(3)), ("b", 0): (1.0, torch.zeros(3))})
    next(tmp_path.glob("responses-*-00001.safetensors")).write_bytes(b"lost")
    rows = {("a", 0): (1.0, torch.ones(3)), ("b", 0): (2.0, torch.ones(3)), ("c", 0): (3.0, torch.ones(3))}
    rows = closed(tmp_path, rows)
    assert [(row["id"], row["scores"]["entropy"]) for row in rows] == [("a", 1.0), ("b", 2.0), ("c", 3.0)]
    assert [int(ShardReader(tmp_path)(row).sum()) for row in rows] == [0, 3, 3]
    rows = closed(tmp_path, {("a", 0): (5.0, torch.ones(3)), ("b", 0): (2.0, None)})
    assert [(row["id"], row["scores"]["entropy"]) for row in rows] == [("a", 5.0), ("b", 2.0), ("c", 3.0)]
    named = {row["shard"] for row in rows}
    assert {path.name for path in tmp_path.glob("*.safetensors*")} == named


def test_a_bad_sound_is_told_by_the_rank_that_meets_it(setup, tmp_path):
    shutil.copytree(setup[1].parent, tmp_path / "world")
    (tmp_path / "world" / "train-2.wav").write_bytes(b"RIFF")
    values = cache_values((setup[0], tmp_path / "world" / "manifest.jsonl"), tmp_path)
    config = build_config(Stage1Config, values)
    with pytest.raises(RankError, match="clip 'train-2': .*train-2.wav"):
        Stage1Data(config).fill_teacher_cache(*load_model(config))


def test_a_file_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    file, found, read = tmp_path / "a.wav", [], []
    real = teacher_cache._file_hash
    monkeypatch.setattr(teacher_cache, "_file_hash", lambda path: read.append(path) or real(path))
    clips = [
        Clip(id=str(n), split="train", source="s", license="l", audio=str(file), video=str(file), start_s=float(n))
        for n in range(2)
    ]
    for number, change in enumerate((0, 150_000, 299_999)):
        content = bytearray(300_000)
        content[change] = 1
        file.write_bytes(content)
        os.utime(file, (1_000_000 + number,) * 2)
        found += [teacher_cache.clip_hashes(clips, tmp_path / "index") for _ in range(2)]
    assert len(read) == 3  # of 24
    assert found[0] == found[1] != found[2] and len({pair for pairs in found for pair in pairs}) == 6


def test_what_is_of_equal_length_shares_a_batch_and_a_clip_is_decoded_once(setup, tmp_path, monkeypatch):
    values = cache_values(setup, tmp_path, generation_batch_size=4, cache_media=False, responses_per_clip=2)
    config = build_config(Stage1Config, values)
    decoded, widths = [], []
    real, answer = ClipEncoder.visual_and_waveform, teacher.Teacher.answer
    monkeypatch.setattr(ClipEncoder, "visual_and_waveform", lambda s, clip: decoded.append(clip.id) or real(s, clip))

    def watched(self, batch):
        rows = answer(self, batch)
        widths.append([row["text_tokens"] + row["visual_tokens"] for row, _ in rows])
        return rows

    monkeypatch.setattr(teacher.Teacher, "answer", watched)
    Stage1Data(config).fill_teacher_cache(*load_model(config))
    assert sorted(decoded) == sorted(f"train-{i}" for i in range(12))
    parts = [sum(widths[i : i + 4], []) for i in range(0, len(widths), 4)]
    assert [len(part) for part in parts] == [16, 8] and all(part == sorted(part) for part in parts)
    assert all(len({*part}) > 1 for part in parts)
