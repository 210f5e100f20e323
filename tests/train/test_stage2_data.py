"""Clips and samples of stage 2's steps: one modality a step, classes in balance, general samples between."""

import json
from collections import Counter

import numpy as np
import pytest
from chat_files import text, turn, write_general
from media_files import write_png
from training import losses_of, make_setup, stage2_values, train

from vaemotionllm import InputError
from vaemotionllm.data.dataset import GENERAL, read_general
from vaemotionllm.data.samplers import ScheduledBatchSampler, class_weights
from vaemotionllm.train import checkpoint
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


# ---- general samples


@pytest.fixture(scope="module")
def general(tmp_path_factory):
    return write_general(tmp_path_factory.mktemp("general"))


def keys_of(epoch, world=1, rank=0, **options):
    options = {"general": 7, "general_share": 0.25} | options
    sampler = ScheduledBatchSampler(["image"] * 24, 4 // world, 1, world, rank, 5, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_general_samples_have_their_share_of_the_steps_and_their_turn():
    seen = []
    for epoch in range(7):
        batches = keys_of(epoch)
        assert [batch[0].step for batch in batches] == list(range(8 * epoch, 8 * epoch + 8))
        of_general = [[key.index >= 24 for key in batch] for batch in batches]
        assert sum(map(all, of_general)) == 2 and sum(map(any, of_general)) == 2  # 2 of 8 steps, and whole ones
        assert {key.index for batch in batches for key in batch if key.index < 24} == set(range(24))
        seen += [key.index - 24 for batch in batches for key in batch if key.index >= 24]
    assert Counter(seen) == dict.fromkeys(range(7), 8)  # 56 draws: each of 7 as often as the others
    whole = keys_of(1)
    for one, *parts in zip(whole, keys_of(1, 2, 0), keys_of(1, 2, 1), strict=True):
        assert one == [*parts[0], *parts[1]]
    assert [b for b in keys_of(0, general_share=0.0)] == [b for b in keys_of(0, general=0)]


def test_general_steps_train_on_the_answer_alone(setup, general, tmp_path):
    values = stage2_values(*setup, tmp_path / "run", general=str(general), general_share=0.5, max_steps=24)
    seen, untouched = watched(values)
    steps = [(ids, inputs) for modality, ids, inputs in seen if modality == GENERAL]
    assert not untouched and {modality for modality, *_ in seen} == {*MODALITIES, GENERAL}
    assert 8 <= len(steps) <= 16
    answers = {"sum": "It is 4.", "general-2": "6", "picture": "Waves.", "film": "Yes.", "turns": "Red."}
    from vaemotionllm import VAEmotionLLMProcessor

    processor, mixed = VAEmotionLLMProcessor.from_pretrained(setup[0]), 0
    for ids, inputs in steps:
        for clip_id, row, mask, attended in zip(
            ids, inputs["input_ids"], inputs["response_mask"], inputs["attention_mask"], strict=True
        ):
            assert processor.decode(row[mask]) == f"{answers[clip_id]}<|im_end|>"
            prompt = processor.decode(row[attended.bool() & ~mask])
            assert prompt.count("<|vision_start|>") == {"picture": 1, "film": 1, "turns": 2}.get(clip_id, 0)
            assert ("Green." in prompt) == (clip_id == "turns") and ("Be brief." in prompt) == (clip_id == "general-2")
        pictures = sum({"picture": 1, "turns": 2}.get(clip_id, 0) for clip_id in ids)
        assert len(inputs.get("image_grid_thw", ())) == pictures
        assert len(inputs.get("video_grid_thw", ())) == ids.count("film")
        mixed += len({"sum", "general-2"} & set(ids)) > 0 and pictures > 0
    assert mixed  # text alone and pictures in one batch
    rows = losses_of(tmp_path / "run")
    for row, (modality, *_) in zip(rows, seen, strict=True):
        terms = {name for name in row if name.endswith("_loss")}
        if modality == GENERAL:
            assert terms == {"ce_general_loss"} and row["loss"] == pytest.approx(row["ce_general_loss"], rel=1e-5)
        else:
            assert f"ce_{modality}_loss" in terms and "ce_general_loss" not in terms


def test_text_alone_reaches_every_trained_parameter(setup, tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text(json.dumps({"messages": [turn("user", "2 + 2?"), turn("assistant", "4")]}) + "\n")
    values = stage2_values(*setup, tmp_path / "run", general=str(file), general_share=0.9, max_steps=4)
    seen, untouched = watched(values)
    assert GENERAL in {modality for modality, *_ in seen} and not untouched


def test_a_run_with_general_samples_goes_on_exactly(setup, general, tmp_path):
    options = dict(general=str(general), general_share=0.4, class_balance=0.5, max_steps=10, save_steps=5)
    train(stage2_values(*setup, tmp_path / "whole", **options))
    whole = losses_of(tmp_path / "whole")
    values = stage2_values(*setup, tmp_path / "broken", **options, save_total_limit=None)
    train(values)
    for name in ("finished.json", "model.safetensors"):
        (tmp_path / "broken" / name).unlink()
    (tmp_path / "broken" / "checkpoint-10" / "complete.json").unlink()
    assert checkpoint.last_complete(tmp_path / "broken").name == "checkpoint-5"
    assert train(values) == "trained"
    assert losses_of(tmp_path / "broken") == whole and any("ce_general_loss" in row for row in whole[5:])
    text_of_file = general.read_text()
    try:
        general.write_text(text_of_file + "\n")
        with pytest.raises(InputError, match="general_sha256"):
            train(values)
    finally:
        general.write_text(text_of_file)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([turn("user", [{"type": "image", "path": "../out.png"}, text("?")])], ["outside", "'../out.png'"]),
        ([turn("user", [{"type": "image", "path": "/etc/hostname"}, text("?")])], ["outside", "/etc/hostname"]),
        ([turn("user", [{"type": "image", "path": "none.png"}, text("?")])], ["not found", "none.png"]),
        ([turn("user", [{"type": "image", "path": 3}, text("?")])], ["`image.path` is 3"]),
        ([turn("user", [{"type": "image"}, text("?")])], ["names no file"]),
        ([turn("user", [{"type": "audio", "path": "a.wav"}, text("?")])], ["audio", "manifest"]),
        ([turn("user", "Which emotion does this artwork express?")], ["nano benchmark", "sample 'general-2'"]),
    ],
)
def test_bad_general_samples_are_named(setup, tmp_path, messages, words):
    write_png(tmp_path / "out.png")
    (tmp_path / "data").mkdir()
    file, answer = tmp_path / "data" / "general.jsonl", turn("assistant", "x")
    good = {"messages": [turn("user", "2 + 2?"), answer]}
    file.write_text(json.dumps(good) + "\n" + json.dumps({"messages": [*messages, answer]}) + "\n")
    with pytest.raises(InputError) as error:
        train(stage2_values(*setup, tmp_path / "run", general=str(file), general_share=0.5))
    assert "line 2" in str(error.value) or "general-2" in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_general_picture_that_cannot_be_read_ends_the_run_by_name(setup, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    file = tmp_path / "general.jsonl"
    image = {"type": "image", "path": "x.png"}
    file.write_text(json.dumps({"id": "odd", "messages": [turn("user", [image, text("?")]), turn("assistant", "x")]}))
    with pytest.raises(InputError, match="'odd'.*x.png"):
        train(stage2_values(*setup, tmp_path / "run", general=str(file), general_share=0.9))


def test_share_and_file_belong_together(setup, tmp_path, general):
    for options, word in (
        ({"general": str(general)}, "belong together"),
        ({"general_share": 0.5}, "belong together"),
        ({"general": str(general), "general_share": 1.0}, "less than 1"),
        ({"general": str(tmp_path / "none.jsonl"), "general_share": 0.5}, "not found"),
    ):
        with pytest.raises(InputError, match=word):
            train(stage2_values(*setup, tmp_path / "run", **options))
    assert [sample.id for sample in read_general(general)] == ["sum", "general-2", "picture", "film", "turns"]
