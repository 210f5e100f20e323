"""From labels to what stage 2 is asked: templates, and nothing in the benchmark's words."""

from collections import Counter
from dataclasses import replace

import benchmark_files
import numpy as np
import pytest
import yaml
from training import make_setup, stage2_values, train

from vaemotionllm import InputError
from vaemotionllm.benchmark.prompts import multiple_choice
from vaemotionllm.config_file import read_config
from vaemotionllm.data.manifest import Clip
from vaemotionllm.nano import language, select
from vaemotionllm.train.instructions import instruction_source, label_row, prompt_source, refuse_benchmark_texts

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
        ({"emotion": [{"prompts": ["a?"], "answers": ["{valence:d}"]}]}, ["{valence:d}", "template"]),
        ({"emotion": [{"prompts": ["a?"], "answers": [" "]}]}, ["`answers` is [' ']"]),
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


def test_names_that_no_clip_has_are_refused():
    source = instruction_source([{"prompt": "In this {art_form}?", "answer": "{emotion}, {valence_word}"}])
    (found,) = draws(source, CLIP, "av", 1)
    assert found[1:] == ("In this painting?", "calm, positive")
    source = instruction_source([{"prompt": "Which?", "answer": "{mood}"}])
    with pytest.raises(
        InputError, match=r"uses {mood}; allowed are content, .*valence_word.*, year\. Write {{ and }}"
    ):
        source.check([replace(CLIP, extra={"year": 1900})], {"c": ("av",)})
    with pytest.raises(InputError, match="`instructions` entry 1 is .*allowed are the keys `prompt` and `answer`"):
        instruction_source([{"prompt": "Which?"}])


# ---- the benchmark's questions

TEXTS = {"Which feeling is in this painting?": "B", "Look here. What is it?": "B"}


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
    clip = replace(CLIP, emotion="calm")
    for instructions in ("art", "nano", read_config("stage2_qwen2_5_vl_7b")["instructions"]):
        instruction_source(instructions).check([clip], {"c": MODALITIES})
    prompt_source("art")
    rng, row = np.random.default_rng(0), label_row(clip)
    refuse_benchmark_texts([("nano", language.instruction(rng, row)[1]) for _ in range(500)])
    prompt, _ = language.choice_instruction(rng, row, "emotion")
    with pytest.raises(InputError, match="the benchmark's multiple-choice prompt|the embedded nano benchmark"):
        refuse_benchmark_texts([("nano", prompt)])
    with pytest.raises(InputError, match="`prompts`, kind mood: .* the embedded nano benchmark"):
        prompt_source({"mood": [language.EMOTION_QUESTION]})


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
        instruction_source(pairs).check([CLIP], {"c": ("av",)})
    assert "nobody/nothing-here" in caplog.text and "not compared" in caplog.text
