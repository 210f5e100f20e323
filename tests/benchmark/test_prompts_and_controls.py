"""Prompts and answers, benchmark folders, the choice of the benchmark, control audio, the command."""

import json
import shutil
from pathlib import Path

import benchmark_files
import numpy as np
import pytest
import soundfile

from vaemotionllm import InputError
from vaemotionllm.benchmark import controls, prompts, schema
from vaemotionllm.cli.main import main
from vaemotionllm.evaluation import artemo
from vaemotionllm.model.media import load_audio
from vaemotionllm.nano import select

OPTIONS = ["calm", "joyful", "calm sea", "tense"]


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(select.VARIABLE, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return benchmark_files.write_benchmark(tmp_path_factory.mktemp("benchmark"))


def test_prompt_snapshot():
    assert prompts.multiple_choice("Which subject is this?", ["rain", "fire"]) == (
        "Which subject is this?\nA. rain\nB. fire\nAnswer with the option's letter."
    )


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("B", "joyful"),
        (" b ", "joyful"),
        ("B.", "joyful"),
        ("(B)", "joyful"),
        ("[b]", "joyful"),
        ("**B**", "joyful"),
        ("B. joyful", "joyful"),
        ("(B) joyful", "joyful"),
        ("B: joyful", "joyful"),
        ("B\nbecause it is bright", "joyful"),
        ("Answer: B", "joyful"),
        ("The answer is B", "joyful"),
        ("The correct answer is (B).", "joyful"),
        ("Option B", "joyful"),
        ("joyful", "joyful"),
        ("Joyful.", "joyful"),
        ("It sounds joyful to me", "joyful"),
        ("A calm sea", "calm sea"),
        ("calm", "calm"),
        ("I would say (D), for it is loud", "tense"),
        ("", None),
        ("   ", None),
        ("E", None),
        ("(Z)", None),
        ("joyful or tense", None),
        ("A or B", None),
        ("A painting of something", None),
        ("nothing fits", None),
        ("enjoyfully", None),
        # Brackets of several languages, full-width forms, markup.
        ("「B」", "joyful"),
        ("『B』。", "joyful"),
        ("【B】", "joyful"),
        ("（B）", "joyful"),
        ("⟨B⟩", "joyful"),
        ("〈B〉 joyful", "joyful"),
        ("《B》", "joyful"),
        ("«B»", "joyful"),
        ("{B}", "joyful"),
        ("Ｂ", "joyful"),
        ("Ｂ．", "joyful"),
        ("Ⓑ", "joyful"),
        ("$\\boxed{B}$", "joyful"),
        ("'B'", "joyful"),
        ("“B”", "joyful"),
        ("答案：B", "joyful"),
        ("答案是B。", "joyful"),
        ("我选B", "joyful"),
        ("Antwort: B", "joyful"),
        ("La réponse est B", "joyful"),
        ("Ответ: B", "joyful"),
        ("정답: B", "joyful"),
        # Letters of other scripts that look like B, A, C: no option is shown under them.
        ("В", None),
        ("Β", None),
        ("(В)", None),
        ("Ответ: В", None),
        ("А.", None),
        ("С", None),
        ("答案是喜悦", None),
        # Prose.
        ("I believe that the answer is B because of the bright flute.", "joyful"),
        ("My Answer is B", "joyful"),
        ("Looking at the colours, it must be joyful, I think", "joyful"),
        ("The music isn't loud. I would choose option B.", "joyful"),
        ("The best choice is A because it is slow", "calm"),
        ("The answer is A painting of something", None),
        ("It is not joyful.", None),
        ("It is not joyful; it is tense.", "tense"),
        ("The answer is (B) joyful, not (D) tense.", "joyful"),
        ("It is not joyful but tense", "tense"),
        ("I can't hear well, but it seems joyful", "joyful"),
        ("<answer>B</answer>", "joyful"),
        ("<think>A. is too slow. (C)? Or D?</think>\n<answer>B</answer>", "joyful"),
        ("<think>It may be (D)</think>", None),
        ('{"answer": "B"}', "joyful"),
        # More than one.
        ("A, B", None),
        ("A,B,C,D", None),
        ("(A)(B)", None),
        ("A/B", None),
        ("A. calm\nB. joyful\nC. calm sea\nD. tense", None),
        ("A. calm B. joyful C. calm sea D. tense", None),
        ("A. calm\nB. joyful\nC. calm sea\nD. tense\nAnswer: D", "tense"),
        ("B. tense", None),
        ("A: joyful", None),
        ("B. joyful, since A is too quiet", "joyful"),
        # Refusals.
        ("I'm sorry, but I can't tell whether this is joyful.", None),
        ("I’m sorry, I can’t say (B) for sure", None),
        ("I cannot determine the emotion of this artwork.", None),
        ("As an AI, I am unable to hear: is it joyful?", None),
        ("None of the options", None),
        ("我不知道", None),
    ],
)
def test_answers_are_read(response, expected):
    assert prompts.parse_choice(response, OPTIONS) == expected


def test_the_first_person_is_no_ninth_option():
    options = [f"subject {number}" for number in range(10)]
    assert prompts.parse_choice("I", options) == prompts.parse_choice("(I)", options) == "subject 8"
    for refusal in ("I, as a language model, have no ears.", "I cannot hear it.", "The answer is I cannot hear it."):
        assert prompts.parse_choice(refusal, options) is None


def test_answers_in_the_options_own_script():
    options = ["радость", "печаль", "喜悦", "music_video"]
    assert prompts.parse_choice("Радость!", options) == "радость"
    assert prompts.parse_choice("喜悦。", options) == "喜悦"
    assert prompts.parse_choice("music_video", options) == "music_video"
    assert prompts.parse_choice("A *music video*, I think", options) == "music_video"
    assert prompts.parse_choice(None, options) is None


def test_scores_count_what_names_no_option_as_wrong(folder):
    document = {"id": "i", "options": OPTIONS, "answer": "joyful", "clip_id": "c"}
    right = artemo.process_results(document, ["B"])
    assert (right["accuracy"], right["unparsable"]) == (1.0, 0.0)
    silent = artemo.process_results(document, [""])
    assert (silent["accuracy"], silent["unparsable"]) == (0.0, 1.0)
    assert silent["ci95_low"] == {"accuracy": 0.0, "clip_id": "c", "item_id": "i"}


def test_intervals_know_clips():
    single = [{"accuracy": float(i % 2), "clip_id": str(i)} for i in range(20)]
    low, high = artemo.YAML_FUNCTIONS["ci95_low"](single), artemo.YAML_FUNCTIONS["ci95_high"](single)
    assert 0.29 < low < 0.31 and 0.69 < high < 0.71  # Wilson, 10 of 20
    # Two questions a clip with equal outcomes hold no more than one: a wider interval than 20 independent answers.
    pairs = [{"accuracy": float(i // 2 % 2), "clip_id": str(i // 2)} for i in range(20)]
    assert artemo.YAML_FUNCTIONS["ci95_high"](pairs) - artemo.YAML_FUNCTIONS["ci95_low"](pairs) > high - low


def test_a_benchmark_is_read(folder):
    benchmark = schema.load(folder)
    assert (len(benchmark.items), benchmark.name, benchmark.is_nano) == (36, "test set", False)
    item = benchmark.select("emotion", "av")[2]
    assert item.id == "clip-2-emotion-av" and item.video == str(folder / "media/clip-2.mp4") and item.image is None
    assert item.options[prompts._LETTERS.index(prompts.letter_of(item.options, item.answer))] == item.answer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answer": None},
            r"line 2 \(item 'clip-0-content-visual'\): column 'answer': .*valid string",
        ),
        ({"options": "rain"}, "column 'options': Input should be a valid tuple; found 'rain'"),
        ({"options": ["rain", "rain"], "answer": "rain"}, "different options are needed"),
        ({"answer": "snow"}, "the answer is 'snow'"),
        ({"modality": "sound"}, "column 'modality': String should match pattern .*audio.visual.av.*found 'sound'"),
        ({"aspect": "style"}, "content.emotion"),
        ({"valence": 2}, "column 'valence': Input should be less than or equal to 1; found 2"),
        ({"valence": True}, "column 'valence'"),
        ({"arousal": "high"}, "column 'arousal': .*found 'high'"),
        ({"emotion_distribution": {"calm": 0.4}}, "do not sum to 1"),
        ({"image": "media/none.png"}, "field `image`: file not found: .*media/none.png"),
        ({"image": "../secret.png"}, "points outside the folder"),
        ({"image": None}, "needs image or video and no other medium; given are none"),
        ({"audio": "media/clip-0.wav"}, "needs image or video and no other medium; given are audio, image"),
        ({"video": "media/clip-2.mp4"}, "given are image, video"),
        ({"id": "clip-0-content-audio"}, "is that of line 1; ids must be unique"),
        ({"clip_id": 7}, "column 'clip_id': Input should be a valid string; found 7"),
    ],
)
def test_errors_name_item_column_and_remedy(folder, change, message, tmp_path):
    rows = benchmark_files.read_items(folder)
    rows[1].update(change)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    benchmark_files.write_items(copy, rows)
    with pytest.raises(InputError, match=message):
        schema.load(copy)


def test_media_may_be_links_as_in_the_cache_of_the_hub(folder, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in Path(folder).rglob("*") if path.is_file())):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    here, there = schema.load(folder), schema.load(snapshot)
    assert [item.id for item in there.items] == [item.id for item in here.items]
    assert all(str(snapshot) in item.audio for item in there.select(modality="audio"))
    assert set(controls.control_audio(there, "silence")) == set(controls.control_audio(here, "silence"))


def test_a_wrong_folder_or_file_is_named(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        schema.load(tmp_path / "none")
    with pytest.raises(InputError, match="holds no test.jsonl"):
        schema.load(tmp_path)
    (tmp_path / "test.jsonl").write_text("{broken")
    with pytest.raises(InputError, match="line 1: not valid JSON"):
        schema.load(tmp_path)
    (tmp_path / "test.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match="expected a JSON object, found list"):
        schema.load(tmp_path)


def test_a_file_that_is_not_utf_8_is_named(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    text = (copy / "test.jsonl").read_text()
    (copy / "test.jsonl").write_bytes(text.replace("Which subject", "Qu\u00e9 tema").encode("latin-1"))
    with pytest.raises(InputError, match="test.jsonl, line 1: not valid JSON .*in UTF-8"):
        schema.load(copy)


def test_only_a_newline_ends_an_item(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    rows = benchmark_files.read_items(folder)
    rows[0]["question"] = "Which\u2028subject\u0085is this?"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (copy / "test.jsonl").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    items = schema.load(copy).items
    assert len(items) == len(rows) and items[0].question == rows[0]["question"]


def test_the_variable_names_the_benchmark_and_nano_is_the_rest(folder, monkeypatch, tmp_path, capsys):
    assert select.current_choice().name is None
    assert main(["benchmark", "show"]) == 0
    assert "embedded nano set" in capsys.readouterr().out
    monkeypatch.setenv(select.VARIABLE, str(folder))
    assert select.resolve().folder == folder
    assert main(["benchmark", "show"]) == 0
    shown = capsys.readouterr().out
    assert "ARTEMO_DATASET" in shown and "36 items about 6 clips" in shown
    monkeypatch.setenv(select.VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match="holds no test.jsonl.*chosen by the environment variable ARTEMO_DATASET"):
        select.resolve()
    monkeypatch.setenv(select.VARIABLE, str(folder / "none"))
    assert main(["benchmark", "show"]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_validate_ends_with_1_where_a_column_is_wrong(folder, tmp_path, capsys):
    assert main(["benchmark", "validate", str(folder), "--no-media"]) == 0
    assert "36 items about 6 clips; no errors" in capsys.readouterr().out
    rows = [
        {("reply" if key == "answer" else key): value for key, value in row.items()}
        for row in benchmark_files.read_items(folder)
    ]
    benchmark_files.write_items(tmp_path, rows)
    assert main(["benchmark", "validate", str(tmp_path), "--no-media"]) == 1
    assert "column 'answer': Field required" in capsys.readouterr().out


def test_the_nano_set_says_so_everywhere(monkeypatch, tmp_path):
    nano = benchmark_files.write_benchmark(tmp_path / "nano", clips=4, nano=True)
    monkeypatch.setattr(select, "nano_folder", lambda: nano)
    artemo._benchmark.cache_clear()
    assert artemo.alias("artemo") == "artemo (nano set, not a leaderboard number)"
    metadata = artemo.metadata()
    assert "not a leaderboard number" in metadata["version"] and "belong on no leaderboard" in metadata["notice"]
    artemo._benchmark.cache_clear()


def test_silence_and_noise_keep_the_length_and_tell_nothing(folder):
    benchmark = schema.load(folder)
    own = {item.clip_id: load_audio(item.audio) for item in benchmark.select("content", "audio")}
    silence, noise = controls.control_audio(benchmark, "silence"), controls.control_audio(benchmark, "noise")
    assert set(silence) == set(noise) == set(own)
    for clip, waveform in own.items():
        quiet, rate_hz = soundfile.read(silence[clip], dtype="float32")
        assert rate_hz == 16_000 and quiet.shape == waveform.shape and not quiet.any()
        loud = load_audio(noise[clip])
        assert loud.shape == waveform.shape
        # At the clip's own loudness a listener would still tell its arousal.
        assert np.sqrt(np.mean(loud**2)) == pytest.approx(controls.NOISE_RMS, rel=1e-4)
        assert abs(np.corrcoef(loud, waveform)[0, 1]) < 0.1
    first = list(noise.values())
    assert not np.allclose(load_audio(first[0])[:4000], load_audio(first[1])[:4000])
    before = {path: Path(path).read_bytes() for path in first}
    for path in first:
        Path(path).unlink()
    again = controls.control_audio(benchmark, "noise").values()
    assert {path: Path(path).read_bytes() for path in again} == before
    assert all(soundfile.info(path).subtype == "PCM_16" for path in again)


def test_controls_belong_to_what_the_files_hold(folder, tmp_path):
    first = controls.control_audio(schema.load(folder), "silence")
    # The same benchmark, built again elsewhere, finds its controls; an edited one gets new ones.
    copy = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    assert controls.control_audio(schema.load(copy), "silence") == first
    assert len(list((tmp_path / "cache" / "controls").iterdir())) == 1
    sound = bytearray((copy / "media/clip-0.wav").read_bytes())
    sound[-1] ^= 1
    (copy / "media/clip-0.wav").write_bytes(sound)
    assert not set(controls.control_audio(schema.load(copy), "silence").values()) & set(first.values())


def test_a_clip_with_two_sounds_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    rows = benchmark_files.read_items(copy)
    next(row for row in rows if row["id"] == "clip-0-emotion-audio")["audio"] = "media/clip-1.wav"
    benchmark_files.write_items(copy, rows)
    for kind in controls.KINDS:
        with pytest.raises(InputError, match="the clip 'clip-0' has two audio files.*clip-0-emotion-audio"):
            controls.control_audio(schema.load(copy), kind)


def test_mismatch_gives_every_clip_another_one_with_other_answers(folder):
    benchmark = schema.load(folder)
    sounds = controls.control_audio(benchmark, "mismatch")
    own = {item.clip_id: item.audio for item in benchmark.select("content", "audio")}
    assert sorted(sounds.values()) == sorted(own.values())
    answers = {}
    for item in benchmark.select(modality="audio"):
        answers.setdefault(item.clip_id, {})[item.aspect] = item.answer
    clip_of = {path: clip for clip, path in own.items()}
    for clip, path in sounds.items():
        other = answers[clip_of[path]]
        assert path != own[clip] and all(other[aspect] != answers[clip][aspect] for aspect in other)
    assert sounds == controls.control_audio(benchmark, "mismatch")


def test_mismatch_needs_other_answers(folder):
    items = [item for item in schema.load(folder).select(modality="audio") if item.clip_id in ("clip-0", "clip-4")]
    with pytest.raises(InputError, match="too frequent"):
        controls.mismatched_partners(items)


def test_mismatch_heeds_every_question_about_a_clip():
    def item(clip, number, answer):
        return schema.Item(f"{clip}-{number}", clip, "audio", "content", "?", ("a", "b", "c", "d"), answer)

    # With its last answer alone, x could take y; only z shares none of its answers.
    items = [item("x", 0, "a"), item("x", 1, "b"), item("y", 0, "a"), item("y", 1, "c"), item("z", 0, "d")]
    with pytest.raises(InputError, match="too frequent"):
        controls.mismatched_partners(items)
    partners = controls.mismatched_partners([*items, item("w", 0, "d")])
    assert {partners["x"], partners["y"]} == {"z", "w"} and {partners["z"], partners["w"]} == {"x", "y"}


def test_nano_is_a_name_wherever_a_benchmark_is_named(folder, monkeypatch):
    monkeypatch.setattr(select, "nano_folder", lambda: folder)
    assert select.find("nano") == folder and select.resolve().folder == folder
    monkeypatch.setenv(select.VARIABLE, "nano")
    assert select.resolve().folder == folder


def test_a_control_names_the_clip_that_cannot_be_decoded(tmp_path):
    folder = benchmark_files.write_benchmark(tmp_path / "broken", clips=2)
    (folder / "media/clip-1.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="clip 'clip-1': .*clip-1.wav"):
        controls.control_audio(schema.load(folder), "silence")


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("show", "validate", "build", "push", "compare"))
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "evaluate-emotion" in capsys.readouterr().out


def test_documents_carry_what_the_modality_may_see(folder, monkeypatch):
    monkeypatch.setenv(select.VARIABLE, str(folder))
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    for aspect in schema.ASPECTS:
        for modality in schema.MODALITIES:
            documents = artemo.yaml_value(f"documents_{aspect}_{modality}")(None)
            expected = [row["id"] for row in rows if (row["aspect"], row["modality"]) == (aspect, modality)]
            assert documents["id"] == expected
            for document in documents:
                kinds = [part["type"] for part in artemo.doc_to_messages(document)[0]["content"]]
                picture = "video" if document["clip_id"] in ("clip-2", "clip-5") else "image"
                assert (
                    kinds
                    == {"audio": ["audio", "text"], "visual": [picture, "text"], "av": [picture, "audio", "text"]}[
                        modality
                    ]
                )
    muted = artemo.yaml_value("documents_emotion_audio_silence")(None)
    plain = artemo.yaml_value("documents_emotion_audio")(None)
    assert muted["id"] == plain["id"] and not set(muted["audio"]) & set(plain["audio"])
    with pytest.raises(AttributeError):
        artemo.yaml_value("documents_emotion_smell")
