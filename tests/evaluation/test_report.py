"""The report from the files that a run leaves, against values worked out another way."""

import json
import math
import re

import numpy as np
import pytest
from report_files import DATE, copy_run, make_rows, respond, write_evaluation, write_run

from vaemotionllm.benchmark import intervals
from vaemotionllm.evaluation import examples, plots
from vaemotionllm.evaluation.report import build_report, write_report
from vaemotionllm.evaluation.report_words import headline, terminal_table
from vaemotionllm.evaluation.results import (
    CELLS,
    CONTROLS,
    MODALITIES,
    STAGES,
    Outcome,
    cell_items,
    read_metrics,
    read_run,
    read_task,
)
from vaemotionllm.utils import InputError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def written(finished):
    return write_report(read_run(finished))


# ---- intervals


@pytest.mark.parametrize("correct, n", [(0, 12), (1, 7), (50, 192), (187, 192), (192, 192)])
def test_wilson_is_scipys(correct, n):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert intervals.wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_by_hand():
    # p = 1/2, n = 4, z = 1.959964: centre 1/2, half z / (1 + z^2 / 4) * sqrt(1/16 + z^2 / 64)
    z = 1.959963984540054
    half = z / (1 + z * z / 4) * math.sqrt(1 / 16 + z * z / 64)
    assert intervals.wilson(2, 4) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)


def test_wilson_holds_the_proportion_at_both_ends():
    assert all(intervals.wilson(n, n)[1] == 1.0 and intervals.wilson(0, n)[0] == 0.0 for n in range(1, 200))


@pytest.mark.parametrize("correct, n", [(-1, 3), (4, 3), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(correct, n):
    with pytest.raises(ValueError, match="0 <= correct <= n"):
        intervals.wilson(correct, n)


def test_ccc_equals_its_definition_and_takes_weights():
    rng = np.random.default_rng(1)
    p, t = rng.normal(size=40) + 3, rng.normal(size=40)
    p = p + t
    cov = np.cov(p, t, bias=True)
    expected = 2 * cov[0, 1] / (cov[0, 0] + cov[1, 1] + (p.mean() - t.mean()) ** 2)
    assert intervals.ccc(p, t) == pytest.approx(expected, abs=1e-12)
    # A pair that counts twice is a pair that stands there twice.
    weights = np.ones((1, 40))
    weights[0, 7] = 2
    assert intervals.ccc(p, t, weights)[0] == pytest.approx(
        float(intervals.ccc(np.append(p, p[7]), np.append(t, t[7])))
    )
    assert intervals.ccc(t, t) == pytest.approx(1)
    assert intervals.ccc(np.zeros(40), t) == pytest.approx(0)


def test_paired_interval_is_narrower_where_the_cells_agree():
    clips = [f"c{i}" for i in range(200)]
    rng = np.random.default_rng(0)
    seen = (rng.random(200) < 0.8).astype(float)
    heard = seen.copy()
    heard[:10] = 1 - heard[:10]
    shuffled = rng.permutation(200)
    same = intervals.paired((clips, seen), (clips, heard), np.subtract)
    # The order of the rows carries nothing; the clip's name does.
    turned = intervals.paired(([clips[i] for i in shuffled], seen[shuffled]), (clips, heard), np.subtract)
    assert turned == pytest.approx(same)
    other = intervals.paired((clips, seen), (clips, rng.permutation(heard)), np.subtract)
    assert same[1] - same[0] < 0.5 * (other[1] - other[0])
    # Standard error of a mean of 200 paired differences.
    width = 2 * 1.96 * np.std(seen - heard) / math.sqrt(200)
    assert same[1] - same[0] == pytest.approx(width, rel=0.08)


def test_paired_interval_needs_the_same_clips():
    with pytest.raises(ValueError, match="same clips"):
        intervals.paired((["a", "b"], [1, 0]), (["a", "c"], [1, 0]), np.divide)


def test_interval_of_clustered_items_is_wider_than_wilson():
    # Four copies of each answer: the information of 50 clips, not of 200 items.
    values = np.repeat((np.random.default_rng(0).random(50) < 0.6).astype(float), 4)
    clips = [f"c{i // 4}" for i in range(200)]
    low, high = intervals.clustered_mean(clips, values)
    naive = intervals.wilson(int(values.sum()), 200)
    assert high - low == pytest.approx(2 * (naive[1] - naive[0]), rel=0.15)


# ---- report.json


def test_report_json_has_every_field_that_was_promised(finished, written):
    report = json.loads((finished / "report.json").read_text())
    assert report == written
    for stage in STAGES:
        for cell in CELLS:
            found = report["stages"][stage]["cells"][cell]
            assert found["n"] == 48 and found["chance"] == 0.25
            assert found["ci95"][0] <= found["accuracy"] <= found["ci95"][1]
        for path in MODALITIES:
            for name in ("valence_ccc", "arousal_ccc"):
                assert -1 <= report["stages"][stage]["va"][path][name] <= 1
    for control in CONTROLS:
        for aspect in ("content", "emotion"):
            for key in ("controls", "controls_stage1"):
                assert 0 <= report[key][control][f"{aspect}_audio"]["accuracy"] <= 1
    assert report["cost"]["stage1"]["wall_s"] == 13.0 and report["cost"]["stage1"]["peak_rss_mb"] == 503.0
    assert report["cost"]["backbone"]["from_cache"] is True
    assert report["seed"] == 0 and report["versions"]["torch"] == "2.11.0"
    assert "not a public leaderboard" in report["statement"]


def test_numbers_are_those_of_the_sample_files(finished, written):
    folder = finished / "eval/stage1/lmms_eval/runs__model"
    lines = (folder / f"{DATE}_samples_artemo_emotion_audio.jsonl").read_text().splitlines()
    correct = sum(json.loads(line)["accuracy"] for line in lines)
    found = written["stages"]["stage1"]["cells"]["emotion_audio"]
    assert found["accuracy"] == pytest.approx(correct / 48)
    assert found["ci95"] == pytest.approx(list(intervals.wilson(int(correct), 48)))
    seen = written["stages"]["backbone"]["cells"]["emotion_visual"]["accuracy"]
    assert written["ceiling"]["emotion"] == seen
    assert written["hearing"]["emotion"]["ratio"] == pytest.approx(correct / 48 / seen)
    cells = written["stages"]["stage2"]["cells"]
    gain = cells["emotion_av"]["accuracy"] - max(
        cells["emotion_audio"]["accuracy"], cells["emotion_visual"]["accuracy"]
    )
    assert written["av_gain"]["emotion"]["difference"] == pytest.approx(gain)


def test_chance_follows_the_number_of_options(finished):
    run = read_run(finished)
    outcomes = run.cells["stage1"]["content_audio"]
    run.cells["stage1"]["content_audio"] = [
        Outcome(o.item_id, o.clip_id, o.answer, o.predicted, o.correct, o.options[:2] if i % 2 else o.options)
        for i, o in enumerate(outcomes)
    ]
    assert build_report(run)["stages"]["stage1"]["cells"]["content_audio"]["chance"] == pytest.approx(0.375)


def test_checks_fail_where_the_model_does_not_hear(tmp_path):
    deaf = {stage: {"visual": 0.95, "av": 0.95} for stage in STAGES}
    report = build_report(read_run(write_run(tmp_path / "run", n_clips=160, seed=3, skill=deaf)))
    failed = {check["name"] for check in report["checks"] if not check["passed"]}
    assert {
        f"{aspect} by sound after stage 1, share of the visual ceiling" for aspect in ("content", "emotion")
    } <= failed
    assert not any("silence" in name for name in failed)
    assert re.search(r"name[s]? content at (1|2|3)\d\.\d%", report["headline"])


def test_a_model_that_guesses_from_the_question_fails_the_controls(tmp_path):
    out = write_run(tmp_path / "run")
    items = [json.loads(line) for line in (out / "world/benchmark/test.jsonl").read_text().splitlines()]
    cell = cell_items(items, "emotion_audio")
    write_evaluation(
        out / "eval/stage2/lmms_eval",
        {"artemo_emotion_audio_silence": (cell, respond(cell, 0.9, np.random.default_rng(0)))},
        date="20260102_040000",
    )
    failed = {c["name"] for c in build_report(read_run(out))["checks"] if not c["passed"]}
    assert "emotion with silence, after stage 2" in failed


def test_a_row_about_chance_shows_the_interval_that_was_tested(finished, written):
    checks = {check["name"]: check for check in written["checks"]}
    assert sum("after stage 1" in name and " with " in name for name in checks) == 6
    for name, cell, family in (
        ("emotion by sound before stage 1", written["stages"]["backbone"]["cells"]["emotion_audio"], 2),
        ("content with noise, after stage 1", written["controls_stage1"]["noise"]["content_audio"], 12),
        ("content with noise, after stage 2", written["controls"]["noise"]["content_audio"], 12),
    ):
        low, high = intervals.wilson(round(48 * cell["accuracy"]), 48, 1 - 0.05 / family)
        assert checks[name]["measured"] == f"{100 * cell['accuracy']:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
        assert checks[name]["passed"] == (low <= 0.25)
    for kind in ("html", "md"):
        text = (finished / f"report.{kind}").read_text()
        assert "widened by Bonferroni for 2 cells before stage 1 and for 12 with replaced sound" in text
        assert "by the point estimates" not in text


def test_controls_of_both_stages_are_shown(finished, written):
    markdown, html = (finished / "report.md").read_text(), (finished / "report.html").read_text()
    row = next(line for line in markdown.splitlines() if line.startswith("| silence |"))
    cells = [
        written[key]["silence"][f"{aspect}_audio"]
        for key in ("controls_stage1", "controls")
        for aspect in ("content", "emotion")
    ]
    assert [text.split("%")[0].strip() for text in row.split("|")[2:-1]] == [
        f"{100 * c['accuracy']:.1f}" for c in cells
    ]
    assert '<th class="group" colspan="2">after stage 1</th><th class="group" colspan="2">after stage 2</th>' in html


def test_the_statement_is_about_this_run(tmp_path, finished):
    run = read_run(finished)
    assert "one to two million parameters" in build_report(run)["statement"]
    run.state["arguments"] |= {"scale": "tiny", "backbone": "mine/vlm"}
    report = build_report(run)
    assert report["statement"].startswith("Made with --scale tiny: these figures mean nothing. ")
    assert "given as --backbone mine/vlm" in report["statement"] and "million" not in report["statement"]
    assert report["arguments"] == {"scale": "tiny", "train_clips": None, "backbone": "mine/vlm"}


def test_headline_does_not_claim_what_the_interval_does_not_hold(written):
    report = json.loads(json.dumps(written))
    for difference, ci95, words in (
        (0.04, [0.01, 0.07], "4.0 points above picture alone"),
        (-0.05, [-0.09, -0.01], "5.0 points below picture alone"),
        (0.02, [-0.01, 0.05], "not clearly different from picture alone (+2.0 points)"),
    ):
        report["av_gain"]["emotion"] = {"better_single": "visual", "difference": difference, "ci95": ci95}
        assert words in headline(report)


# ---- reading


def test_the_newest_evaluation_counts(tmp_path, finished):
    out = copy_run(finished, tmp_path / "run")
    items = [json.loads(line) for line in (out / "world/benchmark/test.jsonl").read_text().splitlines()]
    cell = cell_items(items, "content_av")
    write_evaluation(
        out / "eval/backbone/lmms_eval",
        {"artemo_content_av": (cell, respond(cell, 1.0, np.random.default_rng(0)))},
        date="20270101_000000",
    )
    assert all(o.correct for o in read_task(out / "eval/backbone/lmms_eval", "artemo_content_av", cell))


def test_responses_are_read_as_options_and_unparsable_ones_are_counted(tmp_path):
    rows = make_rows(4, 0)
    from vaemotionllm.nano.world import benchmark_items

    cell = cell_items(benchmark_items(rows, 0), "emotion_av")
    good = ["ABCD"[item["options"].index(item["answer"])] for item in cell]
    write_evaluation(tmp_path, {"artemo_emotion_av": (cell, [good[0], f"{good[1]}.", "", "no idea"])})
    outcomes = read_task(tmp_path, "artemo_emotion_av", cell)
    assert [o.predicted for o in outcomes] == [cell[0]["answer"], cell[1]["answer"], None, None]
    labels, columns, counts = plots.confusion(outcomes)
    assert columns[-1] == "no option" and counts[:, -1].sum() == 2 and counts.sum() == 4
    assert counts[labels.index(cell[0]["answer"]), columns.index(cell[0]["answer"])] >= 1


def test_only_a_newline_ends_a_sample(tmp_path, finished):
    items = [json.loads(line) for line in (finished / "world/benchmark/test.jsonl").read_text().splitlines()]
    cell = cell_items(items, "emotion_av")
    responses = respond(cell, 1.0, np.random.default_rng(0))
    write_evaluation(tmp_path, {"artemo_emotion_av": (cell, responses)})
    (path,) = tmp_path.glob("*/*_samples_*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    samples[0]["filtered_resps"] += "\u2028because it is bright"
    path.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples), encoding="utf-8")
    assert all(outcome.correct for outcome in read_task(tmp_path, "artemo_emotion_av", cell))


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
        ("eval/stage1/lmms_eval/*/*_results.json", None, "_results.json is missing"),
        ("eval/backbone/emotion.json", None, "emotion.json is missing"),
        ("eval/stage2/emotion.json", lambda text: text.replace('"av"', '"other"'), "'av' path"),
        (
            "eval/stage2/emotion.json",
            lambda text: re.sub(r"(\"predicted\": \[\[)[^,]+", r"\1NaN", text),
            "not finite",
        ),
        ("stage1/metrics.jsonl", None, "metrics.jsonl is missing"),
        ("stage1/metrics.jsonl", lambda text: "", "holds no row"),
        ("world/benchmark/test.jsonl", None, "test.jsonl is missing"),
        ("steps.json", None, "steps.json is missing"),
        ("steps.json", lambda text: text.replace('"layout"', '"lay"'), "no entry 'layout'"),
        # One answer fewer than questions; another target than the benchmark's; a score that its samples do not give.
        (
            "eval/stage1/lmms_eval/*/*_samples_artemo_emotion_av.jsonl",
            lambda text: text[: text.rstrip().rindex("\n") + 1],
            "47 of 48",
        ),
        (
            "eval/stage1/lmms_eval/*/*_samples_artemo_emotion_av.jsonl",
            lambda text: text.replace('"target": "A"', '"target": "B"', 1),
            "not the benchmark's",
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
        write_report(read_run(out))
    assert not list(out.glob("report.*"))


def test_the_later_row_of_a_resumed_training_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 2, "loss": 1.9}\n{"step": 3, "loss": 1.0}\n'
    )
    assert [row["loss"] for row in read_metrics(path)] == [3.0, 1.9, 1.0]


# ---- what people look at


def test_html_needs_no_other_file(finished, written):
    html = (finished / "report.html").read_text()
    assert not re.search(r'(?:src|href|action|poster|data)\s*=\s*"(?!#|data:)', html)
    assert not re.search(r"url\((?!#)", html) and "@import" not in html and "<script" not in html
    assert "http" not in html
    assert html.count("<svg") == 6 and html.count("aria-label=") == 6
    assert written["headline"].split(":")[0] in html and written["statement"] in html
    # Every id once, and every reference has its id.
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert references <= set(ids)
    # Colours of the figures come from the theme: no code of the palette is left.
    assert not re.search(r"#0000[0-9a-f]{2}\b", html)
    from html.parser import HTMLParser

    class Balance(HTMLParser):
        stack: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                self.stack.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

    parser = Balance()
    parser.feed(html)
    assert parser.stack == []


def test_examples_are_chosen_by_rule_and_show_what_was_answered(finished, written):
    run = read_run(finished)
    clips = examples.choose(run)
    # Three art forms in turn, two of each, whatever the results.
    assert sorted(clip.clip_id for clip in clips) == [f"clip-{i:04d}" for i in range(6)]
    assert [clip.art_form for clip in clips] == [
        form for form in ("painting", "animation", "music_video") for _ in "ab"
    ]
    for clip in clips:
        for aspect in ("content", "emotion"):
            (outcome,) = [o for o in run.cells["stage1"][f"{aspect}_audio"] if o.clip_id == clip.clip_id]
            assert clip.heard[aspect]["stage1"] == outcome.predicted and clip.truth[aspect] == outcome.answer
        assert all((finished / name).is_file() for name in clip.files)
    html = (finished / "report.html").read_text()
    assert html.count("<audio ") == 6 and html.count("data:audio/wav;base64,") == 6
    cards = html[html.index('class="cards"') : html.index('id="controls"')]
    right = sum(clip.heard[a][stage] == clip.truth[a] for clip in clips for a in clip.truth for stage in STAGES)
    assert cards.count("✓") == right and cards.count("✗") == 36 - right


def test_a_clip_that_cannot_be_shown_is_named(tmp_path, finished):
    out = copy_run(finished, tmp_path / "run")
    (out / "world/benchmark/media/clip-0002.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="clip-0002.wav"):
        write_report(read_run(out))


def test_every_figure_names_its_command_and_seed(finished, written):
    html, markdown = (finished / "report.html").read_text(), (finished / "report.md").read_text()
    assert html.count("<summary>Seed 0, command</summary>") == 6
    blocks = re.findall(r"!\[[^]]+\]\((figures/[^)]+)\)\n\n\*[^*]+\* Seed 0, from:\n\n    vaemotionllm ", markdown)
    assert len(blocks) == 6
    for name in blocks:
        assert (finished / name).read_bytes().startswith(b"\x89PNG")


def test_markdown_table_holds_cells_chance_and_ceiling(finished, written):
    lines = (finished / "report.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| stage 1 |"))
    cell = written["stages"]["stage1"]["cells"]["content_audio"]
    assert f"{100 * cell['accuracy']:.1f}% [{100 * cell['ci95'][0]:.1f}, {100 * cell['ci95'][1]:.1f}]" in row
    assert "| chance | " + " | ".join(["25.0%"] * 6) + " |" in lines
    assert any(line.startswith("| visual ceiling |") for line in lines)
    assert written["statement"] in "\n".join(lines)


def test_terminal_table_has_a_row_a_cell(written):
    lines = terminal_table(written).splitlines()
    assert [line.split()[0] + "_" + line.split()[1] for line in lines[1:]] == list(CELLS)
    cell = written["stages"]["stage2"]["cells"]["emotion_av"]
    last_stage = lines[-1][15 + 40 :]
    assert last_stage.startswith(f"{100 * cell['accuracy']:.1f} [") and last_stage.endswith("25.0")


def test_labels_beside_a_line_do_not_lie_on_each_other():
    placed = plots.spread([95.0, 94.0, 94.5, 30.0], 6.0)
    order = np.argsort(placed)
    assert np.diff(np.array(placed)[order]).min() >= 6.0 - 1e-3
    assert list(order) == [3, 1, 2, 0] and placed[3] == 30.0


def test_curves_show_losses_and_not_the_clock():
    terms = plots.curve_terms(
        [
            {"step": 1, "loss": 2.0, "kl_loss": 1.0, "learning_rate": 0.1, "wall_s": 3.0, "grad_norm": 1.0},
            {"step": 2, "loss": 1.0, "learning_rate": 0.1, "wall_s": 4.0},
        ]
    )
    assert list(terms) == ["loss", "kl_loss"]
    assert terms["kl_loss"][0].tolist() == [1] and terms["loss"][1].tolist() == [2.0, 1.0]


def test_report_command_makes_the_report_anew(finished, written, capsys):
    from vaemotionllm.cli.main import main

    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    assert main(["report", str(finished)]) == 0
    assert (finished / "report.html").read_text() == before
    assert "report.html" in capsys.readouterr().out
    assert main(["report", str(finished / "world")]) == 2
    assert "steps.json is missing" in capsys.readouterr().err


def test_several_runs_give_the_mean_over_their_seeds(finished, written, tmp_path, capsys):
    from vaemotionllm.cli.main import main

    other = tmp_path / "other"
    other.mkdir()
    changed = json.loads(json.dumps(written)) | {"seed": 9}
    changed["stages"]["stage1"]["cells"]["content_audio"]["accuracy"] = 0.0
    changed["hearing"]["emotion"]["ratio"] = None
    (other / "report.json").write_text(json.dumps(changed))
    assert main(["report", str(finished), str(other)]) == 0
    table = capsys.readouterr().out
    mine = written["stages"]["stage1"]["cells"]["content_audio"]["accuracy"]
    row = next(line for line in table.splitlines() if line.startswith("| content, stage 1 |"))
    assert f"| {50 * mine:.1f}% (0.0% to {100 * mine:.1f}%) |" in row
    assert f"seeds {written['seed']}, 9" in table and "emotion by sound after stage 1, share" in table
    assert table.count("undefined") == 1 and len(row.split("|")) == 6

    def refused(word, **changes):
        (other / "report.json").write_text(json.dumps(changed | changes))
        assert main(["report", str(finished), str(other)]) == 2
        assert word in capsys.readouterr().err

    refused("same seed", seed=written["seed"])
    refused("scale full and tiny", arguments=written["arguments"] | {"scale": "tiny"})
    refused("train_clips None and 7", arguments=written["arguments"] | {"train_clips": 7})
    assert all(f"| emotion with silence, stage {number} |" in table for number in (1, 2))
    fewer = json.loads(json.dumps(changed["stages"]))
    fewer["backbone"]["cells"]["content_audio"]["n"] -= 1
    refused("other sizes", stages=fewer)
    assert main(["report", str(finished), str(tmp_path)]) == 2
    assert "no report.json" in capsys.readouterr().err


def test_curves_show_accuracies_where_there_are_some_and_colour_tells_the_path():
    colours = dict.fromkeys(("ink", "muted", "grid", "paper", "other"), "#000000")
    colours |= {"visual": "#0000ff", "audio": "#ff0000", "av": "#00ff00"}
    curves = {
        "backbone": [
            {"step": 1, "loss": 2.0, "accuracy_open": 0.5, "part": "language"},
            {"step": 2, "loss": 1.0, "accuracy_open": 0.75, "part": "sight"},
        ],
        "stage1": [{"step": 1, "loss": 2.0, "kl_audio_loss": 1.0, "kl_av_loss": 0.5}],
        "stage2": [{"step": 1, "loss": 2.0, "ce_visual_loss": 1.0, "valence_visual_loss": -0.5}],
    }
    first, second, third = plots.draw_curves(curves, colours).axes
    assert [line.get_ydata().tolist() for line in first.lines[:1]] == [[50.0, 75.0]]
    assert "sight begins" in first.texts[0].get_text() and first.get_yscale() == "linear"
    drawn = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in (*second.lines, *third.lines)}
    assert drawn["kl audio"] == ("#ff0000", "-") and drawn["kl av"] == ("#00ff00", "-")
    assert drawn["ce visual"] == ("#0000ff", "-") and drawn["valence visual"] == ("#0000ff", "--")
    assert second.get_yscale() == "log" and third.get_yscale() == "linear"
