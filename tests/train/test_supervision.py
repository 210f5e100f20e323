"""The Supervisor in stage 2: labels, distributions, clips without labels, one correlation for a whole step."""

import json

import pytest
import torch
from media_files import EMOTIONS
from safetensors.torch import load_file
from torch.nn import functional as F
from training import losses_of, make_setup, stage2_values, train

from vaemotionllm import InputError, VAEmotionLLMForConditionalGeneration
from vaemotionllm.cli.main import main
from vaemotionllm.data.collator import emotion_target
from vaemotionllm.train.losses import emotion_loss
from vaemotionllm.train.trainer import Stage2Trainer

NAN = float("nan")
TERMS = ("valence", "arousal", "emotion")


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_setup(tmp_path_factory.mktemp("setup"))


def with_labels(manifest, name, change):
    """A copy of the manifest beside it, each row changed by `change(number, row)`."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, row in enumerate(rows):
        change(number, row)
    target = manifest.with_name(name)
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


# ---- the losses


def test_a_hard_label_is_cross_entropy_and_a_distribution_its_divergence():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3, 4), torch.tensor([0, 3, 1, 1, 2])
    hard = emotion_loss(logits, F.one_hot(labels, 4).float())
    for column, modality in enumerate(("audio", "visual", "av")):
        assert hard[f"emotion_{modality}_loss"] == pytest.approx(
            F.cross_entropy(logits[:, column], labels).item(), rel=1e-6
        )
    target = torch.rand(5, 4).softmax(-1)
    soft = emotion_loss(logits, target)["emotion_av_loss"]
    naive = (target * (target.log() - logits[:, 2].log_softmax(-1))).sum(-1).mean()
    assert soft == pytest.approx(naive.item(), rel=1e-6)


def test_rows_without_label_or_path_count_nothing():
    torch.manual_seed(0)
    logits, target = (
        torch.randn(4, 3, 2, requires_grad=True),
        torch.tensor([[1.0, 0], [NAN, NAN], [0, 1.0], [0.5, 0.5]]),
    )
    shown = logits.clone()
    shown[2, 0] = NAN
    found = emotion_loss(shown, target)["emotion_audio_loss"]
    assert found.item() == pytest.approx(emotion_loss(logits[[0, 3]], target[[0, 3]])["emotion_audio_loss"].item())
    found.backward()
    assert logits.grad.isfinite().all() and (logits.grad[1:3] == 0).all() and (logits.grad[0, 0] != 0).all()
    assert emotion_loss(logits, torch.full((4, 2), NAN)) == {}


def test_targets_are_distributions_in_the_order_of_the_labels():
    labels = ["calm", "fear", "joy"]
    assert emotion_target("joy", labels).tolist() == [0, 0, 1]
    assert emotion_target({"joy": 3, "calm": 1}, labels).tolist() == [0.25, 0, 0.75]
    assert torch.isnan(emotion_target(None, labels)).all() and emotion_target("joy", []).shape == (0,)
    with pytest.raises(InputError, match="'anger' is not among `emotion_labels`: calm, fear, joy"):
        emotion_target({"anger": 1.0}, labels)


# ---- in training


@pytest.mark.parametrize("size", [1, 2])
def test_a_step_has_one_correlation_however_it_is_cut(setup, tmp_path, monkeypatch, size):
    options = dict(max_steps=3, save_steps=10, lora={"rank": 2}, weight_decay=0.0)
    calls, gradients = [], []
    forward, norm = VAEmotionLLMForConditionalGeneration.forward, Stage2Trainer._get_grad_norm

    def counted(model, **inputs):
        calls.append((torch.is_grad_enabled(), inputs["input_ids"].shape[1]))
        return forward(model, **inputs)

    def recorded(trainer, model, grad_norm=None):
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        return norm(trainer, model, grad_norm)

    monkeypatch.setattr(VAEmotionLLMForConditionalGeneration, "forward", counted)
    monkeypatch.setattr(Stage2Trainer, "_get_grad_norm", recorded)
    train(stage2_values(*setup, tmp_path / "whole", **options))
    assert [trained for trained, _ in calls] == [True] * 3
    calls.clear()
    parts = 4 // size
    cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
    train(stage2_values(*setup, tmp_path / "cut", **options, **cut))
    # All but the first are predicted ahead, without what follows the media.
    for _ in range(3):
        (*ahead,), (*trained,) = calls[: parts - 1], calls[parts - 1 : 2 * parts - 1]
        del calls[: 2 * parts - 1]
        assert not any(grad for grad, _ in ahead) and all(grad for grad, _ in trained)
        assert all(one < two - 10 for (_, one), (_, two) in zip(ahead, trained[1:]))
    assert not calls
    for one, two in zip(losses_of(tmp_path / "whole"), losses_of(tmp_path / "cut"), strict=True):
        assert one.keys() == two.keys() and any(name.startswith("emotion_") for name in one)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
        for name in (name for name in one if name.endswith("loss")):
            assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-5), name
    for name, gradient in gradients[0].items():  # of the first step, before Adam enlarges what is rounding
        torch.testing.assert_close(gradients[3][name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())


def few(number, row):
    if number % 4:
        for name in ("valence", "arousal"):
            del row[name]
    if number % 3:
        del row["emotion"]


def none_but_one(number, row):
    if number:
        for name in TERMS:
            del row[name]


def all_equal(number, row):
    row.update(valence=0.25, arousal=0.25)


def awe(number, row):
    if number == 0:
        row["emotion"] = "awe"


def shares(number, row):
    row["emotion"] = {row["emotion"]: 0.75, "other": 0.25}


@pytest.mark.parametrize("change", [few, none_but_one, all_equal, shares])
def test_labels_of_every_kind_give_finite_losses(setup, tmp_path, change):
    manifest = with_labels(setup[1], f"{change.__name__}.jsonl", change)
    instructions = [{"prompt": "What is it?", "answer": "It is {content}."}]
    options = {"emotion_labels": list(EMOTIONS)} if change is none_but_one else {}  # one value is no set of labels
    train(stage2_values(setup[0], manifest, tmp_path / "run", instructions=instructions, **options))
    rows = losses_of(tmp_path / "run")
    assert len(rows) == 6
    names = set().union(*rows)
    assert {f"{term}_av_loss" for term in TERMS} <= names or change is none_but_one
    assert all(value == value and abs(value) < 1e4 for row in rows for value in row.values())
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path / "run")
    assert ("other" in (model.config.emotion_labels or ())) == (change is shares)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "run" / "model.safetensors").values())


def test_the_labels_of_the_head_follow_the_config(setup, tmp_path):
    train(stage2_values(*setup, tmp_path / "a", max_steps=1))
    labels = VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path / "a").config.emotion_labels
    assert labels == sorted(labels) and len(labels) == 4
    # A model that has labels keeps them where they cover the clips.
    train(stage2_values(tmp_path / "a", setup[1], tmp_path / "b", max_steps=1, max_clips=1))
    assert VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path / "b").config.emotion_labels == labels
    manifest = with_labels(setup[1], "awe.jsonl", awe)
    train(stage2_values(tmp_path / "a", manifest, tmp_path / "d", max_steps=1))
    assert VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path / "d").config.emotion_labels == [
        *labels,
        "awe",
    ]
    with pytest.raises(
        InputError, match="has awe, which the model does not know, and `train_emotion_adapter` is false"
    ):
        train(stage2_values(tmp_path / "a", manifest, tmp_path / "e", max_steps=1, train_emotion_adapter=False))
    assert main(["export", str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 0
    assert VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path / "out").config.emotion_labels == labels
    train(stage2_values(tmp_path / "a", setup[1], tmp_path / "c", max_steps=1, emotion_labels=None))
    assert VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path / "c").config.emotion_labels is None
    assert not any(name.startswith("emotion_") and name.endswith("_loss") for name in losses_of(tmp_path / "c")[0])


@pytest.mark.parametrize(
    "labels, words",
    [(["joy", "sadness"], r"clip 'train-\d+' has the emotion .* not in `emotion_labels`: joy, sadness"),
     (["joy"], "at least two different names"), ([True, "joy"], "valid string"), ("all", "valid list")],
)  # fmt: skip
def test_labels_that_do_not_fit_are_named(setup, tmp_path, labels, words):
    with pytest.raises(InputError, match=words):
        train(stage2_values(*setup, tmp_path / "run", emotion_labels=labels))
    assert not (tmp_path / "run").exists()


# ---- an EmoAdapter of another form


def test_a_given_model_starts_with_an_adapter_of_the_form_that_is_asked_for(setup, tmp_path):
    values = stage2_values(*setup, tmp_path / "run", max_steps=1)
    train(values | {"model_fields": {"enhancer_layers": [], "supervisor_hidden_size": 8}})
    model = VAEmotionLLMForConditionalGeneration.from_pretrained(tmp_path / "run")
    assert model.config.enhancer_layers == [] and not len(model.emotion_adapter.enhancers)
    assert model.emotion_adapter.supervisor.planes[0].in_features == 8
    # Another form is another run.
    with pytest.raises(InputError, match="model_fields"):
        train(values | {"model_fields": {"enhancer_layers": [1]}})


def test_a_given_model_keeps_its_other_fields(setup, tmp_path):
    values = stage2_values(*setup, tmp_path / "run") | {"model_fields": {"projector_stride": 2}}
    with pytest.raises(InputError, match="'projector_stride'. shape a new model.*enhancer_rank"):
        train(values)
    with pytest.raises(InputError, match="enhancer_rank is 0"):
        train(values | {"model_fields": {"enhancer_rank": 0}})
