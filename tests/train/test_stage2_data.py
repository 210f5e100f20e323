"""Clips of stage 2's steps: one modality a step, classes in balance, prompts by the manifest's columns."""

import json
from collections import Counter

import numpy as np
import pytest
from training import make_setup, stage2_values, train

from vaemotionllm import InputError, VAEmotionLLMProcessor
from vaemotionllm.data.samplers import ScheduledBatchSampler, class_weights
from vaemotionllm.train.trainer import Stage2Trainer

MODALITIES = ("audio", "visual", "av")


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"))


def watched(values):
    """Trains, and returns [modality, ids, inputs] of each micro-batch and the parameters without a gradient."""
    seen, untouched = [], []
    terms, step = Stage2Trainer.loss_terms, Stage2Trainer.training_step

    def loss_terms(self, model, batch, num_items):
        seen.append((batch["modality"], batch["ids"], batch["inputs"]))
        return terms(self, model, batch, num_items)

    def training_step(self, model, *args, **kwargs):
        loss = step(self, model, *args, **kwargs)
        untouched.extend(name for name, p in model.named_parameters() if p.requires_grad and p.grad is None)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage2Trainer, "loss_terms", loss_terms)
        patch.setattr(Stage2Trainer, "training_step", training_step)
        train(values)
    return seen, untouched


# ---- one modality a step, also of clips that carry one modality


def one_sided(setup, lacking=lambda i: "audio" if i % 3 == 0 else "visual" if i % 3 == 1 else None):
    """A manifest of the same clips, some of which have lost their sound or their picture."""
    rows = [json.loads(line) for line in setup[1].read_text().splitlines()]
    for i, row in enumerate(rows):
        for name in {"audio": ("audio",), "visual": ("image", "video"), None: ()}[lacking(i)]:
            row.pop(name, None)
    manifest = setup[1].with_name("one_sided.jsonl")
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest, {row["id"]: lacking(i) for i, row in enumerate(rows)}


def test_every_path_is_trained_and_clips_of_one_modality_take_part_in_theirs(setup, tmp_path):
    manifest, lacking = one_sided(setup)
    values = stage2_values(setup[0], manifest, tmp_path / "run", max_steps=24, per_device_train_batch_size=2)
    seen, untouched = watched(values)
    assert {modality for modality, *_ in seen} == set(MODALITIES) and not untouched
    for modality, ids, inputs in seen:
        missing = {lacking[clip_id] for clip_id in ids}
        assert len(missing) == 1  # a step's clips can take the same modalities
        assert modality == {"audio": "visual", "visual": "audio"}.get(missing.pop(), modality)
        assert ("input_features" in inputs) == (modality != "visual")
        assert any(name.startswith("pixel_values") for name in inputs) == (modality != "audio")
    assert {clip_id for _, ids, _ in seen for clip_id in ids} == set(lacking)  # none is left out


def test_a_path_or_a_clip_that_cannot_be_is_named(setup, tmp_path):
    manifest, _ = one_sided(setup)
    with pytest.raises(InputError, match=r"clip 'train-0' holds image alone, and `modalities` takes audio, av"):
        train(stage2_values(setup[0], manifest, tmp_path / "run", modalities={"audio": 1.0, "av": 1.0}))
    manifest, _ = one_sided(setup, lambda i: "audio")
    with pytest.raises(InputError, match="`modalities` takes audio, and no clip holds audio"):
        train(stage2_values(setup[0], manifest, tmp_path / "run"))
    assert (
        train(stage2_values(setup[0], manifest, tmp_path / "run", modalities={"visual": 1.0}, max_steps=1))
        == "trained"
    )


# ---- class balance

LABELS = ["calm"] * 90 + ["angry"] * 10


def drawn(weights, epochs=20, groups=None, **options):
    """Clips of some epochs, and the same of two ranks with accumulation."""
    found = []
    for world in (1, 2):
        clips = []
        for epoch in range(epochs):
            for rank in range(world):
                sampler = ScheduledBatchSampler(
                    groups or ["image"] * len(LABELS), 8 // world // world, world, world, rank, 3, weights=weights,
                    **options,
                )  # fmt: skip
                sampler.set_epoch(epoch)
                clips.append([key.index for batch in sampler for key in batch])
                assert len(clips[-1]) * world == sampler.steps_per_epoch * 8
        found.append(Counter(index for part in clips for index in part))
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(("exponent", "share"), [(1.0, 0.5), (0.5, 0.25), (0.0, 0.1)])
def test_a_set_of_nine_to_one_is_drawn_by_the_exponent(exponent, share):
    counts = drawn(class_weights(LABELS, exponent), epochs=60)
    assert counts.total() == 60 * 96
    assert sum(counts[i] for i in range(90, 100)) / counts.total() == pytest.approx(share, abs=0.01)
    assert min(counts[i] for i in range(100)) > 0  # no clip is lost
    for part in (range(90), range(90, 100)):  # nor drawn at the cost of another of its class
        assert max(counts[i] for i in part) < 2.2 * min(counts[i] for i in part)


def test_groups_share_the_steps_by_what_their_classes_weigh():
    groups = ["image"] * 90 + ["video"] * 10  # one class each
    counts = drawn(class_weights(LABELS, 1.0), groups=groups)
    assert sum(counts[i] for i in range(90, 100)) / counts.total() == pytest.approx(0.5, abs=0.01)
    assert drawn(np.ones(100), groups=groups).total() == drawn(None, groups=groups).total()


def test_clips_without_a_label_are_drawn_as_on_average():
    weights = class_weights(["calm", "calm", "calm", "angry", None], 1.0)
    assert weights == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0, 1.0])
    assert class_weights([None, None], 1.0).tolist() == [1.0, 1.0]


def test_stage_2_draws_in_balance(setup, tmp_path):
    rows = [json.loads(line) for line in setup[1].read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"emotion": {"angry": 0.8, "calm": 0.2} if i in (0, 1) else "calm"}
    manifest = setup[1].with_name("unbalanced.jsonl")
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = stage2_values(setup[0], manifest, tmp_path / "a", max_steps=18, class_balance=1)
    seen, _ = watched(values)
    ids = Counter(clip_id for _, ids, _ in seen for clip_id in ids)
    assert (ids["train-0"] + ids["train-1"]) / ids.total() == pytest.approx(0.5, abs=0.1)
    bare = setup[1].with_name("no_emotion.jsonl")
    bare.write_text("".join(json.dumps(row | {"emotion": None}) + "\n" for row in rows))
    pairs = [{"prompt": "What?", "answer": "{content}"}]
    with pytest.raises(InputError, match="`class_balance` is 1.*no clip has an `emotion`"):
        train(stage2_values(setup[0], bare, tmp_path / "b", class_balance=1, instructions=pairs))
    for value in (-0.1, 1.5):
        with pytest.raises(InputError, match="class_balance"):
            train(stage2_values(*setup, tmp_path / "b", class_balance=value))


# ---- prompts and answers of the manifest's own columns


def test_columns_of_the_manifest_are_prompts_and_answers_beside_the_labels(setup, tmp_path):
    rows = [json.loads(line) for line in setup[1].read_text().splitlines()]
    for number, row in enumerate(rows):
        if number % 2:  # a general clip: no label, and a prompt of its own
            for name in ("content", "emotion", "valence", "arousal", "caption", "art_form"):
                row.pop(name, None)
            row |= {"question": f"What is {number} {{plus}} 1?", "reply": f"It is {number + 1}."}
    manifest = setup[1].with_name("columns.jsonl")
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": "Which emotion?", "answer": "{emotion}"}, {"prompt": "{question}", "answer": "{reply}"}]
    values = stage2_values(setup[0], manifest, tmp_path / "run", instructions=pairs, max_steps=12)
    seen, untouched = watched(values)
    processor, kinds = VAEmotionLLMProcessor.from_pretrained(setup[0]), Counter()
    for _, ids, inputs in seen:
        for clip_id, row, mask in zip(ids, inputs["input_ids"], inputs["response_mask"], strict=True):
            number, answer = int(clip_id.split("-")[1]), processor.decode(row[mask])
            expected = f"It is {number + 1}." if number % 2 else rows[number]["emotion"]
            assert answer == f"{expected}<|im_end|>"
            assert (f"What is {number} {{plus}} 1?" in processor.decode(row)) == bool(number % 2)
            kinds[number % 2] += 1
    assert not untouched and min(kinds.values()) > 8
    for change, message in (
        (
            {"question": "Which emotion does this artwork express?"},
            "clip 'train-1'.* has the words of the embedded nano",
        ),
        ({"question": None}, "clip 'train-1' has the labels reply, and no template"),
    ):
        changed = [row | (change if number == 1 else {}) for number, row in enumerate(rows)]
        manifest.write_text("".join(json.dumps(row) + "\n" for row in changed))
        with pytest.raises(InputError, match=message):
            train(stage2_values(setup[0], manifest, tmp_path / "bad", instructions=pairs))
    with pytest.raises(InputError, match="entry 1 uses {questoin}; allowed are content, .*question, reply"):
        pairs = [{"prompt": "{questoin}", "answer": "{reply}"}]
        train(stage2_values(setup[0], manifest, tmp_path / "bad", instructions=pairs))
