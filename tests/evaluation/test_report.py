"""The report of a demo from the files that its run leaves, against values worked out another way."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from report_files import DATE, copy_run, make_rows, respond, write_evaluation, write_run

from vaemotionllm.benchmark import intervals
from vaemotionllm.cli.main import main
from vaemotionllm.demo import demo_report
from vaemotionllm.demo.demo_report import read_log, read_stages, write_demo
from vaemotionllm.evaluation import plots, report
from vaemotionllm.evaluation.results import read_evaluation, read_items
from vaemotionllm.evaluation.scores import CELLS, pick, table_of
from vaemotionllm.nano.world import benchmark_items
from vaemotionllm.utils import InputError

STAGES = ("backbone", "stage 1", "stage 2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def written(finished):
    return write_demo(finished)


@pytest.fixture(scope="module")
def scores(written):
    return table_of(written["scores"])


def items_of(out, cell: str) -> list[dict]:
    aspect, modality = cell.split("_")
    rows = read_items(out / "world/benchmark").rows.values()
    return [row for row in rows if (row["aspect"], row["modality"]) == (aspect, modality)]


def checks_of(out) -> list[dict]:
    evaluations = read_stages(out, read_items(out / "world/benchmark"))
    return demo_report.checks(demo_report.demo_scores(evaluations, out), evaluations)


# ---- report.json


def test_report_json_has_every_score_that_was_promised(finished, written, scores):
    assert json.loads((finished / "report.json").read_text())["scores"] == json.loads(json.dumps(written["scores"]))
    for stage in STAGES:
        for cell in CELLS:
            aspect, modality = cell.split("_")
            row = pick(scores, model=stage, measure="accuracy", aspect=aspect, modality=modality)
            assert row.n == 48 and row.chance == 0.25 and row.low <= row.value <= row.high
    for modality in ("audio", "visual", "av"):
        for name in ("valence_ccc", "arousal_ccc"):
            row = pick(scores, model="stage 2", measure=name, modality=modality, condition="supervisor")
            assert 0.5 < row.value <= 1
    for control in demo_report.REPLACED:
        for aspect in ("content", "emotion"):
            for stage in STAGES[1:]:
                keys = {"aspect": aspect, "modality": "audio", "condition": control}
                assert 0 <= pick(scores, model=stage, measure="accuracy", **keys).value <= 1
    assert written["cost"]["stage1"] == {"wall_s": 13.0, "peak_rss_mb": 503.0}
    assert written["seed"] == 0 and written["versions"]["torch"] == "2.11.0" and len(written["checks"]) == 22
    assert "not a public leaderboard" in written["statement"]


def test_numbers_are_those_of_the_sample_files(finished, scores):
    def of(model, measure, **keys):
        return pick(scores, model=model, measure=measure, **keys)

    folder = finished / "eval/stage1/lmms_eval/runs__model"
    lines = (folder / f"{DATE}_samples_artemo_emotion_audio.jsonl").read_text().splitlines()
    correct = sum(json.loads(line)["accuracy"] for line in lines)
    found = of("stage 1", "accuracy", aspect="emotion", modality="audio")
    assert found.value == pytest.approx(correct / 48)
    assert (found.low, found.high) == pytest.approx(intervals.wilson(int(correct), 48))
    visual = of("backbone", "accuracy", aspect="emotion", modality="visual").value
    assert of("stage 1", "audio_share", aspect="emotion").value == pytest.approx(correct / 48 / visual)
    audio, visual, both = (
        of("stage 2", "accuracy", aspect="emotion", modality=m).value for m in ("audio", "visual", "av")
    )
    assert of("stage 2", "av_gain", aspect="emotion").value == pytest.approx(both - max(audio, visual))
    before = of("backbone", "accuracy", aspect="emotion", modality="visual").value
    assert of("stage 2", "visual_change", aspect="emotion").value == pytest.approx(visual - before)


def test_checks_fail_where_the_model_does_not_use_audio(tmp_path):
    deaf = {stage: {"visual": 0.95, "av": 0.95} for stage in ("backbone", "stage1", "stage2")}
    found = write_demo(write_run(tmp_path / "run", n_clips=160, seed=3, skill=deaf))
    failed = {check["name"] for check in found["checks"] if not check["passed"]}
    shares = {f"{a} from audio after stage 1, share of the visual ceiling" for a in ("content", "emotion")}
    assert shares <= failed and not any("silence" in name for name in failed)


def test_a_model_that_guesses_from_the_question_fails_the_controls(tmp_path):
    out = write_run(tmp_path / "run")
    cell = items_of(out, "emotion_audio")
    rng = np.random.default_rng(0)
    tasks = {"artemo_emotion_audio_silence": (cell, respond(cell, 0.9, rng))}
    write_evaluation(out / "eval/stage2/lmms_eval", tasks, date="20260102_040000")
    failed = {check["name"] for check in checks_of(out) if not check["passed"]}
    assert "emotion with silence, after stage 2" in failed


def test_a_row_about_chance_shows_the_interval_that_was_tested(written, scores):
    checks = {check["name"]: check for check in written["checks"]}
    assert sum("after stage 1" in name and " with " in name for name in checks) == 6
    for name, stage, aspect, condition, family in (
        ("emotion from audio before stage 1", "backbone", "emotion", "", 2),
        ("content with noise, after stage 1", "stage 1", "content", "noise", 12),
        ("content with noise, after stage 2", "stage 2", "content", "noise", 12),
    ):
        row = pick(scores, model=stage, measure="accuracy", aspect=aspect, modality="audio", condition=condition)
        low, high = intervals.wilson(round(48 * row.value), 48, 1 - 0.05 / family)
        assert checks[name]["measured"] == f"{100 * row.value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
        assert checks[name]["passed"] == (low <= 0.25 and (condition != "" or high >= 0.25))


def test_the_statement_is_about_this_run():
    assert "one to two million parameters" in demo_report.statement({"scale": "full"}, nano=True)
    words = demo_report.statement({"scale": "tiny", "backbone": "mine/vlm"}, nano=True)
    assert words.startswith("Made with --scale tiny: these numbers mean nothing. ")
    assert "given as --backbone mine/vlm" in words and "million" not in words
    assert demo_report.statement({"scale": "full"}, nano=False) == ""


# ---- reading


def test_the_newest_evaluation_counts(tmp_path, finished):
    out = copy_run(finished, tmp_path / "run")
    cell = items_of(out, "content_av")
    tasks = {"artemo_content_av": (cell, respond(cell, 1.0, np.random.default_rng(0)))}
    write_evaluation(out / "eval/backbone/lmms_eval", tasks, date="20270101_000000")
    assert read_evaluation(out / "eval/backbone/lmms_eval").tasks["artemo_content_av"].score()[0] == 1


def test_unparsable_answers_are_counted_apart(tmp_path):
    cell = [row for row in benchmark_items(make_rows(4, 0), 0) if row["id"].endswith("emotion-av")]
    good = ["ABCD"[item["options"].index(item["answer"])] for item in cell]
    write_evaluation(tmp_path, {"artemo_emotion_av": (cell, [good[0], f"{good[1]}.", "", "no idea"])})
    answers = read_evaluation(tmp_path).tasks["artemo_emotion_av"].rows
    assert answers.predicted.tolist()[:2] == [cell[0]["answer"], cell[1]["answer"]]
    assert answers.predicted.isna().tolist() == [False, False, True, True]
    counts = plots.confusion(answers)
    assert counts.columns[-1] == "no option" and counts.iloc[:, -1].sum() == 2 and counts.to_numpy().sum() == 4
    assert counts.loc[cell[0]["answer"], cell[0]["answer"]] >= 1


def test_only_a_newline_ends_a_sample(tmp_path, finished):
    cell = items_of(finished, "emotion_av")
    write_evaluation(tmp_path, {"artemo_emotion_av": (cell, respond(cell, 1.0, np.random.default_rng(0)))})
    (path,) = tmp_path.glob("*/*_samples_*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    samples[0]["filtered_resps"] += "\u2028because it is bright"
    path.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples), encoding="utf-8")
    assert read_evaluation(tmp_path).tasks["artemo_emotion_av"].score()[0] == 1


def _break(out, relative, change):
    path = next(out.glob(relative))
    text = change(path.read_text()) if change else None
    path.unlink() if text is None else path.write_text(text)
    return path


@pytest.mark.parametrize(
    "relative, change, words",
    [
        ("eval/stage1/lmms_eval/*/*_samples_artemo_emotion_av.jsonl", None, "artemo_emotion_av.jsonl"),
        ("eval/stage2/lmms_eval/*/*_samples_artemo_content_audio_noise.jsonl", None, "artemo_content_audio_noise"),
        ("eval/stage1/lmms_eval/*/*_results.json", None, "_results.json"),
        ("eval/stage2/emotion.json", None, "eval/stage2/emotion.json"),
        ("eval/stage2/emotion.json", lambda text: text.replace('"av"', '"other"'), "the modality 'av'"),
        (
            "eval/stage2/emotion.json",
            lambda text: re.sub(r"(\"predicted\": \[\[)[^,]+", r"\1NaN", text),
            "not finite",
        ),
        ("stage1/metrics.jsonl", None, "metrics.jsonl is missing or holds no row"),
        ("stage1/metrics.jsonl", lambda text: "", "missing or holds no row"),
        ("world/benchmark/test.jsonl", None, "test.jsonl"),
        ("run.json", None, "run.json"),
        # One answer fewer than questions; other options than the benchmark's; a score that its samples do not give.
        (
            "eval/stage1/lmms_eval/*/*_samples_artemo_emotion_av.jsonl",
            lambda text: text[: text.rstrip().rindex("\n") + 1],
            "47 of 48",
        ),
        (
            "eval/stage1/lmms_eval/*/*_samples_artemo_emotion_av.jsonl",
            lambda text: text.replace("\\nA. ", "\\nA. another ", 1),
            "is not the benchmark that was evaluated",
        ),
        (
            "eval/stage1/lmms_eval/*/*_results.json",
            lambda text: re.sub(r'("alias": "artemo_emotion_av",\s*"accuracy,none": )[\d.]+', r"\g<1>0.5", text),
            "but its samples say",
        ),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(tmp_path, finished, relative, change, words):
    out = copy_run(finished, tmp_path / "run")
    _break(out, relative, change)
    for name in ("json", "md", "html"):
        (out / f"report.{name}").unlink(missing_ok=True)
    with pytest.raises(InputError, match=re.escape(words)):
        write_demo(out)
    assert not list(out.glob("report.*"))


def test_the_later_row_of_a_resumed_training_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 2, "loss": 1.9}\n{"step": 3, "loss": 1.0}\n'
    )
    assert read_log(path).loss.tolist() == [3.0, 1.9, 1.0]


# ---- what people look at


class Page(HTMLParser):
    """What a page wants of other files, its ids, and whether its tags are closed."""

    def __init__(self):
        super().__init__()
        self.stack, self.sources, self.ids, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "poster", "data", "action")]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_the_page_needs_no_other_file_and_plays_its_examples(finished, written):
    html = (finished / "report.html").read_text()
    page = Page()
    page.feed(html)
    assert page.stack == [] and len(page.ids) == len(set(page.ids))
    assert page.sources and all(source.startswith("data:") for source in page.sources)
    assert "script" not in page.tags and "url(" not in html and "@import" not in html and "http" not in html
    assert page.tags.count("figure") == 5 + 6 and page.tags.count("audio") == 6 and page.tags.count("summary") == 5
    assert written["statement"] in html


def test_markdown_names_files_that_are_there_and_the_command_of_each_figure(finished, written):
    text = (finished / "report.md").read_text()
    links = re.findall(r"\]\(<?([^)>]*)>?\)", text)
    assert len(links) == 5 + 6 + 12 and all((finished / link).is_file() for link in links)
    assert text.count("* From:\n\n    vaemotionllm ") == 5
    row = next(line for line in text.splitlines() if line.startswith("| stage 1 |"))
    cell = pick(table_of(written["scores"]), model="stage 1", measure="accuracy", aspect="content", modality="audio")
    assert f"{100 * cell.value:.1f}% [{100 * cell.low:.1f}, {100 * cell.high:.1f}]" in row


def test_examples_are_chosen_by_rule_and_show_what_was_answered(finished):
    items = read_items(finished / "world/benchmark")
    evaluations = read_stages(finished, items)
    found = demo_report.examples(evaluations, items, finished)
    # Three art forms in turn, two of each, whatever the results.
    assert [of.caption for of in found] == [form for form in ("painting", "animation", "music video") for _ in "ab"]
    answers = evaluations["stage 1"].tasks["artemo_content_audio"].rows.set_index("clip_id")
    first = found[0]
    assert list(first.table) == ["content", "emotion"] and first.audio[:4] == b"RIFF"
    row = answers.loc["clip-0000"]
    assert first.table.content["stage 1"] == f"{'✓' if row.value else '✗'} {row.predicted}"
    assert first.table.content["right"] == row.answer


def test_a_clip_that_cannot_be_shown_is_named(tmp_path, finished):
    out = copy_run(finished, tmp_path / "run")
    (out / "world/benchmark/media/clip-0002.wav").write_bytes(b"RIFF")
    write_demo(out)
    assert re.search(r"\*[a-z ]+: .*clip-0002\.wav", (out / "report.md").read_text().replace("\\", ""))


def test_an_interval_of_nothing_is_not_shown_and_a_real_difference_is_bold():
    def of(measure, value, low=math.nan, high=math.nan, **more):
        return report.shown(table_of([{"measure": measure, "value": value, "low": low, "high": high, **more}]).iloc[0])

    assert of("ccc", 0.0, 0.0, 0.0) == "0.00" and of("av_gain", -0.0, 0.0, 0.0) == "+0.0"
    assert of("accuracy", 0.5) == "50.0%" and report.shown(None) == "not run"
    assert of("accuracy", math.nan, note="no clip") == "not defined: no clip"
    full = of("accuracy", 0.5, 0.4, 0.6, unparsable=1 / 2304, missing=0.0)
    assert full == "50.0%\n[40.0, 60.0]\nunparsable: <0.1%"
    for measure in ("synergy", "accuracy_minus_first", "ccc_minus_first", "ccc_full_minus"):
        bold = [isinstance(of(measure, 0.04, low, 0.07), report.Bold) for low in (0.01, -0.01, math.nan)]
        assert bold == [True, False, False], measure
    assert not isinstance(of("accuracy", 0.04, 0.01, 0.07), report.Bold)


def test_terminal_table_has_a_row_a_cell(scores):
    lines = report.terminal_table(scores).splitlines()
    assert max(map(len, lines)) <= 80
    cells = [f"{aspect}, {modality}" for aspect in ("content", "emotion") for modality in ("audio", "visual", "av")]
    assert all(any(line.startswith(cell) for line in lines) for cell in cells)
    row = pick(scores, model="stage 2", measure="accuracy", aspect="emotion", modality="av")
    assert any(f"{100 * row.value:.1f}% [" in line for line in lines if line.startswith("emotion, av"))


def test_curves_show_losses_and_not_the_clock():
    log = pd.DataFrame(
        [
            {"step": 1, "loss": 2.0, "kl_loss": 1.0, "learning_rate": 0.1, "wall_s": 3.0, "grad_norm": 1.0},
            {"step": 2, "loss": 1.0, "learning_rate": 0.1, "wall_s": 4.0},
        ]
    )
    terms = plots.curve_terms(log)
    assert list(terms) == ["loss", "kl_loss"]
    assert terms["kl_loss"].dropna().index.tolist() == [1] and terms["loss"].tolist() == [2.0, 1.0]


def test_report_command_makes_the_report_again(finished, written, capsys):
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    assert main(["report", str(finished)]) == 0
    assert (finished / "report.html").read_text() == before
    assert "report.html" in capsys.readouterr().out


def test_several_runs_give_the_mean_over_their_seeds(finished, written, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text("{}")
    changed = json.loads((finished / "report.json").read_text()) | {"seed": 9}

    def row_of(**keys):
        return next(r for r in changed["scores"] if all(r.get(name, "") == value for name, value in keys.items()))

    own = {"model": "stage 1", "measure": "accuracy", "aspect": "content", "modality": "audio", "condition": ""}
    row_of(**own, group="")["value"] = 0.0
    del row_of(model="stage 1", measure="audio_share", aspect="emotion")["value"]
    (other / "report.json").write_text(json.dumps(changed))
    assert main(["report", str(finished), str(other)]) == 0
    text = capsys.readouterr().out
    mine = pick(table_of(written["scores"]), **{**own, "group": ""}).value
    row = next(line for line in text.splitlines() if line.startswith("| stage 1 |"))
    low, high = (100 * end for end in intervals.mean_interval([mine, 0.0]))
    assert f"| {50 * mine:.1f}% [{low:.1f}, {high:.1f}] |" in row
    assert "seeds 0, 9" in text and "Student's t" in text
    stages = text.split("| stages |")[1].split("\n\n")[0]
    assert re.search(r"\| emotion \| not defined", stages)
    assert main(["report", str(finished), str(other), "--out", str(tmp_path / "means")]) == 0
    assert (tmp_path / "means/report.html").is_file()
    capsys.readouterr()

    def refused(word, **changes):
        (other / "report.json").write_text(json.dumps(changed | changes))
        assert main(["report", str(finished), str(other)]) == 2
        assert word in capsys.readouterr().err

    refused("the same seed", seed=written["seed"])
    refused("differ in scale full and tiny", arguments=written["arguments"] | {"scale": "tiny"})
    refused("train_clips None and 7", arguments=written["arguments"] | {"train_clips": 7})
    fewer = json.loads(json.dumps(changed["scores"]))
    fewer[0]["n"] -= 1
    refused("differ in questions", scores=fewer)
    refused("no report of a demo of this release", kind="models")
    (other / "report.json").unlink()
    assert main(["report", str(finished), str(other)]) == 2
    assert "report.json (the report of a finished demo)" in capsys.readouterr().err
