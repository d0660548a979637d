"""Losses on the spectra of composite signals: predicted where hidden, true where visible (`losses.composite`).

All of it runs in float32 under autocast (half precision would leave errors of 1 % in a spectrum); float64 stays
float64. No host synchronisation, no shapes that depend on data. Windows have some dozens of bars, so a spectrum is a
product with the matrix of its sines and cosines: one kernel, where framing and FFT would take several a frame length.

Shape suffixes: B batch, L bars, C channels (each a signal of its own), T frames, N bars a frame, K frequencies. One
more dimension may stand in front of B, that of timeframes computed together; then a loss has one value for each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Added in quadrature to every magnitude. Signals are z-scores, so magnitudes are near 1 and float32 leaves errors of
# 1e-5 in them; below this, a magnitude counts as none.
EPSILON = 1e-3
_SHORTEST = 4  # bars: the hop is a quarter of a frame, and two frequencies above 0 are the fewest that correlate


def fitting_scales(n_ffts: Sequence[int], lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Those of `n_ffts` that are no longer than the sequence, for each of `lengths`, all in bars.

    Raises:
        ValueError: if none fits one of the lengths, or one is below 4.
    """
    if any(n_fft < _SHORTEST for n_fft in n_ffts):
        raise ValueError(f"loss.stft.n_ffts = {list(n_ffts)}, and a frame needs {_SHORTEST} bars at least")
    fitting = tuple(tuple(n_fft for n_fft in n_ffts if n_fft <= length) for length in lengths)
    for found, length in zip(fitting, lengths, strict=True):
        if not found:
            raise ValueError(
                f"loss.stft.n_ffts = {list(n_ffts)}, and none of them fits a window of {length} bars; add one of at "
                f"most {length}, or lengthen data.window.seq_len"
            )
    return fitting


def stft(prediction_BLC: Tensor, target_BLC: Tensor, maps: Sequence[Tensor], epsilon: float = EPSILON) -> Tensor:
    """Multi-resolution STFT loss: a scalar, float32 (float64 if an input is).

    The mean over n_fft of ‖|S| − |Ŝ|‖_F / ‖|S|‖_F + mean |log|S| − log|Ŝ||, with S of the target and magnitudes
    √(re² + im² + ε²) (Yamamoto, Song and Kim 2020, "Parallel WaveGAN"; the first term is the spectral convergence of
    Arık, Jun and Diamos 2019, "Fast spectrogram inversion").

    As in the authors' implementation, the norms run over all frames, frequencies and signals of the batch: a signal
    that hardly moves, such as an open that always equals the close before, does not divide by nearly 0. Frames lie
    n_fft // 4 apart under a periodic Hann window, the last at the end of the sequence. Nothing is padded, so nothing
    outside the window is invented; up to n_fft // 4 − 1 of the oldest bars are in no frame, and bars near both ends
    weigh little.

    Args:
        prediction_BLC: composite signals, any floating dtype.
        target_BLC: true signals of the same shape.
        maps: `frames` of as many bars, one for each frame length, of any factorisation.
        epsilon: ε.
    """
    assert prediction_BLC.shape == target_BLC.shape
    true_power, predicted_power = (
        [_power(spectra, epsilon) for spectra in _spectra(signal, maps)] for signal in (target_BLC, prediction_BLC)
    )
    terms = []
    for true_BCX, predicted_BCX in zip(true_power, predicted_power, strict=True):  # X: frames and frequencies
        true_magnitude, predicted_magnitude = true_BCX.sqrt(), predicted_BCX.sqrt()
        # vector_norm has the gradient 0 where prediction and target agree; a root of a sum of squares would have NaN
        difference = torch.linalg.vector_norm(true_magnitude - predicted_magnitude, dim=(-3, -2, -1))
        convergence = difference / torch.linalg.vector_norm(true_magnitude, dim=(-3, -2, -1))
        terms.append(convergence + (true_BCX.log() - predicted_BCX.log()).abs().mean(dim=(-3, -2, -1)) / 2)
    return torch.stack(terms).mean(dim=0)


def amplitude_phase(
    prediction_BLC: Tensor, target_BLC: Tensor, fourier_2LK: Tensor, epsilon: float = EPSILON
) -> Tensor:
    """Amplitude and phase of whole windows: a scalar in [0, 2], float32 (float64 if an input is).

    The mean over windows and channels of ½(1 − corr(log|X|, log|X̂|)) + ½(1 − Σ w_k cos Δφ_k), w_k = |X_k|²/Σ|X|²,
    over the frequencies k ≥ 1 of the rFFT X of the target and X̂ of the prediction.

    Where a spectrum is degenerate, both halves stay defined and smooth, because ε stands beside each magnitude: |X|² is
    re² + im² + ε², cos Δφ = (re·rê + im·im̂ + ε²)/(|X||X̂|), and corr = (cov + ε²)/√((var + ε²)(var̂ + ε²)). So two
    constant signals agree (0), a constant one and one that moves are uncorrelated and out of phase by 90° (1 together,
    but for terms of the order of ε), and equal signals give 0 whatever they are.

    Args:
        prediction_BLC: composite signals, any floating dtype.
        target_BLC: true signals of the same shape.
        fourier_2LK: `fourier` of as many bars.
        epsilon: ε.

    Raises:
        ValueError: if there are fewer than 4 bars, and so fewer than two frequencies to correlate.
    """
    assert prediction_BLC.shape == target_BLC.shape
    length = target_BLC.shape[-2]
    if length < _SHORTEST:
        raise ValueError(f"amplitudes and phases need windows of at least {_SHORTEST} bars, not {length}")
    whole = [fourier_2LK[..., 1:]]
    # The mean is no part of frequencies above 0; taken off before, its rounding errors are not either.
    signals = (x.to(whole[0].dtype) for x in (target_BLC, prediction_BLC))
    (true_2BCK,), (predicted_2BCK,) = (_spectra(x - x.mean(-2, keepdim=True), whole) for x in signals)
    true_power, predicted_power = (_power(spectrum, epsilon) for spectrum in (true_2BCK, predicted_2BCK))
    # log|X| = ½ log|X|²
    true_log, predicted_log = (_centred(power.log() / 2) for power in (true_power, predicted_power))
    true_variance, predicted_variance = (values.square().mean(-1) + epsilon**2 for values in (true_log, predicted_log))
    covariance_BC = (true_log * predicted_log).mean(-1) + epsilon**2
    correlation_BC = covariance_BC / (true_variance * predicted_variance).sqrt()
    product_BCK = (true_2BCK * predicted_2BCK).sum(dim=0) + epsilon**2
    cosine_BCK = product_BCK / (true_power * predicted_power).sqrt()
    weight_BCK = true_power / true_power.sum(-1, keepdim=True)
    return ((1 - correlation_BC) / 2 + (1 - (weight_BCK * cosine_BCK).sum(-1)) / 2).mean(dim=(-2, -1))


def fourier(length: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosines and −sines of the length // 2 + 1 frequencies of a window: [2, L, K]."""
    bar_L = torch.arange(length, device=device)
    turns_LK = (bar_L[:, None] * bar_L[: length // 2 + 1]) % length  # whole turns left out before they cost precision
    angle_LK = 2 * torch.pi / length * turns_LK.double()
    return torch.stack([angle_LK.cos(), -angle_LK.sin()]).to(dtype)


def frames(length: int, n_fft: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """What makes the spectra of all frames of `n_fft` bars, under a Hann window, of a window: [2, L, T·K].

    Raises:
        ValueError: if there are fewer than 4 bars in a frame, or more than in the window.
    """
    if not _SHORTEST <= n_fft <= length:
        raise ValueError(f"STFT frames of {n_fft} bars do not fit a sequence of {length}")
    hop = n_fft // 4
    surplus = (length - n_fft) % hop
    hann_N = torch.hann_window(n_fft, dtype=dtype, device=device)
    bars_LL = torch.eye(length, dtype=dtype, device=device)
    frames_LTN = bars_LL[:, surplus:].unfold(-1, n_fft, hop) * hann_N
    with torch.autocast(device.type, enabled=False):
        return (frames_LTN @ fourier(n_fft, device, dtype)[:, None]).flatten(2)


def _spectra(x_BLC: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """What each of the maps [2, L, X] makes of the signals: real and imaginary parts [2, B, C, X]."""
    columns = torch.cat([one.transpose(0, 1).flatten(1) for one in maps], dim=1)
    with torch.autocast(x_BLC.device.type, enabled=False):
        rows = x_BLC.to(columns.dtype).transpose(-2, -1)
        spectra = (rows.reshape(-1, rows.shape[-1]) @ columns).view(*rows.shape[:-1], -1)
    parts = spectra.split([2 * one.shape[-1] for one in maps], dim=-1)
    return [torch.stack(part.chunk(2, dim=-1)) for part in parts]


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _power(spectra_2BCX: Tensor, epsilon: float) -> Tensor:
    """Squared magnitudes re² + im² + ε²."""
    return spectra_2BCX.square().sum(dim=0) + epsilon**2
