import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer import spectral
from trainer.losses import composite
from trainer.spectral import fitting_scales

LENGTHS = [16, 17, 48, 50, 64]
SCALES = (16, 12, 10)


def stft(prediction: Tensor, target: Tensor, n_ffts: tuple[int, ...], epsilon: float = spectral.EPSILON) -> Tensor:
    dtype = torch.promote_types(target.dtype, torch.float32)
    maps = [spectral.frames(target.shape[-2], n_fft, target.device, dtype) for n_fft in n_ffts]
    return spectral.stft(prediction, target, maps, epsilon)


def amplitude_phase(prediction: Tensor, target: Tensor, epsilon: float = spectral.EPSILON) -> Tensor:
    dtype = torch.promote_types(target.dtype, torch.float32)
    fourier = spectral.fourier(target.shape[-2], target.device, dtype)
    return spectral.amplitude_phase(prediction, target, fourier, epsilon)


def make_signals(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Two signals float64 [B, L, C] of size 1 that agree in part."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(shape, dtype=torch.float64, generator=generator)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    return 0.3 + 0.6 * target + 0.8 * noise, target


def spectrum(signal: np.ndarray, frequency: int) -> complex:
    """One bin of the DFT by its definition."""
    at = np.arange(len(signal))
    return complex((signal * np.exp(-2j * np.pi * frequency * at / len(signal))).sum())


def magnitudes(signal: np.ndarray, n_fft: int, epsilon: float) -> np.ndarray:
    """Of all frames, frame by frame and bin by bin."""
    window = np.array([np.sin(np.pi * n / n_fft) ** 2 for n in range(n_fft)])
    starts = []
    end = len(signal)
    while end >= n_fft:
        starts.append(end - n_fft)
        end -= n_fft // 4
    found = [[abs(spectrum(signal[s : s + n_fft] * window, k)) for k in range(n_fft // 2 + 1)] for s in starts]
    return np.sqrt(np.array(found) ** 2 + epsilon**2)


def stft_by_hand(prediction: Tensor, target: Tensor, n_ffts: tuple[int, ...], epsilon: float) -> float:
    terms = []
    for n_fft in n_ffts:
        truth, guess = (
            np.array([[magnitudes(x[b, :, c], n_fft, epsilon) for c in range(x.shape[2])] for b in range(x.shape[0])])
            for x in (target.numpy(), prediction.numpy())
        )
        convergence = np.sqrt(((truth - guess) ** 2).sum()) / np.sqrt((truth**2).sum())
        terms.append(convergence + np.abs(np.log(truth) - np.log(guess)).mean())
    return float(np.mean(terms))


def amplitude_phase_by_hand(prediction: Tensor, target: Tensor) -> float:
    """The formula to the letter, without ε."""
    values = []
    for b in range(target.shape[0]):
        for c in range(target.shape[2]):
            truth, guess = (
                np.array([spectrum(x[b, :, c].numpy(), k) for k in range(1, target.shape[1] // 2 + 1)])
                for x in (target, prediction)
            )
            correlation = np.corrcoef(np.log(np.abs(truth)), np.log(np.abs(guess)))[0, 1]
            weight = np.abs(truth) ** 2 / (np.abs(truth) ** 2).sum()
            cosine = np.cos(np.angle(truth) - np.angle(guess))
            values.append((1 - correlation) / 2 + (1 - (weight * cosine).sum()) / 2)
    return float(np.mean(values))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_stft_against_frames_by_hand(length: int, epsilon: float):
    prediction, target = make_signals(length, 2, length, 3)
    for n_ffts in (SCALES, (length,), (7, 13)):
        expected = stft_by_hand(prediction, target, n_ffts, epsilon)
        found = stft(prediction, target, n_ffts, epsilon)
        assert (found.shape, found.dtype) == ((), torch.float64)
        assert found.item() == pytest.approx(expected, rel=1e-12)
        assert stft(prediction.float(), target.float(), n_ffts, epsilon).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("length", [4, 5, *LENGTHS])
def test_amplitude_phase_against_the_formula(length: int):
    prediction, target = make_signals(length, 3, length, 4)
    expected = amplitude_phase_by_hand(prediction, target)
    found = amplitude_phase(prediction, target, epsilon=1e-9)
    assert (found.shape, found.dtype) == ((), torch.float64)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert amplitude_phase(prediction.float(), target.float()).item() == pytest.approx(expected, rel=0.01)


def test_amplitude_phase_of_waves():
    generator = torch.Generator().manual_seed(1)
    size_K = torch.rand(24, generator=generator, dtype=torch.float64) + 0.1
    angle_LK = torch.arange(49, dtype=torch.float64)[:, None] * torch.arange(1, 25) * 2 * torch.pi / 49

    def waves(size_K: Tensor, phase: float) -> Tensor:
        return (size_K * (angle_LK + phase).cos()).sum(-1)[None, :, None]

    truth = waves(size_K, 0.5)
    for turn in (torch.pi / 3, torch.pi / 2, torch.pi):
        expected = (1 - np.cos(turn)) / 2  # amplitudes agree
        assert amplitude_phase(waves(size_K, 0.5 + turn), truth).item() == pytest.approx(expected, abs=1e-4)
    assert amplitude_phase(waves(3 * size_K, 0.5), truth).item() == pytest.approx(0, abs=1e-4)
    assert amplitude_phase(waves(1 / size_K, 0.5), truth).item() == pytest.approx(1, abs=1e-4)  # phases agree
    assert amplitude_phase(waves(1 / size_K, 0.5 + torch.pi), truth).item() == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("function", [lambda p, t: stft(p, t, SCALES), amplitude_phase])
class TestBoth:
    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 2**31), length=st.sampled_from(LENGTHS), factor=st.sampled_from([0.01, 1.0, 30.0]))
    def test_the_truth_scores_0(self, function, seed: int, length: int, factor: float):
        _, target = make_signals(seed, 2, length, 4)
        target = (factor * target).requires_grad_()
        loss = function(target, target.detach())
        assert abs(loss.item()) < 1e-12
        loss.backward()
        assert target.grad is not None and target.grad.isfinite().all()
        assert function(target.detach().float(), target.detach().float()).item() == pytest.approx(0, abs=1e-6)

    def test_it_grows_with_the_error(self, function):
        prediction, target = make_signals(0, 4, 48, 4)
        found = [function(target + share * (prediction - target), target).item() for share in (0, 0.1, 0.3, 1)]
        assert found == sorted(found)
        assert found[1] > 1e-3

    @settings(max_examples=10, deadline=None)
    @given(seed=st.integers(0, 2**31), factor=st.sampled_from([0.5, 8.0, 100.0]))
    def test_neither_units_nor_order_matter(self, function, seed: int, factor: float):
        prediction, target = make_signals(seed, 3, 50, 4)
        expected = function(prediction, target).item()
        order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
        assert function(prediction[..., order], target[..., order]).item() == pytest.approx(expected, rel=1e-12)
        assert function(prediction.flip(0), target.flip(0)).item() == pytest.approx(expected, rel=1e-12)
        assert function(factor * prediction, factor * target).item() == pytest.approx(expected, rel=1e-2)

    def test_channels_and_windows_are_signals_of_their_own(self, function):
        prediction, target = make_signals(0, 2, 48, 3)
        flat = [x.permute(0, 2, 1).reshape(6, 48, 1) for x in (prediction, target)]
        assert function(*flat).item() == pytest.approx(function(prediction, target).item(), rel=1e-12)

    @pytest.mark.parametrize("length", [16, 18])
    def test_gradients_against_finite_differences(self, function, length: int):
        prediction, target = make_signals(3, 2, length, 2)
        hidden = torch.rand(2, length, generator=torch.Generator().manual_seed(1)) < 0.4
        assert torch.autograd.gradcheck(
            lambda x: function(composite(x, target, hidden), target), prediction.requires_grad_()
        )
        function(composite(prediction, target, hidden), target).backward()
        assert prediction.grad is not None
        assert (prediction.grad[~hidden] == 0).all()
        assert (prediction.grad[hidden] != 0).all()

    @pytest.mark.parametrize("length", [48, 50, 64])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_half_precision(self, function, length: int, dtype: torch.dtype):
        prediction, target = (x.to(dtype) for x in make_signals(length, 2, length, 4))
        expected = function(prediction.double(), target.double()).item()
        with torch.autocast("cpu", torch.bfloat16):
            found = function(prediction.requires_grad_(), target)
            mixed = function(prediction.detach(), target.float())
        found.backward()
        assert found.dtype == mixed.dtype == torch.float32
        assert found.item() == pytest.approx(expected, rel=1e-4)
        assert mixed.item() == pytest.approx(expected, rel=1e-4)
        assert prediction.grad is not None and prediction.grad.dtype == dtype and prediction.grad.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("level", [0.0, 3.7])
    def test_constant_signals(self, function, dtype: torch.dtype, level: float):
        constant = torch.full((2, 50, 4), level, dtype=dtype)
        moving = make_signals(0, 2, 50, 4)[0].to(dtype)
        mixed = torch.cat([moving[:1], constant[:1]])
        assert function(constant, constant).item() == pytest.approx(0, abs=1e-9)
        for prediction, target in (
            (constant, constant),
            (constant, moving),
            (moving, constant),
            (mixed, moving),
            (moving, mixed),
        ):
            prediction = prediction.clone().requires_grad_()
            loss = function(prediction, target)
            loss.backward()
            assert loss.isfinite()
            assert prediction.grad is not None and prediction.grad.isfinite().all()

    def test_no_synchronisation_and_one_graph(self, function):
        prediction, target = make_signals(0, 2, 50, 4)
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        gradients = []
        for one in (function, compiled):
            at = prediction.float().requires_grad_()
            one(at, target.float()).backward()
            gradients.append(at.grad)
        torch.testing.assert_close(*gradients)
        with FakeTensorMode():  # has no values: raises where one is asked for
            assert function(torch.empty(2, 50, 4), torch.empty(2, 50, 4)).shape == ()


def test_a_dead_channel_among_moving_ones_does_not_explode():
    prediction, target = make_signals(0, 4, 48, 4)
    target[..., 0] = 0
    assert stft(prediction, target, (16, 32)).item() < 5
    one = amplitude_phase(prediction[..., :1], target[..., :1]).item()
    assert one == pytest.approx(1, abs=0.01)


def test_bars_that_frames_leave_out():
    prediction, target = make_signals(0, 1, 50, 1)
    prediction.requires_grad_()
    stft(prediction, target, (16,)).backward()
    assert prediction.grad is not None
    # (50 − 16) % 4 = 2 bars are in no frame, and a Hann window begins with 0
    assert prediction.grad.flatten().nonzero().flatten().tolist() == list(range(3, 50))


def test_scales_that_fit():
    assert fitting_scales([16, 32, 64], [64, 63, 32, 16]) == ((16, 32, 64), (16, 32), (16, 32), (16,))
    assert fitting_scales((64, 48), [50, 64]) == ((48,), (64, 48))


@pytest.mark.parametrize("n_ffts", [[], [64, 33]])
def test_no_scale_that_fits_is_an_error(n_ffts: list[int]):
    message = rf"loss\.stft\.n_ffts = \[{', '.join(map(str, n_ffts))}\].* window of 32 bars.*data\.window\.seq_len"
    with pytest.raises(ValueError, match=message):
        fitting_scales(n_ffts, [32])


def test_a_scale_longer_than_the_sequence_is_an_error():
    with pytest.raises(ValueError, match="frames of 33 bars do not fit a sequence of 32"):
        stft(torch.zeros(1, 32, 1), torch.zeros(1, 32, 1), (16, 33))


def test_a_frame_of_three_bars_is_an_error():
    with pytest.raises(ValueError, match=r"loss\.stft\.n_ffts = \[16, 3\], .* 4 bars at least"):
        fitting_scales([16, 3], [64])
    assert fitting_scales([4], [4]) == ((4,),)


def test_three_bars_have_no_amplitudes_to_correlate():
    with pytest.raises(ValueError, match="at least 4 bars, not 3"):
        amplitude_phase(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))
