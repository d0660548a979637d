import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from trainer.classify import balanced_weights, class_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, LABEL = torch.randn(30, 4, generator=GENERATOR) * 3, torch.randint(4, (30,), generator=GENERATOR)
TARGET, ONES = one_hot(LABEL, 4).float(), torch.ones(4)
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.1])


@pytest.mark.parametrize("weight", [ONES, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_focus_it_is_pytorchs_cross_entropy(weight: torch.Tensor, smoothing: float) -> None:
    expected = cross_entropy(LOGITS, LABEL, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(class_loss(LOGITS, TARGET, weight, smoothing), expected)


def test_focus_is_on_what_is_told_badly() -> None:
    p = LOGITS.softmax(dim=1)[torch.arange(30), LABEL]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(class_loss(LOGITS, TARGET, ONES, gamma=2.0), expected)


def test_of_shares_it_is_the_same_share() -> None:
    other = TARGET.roll(1, 0)
    mixed = class_loss(LOGITS, 0.7 * TARGET + 0.3 * other, ONES, 0.1)
    alone = [class_loss(LOGITS, one, ONES, 0.1) for one in (TARGET, other)]
    torch.testing.assert_close(mixed, 0.7 * alone[0] + 0.3 * alone[1])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_are_finite_where_a_class_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0, 0, 0], [0, 200, 0, 0]], requires_grad=True)
    class_loss(logits, one_hot(torch.tensor([0, 2]), 4).float(), ONES, 0.0, gamma).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_balanced_weights_make_classes_count_the_same() -> None:
    counts = torch.tensor([40, 8, 0, 2])
    weights = balanced_weights(counts)
    assert weights.tolist() == pytest.approx([50 / 120, 50 / 24, 0, 50 / 6])
    assert (weights * counts).tolist() == pytest.approx([50 / 3, 50 / 3, 0, 50 / 3])
