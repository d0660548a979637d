"""Live inference: the bars of the moment, as pandas frames → the embedding of the window that ends with them; or one
recording, as a frame → its embedding, and what it is.

    encoder = Encoder.load("runs/sse")
    encoder.encode({"m1": minutes, "h1": hours})  # float32 [1, S, latent_len, d_model]
    Encoder.load("runs/imu").predict(recording)  # {"gesture": {"wave": 0.91, …}, …}
    Ensemble.load("runs/imu-all").predict(recording)  # the mean over all folds

Of the run's directory, encoder.json and best.safetensors are read, on any machine: no store is needed, and nothing that
is read is executed but features.py, where the run has columns of its user's own. Windows are made by the pipeline's own
functions, so that they are the store's to the last bit; for that the encode modules, alone in this package, import the
pipeline. The training process never imports them.

A frame of bars has columns open, high, low and close, in the units of the training data (prices, not points), and a
pandas.DatetimeIndex with a zone. Its times mean what those of the training data's files mean: where bars begin under
`label: left`, where they end under `label: right` (`Encoder.label`). The close of the last base bar is the decision
time, so the last base bar must be finished; whether it is, only the caller knows.

A store's very first window, which has no bar before it, is the one that cannot be made here. A frame of a recording
has a row a moment and the channels that the run was trained on; other columns are not read.

Shape suffixes: B batch, S timeframes, L bars, F features.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from cache.keys import file_md5
from cache.layout import EVERY_SYMBOL, SEQUENCES
from configs.errors import UserError
from configs.loader import Config
from trainer.checkpoint import load_weights
from trainer.classifier import Classifier
from trainer.config import ModelConfig
from trainer.described import OWN_TASK, identity, uneven_latents
from trainer.encode_description import inputs_of, read_description
from trainer.encode_frames import make_window
from trainer.encode_inputs import Inputs
from trainer.encode_programs import RecordingProgram, WindowEncoder, model_of
from trainer.encode_recordings import RecordingInputs, recording_inputs, recording_window
from trainer.inputs import apply_masks
from trainer.masking import Masks
from trainer.model import WindowModel

Frames = Mapping[str, pd.DataFrame] | pd.DataFrame
Classes = dict[str, dict[str, float]]


class Encoder:
    """The encoder of a run on one device, in evaluation mode. Made by `load`.

    Attributes:
        run: where it comes from.
        described: what encoder.json says.
        weights: MD5 of best.safetensors.
        model: the whole model.
        program: what `embed` runs, and export_encoder saves.
    """

    def __init__(self, run: Path, described: dict[str, Any], weights: str, model: WindowModel) -> None:
        self.run, self.described, self.weights, self.model = run, described, weights, model
        self.program = self._program().to(self.device).eval()

    @classmethod
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> "Encoder":
        """The encoder with a run's best weights.

        Raises UserError for a run that lacks what is needed or is damaged, and a device that is not there.
        """
        run = Path(run)
        if (run / "fold0").is_dir():
            raise UserError(f"{run}: holds a run for every fold; load {run / 'fold0'}, or all by Ensemble.load")
        described = read_description(run)
        weights = run / "best.safetensors"
        if not weights.is_file():
            raise UserError(f"{run}: the run has no best.safetensors yet; it is written after the first epoch")
        settings = Config(run / "encoder.json", {"model": described["model"]}, {}, ()).parse("model", ModelConfig)
        if counts := uneven_latents(described["seq_lens"], settings.latent_stride):
            raise UserError(
                f"{run}: windows have different numbers of latents ({counts}), which make no one array; train with one "
                "data.window.seq_len for all timeframes"
            )
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced, and the caller's dice are theirs
            model = model_of(described, settings)
        digest = file_md5(weights)
        only = "backbone." if described["task"].startswith(OWN_TASK) else ""  # its head is its own affair
        load_weights(weights, model, identity(described), only)
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:  # PyTorch built without CUDA asserts that it was
            words = str(error).splitlines()[0]
            raise UserError(f"device {str(device)!r} cannot be used: {words}; leave it out, or use 'cpu'") from None
        kind = RecordingEncoder if described["kind"] == SEQUENCES else Encoder
        return kind(run, described, digest, model.eval())

    @cached_property
    def inputs(self) -> Inputs:
        """How windows of bars are made."""
        return inputs_of(self.run, self.described)

    @property
    def label(self) -> str:
        """What the times of frames mark: `left`, where bars begin, or `right`, where they end."""
        return self.inputs.source.label

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.backbone.stems.timeframe_embedding.device

    def encode(self, bars: Frames, symbol: str | None = None) -> Tensor:
        """Embed the window that ends with the last base bar: float32 [1, S, latent_len, d_model], on the device.

        Args:
            bars: a frame a timeframe, each of the window's bars and one before them at least; of older ones only the
                times are looked at. A timeframe that has no frame is derived from the base.
            symbol: whose statistics to scale by, where the run has those of several; pooled ones are for any symbol.

        Raises:
            UserError: for a frame that is not as told above, holds rows that cannot be true among those needed, is too
                short, holds a bar that closes after the decision time, or lacks one that had closed by then. It names
                timeframe, bar and remedy. (Which bars are lacking is told by those of shorter timeframes, as far back
                as they reach; beyond, by a last bar older than any in training. Other gaps are times without trading.)
        """
        return self.embed(*self.windows(bars, symbol))

    def predict(self, frame: pd.DataFrame) -> Classes:
        """The probability of every class, by label: of recordings only. Raises UserError."""
        raise UserError(f"{self.run}: was not trained to tell classes (training.task=classify); use encode()")

    def windows(self, bars: Frames, symbol: str | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The window that `encode` embeds, a timeframe each, the base first, on the CPU.

        Normalised features float32 [1, L_j, F], and close times int64 [1, L_j], ns UTC.
        """
        if not isinstance(bars, Mapping):
            what = type(bars).__name__
            raise UserError(f"bars is a {what}; give a frame a timeframe, such as {{{self.inputs.base!r}: frame}}")
        known = list(self.inputs.scaling)
        if known == [EVERY_SYMBOL]:
            symbol = EVERY_SYMBOL
        if symbol is None and len(known) > 1:
            raise UserError(f"{self.run}: has statistics of several symbols; name one as `symbol`: {', '.join(known)}")
        if symbol is not None and symbol not in known:
            raise UserError(f"{self.run}: knows no symbol {symbol}; it has statistics of {', '.join(known)}")
        window = make_window(self.inputs, bars, symbol or known[0])
        return tuple([torch.from_numpy(one)[None] for one in parts] for parts in zip(*window, strict=True))  # type: ignore[return-value]

    @torch.no_grad()  # not inference_mode, whose tensors a policy could not be trained on
    def embed(self, x: list[Tensor], known: list[Tensor]) -> Tensor:
        """Embed windows as `windows` gives them, but any number B of them: float32 [B, S, latent_len, d_model].

        The last bits of an embedding depend on the size of its batch, because matrix products are split by it.
        """
        embedded: Tensor = self.program(*([one.to(self.device) for one in part] for part in (x, known)))
        return embedded

    def _program(self) -> nn.Module:
        return WindowEncoder(self.model)


class RecordingEncoder(Encoder):
    """The encoder of a run on recordings, and what it tells of them."""

    @cached_property
    def recording(self) -> RecordingInputs:
        """How windows of recordings are made. Raises UserError."""
        return recording_inputs(self.described)

    def windows(self, bars: Frames, symbol: str | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The window of a recording: normalised features float32 [1, L, F], and bool [1, L] where rows are padding."""
        if not isinstance(bars, pd.DataFrame):
            raise UserError(f"frame is a {type(bars).__name__}, not a pandas.DataFrame with a row a moment")
        values, padding = recording_window(self.recording, bars)
        return [torch.from_numpy(values)[None]], [torch.from_numpy(padding)[None]]

    @torch.no_grad()
    def predict(self, frame: pd.DataFrame) -> Classes:
        """The probability of every class, by label, of one recording. Raises UserError."""
        if not isinstance(self.model, Classifier):
            return super().predict(frame)
        x, padding = ([one.to(self.device) for one in part] for part in self.windows(frame))
        logits = self.model(apply_masks(x, Masks(padding), ()))
        return {
            name: dict(zip(known, one[0].double().softmax(dim=0).tolist(), strict=True))
            for (name, known), one in zip(self.described["classes"].items(), logits, strict=True)
        }

    def _program(self) -> nn.Module:
        return RecordingProgram(self.model)


class Ensemble:
    """The encoders of all folds together."""

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self.encoders = tuple(encoders)

    @classmethod
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> "Ensemble":
        """Those of a run of all folds. Raises UserError where one lacks what is needed."""
        run = Path(run)
        folds = sorted(run.glob("fold[0-9]*"), key=lambda path: int(path.name.removeprefix("fold")))
        if not folds:
            raise UserError(f"{run}: no run of all folds there; bin/train --fold all makes one")
        if not (run / "folds.json").is_file():
            raise UserError(f"{run}: not all folds are trained; bin/train --fold all --resume goes on")
        return cls([Encoder.load(fold, device) for fold in folds])

    def predict(self, frame: pd.DataFrame) -> Classes:
        """The mean probability of every class, by label, of one recording. Raises UserError."""
        found = [encoder.predict(frame) for encoder in self.encoders]
        return {
            name: {one: sum(each[name][one] for each in found) / len(found) for one in classes}
            for name, classes in found[0].items()
        }


def export_encoder(encoder: Encoder, path: str | Path) -> None:
    """Save the encoder as an ExportedProgram (.pt2) for the machine's device type, for use without Headstart.

    `torch.export.load(path).module()` takes what `Encoder.embed` takes, with any B ≥ 1: a list of normalised features,
    float32 [B, L_j, F] a timeframe, and one of close times, int64 [B, L_j]; it gives float32 [B, S, latent_len,
    d_model]. Loading a .pt2 may unpickle what it holds, and so execute it:
    load none from elsewhere. `Encoder.load` reads JSON and safetensors and executes nothing.

    Raises:
        UserError: for a path that does not end in .pt2, or lies in a folder that is not there.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first")
    if path.suffix != ".pt2":
        raise UserError(f"{path}: torch.export writes files that end in .pt2; name it {path.with_suffix('.pt2')}")
    if isinstance(encoder, RecordingEncoder):
        raise UserError(f"{encoder.run}: was trained on recordings, of which there is no export; use predict()")
    width = len(encoder.inputs.features.columns)
    lengths = encoder.inputs.recipe.seq_lens.values()
    x = [torch.zeros(2, length, width, device=encoder.device) for length in lengths]
    close_time = [torch.zeros(2, length, dtype=torch.int64, device=encoder.device) for length in lengths]
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple([{0: batch} for _ in lengths] for _ in range(2))
    program = torch.export.export(encoder.program, (x, close_time), dynamic_shapes=shapes)
    torch.export.save(program, path)
