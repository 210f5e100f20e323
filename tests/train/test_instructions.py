"""From labels to what stage 2 is asked: templates, chat samples, and nothing in the benchmark's words."""

import json
from collections import Counter
from dataclasses import replace

import benchmark_files
import numpy as np
import pytest
import yaml
from media_files import write_world
from training import make_setup, stage2_values, train

from vaemotionllm import InputError
from vaemotionllm.benchmark.prompts import multiple_choice
from vaemotionllm.cli.main import main
from vaemotionllm.config_file import read_config
from vaemotionllm.data.manifest import Clip, read_manifest
from vaemotionllm.nano import language, select
from vaemotionllm.train.data import checked_instructions
from vaemotionllm.train.instructions import (
    BenchmarkText,
    benchmark_texts,
    instruction_source,
    label_row,
    refuse_benchmark_texts,
)

MODALITIES = ("audio", "visual", "av")
CLIP = Clip(
    id="c", split="train", source="s", license="l", audio="c.wav", image="c.png", content="rain",
    emotion={"calm": 0.7, "sad": 0.3}, valence=0.34, arousal=-0.75, caption="rain on a roof", art_form="painting",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.delenv(select.VARIABLE, raising=False)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"), clips=6)


def draws(source, clip, modality, count=1500):
    rng = np.random.default_rng(0)
    return [source(rng, clip, modality) for _ in range(count)]


# ---- templates


def test_art_asks_each_kind_in_many_words_that_fit_the_path():
    source = instruction_source("art")
    found = {modality: draws(source, CLIP, modality) for modality in MODALITIES}
    for modality in MODALITIES:
        kinds = Counter(instruction.kind for instruction in found[modality])
        assert set(kinds) == {"content", "emotion", "valence_arousal", "explanation"}
        assert max(kinds.values()) - min(kinds.values()) < 0.1 * 1500  # each as often as the others
        for kind in kinds:
            of_kind = [instruction for instruction in found[modality] if instruction.kind == kind]
            assert len({instruction.prompt for instruction in of_kind}) >= 8
            assert len({instruction.answer for instruction in of_kind}) >= 4
    words = {modality: " ".join(i.prompt + " " + i.answer for i in found[modality]).lower() for modality in MODALITIES}
    assert not any(word in words["audio"] for word in ("picture", "look", "colour", " see ", "watch", "shown"))
    assert not any(word in words["visual"] for word in ("sound", "listen", "hear", "recording"))
    assert "picture and sound" in words["av"]
    assert "{" not in "".join(words.values()) and "None" not in "".join(words.values())


def test_answers_say_what_the_labels_say():
    row = label_row(CLIP)
    assert (row["emotion"], row["emotion_shares"]) == ("calm", "calm (70%), sad (30%)")
    assert (row["valence_word"], row["valence_number"]) == ("positive", "0.3")
    assert (row["arousal_word"], row["arousal_number"]) == ("very low", "-0.8")
    assert row["caption_sentence"] == "Rain on a roof."
    for value, word, number in (
        (-0.04, "neutral", "0.0"),
        (1.0, "very positive", "1.0"),
        (-1.0, "very negative", "-1.0"),
    ):
        row = label_row(replace(CLIP, valence=value))
        assert (row["valence_word"], row["valence_number"]) == (word, number)


def test_a_kind_without_its_labels_is_not_drawn():
    source = instruction_source("art")
    for labels, kinds in (
        ({"emotion": "calm"}, {"emotion"}),
        ({"content": "rain"}, {"content"}),
        ({"valence": 0.1}, {"valence_arousal"}),
        ({"caption": "rain"}, {"explanation"}),
        ({"emotion": "calm", "caption": "rain"}, {"emotion", "explanation"}),
        ({"emotion": "calm", "content": "rain"}, {"emotion", "content", "explanation"}),
    ):
        clip = replace(CLIP.without_labels(), **labels)
        found = draws(source, clip, "audio", 300)
        assert {instruction.kind for instruction in found} == kinds
        assert not any("None" in i.prompt + i.answer or "%" in i.answer for i in found)
    bare = replace(CLIP.without_labels(), art_form="painting")
    with pytest.raises(
        InputError, match=r"clip 'c' has the labels art_form, .* modality av .*allowed is any of: .*emotion"
    ):
        source.check([CLIP, bare], {"c": ("av",)})


@pytest.mark.parametrize(
    ("templates", "words"),
    [
        ([1], ["kinds of prompts"]),
        ({"emotion": "x"}, ["kind `emotion`", "'x'"]),
        ({"emotion": [{"prompts": ["?"]}]}, ["kind `emotion`, entry 1", "`answers`"]),
        ({"emotion": [{"prompts": ["a?"], "answers": ["{mood}"]}]}, ["{mood}", "valence_word", "`answers`"]),
        ({"emotion": [{"prompts": ["a?"], "answers": ["{valence:d}"]}]}, ["{valence:d}", "template"]),
        ({"emotion": [{"prompts": ["a?"], "answers": [" "]}]}, ["`answers` holds ' '"]),
        ({"emotion": [{"prompts": [], "answers": ["b"]}]}, ["`prompts` is []"]),
        (
            {"emotion": [{"prompts": ["a?"], "answers": ["b"], "modalities": ["sight"]}]},
            ["'sight'", "audio, visual, av"],
        ),
    ],
)
def test_bad_templates_are_named(tmp_path, templates, words):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(templates))
    with pytest.raises(InputError) as error:
        instruction_source(str(file))
    for word in (*words, str(file)):
        assert word in str(error.value)
    file.write_text("{")
    with pytest.raises(InputError, match="not valid YAML"):
        instruction_source(str(file))
    with pytest.raises(InputError, match="shipped: art"):
        instruction_source("arts")


def test_the_config_s_own_list_needs_all_its_labels():
    source = instruction_source([{"prompt": "In this {art_form}?", "answer": "{emotion}, {valence_word}"}])
    assert source.needed == ("art_form", "emotion", "valence")
    (found,) = draws(source, CLIP, "av", 1)
    assert found[1:] == ("In this painting?", "calm, positive")


# ---- the benchmark's questions

TEXTS = [BenchmarkText("Which feeling is in this painting?", "B"), BenchmarkText("Look here. What is it?", "B")]


@pytest.mark.parametrize(
    "prompt",
    [
        "which  FEELING is in this painting",
        "Look closely. Which feeling is in this painting? Answer with one word.",
        multiple_choice("Which feeling is in this painting?", ["calm", "sad"]),
        "Which feeling is in this painting:\n(A) calm\n(B) sad",
        "Which feeling is in this {art_form}?",
        "Which {caption} is in this {art_form}?",
        "Now look here! What is it? Look here! What is it?",
    ],
)
def test_a_prompt_in_the_benchmark_s_words_is_refused(prompt):
    with pytest.raises(InputError, match="line 3: the prompt .* has the words of B: "):
        refuse_benchmark_texts([("line 3", prompt)], TEXTS)


@pytest.mark.parametrize(
    "prompt",
    ["Which feeling is in this painting, and how?", "What is it?", "{caption}", "Look here.", "Which feeling is it?"],
)
def test_a_prompt_in_other_words_is_not(prompt):
    refuse_benchmark_texts([("line 3", prompt)], TEXTS)


def test_what_is_shipped_asks_nothing_of_the_benchmark():
    for instructions in ("art", "nano", read_config("stage2_qwen2_5_vl_7b")["instructions"]):
        assert list(checked_instructions(instructions).prompts())
    rng = np.random.default_rng(0)
    row = label_row(CLIP) | {"content": "rain", "emotion": "calm", "art_form": "painting"}
    drawn = {language.instruction(rng, row)[1] for _ in range(500)}
    refuse_benchmark_texts([("nano", prompt) for prompt in drawn], benchmark_texts())
    prompt, _ = language.choice_instruction(rng, row, "emotion")
    with pytest.raises(InputError, match="the benchmark's multiple-choice prompt|the embedded nano benchmark"):
        refuse_benchmark_texts([("nano", prompt)], benchmark_texts())


def test_the_benchmark_in_force_is_looked_at(setup, tmp_path, monkeypatch, caplog):
    folder = benchmark_files.write_benchmark(tmp_path / "benchmark", clips=1)
    rows = benchmark_files.read_items(folder)
    benchmark_files.write_items(folder, [row | {"question": "What mood is this?"} for row in rows])
    monkeypatch.setenv(select.VARIABLE, str(folder))
    pairs = [{"prompt": "Listen. What MOOD is this?", "answer": "{emotion}"}]
    with pytest.raises(InputError, match=r"entry 1: .*the benchmark .*benchmark: 'What mood is this\?'"):
        train(stage2_values(*setup, tmp_path / "run", instructions=pairs))
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(select.VARIABLE, "nobody/nothing-here")
    with caplog.at_level("WARNING", logger="vaemotionllm"):
        checked_instructions(pairs)
    assert "nobody/nothing-here" in caplog.text and "not compared" in caplog.text


# ---- chat samples


def build(manifest, out, *words):
    return main(["instructions", "--manifest", str(manifest), "--out", str(out), *words])


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_command_writes_samples_and_counts_them(setup, tmp_path, capsys):
    manifest = setup[1]
    assert build(manifest, tmp_path / "a.jsonl", "--samples-per-clip", "3", "--seed", "4") == 0
    printed = capsys.readouterr().out
    rows = read_lines(tmp_path / "a.jsonl")
    clips = {clip.id: clip for clip in read_manifest(manifest, "train")}
    assert Counter((row["clip_id"], row["modality"]) for row in rows) == {(i, p): 3 for i in clips for p in MODALITIES}
    assert len({row["id"] for row in rows}) == len(rows) == 6 * 3 * 3
    for row in rows:
        user, assistant = row["messages"]
        clip, (*media, text) = clips[row["clip_id"]], user["content"]
        assert [user["role"], assistant["role"], text["type"]] == ["user", "assistant", "text"]
        kinds = {"audio": ["audio"], "visual": [clip.visual], "av": [clip.visual, "audio"]}[row["modality"]]
        assert [part["type"] for part in media] == kinds
        assert all((manifest.parent / part["path"]).is_file() for part in media)
        assert text["text"] and assistant["content"][0]["text"]
    asked = Counter((row["clip_id"], row["modality"], str(row["messages"])) for row in rows)
    assert max(asked.values()) == 1
    kinds, emotions = Counter(row["kind"] for row in rows), Counter(clips[row["clip_id"]].emotion for row in rows)
    lines = [line.split() for line in printed.splitlines()]
    assert lines[0] == ["kind", "audio", "visual", "av", "all"] and ["all", "18", "18", "18", "54"] in lines
    for name, count in (*kinds.items(), *emotions.items()):
        row = next(line for line in lines if line and line[0] == name)
        assert int(row[-1]) == count == sum(map(int, row[1:-1]))
    assert lines[-1][-5:] == ["54", "samples", "of", "6", "clips"]
    assert not list(tmp_path.glob("*.tmp"))

    assert build(manifest, tmp_path / "same.jsonl", "--samples-per-clip", "3", "--seed", "4") == 0
    assert build(manifest, tmp_path / "other.jsonl", "--samples-per-clip", "3", "--seed", "5") == 0
    assert (tmp_path / "same.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert (tmp_path / "other.jsonl").read_bytes() != (tmp_path / "a.jsonl").read_bytes()


def test_the_command_names_what_it_cannot_use(setup, tmp_path, capsys):
    out = tmp_path / "s.jsonl"
    templates = tmp_path / "mine.yaml"
    templates.write_text(yaml.safe_dump({"e": [{"prompts": [language.EMOTION_QUESTION], "answers": ["{emotion}"]}]}))
    bare = write_world(tmp_path / "bare", clips=1, videos=False, labels=False)
    for manifest, words, message in (
        (setup[1], ["--split", "test"], "no clip with split 'test'"),
        (setup[1], ["--instructions", str(templates)], "the embedded nano benchmark"),
        (bare, [], "'train-0' has the labels none"),
    ):
        assert build(manifest, out, *words) == 2
        assert message in capsys.readouterr().err and not out.exists()
    assert build(setup[1], tmp_path / "s.json") == 2
    out.write_text("mine")
    assert build(setup[1], out) == 2
    assert "exists" in capsys.readouterr().err and out.read_text() == "mine"


@pytest.fixture(scope="module")
def samples(setup, tmp_path_factory):
    file = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    assert build(setup[1], file) == 0
    return file


def test_stage_2_trains_on_the_file_as_it_was_edited(setup, samples, tmp_path):
    from vaemotionllm.train.trainer import Stage2Trainer

    rows, edited = read_lines(samples), tmp_path / "edited.jsonl"
    for row in rows:  # each answer tells whose it is
        row["messages"][1]["content"] = f"{row['id']} übersetzt"
    edited.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []

    def look(self, model, batch, num_items):
        inputs, decode = batch["inputs"], self.processing_class.decode
        answers = [
            decode(i[m], skip_special_tokens=True) for i, m in zip(inputs["input_ids"], inputs["response_mask"])
        ]
        seen.extend((batch["modality"], *pair) for pair in zip(batch["ids"], answers))
        return terms(self, model, batch, num_items)

    terms = Stage2Trainer.loss_terms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage2Trainer, "loss_terms", look)
        train(stage2_values(*setup, tmp_path / "run", instructions=str(edited), max_steps=8))
    assert len(seen) == 32 and {modality for modality, *_ in seen} == set(MODALITIES)
    for modality, clip_id, answer in seen:
        assert answer in {f"{clip_id}-{modality}-{number} übersetzt" for number in (0, 1)}
    # Another content is another run.
    edited.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    with pytest.raises(InputError, match="instructions_sha256"):
        train(stage2_values(*setup, tmp_path / "run", instructions=str(edited), max_steps=8))


def edit(row, **changes):
    return {name: value for name, value in (row | changes).items() if value is not None}


USER = {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "Well?"}]}
ANSWER = {"role": "assistant", "content": "calm"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip_id": "nobody"}, ["line 2", "'nobody'", "manifest"]),
        ({"clip_id": None}, ["line 2", "`clip_id` is None"]),
        ({"modality": "sound"}, ["line 2", "'sound'", "audio, visual, av"]),
        ({"modality": "av"}, ["line 2", "media are audio", "visual and audio"]),
        ({"messages": "?"}, ["line 2", "`messages` is '?'"]),
        ({"messages": [USER]}, ["line 2", "roles are user", "as the last one"]),
        ({"messages": [USER, ANSWER, USER, ANSWER]}, ["line 2", "user, assistant, user, assistant"]),
        ({"messages": [{**USER, "role": "human"}, ANSWER]}, ["line 2, message 1", "'human'"]),
        ({"messages": [{**USER, "content": USER["content"][::-1]}, ANSWER]}, ["line 2", "media come first"]),
        ({"messages": [{**USER, "content": [{"type": "audio"}]}, ANSWER]}, ["line 2", "question is missing"]),
        ({"messages": [{**USER, "content": [{"type": "smell"}]}, ANSWER]}, ["line 2", "smell"]),
        ({"messages": [{**USER, "content": [{"type": "text", "text": 3}]}, ANSWER]}, ["line 2", "holds 3"]),
        ({"messages": [USER, {**ANSWER, "content": " "}]}, ["line 2", "assistant's turn is"]),
        (
            {"messages": [
                {**USER, "content": [{"type": "audio"}, {"type": "text", "text": language.EMOTION_QUESTION}]}, ANSWER,
            ]},
            ["clip 'train-1'", "nano benchmark"],
        ),
    ],
)  # fmt: skip
def test_bad_samples_are_named_by_their_line(setup, tmp_path, change, words):
    good = {"id": "x", "clip_id": "train-1", "modality": "audio", "kind": "emotion", "messages": [USER, ANSWER]}
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(good) + "\n" + json.dumps(edit(good, **change)) + "\n")
    with pytest.raises(InputError) as error:
        train(stage2_values(*setup, tmp_path / "run", instructions=str(file), modalities={"audio": 1.0}))
    for word in words:
        assert word in str(error.value)


def test_a_clip_without_a_sample_of_a_path_is_named(setup, samples, tmp_path):
    lines = samples.read_text().splitlines(keepends=True)
    file = tmp_path / "few.jsonl"
    file.write_text("".join(line for line in lines if not ('"train-3"' in line and '"modality": "av"' in line)))
    with pytest.raises(InputError, match=r"no sample of clip 'train-3' for the modality av \(found: audio, visual\)"):
        train(stage2_values(*setup, tmp_path / "run", instructions=str(file)))
    file.write_text("{\n")
    with pytest.raises(InputError, match="few.jsonl, line 1: not valid JSON"):
        train(stage2_values(*setup, tmp_path / "run", instructions=str(file)))
    file.write_text("\n")
    with pytest.raises(InputError, match="holds no sample"):
        train(stage2_values(*setup, tmp_path / "run", instructions=str(file)))
    with pytest.raises(InputError, match="none.jsonl"):
        train(stage2_values(*setup, tmp_path / "run", instructions=str(tmp_path / "none.jsonl")))
