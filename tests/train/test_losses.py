import numpy as np
import pytest
import torch

from vaemotionllm.train import losses

KINDS = ("forward_kl", "reverse_kl", "jsd")


def naive(teacher, student, head, kind="forward_kl", temperature=1.0, beta=0.5):
    """fp64, from the definition, over whole logits, one target at a time: (sum, values)."""
    weight, bias = head.weight.double(), 0.0 if head.bias is None else head.bias.double()
    values = []
    for t, s in zip(teacher.double(), student.double(), strict=True):
        p, q = (torch.softmax((weight @ state + bias) / temperature, -1) for state in (t, s))
        m = beta * p + (1 - beta) * q
        kl = lambda a, b: (a * (a / b).log()).sum()  # noqa: E731
        values.append(
            {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m)}[kind]
        )
    values = torch.stack(values) if values else torch.zeros(0, dtype=torch.float64)
    return values.sum() * temperature**2, values


def make_states(n, d, v, dtype=torch.float32, bias=False, distance=1.0, scale=0.5):
    torch.manual_seed(n)
    head = torch.nn.Linear(d, v, bias=bias).to(dtype).requires_grad_(False)
    head.weight.normal_(std=scale)
    teacher = torch.randn(n, d).to(dtype)
    student = (teacher.double() + distance * torch.randn(n, d)).to(dtype).requires_grad_()
    return teacher, student, head


def gradient_error(teacher, student, head, **options):
    """Relative error of the student's gradient against the naive one on the same inputs, and the naive mean value."""
    losses.divergence(teacher, student, head, **options)["divergence_loss"].backward()
    reference = student.detach().double().requires_grad_()
    options.pop("chunk_tokens", None)
    expected, values = naive(teacher, reference, head, **options)
    (expected / len(teacher)).backward()
    return ((student.grad.double() - reference.grad).norm() / reference.grad.norm()).item(), values.mean().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "v"), [(1, 3, 2), (3, 8, 7), (17, 5, 301), (16, 5, 300)])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"temperature": 3.0, "beta": 0.1}])
@pytest.mark.parametrize("bias", [False, True])
def test_divergence_equals_the_naive_one(kind, n, d, v, options, bias):
    teacher, student, head = make_states(n, d, v, bias=bias)
    terms = losses.divergence(teacher, student, head, 2 * n, kind=kind, chunk_tokens=4, **options)
    terms["divergence_loss"].backward()
    reference = student.detach().double().requires_grad_()
    total, values = naive(teacher, reference, head, kind, **options)
    (total / (2 * n)).backward()
    assert terms["divergence_loss"].item() == pytest.approx(total.item() / (2 * n), rel=1e-4, abs=1e-6)
    torch.testing.assert_close(terms["divergence"].double(), values.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(student.grad.double(), reference.grad, atol=1e-6, rtol=1e-4)
    logits = [x.double() @ head.weight.double().T + (head.bias.double() if bias else 0) for x in (teacher, reference)]
    assert terms["agrees"].tolist() == (logits[0].argmax(-1) == logits[1].argmax(-1)).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "distance", "limit"),
    [
        (torch.float64, 1.0, 1e-12),
        (torch.float64, 0.03, 1e-12),
        (torch.float32, 1.0, 5e-6),
        (torch.float32, 0.03, 5e-6),  # the difference of two softmaxes is further off
        (torch.bfloat16, 0.03, 1e-2),
    ],
)
def test_the_gradient_is_as_exact_as_the_dtype_allows(kind, dtype, distance, limit):
    teacher, student, head = make_states(40, 64, 20_000, dtype, distance=distance)
    error, value = gradient_error(teacher, student, head, kind=kind, chunk_tokens=16)
    assert error < limit
    # Half precision counts late in training, where the distributions are near: logits of bf16 would be off by much.
    if dtype == torch.bfloat16 and kind == "forward_kl":
        assert 0.003 < value < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_and_bias_are_not_rounded(kind):
    error, _ = gradient_error(*make_states(9, 16, 300, torch.float64, bias=True), kind=kind, temperature=0.3)
    assert error < 1e-12


def test_the_head_is_never_differentiated_and_the_teacher_is_constant():
    teacher, student, head = make_states(5, 4, 9)
    teacher.requires_grad_()
    losses.divergence(teacher, student, head)["divergence_loss"].backward()
    assert teacher.grad is None and head.weight.grad is None and student.grad.abs().sum() > 0
    head.weight.requires_grad_()
    with pytest.raises(ValueError, match="the head is trained"):
        losses.divergence(teacher, student, head)
    with torch.no_grad():  # looking is allowed
        assert losses.divergence(teacher, student, head)["divergence_loss"] > 0


def test_equal_distributions_have_no_divergence():
    teacher, _, head = make_states(6, 8, 50)
    for kind in KINDS:
        terms = losses.divergence(teacher, teacher.clone(), head, kind=kind)
        assert terms["divergence"].abs().max() < 1e-6 and terms["agrees"].all()


@pytest.mark.parametrize("kind", KINDS)
def test_certain_and_opposite_distributions_stay_finite(kind):
    head = torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[200.0, 0.0], [0.0, 200.0]]))
    student = torch.tensor([[0.0, 1.0]], requires_grad=True)
    terms = losses.divergence(torch.tensor([[1.0, 0.0]]), student, head, kind=kind)
    terms["divergence_loss"].backward()
    expected = torch.log(torch.tensor(2.0)).item() if kind == "jsd" else 200.0
    assert terms["divergence_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(student.grad).all()


def test_autocast_does_not_round_the_logits():
    teacher, student, head = make_states(20, 64, 500, distance=0.05)
    plain = losses.divergence(teacher, student, head)["divergence_loss"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.divergence(teacher, student, head)["divergence_loss"], plain)


def test_empty_targets_give_zero_and_a_gradient():
    teacher, student, head = make_states(0, 4, 9)
    loss = losses.divergence(teacher, student, head)["divergence_loss"]
    loss.backward()
    assert loss.item() == 0 and student.grad.shape == (0, 4)
    assert losses.cross_entropy(torch.zeros(0, 9), torch.zeros(0, dtype=torch.long))["ce_loss"].item() == 0


def test_divergence_refuses_what_it_cannot_mean():
    teacher, student, head = make_states(3, 4, 5)
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(2, 4\)"):
        losses.divergence(teacher, student[:2], head)
    with pytest.raises(ValueError, match="'kl' is unknown; allowed are forward_kl, reverse_kl, jsd"):
        losses.divergence(teacher, student, head, kind="kl")
    for options in ({"temperature": 0.0}, {"kind": "jsd", "beta": 1.0}):
        with pytest.raises(ValueError, match="must be above 0, and beta"):
            losses.divergence(teacher, student, head, **options)


def test_parts_of_a_batch_add_up():
    teacher, student, head = make_states(10, 4, 6)
    targets, ten = torch.randint(6, (10,)), torch.tensor(10)
    slices = (slice(0, 3), slice(3, 3), slice(3, 10))
    whole = losses.divergence(teacher, student, head)["divergence_loss"]
    parts = [losses.divergence(teacher[s], student[s], head, ten)["divergence_loss"] for s in slices]
    torch.testing.assert_close(whole, sum(parts))
    logits = student @ head.weight.T
    whole = losses.cross_entropy(logits, targets)["ce_loss"]
    torch.testing.assert_close(whole, sum(losses.cross_entropy(logits[s], targets[s], ten)["ce_loss"] for s in slices))


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
    terms = losses.valence_arousal_loss(prediction, target, "valence")
    rows = {"audio": [0, 2, 3], "visual": [2, 3], "av": [2, 3]}
    assert set(terms) == {f"valence_{modality}_loss" for modality in rows}
    for column, (modality, index) in enumerate(rows.items()):
        p, t = prediction[index, column].numpy(), target[index].numpy()
        expected = 1 - naive_ccc(p, t) + ((p - t) ** 2).mean()
        assert terms[f"valence_{modality}_loss"].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("prediction", "target", "modalities"),
    [
        ([[0.5, NAN, NAN]], [0.2], {"audio"}),  # one labelled row
        ([[0.5, NAN, NAN], [0.5, NAN, NAN]], [0.2, 0.2], {"audio"}),  # all labels and predictions equal
        ([[0.5, 0.1, 0.2], [0.4, 0.3, 0.2]], [0.2, 0.2], {"audio", "visual", "av"}),  # all labels equal
        ([[0.5, 0.1, 0.2], [0.4, 0.3, 0.2]], [NAN, NAN], set()),  # no label
        ([[NAN, NAN, NAN]], [0.3], set()),  # text only
    ],
)
def test_valence_arousal_is_finite_where_little_is_known(prediction, target, modalities):
    prediction = torch.tensor(prediction, requires_grad=True)
    terms = losses.valence_arousal_loss(prediction, torch.tensor(target), "arousal")
    assert set(terms) == {f"arousal_{modality}_loss" for modality in modalities}
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
