"""`vaemotionllm report` about models: from lmms-eval's result files to Markdown, HTML and JSON, by hand."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import benchmark_files
import numpy as np
import pandas as pd
import pytest
import speaking_model
from compared import CELLS, A, B, chosen, evaluate, folder, knows  # noqa: F401  (fixtures)
from lmms_runs import lmms_eval

from vaemotionllm import InputError
from vaemotionllm.benchmark import prompts
from vaemotionllm.benchmark.intervals import ccc, wilson
from vaemotionllm.cli.main import main
from vaemotionllm.evaluation import plots, report, results
from vaemotionllm.evaluation.report import read_models, write_models
from vaemotionllm.evaluation.results import command_of, find_items, words_of
from vaemotionllm.evaluation.scores import models_scores, pick, table_of
from vaemotionllm.nano import select

CONTROLS = ("content_audio_silence", "emotion_audio_silence", "emotion_audio_mismatch", "emotion_blind")


def change(out, **entries):
    """Changes the one results file in `out`; the value of an entry is a function of the old value."""
    (file,) = out.glob("*/*_results.json")
    written = json.loads(file.read_text())
    for name, new in entries.items():
        written[name] = new(written.get(name))
    file.write_text(json.dumps(written))


def build(*outs, names=None) -> pd.DataFrame:
    """The table of scores."""
    models = read_models(list(outs), names)
    items = find_items(list(models.values()))[0]
    return models_scores(models, {name: item.get("art_form") for name, item in items.rows.items()})


def warnings(*outs) -> list[str]:
    models = read_models(list(outs))
    about = {
        label: {
            "settings": results.settings_of(of),
            "tasks": {task: results.task_settings(samples) for task, samples in of.tasks.items()},
            "unknown_tasks": [],
        }
        for label, of in models.items()
    }
    return report.warnings_about(models, about)


def score(scores: pd.DataFrame, measure: str, cell: str = "_", model: str = "model", **keys) -> pd.Series:
    aspect, modality = cell.split("_")
    found = pick(scores, model=model, measure=measure, aspect=aspect, modality=modality, **keys)
    assert found is not None, (measure, cell, model, keys)
    return found


def test_scores_by_hand(tmp_path):
    """A is right about the clips 0 to 3 by audio, to 5 by image, to 8 by both, else says the option behind."""
    scores = build(evaluate(tmp_path / "a", A))
    cell = score(scores, "accuracy", "emotion_audio")
    assert cell.value == pytest.approx(4 / 12, abs=1e-12) and [cell.low, cell.high] == pytest.approx(wilson(4, 12))
    assert (cell.n, cell.chance, cell.unparsable) == (12, 0.25, 0)
    # Each of the four labels is right once of three times, and named three times.
    for measure in ("macro_f1", "uar"):
        assert score(scores, measure, "emotion_audio").value == pytest.approx(1 / 3, abs=1e-12)
    six = score(scores, "accuracy", "all_all")
    assert (six.value, six.n, six.method) == (pytest.approx(19 / 36, abs=1e-12), 72, "bootstrap by clip")
    forms = {form: score(scores, "accuracy", "content_audio", group=f"art_form: {form}").value
             for form in ("painting", "short_film")}  # fmt: skip
    assert forms == {"painting": pytest.approx(4 / 6), "short_film": 0}
    assert score(scores, "accuracy", "emotion_av", group="art_form: short_film").value == pytest.approx(3 / 6)
    assert score(scores, "accuracy", "emotion_av", group="emotion: joyful").value == 1, "the clips 0, 4 and 8"
    calm = score(scores, "accuracy", "emotion_av", group="emotion: calm").value
    assert calm == pytest.approx(2 / 3), "of 3, 7 and 11 two"
    answers = read_models([tmp_path / "a"])["model"].tasks["artemo_emotion_audio"].rows
    counts = plots.confusion(answers)
    assert list(counts.index) == list(counts.columns) == ["calm", "joyful", "sad", "tense"]
    assert counts.to_numpy().tolist() == [[1, 2, 0, 0], [0, 1, 0, 2], [2, 0, 1, 0], [0, 0, 2, 1]]
    gains = {name: score(scores, name, "emotion_").value for name in ("audio_gain", "visual_gain", "synergy")}
    assert gains == {"audio_gain": 0.25, "visual_gain": pytest.approx(5 / 12), "synergy": 0.25}
    assert not scores.condition.any() and "circular_accuracy" not in set(scores.measure)


def test_two_models_stand_beside_each_other(tmp_path, capsys):
    outs = evaluate(tmp_path / "a", A), evaluate(tmp_path / "b", B, model="other")
    assert main(["report", *map(str, outs), "--out", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    assert printed.index("other") < printed.index("model"), "the better one first: 21 of 36 against 19"
    written = json.loads((tmp_path / "report/report.json").read_text())
    assert written["warnings"] == [] and written["benchmark_missing"] is None
    difference = score(table_of(written["scores"]), "accuracy_minus_first", "content_audio", "other")
    assert difference.value == pytest.approx(4 / 12, abs=1e-12)
    text = (tmp_path / "report/report.md").read_text()
    low, high = (100 * end for end in wilson(4, 12))
    assert f"| 33.3% [{low:.1f}, {high:.1f}] |" in text and "| minus the first |" in text
    order = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][:4]
    assert order == ["accuracy", "---", "other", "model"]
    absent = text.split("*Not run: ")[1]
    assert "Valence and arousal as stated" in absent and "Under every rotation of the options" in absent
    for file in re.findall(r"\]\(<?([^)>]*)>?\)", text):
        assert (tmp_path / "report" / file).is_file(), file


def test_controls_circular_conflict_and_stated_valence_and_arousal(tmp_path, folder):  # noqa: F811
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
    scores = table_of(write_models(read_models([out]), tmp_path / "report")["scores"])
    controls = scores[(scores.measure == "accuracy") & (scores.condition != "")]
    assert set(controls.condition) == {"silence", "mismatch", "blind"}
    assert score(scores, "accuracy", "content_audio", condition="silence").value == 0, "B is never right"
    shares = {name: score(scores, name, condition="conflict").value
              for name in ("follows_sight", "follows_sound", "neither", "unparsable", "missing")}  # fmt: skip
    assert shares["follows_sight"] + shares["unparsable"] == pytest.approx(1)
    assert shares["follows_sound"] == shares["neither"] == shares["missing"] == 0
    circular = score(scores, "circular_accuracy", "emotion_audio")
    assert (circular.value, circular.single, circular.chance) == (0, 0.25, 0.25)
    stated = {name: score(scores, name, "_av", condition="stated") for name in ("ccc", "valence_ccc", "arousal_ccc")}
    assert (stated["ccc"].answered, stated["ccc"].n) == (11, 12)
    assert stated["valence_ccc"].value == pytest.approx(1, abs=1e-12)
    rows = {r["clip_id"]: r["arousal"] for r in benchmark_files.read_items(folder) if r["clip_id"] != "clip-3"}
    true = np.array(list(rows.values()))
    assert stated["arousal_ccc"].value == pytest.approx(float(ccc(-true, true)), abs=1e-9)
    rmse = score(scores, "arousal_rmse", "_av", condition="stated").value
    assert rmse == pytest.approx(float(np.sqrt(np.mean((2 * true) ** 2))), abs=1e-9)
    assert stated["ccc"].unparsable == pytest.approx(1 / 12)
    text = (tmp_path / "report/report.md").read_text()
    assert re.search(r"\| the same option each time \|.* 25\.0% \|", text)
    assert "figures/valence_arousal_1.png" in text and "| model, audio | not defined |" in text
    rows = json.loads((tmp_path / "report/report.json").read_text())["scores"]
    (audio,) = [row for row in rows if row["measure"] == "ccc" and row["modality"] == "audio"]
    assert "value" not in audio, "not defined, and not a number"


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

    write_models(read_models([evaluate(tmp_path / "a", respond)]), tmp_path / "report")
    html = (tmp_path / "report/report.html").read_text()
    page = Page()
    page.feed(html)
    assert page.open == [] and "script" not in page.tags and "link" not in page.tags
    assert page.asked and all(value.startswith("data:") for value in page.asked)
    assert "url(http" not in html and "@import" not in html
    text = (tmp_path / "report/report.md").read_text()
    assert r"\<script\>alert(1)\</script\> \| \*no\* \# idea" in text and "\n# idea" not in text
    # Twelve answers a cell, none of which names an option.
    assert "unparsable: 100.0%" in text


def test_no_text_of_a_model_is_markup():
    said = "[a](http://x) ![b][c] [1](y) *_`~# a & b $x$ a\x07b\u202ec \ud800 [1.0, 2.0] [-1.0, +2.0]"
    line = r"\[a\](http://x) !\[b\]\[c] [1\](y) \*\_\`\~\# a \& b \$x\$ a�b�c � [1.0, 2.0] [-1.0, +2.0]"
    assert report.escaped(said) == line
    table = pd.DataFrame([[said, said]], dtype=object, columns=["a", "b"]).rename_axis("c").set_index("a")
    parts = {"accuracy": table, "wrong": [report.Figure("f", said, None, table=table)]}
    markdown, html = (report.rendered(kind, parts, title=said, notes=[said]) for kind in ("md", "html"))
    assert markdown.count(line) == 7 and html.count("a�b�c � ") == 8
    assert not set("\x07\u202e\ud800") & {*markdown, *html}


def test_wrong_answers_are_shown_with_their_media(tmp_path):
    models = read_models([evaluate(tmp_path / "a", A)])
    items, _ = find_items(list(models.values()))
    shown = report.wrong_answers("model", models["model"], items, "wrong_1", tmp_path)
    assert [of.name for of in shown] == [f"wrong_1_{cell}" for cell in CELLS]
    # By audio the first wrong one is clip 4, by image 6, by both 9.
    ids = [of.table.columns[0].split("-content")[0].split("-emotion")[0] for of in shown]
    assert ids == [f"clip-{i}" for i in (4, 6, 9) * 2]
    assert [of.png is not None for of in shown] == [False, True, True] * 2
    assert [of.audio is not None for of in shown] == [True, False, True] * 2
    rows = shown[0].table.iloc[:, 0]
    assert (rows["right"], rows["chosen"], rows["response"]) == ("rain", "\u2717 fire", "B")
    assert all((tmp_path / file).is_file() for of in shown for file in of.files.values())


def test_no_name_is_a_formula():
    """A dollar sign, as in "$5", begins no mathematics."""
    names = ["_a$b_", "x{y}$^$", "$\\frac$", "{"]
    answers = pd.DataFrame({"answer": names, "predicted": names[0], "options": [tuple(names)] * 4})
    drawn = plots.draw_confusion(plots.confusion(answers), "av")
    assert plots.png_of(drawn)[:4] == b"\x89PNG"
    assert not any(text.get_parse_math() for text in drawn.axes[0].get_xticklabels())


def test_a_label_called_none_is_an_option():
    def answers(*pairs):
        return pd.DataFrame([{"answer": a, "predicted": p, "options": ("none", "x")} for a, p in pairs]).astype(object)

    found = answers(("none", "none"), ("x", None), ("none", "none"))
    counts = plots.confusion(found)
    assert (list(counts.index), list(counts.columns)) == (["none", "x"], ["none", "x", "no option"])
    assert counts.to_numpy().tolist() == [[2, 0, 0], [0, 0, 1]]


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
    notices = "\n".join(warnings(*outs))
    assert "differ in benchmark sha256" in notices and "other 000000" in notices
    assert "differ in scoring, so their scores do not compare: model generate, other options." in notices
    assert "The models were given other prompts in artemo_emotion_av." in notices
    assert "The models were given other decoding in artemo_content_audio, " in notices
    assert "other answered a part of the questions only (--limit): 12 in artemo_content_audio" in notices


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
    assert warnings(*outs) == [], "a device changes no question"
    run(outs[1], ways, "Be brief." + 50 * ".", "abc", 2)
    found = {w.split("differ in ")[1].split(",")[0]: w.split("compare: ")[1] for w in warnings(*outs)}
    assert found == {
        "system instruction": f"model none, other Be brief.{31 * '.'}.",
        "chat template sha": "model none, other abc.",
        "num fewshot": "model 0, other 2.",
        "num frames": "model 8, other 4.",
        "sampling rate hz": "model 16000, other 8000.",
        "max audio s": "model 30.0, other 10.0.",
        "use adapter": "model True, other False.",
    }
    run(outs[1], {}, None, None, 0)
    assert warnings(*outs) == [], "what is not stated cannot be compared"


def test_questions_that_were_not_asked_are_no_answers(tmp_path):
    """What the tasks write with on_error=report: the score 0, `missing` 1 and `unparsable` 0."""
    out = evaluate(tmp_path / "a", lambda task, doc: "A" if doc["clip_id"] != "clip-2" else "(missing)")
    for file in out.glob("*/*_samples_*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row |= {"missing": row["unparsable"], "unparsable": 0.0}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = write_models(read_models([out]), tmp_path / "report")
    cell = score(table_of(written["scores"]), "accuracy", "emotion_audio")
    assert (cell.value, cell.missing) == pytest.approx((11 / 12, 1 / 12)) and cell.unparsable == 0
    assert "no option" not in written["confusion"]["model"]["emotion_audio"]["columns"]
    assert "6 questions were not put to model" in written["warnings"][0]
    assert "missing: 8.3%" in (tmp_path / "report/report.md").read_text()


def test_bad_input_is_named(tmp_path, capsys):
    first = evaluate(tmp_path / "a", A)

    def refused(*arguments, out=True):
        words = ["--out", str(tmp_path / "report")] if out else []
        assert main(["report", *map(str, arguments), *words]) == 2
        assert not (tmp_path / "report").exists()
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert "holds no *_results.json" in refused(tmp_path / "empty")
    assert "--out is missing" in refused(first, out=False)
    assert f"{tmp_path / 'nowhere'} holds no *_results.json" in refused(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "file" in refused(first, "--out", tmp_path / "file/report", out=False)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/run.json").write_text("{}")
    assert "is the folder of a demo and" in refused(first, tmp_path / "demo")
    assert "--out is for results of lmms-eval" in refused(tmp_path / "demo")
    assert "several results are of a model called 'model'" in refused(first, evaluate(tmp_path / "c", B))
    assert "--names has 1 names for 2" in refused(first, first, "--names", "x")
    fewer = evaluate(tmp_path / "fewer", A, model="fewer", limit=6)
    assert re.search("6 items differ, the first is 'clip-10-.*fewer", refused(first, fewer))
    torn = shutil.copytree(first, tmp_path / "torn")
    (file,) = torn.glob("*/*_results.json")
    file.write_text(file.read_text()[:-9])
    assert "(results of lmms-eval) is no valid JSON" in refused(torn)
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
    assert "lacks what the tasks write (KeyError('macro_f1')); evaluate artemo_content_audio again" in refused(old)


def test_tasks_that_are_not_known_are_named(tmp_path):
    out = evaluate(tmp_path / "a", A)
    (samples,) = out.glob("*/*_samples_artemo_emotion_audio.jsonl")
    shutil.copy(samples, samples.with_name(samples.name.replace("emotion_audio", "emotion_smell")))

    def more(of):
        return {**of, "artemo_emotion_smell": of["artemo_emotion_audio"]}

    change(out, results=more, configs=more, **{"n-samples": more})
    written = write_models(read_models([out]), tmp_path / "report")
    assert written["models"]["model"]["unknown_tasks"] == ["artemo_emotion_smell"]
    assert "that this report does not know: artemo\\_emotion\\_smell." in (tmp_path / "report/report.md").read_text()


def test_what_lacks_for_want_of_the_benchmark_is_said(folder, tmp_path, monkeypatch):  # noqa: F811
    copy = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setenv(select.VARIABLE, str(copy))
    models = read_models([evaluate(tmp_path / "a", A)])
    shutil.rmtree(copy / "media")
    write_models(models, tmp_path / "report", str(copy))
    text = (tmp_path / "report/report.md").read_text()
    assert len(re.findall(r"\*model: [^*]*clip-4\.", text)) == 2 and "| model, short film |" in text
    # Without the items the emotions are still known, from the answers.
    shutil.rmtree(copy)
    written = write_models(models, tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text()
    assert "there is no folder" in text and "there is no folder" in written["benchmark_missing"]
    assert (
        not any(row.get("group", "").startswith("art_form") for row in written["scores"])
        and "| model, joyful |" in text
    )
    other = benchmark_files.write_benchmark(tmp_path / "other", clips=6)
    words = "is not the benchmark that was evaluated: the item 'clip-6-content-audio' is not there"
    with pytest.raises(InputError, match=words):
        find_items(list(models.values()), str(other))
    rows = benchmark_files.read_items(folder)
    rows[0]["answer"] = rows[0]["options"][1]
    shutil.copytree(folder, tmp_path / "changed")
    benchmark_files.write_items(tmp_path / "changed", rows)
    monkeypatch.setenv(select.VARIABLE, str(tmp_path / "changed"))
    found, reason = find_items(list(models.values()))
    assert found is None and "the hash of its items is" in reason


def test_a_later_run_of_other_tasks_hides_none(tmp_path, folder):  # noqa: F811
    """Each task is of the newest file that has it; files of runs in different ways are refused."""
    out = evaluate(tmp_path / "a", A)
    evaluate(out, B, ["content_audio", "va_av"], date="20260102_030406")
    (model,) = read_models([out]).values()
    assert [path.name[:15] for path in model.runs] == ["20260102_030406", "20260102_030405"]
    assert model.path.name == "20260102_030406_results.json" and "artemo_emotion_av" in model.tasks
    scores = build(out)
    assert score(scores, "accuracy", "content_audio").value == pytest.approx(8 / 12), "of the newer file"
    assert score(scores, "accuracy", "emotion_audio").value == pytest.approx(4 / 12), "of the older one"
    assert set(scores[scores.condition == "stated"].modality) == {"av"}
    newest, older = (out / f"org__model/{name}_results.json" for name in ("20260102_030406", "20260102_030405"))
    for file, arguments in ((older, "lmms-eval --tasks artemo"), (newest, "lmms-eval --tasks x")):
        written = json.loads(file.read_text())
        written["config"]["resolved_cli_args"] = {"tasks": arguments.split()[-1]}
        file.write_text(json.dumps(written))
    given = f"ARTEMO_DATASET={folder} lmms-eval --tasks"
    assert command_of(read_models([out])["model"]) == f"{given} artemo\n{given} x"
    written = json.loads(older.read_text())
    written["config"]["model_args"] = "x=2"
    older.write_text(json.dumps(written))
    with pytest.raises(InputError, match="model_args 'x=2' and not 'x=1'") as caught:
        read_models([out])
    assert str(older) in str(caught.value) and str(newest) in str(caught.value)
    # A file all of whose tasks were run again does not count.
    evaluate(out, A, [*CELLS, "va_av"], date="20260102_030407")
    assert len(read_models([out])["model"].runs) == 1


def test_another_benchmark_is_refused(folder, tmp_path):  # noqa: F811
    """By the hash of its items where the results state it, and by the options."""

    def other(name, **entries):
        rows = benchmark_files.read_items(folder)
        rows[0] |= entries
        place = shutil.copytree(folder, tmp_path / name)
        benchmark_files.write_items(place, rows)
        return str(place)

    form = other("form", art_form="opera")
    options = other("options", options=["rain", "fire", "wind", "a gong"], answer="rain")
    out = evaluate(tmp_path / "a", A, ["content_audio"])
    models = list(read_models([out]).values())
    with pytest.raises(InputError, match="the hash of its items is [0-9a-f]{16} and not [0-9a-f]{16}"):
        find_items(models, form)
    change(out, configs=lambda of: {t: {"metadata": without_hash(c["metadata"])} for t, c in of.items()})
    old = list(read_models([out]).values())
    assert find_items(old, form)[0].rows, "an older result cannot tell"
    with pytest.raises(InputError, match="the item 'clip-0-content-audio' .* has other options"):
        find_items(old, options)


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
    given = words_of(resolved([*words, *silent]))
    assert resolved(given) == {**resolved(words), "batch_size": "1"}
    assert not {"--use_cache", "--wandb_args"} & set(given)
    assert words_of({"model": "m", "limit": 0.5, "num_fewshot": 0}) == [
        "--model", "m", "--limit", "0.5", "--num_fewshot", "0",
    ]  # fmt: skip


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

    circular = score(
        build(evaluate(tmp_path / "a", deaf, ["emotion_audio_circular"])), "circular_accuracy", "emotion_audio"
    )
    assert circular.value == circular.chance == 0.25, "right where joyful is right, of four emotions"


def test_a_report_takes_the_place_of_its_own_kind_alone(tmp_path, capsys):
    outs = evaluate(tmp_path / "a", A), evaluate(tmp_path / "b", B, model="other")
    place = tmp_path / "report"
    write_models(read_models(outs), place)
    assert (place / "figures/confusion_2_emotion_av.png").is_file()
    (place / "run.json").write_text("{}")
    before = (place / "report.json").read_bytes()
    assert main(["report", str(outs[1]), "--out", str(place)]) == 2
    assert "is the folder of a demo" in capsys.readouterr().err
    assert (place / "report.json").read_bytes() == before


def test_one_task_alone_is_reported(tmp_path):
    out = evaluate(tmp_path / "a", knows(0, 1), ["emotion_visual"])
    scores = table_of(write_models(read_models([out]), tmp_path / "report")["scores"])
    assert set(scores[scores.measure == "accuracy"].modality) == {"visual"} and "synergy" not in set(scores.measure)
    line = next(x for x in (tmp_path / "report/report.md").read_text().splitlines() if x.startswith("| model |"))
    assert line.count("|") == 3 and "| 16.7% [" in line


def test_long_names_are_shortened_in_the_middle():
    assert plots.short_name("org/model") == "org/model"
    assert plots.short_name(f"org/{'a' * 20}{'b' * 20}") == f"org/{'a' * 14}...{'b' * 18}"


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
    models = read_models([tmp_path / "vaemotionllm", tmp_path / "huggingface"], ["ours", "stock"])
    written = write_models(models, tmp_path / "report")
    for name, about in written["models"].items():
        settings = about["settings"]
        assert all(settings[package] for package in ("vaemotionllm", "lmms_eval", "transformers", "torch"))
        assert settings["sampling_rate_hz"] == 16_000 and "torch 7" in settings["seeds"]
        assert settings["attention"] and len(settings["benchmark_sha256"]) == 64
        assert settings["num_frames"] == {"ours": 2, "stock": 4}[name]
        assert about["tasks"]["artemo_emotion_av"]["generation"]["max_new_tokens"] == 3
        assert "--gen_kwargs max_new_tokens=3" in about["command"] and str(small) in about["command"]
    ours, stock = (written["models"][name] for name in ("ours", "stock"))
    assert "VAEmotionLLM" in ours["settings"]["adapter"] and "uggingface" in stock["settings"]["adapter"]
    hashes = [{task: of["prompt_sha256"] for task, of in about["tasks"].items()} for about in (ours, stock)]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 8
    assert not [warning for warning in written["warnings"] if "other prompts" in warning]
