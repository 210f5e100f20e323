import numpy as np
import pytest
import torch

from vaemotionllm.train import losses


def naive_kl(teacher, student, temperature):
    """fp64, one target at a time, from the definition."""
    total = 0.0
    for t, s in zip(teacher.double(), student.double(), strict=True):
        p, q = torch.softmax(t / temperature, -1), torch.softmax(s / temperature, -1)
        total = total + (p * (p.log() - q.log())).sum()
    return total * temperature**2


@pytest.mark.parametrize(("n", "v"), [(1, 2), (3, 7), (17, 301)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_kl_equals_the_naive_one(n, v, temperature):
    torch.manual_seed(n)
    teacher, student = torch.randn(n, v) * 3, torch.randn(n, v, requires_grad=True)
    loss = losses.kl_divergence(teacher, student, 2 * n, temperature)["kl_loss"]
    loss.backward()
    reference = student.detach().double().requires_grad_()
    expected = naive_kl(teacher, reference, temperature) / (2 * n)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(student.grad.double(), reference.grad, atol=1e-6, rtol=1e-4)


def test_kl_is_zero_at_the_teacher_forward_and_never_touches_it():
    teacher, student = torch.tensor([[4.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 0.0]], requires_grad=True)
    forward = losses.kl_divergence(teacher, student)["kl_loss"]
    forward.backward()
    assert teacher.grad is None
    # p = sigmoid(4): KL(p || uniform) = log 2 - H(p)
    p = torch.sigmoid(torch.tensor(4.0)).item()
    assert forward.item() == pytest.approx(np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p), rel=1e-5)
    assert losses.kl_divergence(teacher, teacher.detach())["kl_loss"].item() == pytest.approx(0, abs=1e-7)


def test_kl_of_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    teacher, student = torch.randn(5, 50).bfloat16(), torch.randn(5, 50).bfloat16()
    loss = losses.kl_divergence(teacher, student)["kl_loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_kl(teacher, student, 1.0).item() / 5, rel=1e-5)


def test_empty_targets_give_zero_and_a_gradient():
    student = torch.zeros(0, 9, requires_grad=True)
    loss = losses.kl_divergence(torch.zeros(0, 9), student)["kl_loss"]
    loss.backward()
    assert loss.item() == 0 and student.grad.shape == (0, 9)
    assert losses.cross_entropy(torch.zeros(0, 9), torch.zeros(0, dtype=torch.long))["ce_loss"].item() == 0


def test_kl_refuses_masks_that_do_not_agree():
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(2, 5\)"):
        losses.kl_divergence(torch.zeros(3, 5), torch.zeros(2, 5))


def test_parts_of_a_batch_add_up():
    torch.manual_seed(1)
    teacher, student, targets = torch.randn(10, 6), torch.randn(10, 6), torch.randint(6, (10,))
    for function, first in ((losses.kl_divergence, teacher), (losses.cross_entropy, student)):
        second = student if function is losses.kl_divergence else targets
        whole = sum(function(first, second).values())
        parts = sum(
            sum(function(first[a:b], second[a:b], torch.tensor(10)).values()) for a, b in ((0, 3), (3, 3), (3, 10))
        )
        torch.testing.assert_close(whole, parts)


def test_cross_entropy_equals_the_naive_one():
    torch.manual_seed(2)
    logits, targets = torch.randn(7, 11), torch.randint(11, (7,))
    expected = -sum(torch.log_softmax(row.double(), -1)[i] for row, i in zip(logits, targets, strict=True)) / 7
    assert losses.cross_entropy(logits, targets)["ce_loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def naive_ccc(p, t):
    p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
    return 2 * np.cov(p, t, bias=True)[0, 1] / (p.var() + t.var() + (p.mean() - t.mean()) ** 2)


def test_concordance_equals_the_naive_one():
    generator = np.random.default_rng(0)
    for n in (2, 3, 50):
        p, t = generator.uniform(-1, 1, n), generator.uniform(-1, 1, n)
        assert losses.concordance(torch.tensor(p), torch.tensor(t)).item() == pytest.approx(naive_ccc(p, t), abs=1e-4)
    assert losses.concordance(torch.tensor([0.1, 0.9]), torch.tensor([0.1, 0.9])).item() == pytest.approx(1, abs=1e-4)


NAN = float("nan")


def test_valence_arousal_terms():
    prediction = torch.tensor([[0.5, NAN, NAN], [0.1, 0.2, 0.3], [-0.7, 0.0, -0.2], [0.9, -0.5, 0.6]])
    target = torch.tensor([0.4, NAN, -0.6, 0.8])
    terms = losses.valence_arousal_loss(prediction, target, "valence", ccc_weight=2.0, mse_weight=0.5)
    rows = {"audio": [0, 2, 3], "visual": [2, 3], "av": [2, 3]}
    assert set(terms) == {f"valence_{path}_loss" for path in rows}
    for column, (path, index) in enumerate(rows.items()):
        p, t = prediction[index, column].numpy(), target[index].numpy()
        expected = 2.0 * (1 - naive_ccc(p, t)) + 0.5 * ((p - t) ** 2).mean()
        assert terms[f"valence_{path}_loss"].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("prediction", "target", "paths"),
    [
        ([[0.5, NAN, NAN]], [0.2], {"audio"}),  # one labelled row
        ([[0.5, NAN, NAN], [0.5, NAN, NAN]], [0.2, 0.2], {"audio"}),  # all labels and predictions equal
        ([[0.5, 0.1, 0.2], [0.4, 0.3, 0.2]], [0.2, 0.2], {"audio", "visual", "av"}),  # all labels equal
        ([[0.5, 0.1, 0.2], [0.4, 0.3, 0.2]], [NAN, NAN], set()),  # no label
        ([[NAN, NAN, NAN]], [0.3], set()),  # text only
    ],
)
def test_valence_arousal_is_finite_where_little_is_known(prediction, target, paths):
    prediction = torch.tensor(prediction, requires_grad=True)
    terms = losses.valence_arousal_loss(prediction, torch.tensor(target), "arousal")
    assert set(terms) == {f"arousal_{path}_loss" for path in paths}
    if terms:
        losses.total(terms).backward()
        assert torch.isfinite(losses.total(terms)) and torch.isfinite(prediction.grad).all()


def test_total_weighs_and_takes_losses_only():
    terms = {"a_loss": torch.tensor(2.0), "b_loss": torch.tensor(3.0), "accuracy": torch.tensor(9.0)}
    assert losses.total(terms, {"b_loss": 0.5}).item() == 3.5


def test_share_of_divides_the_value_and_keeps_the_gradient():
    x = torch.tensor(3.0, requires_grad=True)
    share = losses.share_of(x * x, 4)
    share.backward()
    assert share.item() == pytest.approx(9 / 4) and x.grad.item() == pytest.approx(6.0)
