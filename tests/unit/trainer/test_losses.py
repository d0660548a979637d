import itertools

import pytest
import torch

from trainer.losses import huber


@pytest.mark.parametrize("delta", [0.3, 1.0, 2.5])
def test_huber_against_a_loop(delta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (2 * torch.randn(3, 7, 4, generator=generator) for _ in range(2))
    hidden = torch.rand(3, 7, generator=generator) < 0.4
    values = []
    for b, t, c in itertools.product(range(3), range(7), range(4)):
        if hidden[b, t]:
            error = abs(float(prediction[b, t, c]) - float(target[b, t, c]))
            values.append(error**2 / 2 if error <= delta else delta * (error - delta / 2))
    result = huber(prediction, target, hidden, delta)
    assert result.shape == ()
    assert result.item() == pytest.approx(sum(values) / len(values), rel=1e-6)


def test_visible_bars_and_their_gradients_do_not_count() -> None:
    prediction = torch.randn(2, 5, 4, requires_grad=True)
    hidden = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]).bool()
    huber(prediction, torch.zeros(2, 5, 4), hidden, 1.0).backward()
    assert prediction.grad is not None
    assert (prediction.grad[~hidden] == 0).all()
    assert (prediction.grad[hidden] != 0).all()


def test_float32_under_autocast() -> None:
    # 2049 is not a bfloat16: computed there, the loss would be 0 or wrong by 100 %.
    prediction = torch.full((1, 2, 4), 2048.0, dtype=torch.bfloat16)
    target = torch.full((1, 2, 4), 2049.0)
    with torch.autocast("cpu", torch.bfloat16):
        result = huber(prediction, target, torch.ones(1, 2).bool(), 1.0)
    assert result.dtype == torch.float32
    assert result.item() == 0.5


def test_nothing_hidden_is_not_a_silent_zero() -> None:
    assert huber(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), torch.zeros(1, 2).bool(), 1.0).isnan()
