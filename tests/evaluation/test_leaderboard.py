"""`vaemotionllm report` about models: from lmms-eval's result files to Markdown, HTML and JSON, by hand."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import benchmark_files
import numpy as np
import pytest
import speaking_model
from test_compare import CELLS, A, B, evaluate, knows, write_benchmark
from test_lmms_eval import lmms_eval

from vaemotionllm import InputError
from vaemotionllm.benchmark import prompts
from vaemotionllm.benchmark.intervals import ccc, wilson
from vaemotionllm.cli.main import main
from vaemotionllm.evaluation import (
    failures,
    leaderboard,
    leaderboard_answers,
    leaderboard_pins,
    leaderboard_plots,
    leaderboard_words,
    plots,
    report_blocks,
    report_markdown,
)
from vaemotionllm.evaluation.benchmark_rows import find_rows
from vaemotionllm.evaluation.figures import LIGHT, make_figure, most_frequent_mistake
from vaemotionllm.evaluation.results import Outcome
from vaemotionllm.nano import select

CONTROLS = ("content_audio_silence", "emotion_audio_silence", "emotion_audio_mismatch", "emotion_blind")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve clips; the first six are paintings, the others films."""
    place = write_benchmark(tmp_path_factory.mktemp("benchmark"))
    rows = benchmark_files.read_items(place)
    for row in rows:
        row["art_form"] = "painting" if int(row["clip_id"].split("-")[1]) < 6 else "short_film"
    benchmark_files.write_items(place, rows)
    return place


@pytest.fixture(autouse=True)
def chosen(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(select.VARIABLE, str(folder))


def change(out, **entries):
    """Changes the one results file in `out`; the value of an entry is a function of the old value."""
    (file,) = out.glob("*/*_results.json")
    written = json.loads(file.read_text())
    for name, new in entries.items():
        written[name] = new(written.get(name))
    file.write_text(json.dumps(written))


def build(*outs, benchmark=None, names=None):
    models = leaderboard.read_models(list(outs), names)
    return leaderboard.build(models, *find_rows(list(models.values()), benchmark))


def test_scores_by_hand(tmp_path):
    """A is right about the clips 0 to 3 by sound, to 5 by picture, to 8 by both, else says the option behind."""
    found = build(evaluate(tmp_path / "a", A))["models"]["model"]
    cell = found["cells"]["emotion_audio"]
    assert cell["accuracy"] == pytest.approx(4 / 12, abs=1e-12) and cell["ci95"] == pytest.approx(wilson(4, 12))
    assert (cell["n"], cell["chance"], cell["unparsable"]) == (12, 0.25, 0)
    # Each of the four labels is right once of three times, and named three times.
    assert cell["macro_f1"] == cell["uar"] == pytest.approx(1 / 3, abs=1e-12)
    assert found["all"]["accuracy"] == pytest.approx(19 / 36, abs=1e-12) and found["all"]["n"] == 72
    assert found["all"]["ci_method"] == "bootstrap by clip"
    forms = {form: of["content_audio"]["accuracy"] for form, of in found["by_art_form"].items()}
    assert forms == {"painting": pytest.approx(4 / 6), "short_film": 0}
    assert found["by_art_form"]["short_film"]["emotion_av"]["accuracy"] == pytest.approx(3 / 6)
    assert found["by_emotion"]["joyful"]["av"]["accuracy"] == 1, "the clips 0, 4 and 8"
    assert found["by_emotion"]["calm"]["av"]["accuracy"] == pytest.approx(2 / 3), "of 3, 7 and 11 two"
    assert found["confusion"]["emotion_audio"] == {
        "labels": ["calm", "joyful", "sad", "tense"],
        "columns": ["calm", "joyful", "sad", "tense"],
        "counts": [[1, 2, 0, 0], [0, 1, 0, 2], [2, 0, 1, 0], [0, 0, 2, 1]],
    }
    gains = {name: gain["value"] for name, gain in found["gains"]["emotion"].items()}
    assert gains == {"audio_gain": 0.25, "visual_gain": pytest.approx(5 / 12), "synergy": 0.25}
    assert found["conflict"] is None and found["controls"] == found["va"] == found["circular"] == {}


def test_two_models_stand_beside_each_other(tmp_path, capsys):
    outs = evaluate(tmp_path / "a", A), evaluate(tmp_path / "b", B, model="other")
    assert main(["report", *map(str, outs), "--out", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    assert printed.index("other") < printed.index("model"), "the better one first: 21 of 36 against 19"
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["models"]["model"]["minus_first"] is None and report["notices"] == []
    difference = report["models"]["other"]["minus_first"]["artemo_content_audio"]
    assert difference["value"] == pytest.approx(4 / 12, abs=1e-12)
    text = (tmp_path / "report/report.md").read_text()
    low, high = (100 * end for end in wilson(4, 12))
    assert f"| 33.3% [{low:.1f}, {high:.1f}] |" in text and "## Differences from model" in text
    order = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][:5]
    assert order == ["accuracy", "---", "other", "model", "chance"]
    for heading in ("Valence and arousal", "Under every rotation of the options"):
        assert f"## {heading}\n\nNot run." in text
    for picture in re.findall(r"\]\(([^)]*)\)", text):
        assert (tmp_path / "report" / picture).read_bytes()[:4] == b"\x89PNG"


def test_controls_circular_conflict_and_the_plane(tmp_path):
    tasks = (*CELLS, *CONTROLS, "conflict", "emotion_audio_circular", "va_av", "va_audio")

    def respond(task, doc):
        if task == "conflict":
            return doc["answer"] if doc["clip_id"] < "clip-2" else "nothing that I know"
        if task == "emotion_audio_circular":
            return "A"
        if task.startswith("va"):
            known = doc["clip_id"] != "clip-3" and task == "va_av"
            return f"valence: {doc['valence']}, arousal: {-doc['arousal']}" if known else "who knows"
        return "B"

    out = evaluate(tmp_path / "a", respond, tasks)
    report = leaderboard.write(leaderboard.read_models([out]), tmp_path / "report")
    found = report["models"]["model"]
    assert set(found["controls"]) == {"silence", "mismatch", "blind"}
    assert found["controls"]["silence"]["content"]["accuracy"] == 0, "B is never right"
    of = found["conflict"]
    assert of["n"] > 2 and of["follows_sight"]["value"] + of["unparsable"]["value"] == pytest.approx(1)
    assert of["follows_sound"]["value"] == of["neither"]["value"] == of["missing"]["value"] == 0
    circular = found["circular"]["emotion_audio"]
    assert (circular["accuracy"], circular["single"], circular["chance"]) == (0, 0.25, 0.25)
    va = found["va"]["av"]
    assert (va["ccc_valence"], va["answered"], va["n"]) == (pytest.approx(1, abs=1e-12), 11, 12)
    rows = {
        r["clip_id"]: r["arousal"] for r in benchmark_files.read_items(find_rows_folder()) if r["clip_id"] != "clip-3"
    }
    true = np.array(list(rows.values()))
    assert va["ccc_arousal"] == pytest.approx(float(ccc(-true, true)), abs=1e-9)
    assert va["rmse_arousal"] == pytest.approx(float(np.sqrt(np.mean((2 * true) ** 2))), abs=1e-9)
    assert va["unparsable"] == pytest.approx(1 / 12)
    text = (tmp_path / "report/report.md").read_text()
    assert "| the same option each time | 25.0% |" in text
    assert "![Valence and arousal, stated against true, model" in text and "| model, picture | not run |" in text
    assert "| model, sound | not defined |" in text and "100.0% 0 of 12 answered |" in text
    written = json.loads((tmp_path / "report/report.json").read_text())
    assert written["models"]["model"]["va"]["audio"]["ccc"] is None, "not defined, and not a number"


def find_rows_folder():
    return select.find(select.current_choice().name)


class Page(HTMLParser):
    """What a page asks of other files, and whether its tags are closed."""

    VOID = {"meta", "img", "br", "path", "use", "rect"}

    def __init__(self):
        super().__init__()
        self.open, self.asked, self.tags = [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.asked += [value for name, value in attributes if name in ("src", "href") and value[:1] != "#"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_needs_no_other_file_and_no_answer_is_markup(tmp_path):
    def respond(task, doc):
        return "<script>alert(1)</script> | *no*\n# idea"

    leaderboard.write(leaderboard.read_models([evaluate(tmp_path / "a", respond)]), tmp_path / "report")
    html = (tmp_path / "report/report.html").read_text()
    page = Page()
    page.feed(html)
    assert page.open == [] and "script" not in page.tags and "link" not in page.tags and "svg" in page.tags
    assert page.asked and all(value.startswith("data:image/png;base64,") for value in page.asked)
    assert "url(http" not in html and "@import" not in html
    text = (tmp_path / "report/report.md").read_text()
    assert r"\<script\>alert(1)\</script\> \| \*no\* \# idea" in text and "\n# idea" not in text
    # Twelve answers a cell, none of which names an option.
    assert "no option: 100.0%" in text


def test_no_text_of_a_model_is_markup():
    said = "[a](http://x) ![b][c] [1](y) *_`~# a & b $x$ a\x07b\u202ec \ud800 [1.0, 2.0] [-1.0, +2.0]"
    line = r"\[a\](http://x) !\[b\]\[c] [1\](y) \*\_\`\~\# a \& b \$x\$ a�b�c � [1.0, 2.0] [-1.0, +2.0]"
    assert report_markdown.escaped(said) == line
    shown = [report_blocks.Text(said), report_blocks.Table([said], [[said]])]
    failure = failures.Failure("f", "emotion_av", "i", "", said, (said,), said, None, said, None, None)
    blocks = [*shown, report_blocks.Failures([failure])]
    markdown, html = report_blocks.to_markdown(blocks), report_blocks.to_html(said, blocks)
    assert markdown.count(line) == 7 and html.count("a�b�c � ") == 8
    assert not set("\x07\u202e\ud800") & {*markdown, *html}


def test_wrong_answers_are_shown_with_picture_and_sound(tmp_path):
    models = leaderboard.read_models([evaluate(tmp_path / "a", A)])
    rows, _ = find_rows(list(models.values()), None)
    shown, lacking = failures.failures_of(models["model"], rows, "wrong_1")
    assert not lacking and [failure.cell for failure in shown] == CELLS
    # By sound the first wrong one is clip 4, by picture 6, by both 9; then the next that is not shown.
    assert [f.item_id.split("-content")[0].split("-emotion")[0] for f in shown] == [
        f"clip-{i}" for i in (4, 6, 9, 5, 7, 10)
    ]
    assert [f.png is not None for f in shown] == [False, True, True] * 2
    assert [f.sound is not None for f in shown] == [True, False, True] * 2
    assert (shown[0].answer, shown[0].predicted, shown[0].response) == ("rain", "fire", "B")


def test_the_envelope_of_a_sound():
    low, high = failures.envelope(np.array([0.0, 0.5, -1.0, 0.25, 0.1, 0.2], dtype=np.float32), bins=3)
    np.testing.assert_allclose([low, high], [[0, -1, 0.1], [0.5, 0.25, 0.2]], rtol=1e-6)
    assert len(failures.envelope(np.zeros(2, dtype=np.float32))[0]) == 2


def test_no_name_is_a_formula():
    """A dollar sign, as in "$5", begins no mathematics."""
    names = ["_a$b_", "x{y}$^$", "$\\frac$", "{"]
    outcomes = [outcome(f"i{i}", name, names[0], names) for i, name in enumerate(names)]
    made = make_figure("f", "T", lambda c: plots.draw_confusion(outcomes, "av", c), "", "", "")
    assert made.png[:4] == b"\x89PNG" and all(f">{name}<" in made.svg for name in names)
    cell = {"accuracy": 0.5, "ci95": [0.4, 0.6], "chance": 0.25}
    sounds = {name: {"own": {"content": cell}} for name in names}
    assert all(f">{n}<" in make_figure("f", "T", lambda c: leaderboard_plots.draw_controls(sounds, c), "", "", "").svg
               for n in names)  # fmt: skip


def test_a_label_called_none_is_an_option():
    outcomes = [outcome("a", "none", "none"), outcome("b", "x", None), outcome("c", "none", "none")]
    labels, columns, counts = plots.confusion(outcomes)
    assert (labels, columns) == (["none", "x"], ["none", "x", "no option"])
    assert counts.tolist() == [[2, 0, 0], [0, 0, 1]]
    assert most_frequent_mistake(outcomes) == "the most frequent mistake is no option chosen where x is right, 1 time"
    assert most_frequent_mistake(outcomes[:1]) == "no mistake"
    wrong = [outcome(str(i), "x", "none") for i in range(2)]
    assert most_frequent_mistake(wrong) == "the most frequent mistake is x taken for none, 2 times"


def outcome(item_id, answer, predicted, options=("none", "x")):
    return Outcome(item_id, item_id, answer, predicted, float(answer == predicted), tuple(options))


def test_options_are_read_from_the_prompt():
    for options in (["x", "y"], ["A. a", "two\nlines", "B. b"], [f"o{i}" for i in range(26)]):
        question = "A. is no option here\nWhich?"
        assert prompts.options_of(prompts.multiple_choice(question, options)) == options or options[0] == "A. a"
    assert prompts.options_of("<|user|>\n" + prompts.multiple_choice("Which?", ["x", "y"]) + "<|end|>") == ["x", "y"]
    with pytest.raises(ValueError, match="shows no options"):
        prompts.options_of("Which?\n1. x\n2. y")


def test_what_is_not_of_one_kind_is_said_above_the_leaderboard(tmp_path):
    outs = evaluate(tmp_path / "a", A), evaluate(tmp_path / "b", B, model="other")

    def other_revision(configs):
        for config in configs.values():
            config["metadata"] |= {"benchmark_sha256": "0" * 64, "run": {"scoring": "options"}}
            config["generation_kwargs"] = {"temperature": 1.0}
        return configs

    change(
        outs[1], configs=other_revision, **{"n-samples": lambda of: {t: {**n, "original": 20} for t, n in of.items()}}
    )
    (samples,) = outs[1].glob("*/*_samples_artemo_emotion_av.jsonl")
    samples.write_text(samples.read_text().replace("Which emotion", "What emotion"))
    notices = "\n".join(build(*outs)["notices"])
    assert "different items files: model " in notices and "other 000000" in notices
    assert "scored in different ways (generate: model; options: other)" in notices
    assert "other was asked with other words than model in artemo_emotion_av." in notices
    assert "other was asked with other decoding than model in artemo_content_audio, " in notices
    assert "other answered a part of the questions only (--limit): 12 of 20 in artemo_content_audio" in notices


def test_models_that_were_not_run_alike_are_named(tmp_path):
    outs = evaluate(tmp_path / "a", A), evaluate(tmp_path / "b", B, model="other")
    alike = {"num_frames": 8, "sampling_rate_hz": 16_000, "max_audio_s": 30.0, "use_adapter": True}
    ways = {"num_frames": 4, "sampling_rate_hz": 8_000, "max_audio_s": 10.0, "use_adapter": False}

    def run(out, facts, system, template, shots):
        def with_run(configs):
            return {t: {"metadata": {**of["metadata"], "run": facts}} for t, of in configs.items()}

        change(out, configs=with_run, system_instruction=lambda _: system, chat_template_sha=lambda _: template,
               **{"n-shot": lambda _: dict.fromkeys((f"artemo_{cell}" for cell in CELLS), shots)})  # fmt: skip

    run(outs[0], alike, None, None, 0)
    run(outs[1], alike | {"device": "cuda:0"}, None, None, 0)
    assert build(*outs)["notices"] == [], "a device changes no question"
    run(outs[1], ways, "Be brief." + 50 * ".", "abc", 2)
    assert build(*outs)["notices"] == [
        f"The models were not run alike ({words})."
        for words in (
            f"system instruction: model none, other Be brief.{31 * '.'}...",
            "hash of the chat template: model none, other abc",
            "examples before a question: model 0, other 2",
            "frames of a film, at most: model 8, other 4",
            "sampling rate, Hz: model 16000, other 8000",
            "longest sound, s: model 30.0, other 10.0",
            "use_adapter: model True, other False",
        )
    ]
    run(outs[1], {}, None, None, 0)
    assert build(*outs)["notices"] == [], "what is not stated cannot be compared"


def test_questions_that_were_not_asked_are_no_answers(tmp_path):
    """What the tasks write with on_error=report: the score 0, `missing` 1 and `unparsable` 0."""
    out = evaluate(tmp_path / "a", lambda task, doc: "A" if doc["clip_id"] != "clip-2" else "(missing)")
    for file in out.glob("*/*_samples_*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row |= {"missing": row["unparsable"], "unparsable": 0.0}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = leaderboard.write(leaderboard.read_models([out]), tmp_path / "report")
    found = report["models"]["model"]
    cell = found["cells"]["emotion_audio"]
    assert (cell["accuracy"], cell["missing"]) == pytest.approx((11 / 12, 1 / 12)) and cell["unparsable"] == 0
    assert "no option" not in found["confusion"]["emotion_audio"]["columns"]
    assert "model was not asked 6 questions" in report["notices"][0]
    text = (tmp_path / "report/report.md").read_text()
    assert "missing: 8.3%" in text and "No wrong answer in the cells" in text


def test_bad_input_is_named(tmp_path, capsys):
    first = evaluate(tmp_path / "a", A)

    def refused(*arguments, out=True):
        words = ["--out", str(tmp_path / "report")] if out else []
        assert main(["report", *map(str, arguments), *words]) == 2
        assert not (tmp_path / "report").exists()
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert "no *_results.json of lmms-eval" in refused(tmp_path / "empty", out=False)
    assert "--out is missing" in refused(first, out=False)
    assert f"there is no {tmp_path / 'nowhere'};" in refused(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "the report cannot be written into" in refused(first, "--out", tmp_path / "file/report", out=False)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/steps.json").write_text("{}")
    assert "holds results of lmms-eval and" in refused(first, tmp_path / "demo")
    assert "--out is for results of lmms-eval" in refused(tmp_path / "demo")
    assert "several results are of a model called 'model'" in refused(first, evaluate(tmp_path / "c", B))
    assert "--names has 1 names for 2" in refused(first, first, "--names", "x")
    fewer = evaluate(tmp_path / "fewer", A, model="fewer", limit=6)
    assert re.search("6 of 12 items of .* are not in .*fewer", refused(first, fewer))
    torn = shutil.copytree(first, tmp_path / "torn")
    (file,) = torn.glob("*/*_results.json")
    file.write_text(file.read_text()[:-9])
    assert "is no results file of lmms-eval" in refused(torn)
    torn = shutil.copytree(first, tmp_path / "torn_samples")
    (file,) = torn.glob("*/*_samples_artemo_content_av.jsonl")
    file.write_text(file.read_text()[:-9])
    assert f"{file}, line 12" in refused(torn)
    file.unlink()
    assert "run lmms-eval with --log_samples" in refused(torn)
    other = shutil.copytree(first, tmp_path / "other_tasks")
    change(other, configs=lambda of: {"mmlu": of["artemo_content_av"]})
    assert "holds no task of artemo" in refused(other)
    old = shutil.copytree(first, tmp_path / "old")
    for file in old.glob("*/*_samples_*.jsonl"):
        file.write_text(file.read_text().replace('"macro_f1"', '"f1"'))
    assert "item 'clip-0-content-audio', lacks what the tasks write" in refused(old)


def test_tasks_that_are_not_known_are_named(tmp_path):
    out = evaluate(tmp_path / "a", A)
    (samples,) = out.glob("*/*_samples_artemo_emotion_audio.jsonl")
    shutil.copy(samples, samples.with_name(samples.name.replace("emotion_audio", "emotion_smell")))

    def more(of):
        return {**of, "artemo_emotion_smell": of["artemo_emotion_audio"]}

    change(out, results=more, configs=more, **{"n-samples": more})
    report = leaderboard.write(leaderboard.read_models([out]), tmp_path / "report")
    assert report["models"]["model"]["other"] == ["artemo_emotion_smell"]
    said = "> Tasks that this report does not know: artemo\\_emotion\\_smell."
    assert said in (tmp_path / "report/report.md").read_text()


def test_what_lacks_for_want_of_the_benchmark_is_said(folder, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setenv(select.VARIABLE, str(copy))
    models = leaderboard.read_models([evaluate(tmp_path / "a", A)])
    shutil.rmtree(copy / "media")
    leaderboard.write(models, tmp_path / "report", str(copy))
    text = (tmp_path / "report/report.md").read_text()
    assert (
        "> 6 left out, since their media cannot be read; the first is clip-4-content-audio: there is no file" in text
    )
    assert "| short film |" in text
    # Without the items the emotions are still known, from the answers.
    shutil.rmtree(copy)
    report = leaderboard.write(models, tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert text.count("there is no folder") == 2 and "Left out, since the media are not at hand" in text
    assert report["models"]["model"]["by_art_form"] is None and "| joyful |" in text
    other = benchmark_files.write_benchmark(tmp_path / "other", clips=6)
    with pytest.raises(InputError, match="is not the benchmark that was asked: it has no item 'clip-6-content-audio'"):
        find_rows(list(models.values()), str(other))
    rows = benchmark_files.read_items(folder)
    rows[0]["answer"] = rows[0]["options"][1]
    shutil.copytree(folder, tmp_path / "changed")
    benchmark_files.write_items(tmp_path / "changed", rows)
    monkeypatch.setenv(select.VARIABLE, str(tmp_path / "changed"))
    found, reason = find_rows(list(models.values()), None)
    assert found is None and "the item 'clip-0-content-audio' of artemo_content_audio has another answer" in reason


def test_a_later_run_of_other_tasks_hides_none(tmp_path, folder):
    """Each task is of the newest file that has it; files of runs in different ways are refused."""
    out = evaluate(tmp_path / "a", A)
    evaluate(out, B, ["content_audio", "va_av"], date="20260102_030406")
    (model,) = leaderboard.read_models([out]).values()
    assert [path.name[:15] for path in model.runs] == ["20260102_030406", "20260102_030405"]
    assert model.path.name == "20260102_030406_results.json" and "artemo_emotion_av" in model.results["configs"]
    found = build(out)["models"]["model"]
    assert set(found["cells"]) == set(CELLS) and set(found["va"]) == {"av"}
    assert found["cells"]["content_audio"]["accuracy"] == pytest.approx(8 / 12), "of the newer file"
    assert found["cells"]["emotion_audio"]["accuracy"] == pytest.approx(4 / 12), "of the older one"
    assert len(found["pins"]["results_files"]) == 2
    newest, older = (out / f"org__model/{name}_results.json" for name in ("20260102_030406", "20260102_030405"))
    for file, arguments in ((older, "lmms-eval --tasks artemo"), (newest, "lmms-eval --tasks x")):
        written = json.loads(file.read_text())
        written["config"]["resolved_cli_args"] = {"tasks": arguments.split()[-1]}
        file.write_text(json.dumps(written))
    given = f"ARTEMO_DATASET={folder} lmms-eval --tasks"
    assert build(out)["models"]["model"]["pins"]["command"] == f"{given} artemo\n{given} x"
    written = json.loads(older.read_text())
    written["config"]["model_args"] = "x=2"
    older.write_text(json.dumps(written))
    with pytest.raises(InputError, match="model_args 'x=2' and not 'x=1'") as caught:
        leaderboard.read_models([out])
    assert str(older) in str(caught.value) and str(newest) in str(caught.value)
    # A file all of whose tasks were run again does not count.
    evaluate(out, A, [*CELLS, "va_av"], date="20260102_030407")
    assert len(leaderboard.read_models([out])["model"].runs) == 1


def test_another_benchmark_is_refused(folder, tmp_path):
    """By the hash of its items where the results state it, else by what was asked, in every task with options."""

    def other(name, **entries):
        rows = benchmark_files.read_items(folder)
        rows[0] |= entries  # by sound; asked in the circular and the blind task too
        place = shutil.copytree(folder, tmp_path / name)
        benchmark_files.write_items(place, rows)
        return str(place)

    film = other("form", art_form="opera")
    question = other("question", question="Which sound is that?")
    options = other("options", options=["rain", "fire", "wind", "a gong"], answer="rain")
    tasks = (["content_audio"], ["content_audio_circular"], ["content_blind"])
    for number, asked in enumerate(tasks):
        out = evaluate(tmp_path / str(number), A, asked)
        models = list(leaderboard.read_models([out]).values())
        with pytest.raises(InputError, match="the hash of its items is [0-9a-f]{16} and not [0-9a-f]{16}"):
            find_rows(models, film)
        change(out, configs=lambda of: {t: {"metadata": without_hash(c["metadata"])} for t, c in of.items()})
        old = list(leaderboard.read_models([out]).values())
        assert find_rows(old, film)[0].items, "an older result cannot tell"
        for place, said in ((question, "another question"), (options, "other options")):
            with pytest.raises(InputError, match=f"the item 'clip-0-content-audio' of .* has .*{said} there"):
                find_rows(old, place)


def without_hash(metadata):
    return {name: value for name, value in metadata.items() if name != "benchmark_sha256"}


def test_the_command_holds_what_changes_an_answer():
    """lmms-eval's own parser makes of it the arguments that it was made from."""
    words = [
        "--model", "m", "--model_args", "a=1", "--tasks", "artemo", "--limit", "192", "--offset", "3",
        "--num_fewshot", "2", "--launcher_args", "port=1", "--system_instruction", "Be brief.",
        "--apply_chat_template", "--include_path", "more tasks", "--reasoning_tags", '[["<t>", "</t>"]]',
        "--predict_only", "--seed", "1,2,3,4", "--trust_remote_code", "--repeats", "5",
    ]  # fmt: skip
    silent = ["--verbosity", "DEBUG", "--use_cache", "c", "--wandb_args", "key=secret", "--power", "0.9"]
    given = leaderboard_pins.words_of(resolved([*words, *silent]))
    assert sorted(given) == sorted(words) and resolved(given) == resolved(words)
    assert leaderboard_pins.words_of(resolved(["--model", "m", "--limit", "0.5"])) == [
        "--model",
        "m",
        "--limit",
        "0.5",
    ]
    assert leaderboard_pins.words_of({"model": "m", "batch_size": 1, "new": 3}) == ["--model", "m", "--new", "3"]


def resolved(words):
    """What the results file holds of a command's arguments."""
    with pytest.MonkeyPatch.context() as patch:
        # With this module loaded a process counts as lmms-eval's command, whose errors end it: see `cli_exit`.
        patch.setitem(sys.modules, "lmms_eval.__main__", None)
        del sys.modules["lmms_eval.__main__"]
        from lmms_eval.__main__ import parse_eval_args

        patch.setattr("sys.argv", ["lmms-eval", *words])
        return json.loads(json.dumps(vars(parse_eval_args()[1])))


def test_the_same_option_under_every_rotation_is_right_by_chance(tmp_path):
    def deaf(task, doc):
        return "ABCD"[doc["options"].index("joyful")]

    found = build(evaluate(tmp_path / "a", deaf, ["emotion_audio_circular"]))["models"]["model"]
    circular = found["circular"]["emotion_audio"]
    assert circular["accuracy"] == circular["chance"] == 0.25, "right where joyful is right, of four emotions"


def test_a_report_takes_the_place_of_its_own_kind_alone(tmp_path, capsys):
    outs = evaluate(tmp_path / "a", A), evaluate(tmp_path / "b", B, model="other")
    place = tmp_path / "report"
    report = leaderboard.write(leaderboard.read_models(outs), place)
    (place / "figures/mine.png").write_bytes(b"")
    assert report["figures"] == sorted({p.name for p in (place / "figures").iterdir()} - {"mine.png"})
    assert "confusion_2_emotion_av.png" in report["figures"]
    one = leaderboard.write(leaderboard.read_models(outs[:1]), place)
    assert "confusion_2_emotion_av.png" not in one["figures"] and "cells.png" in one["figures"]
    assert {p.name for p in (place / "figures").iterdir()} == {*one["figures"], "mine.png"}
    (place / "steps.json").write_text("{}")
    before = (place / "report.json").read_bytes()
    assert main(["report", str(outs[1]), "--out", str(place)]) == 2
    assert "the folder of a finished `vaemotionllm demo`" in capsys.readouterr().err
    assert (place / "report.json").read_bytes() == before


def test_few_answers_are_said_as_they_are():
    cell = {"accuracy": 1.0, "ci95": [0.9, 1.0], "unparsable": 1 / 2304, "missing": 0.0005}
    assert leaderboard_words.score_parts(cell)[2] == "no option: <0.1%, missing: 0.1%"
    names = [f"{metric}_{d}" for metric in ("ccc", "pearson", "rmse") for d in ("valence", "arousal")]
    of = dict.fromkeys(["ccc", *names], 0.5)
    of |= {"n": 192, "unparsable": 190 / 192, "missing": 0, "ccc_ci95": [0.5, 0.5]}
    few, enough = (leaderboard_answers.va_cells(of | {"answered": n}) for n in (2, 10))
    assert few[0] == "0.50" and enough[0] == ("0.50", "[0.50, 0.50]")
    assert few[-1] == ("99.0%", "2 of 192 answered", "")


def test_a_long_sound_is_said_to_be_cut():
    for seconds, said in ((31, "first 30 of 31 s (peak 0.50 of full scale)"), (30, "time, s (peak")):
        drawn = failures.draw_waveform(np.full(seconds * failures.RATE_HZ, 0.5, dtype=np.float32), LIGHT)
        assert drawn.axes[0].get_xlabel().startswith(said) and drawn.axes[0].get_xlim() == (0, 30)


def test_one_task_alone_is_reported(tmp_path):
    report = leaderboard.write(
        leaderboard.read_models([evaluate(tmp_path / "a", knows(0, 1), ["emotion_visual"])]), tmp_path / "report"
    )
    found = report["models"]["model"]
    assert list(found["cells"]) == ["emotion_visual"] and found["all"] is None and found["gains"] == {}
    line = next(x for x in (tmp_path / "report/report.md").read_text().splitlines() if x.startswith("| model |"))
    assert line.count("not run") == 6 and "| 16.7% [" in line


def test_labels_of_the_figures_do_not_overlap():
    rng = np.random.default_rng(0)

    def cell():
        value = float(rng.uniform(0.1, 0.9))
        return {"accuracy": value, "ci95": [value - 0.05, value + 0.05], "chance": 0.25}

    names = [f"{i} {'w' * 40} one of Many models with the Very long name" for i in range(6)] + ["short"]
    models = {name: {of: cell() for of in CELLS} for name in names}
    sounds = {m: {s: {"content": cell(), "emotion": cell()} for s in leaderboard_words.SOUND_WORDS} for m in models}
    for figure in (leaderboard_plots.draw_cells(models, LIGHT), leaderboard_plots.draw_controls(sounds, LIGHT)):
        figure.canvas.draw()
        texts = [
            text for axis in figure.axes for text in (*axis.texts, *axis.get_yticklabels(), *axis.get_xticklabels())
        ]
        texts += figure.legends[0].get_texts()
        box = figure.legends[0].get_window_extent()
        assert figure.bbox.contains(box.x0, box.y0) and figure.bbox.contains(box.x1, box.y1), "the legend is cut off"
        assert all(axis.get_window_extent().height > 100 for axis in figure.axes)
        boxes = [
            (text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()
        ]
        assert len(boxes) > 40
        for number, (name, box) in enumerate(boxes):
            over = [other for other, its in boxes[:number] if box.overlaps(its)]
            assert not over, (name, over)


def test_long_names_are_shortened_in_the_middle():
    long = [f"org/{'a' * 20}{i}{'b' * 20}" for i in range(3)]
    found = leaderboard_words.short_names(["org/model", *long])
    assert found[:2] == ["org/model", f"org/{'a' * 14}...{'b' * 18}"] and found[3] == f"org/{'a' * 12}..3..{'b' * 16}"
    assert len(set(found)) == 4 and max(map(len, found)) <= leaderboard_words.LONGEST_NAME


def test_real_results_of_our_adapter_and_of_a_stock_one(tmp_path):
    """Both name their versions, attention backend and decoding; frames and rate come from the loaded model."""
    small = benchmark_files.write_benchmark(tmp_path / "benchmark", clips=4)
    model = speaking_model.make(tmp_path / "tiny")
    for name, arguments in (("vaemotionllm", ",num_frames=2"), ("huggingface", ",device_map=cpu,max_num_frames=4")):
        done = lmms_eval(
            "--model", name, "--model_args", f"pretrained={model},device=cpu{arguments}",
            "--tasks", "artemo,artemo_blind", "--gen_kwargs", "max_new_tokens=3", "--seed", 7, "--log_samples",
            "--output_path", name, cwd=tmp_path, dataset=small,
        )  # fmt: skip
        assert list((tmp_path / name).glob("*/*_results.json")), done.stdout[-2000:] + done.stderr[-2000:]
    models = leaderboard.read_models([tmp_path / "vaemotionllm", tmp_path / "huggingface"], ["ours", "stock"])
    report = leaderboard.write(models, tmp_path / "report")
    ours, stock = (report["models"][name]["pins"] for name in ("ours", "stock"))
    for pins in (ours, stock):
        assert set(pins["versions"]) == {"vaemotionllm", "lmms_eval", "transformers", "torch"}
        assert (pins["sampling_rate_hz"], pins["seeds"]["torch_seed"]) == (16_000, 7)
        assert pins["attention"] and len(pins["benchmark"]["sha256"]) == 64
        assert pins["tasks"]["artemo_emotion_av"]["generation"]["max_new_tokens"] == 3
        assert "--gen_kwargs max_new_tokens=3" in pins["command"] and str(small) in pins["command"]
    assert (ours["num_frames"], stock["num_frames"]) == (2, 4)
    assert "VAEmotionLLM" in ours["adapter"] and "uggingface" in stock["adapter"]
    hashes = [{task: of["prompt_sha256"] for task, of in pins["tasks"].items()} for pins in (ours, stock)]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 8
    assert not [notice for notice in report["notices"] if "other words" in notice]
