"""The tasks of lmms-eval from document to score: what models of given habits deserve, by hand."""

import math

import benchmark_files
import numpy as np
import pytest
import scipy.stats

from vaemotionllm import InputError
from vaemotionllm.benchmark import controls, prompts, schema
from vaemotionllm.benchmark.prompts import parse_valence_arousal, valence_arousal_prompt
from vaemotionllm.evaluation import artemo
from vaemotionllm.nano import select

EXACT = {"rel": 0, "abs": 1e-9}
YAML = artemo.YAML_FUNCTIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return benchmark_files.write_benchmark(tmp_path_factory.mktemp("benchmark"), clips=8)


@pytest.fixture(autouse=True)
def chosen(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VAEMOTIONLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(select.VARIABLE, str(folder))


def documents(name: str) -> list[dict]:
    return list(artemo.yaml_value(f"documents_{name}")(None))


def scores(values: list[dict], aggregations: dict) -> dict:
    """As lmms-eval aggregates: a list of each metric's values; without a function their mean."""
    return {
        name: aggregations[name]([value[name] for value in values])
        if name in aggregations
        else float(np.mean([value[name] for value in values]))
        for name in values[0]
    }


CHOICE = {
    "macro_f1": YAML["macro_f1"], "uar": YAML["uar"], "ci95_low": YAML["ci95_low"], "ci95_high": YAML["ci95_high"]
}  # fmt: skip
# Six items: the right answers are a, a, a, b, b, c, and stand under A, B, C, A, B, A.
ANSWERS = ("rain", "rain", "rain", "fire", "fire", "bell")
SHOWN = (
    ("rain", "fire", "bell"), ("fire", "rain", "bell"), ("bell", "fire", "rain"),
    ("fire", "bell", "rain"), ("rain", "fire", "bell"), ("bell", "rain", "fire"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        # Always A: rain, fire, bell, fire, rain, bell. Right: 1 of 3 rain, 1 of 2 fire, 1 of 1 bell.
        # F1: 2/(2+3), 2/(2+2), 2/(2+1).
        (["A"] * 6, {"accuracy": 1 / 2, "uar": 11 / 18, "macro_f1": (2 / 5 + 1 / 2 + 2 / 3) / 3, "unparsable": 0}),
        # Prose, the fourth of which says no more than that it is not sure.
        # Read as rain, rain, fire, -, fire, bell. F1: 4/(2+3), 2/(2+2), 2/(1+1).
        (
            [
                "This sounds like rain to me, on a tin roof.",
                "The answer is (B).",
                "I'd go with fire",
                "I'm not sure that it is fire.",
                "**B**. It crackles",
                "Answer: bell",
            ],
            {
                "accuracy": 4 / 6,
                "uar": (2 / 3 + 1 / 2 + 1) / 3,
                "macro_f1": (4 / 5 + 1 / 2 + 1) / 3,
                "unparsable": 1 / 6,
            },
        ),
        ([""] * 6, {"accuracy": 0, "uar": 0, "macro_f1": 0, "unparsable": 1}),
        # Cyrillic letters that look like A, B, C; words of another language.
        (["А", "В", "С", "дождь", "火", "(А)"], {"accuracy": 0, "uar": 0, "macro_f1": 0, "unparsable": 1}),
        (["I cannot help with that."] * 6, {"accuracy": 0, "uar": 0, "macro_f1": 0, "unparsable": 1}),
        (["A", "B", "C", "A", "B", "A"], {"accuracy": 1, "uar": 1, "macro_f1": 1, "unparsable": 0, "missing": 0}),
        # The last two were not asked: not right, and no answer that could not be read. Right: 3/3, 1/2, 0/1.
        # F1: 6/(3+3), 2/(1+2), 0.
        (
            ["A", "B", "C", "A", prompts.MISSING, prompts.MISSING],
            {"accuracy": 4 / 6, "uar": 1 / 2, "macro_f1": 5 / 9, "unparsable": 0, "missing": 2 / 6},
        ),
    ],
    ids=["same letter", "prose", "nothing", "another script", "refusal", "right", "missing"],
)
def test_habits_score_what_they_deserve(responses, expected):
    rows = [
        {"id": str(i), "clip_id": str(i), "options": list(options), "answer": answer}
        for i, (options, answer) in enumerate(zip(SHOWN, ANSWERS))
    ]
    found = scores([artemo.process_results(row, [text]) for row, text in zip(rows, responses)], CHOICE)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, **EXACT), name
    assert found["war"] == found["accuracy"]
    # Wilson's interval from its definition: the roots of |p - x| = z sqrt(x (1 - x) / n).
    n, p, z = 6, expected["accuracy"], scipy.stats.norm.ppf(0.975)
    roots = sorted(np.roots([n + z * z, -(2 * n * p + z * z), n * p * p]).real)
    assert [found["ci95_low"], found["ci95_high"]] == pytest.approx(roots, **EXACT)


CIRCULAR = {
    "circular_accuracy": artemo.circular_accuracy,
    "ci95_low": YAML["circular_ci95_low"],
    "ci95_high": YAML["circular_ci95_high"],
}


def test_circular_asks_every_rotation():
    plain, rows = documents("emotion_audio"), documents("emotion_audio_circular")
    assert len(rows) == 4 * len(plain) and len({row["id"] for row in rows}) == len(rows)
    assert rows[:4][0]["options"] == plain[0]["options"] and rows[1]["options"][-1] == plain[0]["options"][0]
    for start, item in zip(range(0, len(rows), 4), plain):
        group = rows[start : start + 4]
        assert {row["item_id"] for row in group} == {item["id"]}
        # The right answer stands under each letter once.
        assert sorted(artemo.doc_to_target(row) for row in group) == list("ABCD")


def test_circular_counts_what_is_right_under_every_rotation():
    rows = documents("content_visual_circular")

    def run(answer):
        return scores([artemo.circular_process_results(row, [answer(row)]) for row in rows], CIRCULAR)

    assert run(artemo.doc_to_target)["circular_accuracy"] == 1
    same = run(lambda row: "A")
    # A model that always says A is right under one rotation of four, and in no item.
    assert (same["accuracy"], same["circular_accuracy"], same["unparsable"]) == (0.25, 0, 0)
    assert same["ci95_low"] == 0
    # Right in the first three items under every rotation, and in the others under all but one.
    knows = {row["item_id"] for row in rows[:12]}
    found = run(
        lambda row: (
            artemo.doc_to_target(row) if row["item_id"] in knows or not row["id"].endswith("+2") else "I cannot tell"
        )
    )
    assert found["circular_accuracy"] == 3 / 8 and found["accuracy"] == (12 + 15) / 32
    assert found["unparsable"] == 5 / 32 and found["ci95_low"] < 3 / 8 < found["ci95_high"]
    absent = run(lambda row: artemo.doc_to_target(row) if row["item_id"] in knows else prompts.MISSING)
    assert (absent["circular_accuracy"], absent["unparsable"], absent["missing"]) == (3 / 8, 0, 5 / 8)
    # --limit can cut the last item off in the middle: nobody knows whether it is right.
    values = [artemo.circular_process_results(row, [artemo.doc_to_target(row)])["circular_accuracy"] for row in rows]
    assert artemo.circular_accuracy(values[:6]) == 1 and artemo.by_item(values[:6])[0] == ["clip-0"]
    assert math.isnan(artemo.circular_accuracy(values[:3]))


def test_blind_asks_each_question_once_and_without_media():
    for aspect in schema.ASPECTS:
        rows = documents(f"{aspect}_blind")
        assert [row["clip_id"] for row in rows] == [f"clip-{i}" for i in range(8)]
        assert [artemo.doc_to_text(row) for row in rows] == [
            artemo.doc_to_text(row) for row in documents(f"{aspect}_av")
        ]
        for row in rows:
            (turn,) = artemo.doc_to_messages(row)
            assert [part["type"] for part in turn["content"]] == ["text"] and artemo.doc_to_visual(row) == []


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("valence: 0.5, arousal: -0.2", (0.5, -0.2)),
        ("**Valence:** 0.5\n**Arousal:** −0.2", (0.5, -0.2)),
        ('{"valence": 0.5, "arousal": -0.2}', (0.5, -0.2)),
        ("<valence>0.5</valence><arousal>-0.1</arousal>", (0.5, -0.1)),
        ("Arousal is about 0.3 and valence about .5", (0.5, 0.3)),
        ("valence=1, arousal=-1.", (1, -1)),
        ("valence: high (+0.5), arousal: low (-0.2)", (0.5, -0.2)),
        ("valence: 0,5, arousal: -0,2", (0.5, -0.2)),
        ("0.5, -0.2", (0.5, -0.2)),
        ("(0.5,-0.2)", (0.5, -0.2)),
        ("-0.5,-0.2", (-0.5, -0.2)),
        ("0.5,0.2", (0.5, 0.2)),
        ("[-1, 1]", (-1, 1)),
        ("０．５、－０．２", (0.5, -0.2)),
        ("Valence and arousal are 0.5 and -0.2", (0.5, -0.2)),
        ("Arousal and valence are 0.5 and -0.2", (-0.2, 0.5)),
        ("valence (from -1 to 1): 0.5, arousal (from -1 to 1): 0.2", (0.5, 0.2)),
        ("On a scale of -1 to 1 I would say 0.5 and 0.2", (0.5, 0.2)),
        ("<think>Is it 0.9, 0.9?</think> 0.5, -0.2", (0.5, -0.2)),
        ("Between -1 and 1, I would say 0.5 and 0.2", (0.5, 0.2)),
        ("Valence and arousal are -1 and 1", (-1, 1)),
        ("valence: 0.5, so valence: 0.5, arousal: 0.1", (0.5, 0.1)),
        (valence_arousal_prompt() + "\nvalence: 0.1, arousal: 0.2", (0.1, 0.2)),
        # One of them, none, or more than one of each.
        ("valence: 0.5", None),
        ("Valence is between 0.3 and 0.5", None),
        ("valence: 0.5, or valence: 0.7, arousal: 0.1", None),
        ("0.5, 0.2, 0.1", None),
        ("0.5", None),
        ("", None),
        (None, None),
        ("very pleasant and rather calm", None),
        ("I cannot rate this from -1 to 1.", None),
        (valence_arousal_prompt(), None),
        # Another scale, or two ways to read it.
        ("valence: 7, arousal: 3", None),
        ("valence: 1.5, arousal: 0", None),
        ("valence: 50%, arousal: 20%", None),
        ("7/10 and 3/10", None),
        ("Valence - 0.5, Arousal - 0.2", None),
        ("valence: 0.5-0.7, arousal: 0.1", None),
        ("0.3-0.5", None),
        ("0,5", None),
        ("1e-3, 0.5", None),
        ("0.2.3 and 0.5", None),
        ("valence: nan, arousal: 0", None),
    ],
)
def test_valence_and_arousal_are_read(response, expected):
    assert parse_valence_arousal(response) == expected


VA = {name: YAML[f"va_{name}"] for name in artemo.VA_METRICS} | {
    "ci95_low": YAML["va_ci95_low"], "ci95_high": YAML["va_ci95_high"]
}  # fmt: skip


def test_valence_and_arousal_are_pooled_over_what_was_answered():
    rows = documents("va_av")
    assert [row["clip_id"] for row in rows] == [f"clip-{i}" for i in range(8)]
    rng = np.random.default_rng(0)
    said = np.round(rng.uniform(-1, 1, (8, 2)), 3)
    responses = [f"valence: {v}, arousal: {a}" for v, a in said]
    responses[2], responses[5] = "It is rather sad.", ""
    found = scores([artemo.va_process_results(row, [text]) for row, text in zip(rows, responses)], VA)
    kept = [0, 1, 3, 4, 6, 7]
    expected = {"unparsable": 2 / 8}
    for column, dimension in enumerate(artemo.DIMENSIONS):
        x, y = said[kept, column], np.array([row[dimension] for row in rows])[kept]
        expected[f"pearson_{dimension}"] = scipy.stats.pearsonr(x, y)[0]
        expected[f"rmse_{dimension}"] = math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y)) / 6)
        expected[f"ccc_{dimension}"] = (
            2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
        )
    expected["ccc"] = (expected["ccc_valence"] + expected["ccc_arousal"]) / 2
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, **EXACT), name
    assert found["ci95_low"] < found["ccc"] < found["ci95_high"]


def test_no_valence_is_made_up():
    rows = documents("va_audio")
    silent = scores([artemo.va_process_results(row, ["no idea"]) for row in rows], VA)
    assert silent.pop("unparsable") == 1 and silent.pop("missing") == 0
    assert all(math.isnan(value) for value in silent.values())
    absent = scores([artemo.va_process_results(row, [prompts.MISSING]) for row in rows], VA)
    assert absent.pop("unparsable") == 0 and absent.pop("missing") == 1
    assert all(math.isnan(value) for value in absent.values())
    neutral = scores([artemo.va_process_results(row, ["valence: 0, arousal: 0"]) for row in rows], VA)
    assert neutral["ccc"] == 0 and math.isnan(neutral["pearson_valence"]) and neutral["unparsable"] == 0


def test_conflict_shows_opposite_emotions(folder):
    rows, items = documents("conflict"), {item.clip_id: item for item in schema.load(folder).select("emotion", "av")}
    assert len(rows) >= 4 and len({row["clip_id"] for row in rows}) == len(rows)
    for row in rows:
        seen, heard = items[row["clip_id"]], items[row["sound_clip_id"]]
        assert (row["image"], row["video"], row["audio"]) == (seen.image, seen.video, heard.audio)
        assert row["answer"] == seen.answer and row["sound_answer"] == heard.answer != seen.answer
        assert {row["answer"], row["sound_answer"]} <= set(row["options"])
        a, b = np.array([seen.valence, seen.arousal]), np.array([heard.valence, heard.arousal])
        degrees = math.degrees(math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        assert degrees >= controls.OPPOSITE_DEGREES and min(np.linalg.norm(a), np.linalg.norm(b)) >= 0.2
    # clip-4 is at (0, 0.1), too near to neutral to have an opposite.
    assert "clip-4" not in {row["clip_id"] for row in rows} | {row["sound_clip_id"] for row in rows}
    used = [row["sound_clip_id"] for row in rows]
    assert rows == documents("conflict") and len(set(used)) > 2


def item(clip: str, answer: str, valence=None, arousal=None, options=("a", "b", "c", "d")) -> schema.Item:
    return schema.Item(
        f"{clip}-e", clip, "av", "emotion", "?", options, answer, "s.wav", "p.png", None, valence, arousal
    )


def test_conflict_takes_the_most_opposite_and_spreads_the_sounds():
    right, left, upper_left, near = (
        item("r", "a", 0.9, 0.0), item("l", "b", -0.9, 0.0), item("u", "c", -0.7, 0.6), item("n", "d", -0.1, 0.0)
    )  # fmt: skip
    found = [(a.clip_id, b.clip_id) for a, b in controls.opposite_pairs([right, left, upper_left, near])]
    assert found == [("r", "l"), ("l", "r"), ("u", "r")]
    # A second clip on the right: its sound is used before the first one's is used again.
    found = [(a.clip_id, b.clip_id) for a, b in controls.opposite_pairs([right, item("s", "d", 0.8, 0.0), left])]
    assert found == [("r", "l"), ("s", "l"), ("l", "r")]
    found = controls.opposite_pairs([left, upper_left, right, item("s", "d", 0.8, 0.0)])
    assert sorted(b.clip_id for _, b in found) == ["l", "r", "s", "u"]
    # 135 degrees are opposite, a degree less is not.
    edge = item("e", "b", math.cos(math.radians(135)), math.sin(math.radians(135)))
    inside = item("i", "b", math.cos(math.radians(134)), math.sin(math.radians(134)))
    assert len(controls.opposite_pairs([right, edge])) == 2 and not controls.opposite_pairs([right, inside])
    # Opposite points with one label are no conflict; without a plane another label is one.
    assert not controls.opposite_pairs([right, item("x", "a", -0.9, 0.0)])
    assert len(controls.opposite_pairs([item("x", "a"), item("y", "a"), item("z", "b")])) == 3


def test_conflict_options_hold_both_emotions():
    seen, heard = item("x", "a"), item("y", "e", options=("e", "f", "g", "h"))
    options = controls.shared_options(seen, heard)
    assert options == controls.shared_options(seen, heard) and options[0] == "a" and "e" in options[1:]
    assert len(set(options)) == 4 and len(set(options) - {"e"} - set(seen.options)) == 0
    assert controls.shared_options(seen, item("z", "c")) == seen.options
    places = {controls.shared_options(seen, item(f"y{i}", "e", options=("e", "f"))).index("e") for i in range(30)}
    assert places == {1, 2, 3}


def test_conflict_says_what_is_followed():
    rows = documents("conflict")
    aggregations = {
        "ci95_low": YAML["conflict_ci95_low"],
        "ci95_high": YAML["conflict_ci95_high"],
    }

    def run(*responses):
        return scores(
            [artemo.conflict_process_results(row, [respond(row)]) for row, respond in zip(rows, responses)],
            aggregations,
        )

    sight, sound = (lambda row: row["answer"]), (lambda row: row["sound_answer"])
    other = lambda row: next(o for o in row["options"] if o not in (row["answer"], row["sound_answer"]))
    names = ("follows_sight", "follows_sound", "neither", "unparsable", "missing")
    n = len(rows)
    assert [run(*[sight] * n)[name] for name in names] == [1, 0, 0, 0, 0]
    assert [run(*[sound] * n)[name] for name in names] == [0, 1, 0, 0, 0]
    assert [run(*[lambda row: prompts.MISSING] * n)[name] for name in names] == [0, 0, 0, 0, 1]
    mixed = run(sight, sound, other, *[lambda row: "both at once"] * (n - 3))
    assert [mixed[name] for name in names] == pytest.approx([1 / n, 1 / n, 1 / n, (n - 3) / n, 0], **EXACT)
    assert mixed["ci95_low"] < 1 / n < mixed["ci95_high"]
    letters = artemo.doc_to_target(rows[0])
    assert letters.startswith("sight ") and ", sound " in letters


def test_what_a_benchmark_lacks_is_named(tmp_path, monkeypatch):
    folder = benchmark_files.write_benchmark(tmp_path / "one", clips=1)
    monkeypatch.setenv(select.VARIABLE, str(folder))
    with pytest.raises(InputError, match="artemo_conflict needs two clips of opposite emotion.*the 1 clips"):
        documents("conflict")
    rows = benchmark_files.read_items(folder)
    benchmark_files.write_items(folder, [{**row, "valence": None} for row in rows])
    artemo._benchmark.cache_clear()
    with pytest.raises(InputError, match="no visual emotion item with 'valence' and 'arousal'"):
        documents("va_visual")
    for name in (
        "documents_va_smell",
        "documents_emotion_av_silence",
        "dataset_kwargs_blind",
        "documents_taste_blind",
    ):
        with pytest.raises(AttributeError, match=name):
            artemo.yaml_value(name)
