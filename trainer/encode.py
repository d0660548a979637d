"""Live inference: the bars of the moment, as pandas frames → the embedding of the window that ends with them.

    encoder = Encoder.load(Path("runs/sse"))
    encoder.encode({"m1": minutes, "h1": hours})  # float32 [1, S, latent_len, d_model]

Of the run's directory, encoder.json and best.safetensors are read, on any machine: no store is needed, and nothing that
is read is executed. Windows are made by the pipeline's own functions, so that they are the store's to the last bit; for
that the encode modules, alone in this package, import the pipeline. The training process never imports them.

A frame has columns open, high, low and close, in the units of the training data (prices, not points), and a
pandas.DatetimeIndex with a zone. Its times mean what those of the training data's files mean: where bars begin under
`label: left`, where they end under `label: right` (`Encoder.label`). The close of the last base bar is the decision
time, so the last base bar must be finished; whether it is, only the caller knows.

A store's very first window, which has no bar before it, is the one that cannot be made here.

Shape suffixes: B batch, S timeframes, L bars, F features.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cache.keys import file_md5
from cache.recipe import BarsSource, Recipe, Session, Window
from cache.schema import fault
from configs.errors import UserError
from configs.loader import Config
from pipeline.features import FEATURE_SETS
from trainer.checkpoint import load_weights
from trainer.clock import CLOCK_CHANNELS, clock_table
from trainer.config import ModelConfig
from trainer.encode_frames import Inputs, Scaling, make_window
from trainer.masking import all_visible, model_inputs
from trainer.model import MaskedAutoencoder
from trainer.runs import ENCODER_FORMAT

_DESCRIPTION = {
    "dataset": str,
    "timeframes": [str],
    "seq_lens": {str: int},
    "bar_lengths": {str: int},
    "features": {"set": str, "version": int, "columns": [str]},
    "statistics": {str: {str: {"mean": {str: float}, "std": {str: float}}}},
    "source": {"label": str, "files": [str]},
    "window": {"min_coverage": float, "max_staleness": {str: str}},
    "model": dict,
}


class Encoder:
    """The encoder of a run on one device, in evaluation mode. Made by `load`.

    Attributes:
        run: where it comes from.
        described: what encoder.json says.
        weights: MD5 of best.safetensors.
        inputs: how windows are made.
        model: the whole autoencoder.
        program: what `embed` runs, and export_encoder saves.
    """

    def __init__(self, run: Path, described: dict[str, Any], weights: str, model: MaskedAutoencoder) -> None:
        self.run, self.described, self.weights, self.model = run, described, weights, model
        self.inputs = inputs_of(described)
        self.program = WindowEncoder(model).to(self.device).eval()

    @classmethod
    def load(cls, run: Path, device: str | torch.device = "cpu") -> "Encoder":
        """The encoder with a run's best weights. Raises UserError for a run that lacks what is needed."""
        described = read_description(run)
        weights = run / "best.safetensors"
        if not weights.is_file():
            raise UserError(f"{run}: the run has no best.safetensors yet; it is written after the first epoch")
        settings = Config(run / "encoder.json", {"model": described["model"]}, {}, ()).parse("model", ModelConfig)
        latents = {name: -(-length // settings.latent_stride) for name, length in described["seq_lens"].items()}
        if len(set(latents.values())) > 1:
            counts = ", ".join(f"{count} of {name}" for name, count in latents.items())
            raise UserError(
                f"{run}: windows have different numbers of latents ({counts}), which make no one array; train with one "
                "data.window.seq_len for all timeframes"
            )
        seq_lens, bar_lengths = (tuple(described[name].values()) for name in ("seq_lens", "bar_lengths"))
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced, and the caller's dice are theirs
            features = described["features"]["columns"]
            model = MaskedAutoencoder(len(features), CLOCK_CHANNELS, seq_lens, bar_lengths, settings)
        digest = file_md5(weights)
        load_weights(weights, model)
        return cls(run, described, digest, model.to(device).eval())

    @property
    def label(self) -> str:
        """What the times of frames mark: `left`, where bars begin, or `right`, where they end."""
        return self.inputs.source.label

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.backbone.stems.timeframe_embedding.device

    def encode(self, bars: Mapping[str, pd.DataFrame], symbol: str | None = None) -> Tensor:
        """Embed the window that ends with the last base bar: float32 [1, S, latent_len, d_model], on the device.

        Args:
            bars: a frame a timeframe, each of the window's bars and one before them at least; older ones may follow,
                and are ignored. A timeframe that has no frame is derived from the base.
            symbol: whose statistics to scale by, where the run has those of several.

        Raises:
            UserError: for a frame that is not as told above, holds rows that cannot be true among those needed, is too
                short, holds a bar that closes after the decision time, or lacks one that had closed by then. It names
                timeframe, bar and remedy. (A bar is known to be lacking from base bars after the last one; a base frame
                that reaches back over two bars of the longest timeframe always tells.)
        """
        return self.embed(*self.windows(bars, symbol))

    def windows(self, bars: Mapping[str, pd.DataFrame], symbol: str | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The window that `encode` embeds, a timeframe each, the base first, on the CPU.

        Normalised features float32 [1, L_j, F], and close times int64 [1, L_j], ns UTC.
        """
        known = list(self.inputs.scaling)
        if symbol is None and len(known) > 1:
            raise UserError(f"{self.run}: has statistics of several symbols; name one as `symbol`: {', '.join(known)}")
        if symbol is not None and symbol not in known:
            raise UserError(f"{self.run}: knows no symbol {symbol}; it has statistics of {', '.join(known)}")
        window = make_window(self.inputs, bars, symbol or known[0])
        return tuple([torch.from_numpy(one)[None] for one in parts] for parts in zip(*window, strict=True))  # type: ignore[return-value]

    @torch.no_grad()  # not inference_mode, whose tensors a policy could not be trained on
    def embed(self, x: list[Tensor], close_time: list[Tensor]) -> Tensor:
        """Embed windows, float32 [B, L_j, F] and int64 [B, L_j] a timeframe: float32 [B, S, latent_len, d_model].

        The last bits of an embedding depend on the size of its batch, because matrix products are split by it.
        """
        embedded: Tensor = self.program(*([one.to(self.device) for one in part] for part in (x, close_time)))
        return embedded


def read_description(run: Path) -> dict[str, Any]:
    """encoder.json of a run. Raises UserError when it is missing, damaged, or of features that this version lacks."""
    path = run / "encoder.json"
    try:
        described = json.loads(path.read_bytes())
        found = described["format"]
    except (FileNotFoundError, NotADirectoryError):
        what = "no run there" if not (run / "config.yaml").is_file() else "recorded by a version that did not write it"
        raise UserError(f"{path}: missing ({what}); bin/train makes runs that have it") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: damaged; copy it again from where the run was trained") from None
    if found != ENCODER_FORMAT:
        raise UserError(f"{path}: has format {found}, and this version reads {ENCODER_FORMAT}; train the run again")
    wrong = fault(described, _DESCRIPTION) or _contradiction(described)
    if wrong:
        raise UserError(f"{path}: damaged, {wrong}; copy it again from where the run was trained")
    features = described["features"]
    known = FEATURE_SETS.get(features["set"])
    if known is None or (known.version, list(known.columns)) != (features["version"], features["columns"]):
        here = f"version {known.version}" if known else "none of that name"
        raise UserError(
            f"{path}: trained on version {features['version']} of the feature set {features['set']}, and this version "
            f"of Headstart has {here}; use the one it was trained with, or train again"
        )
    return dict(described)


def _contradiction(described: dict[str, Any]) -> str:
    names, columns = described["timeframes"], described["features"]["columns"]
    parts = [described["seq_lens"], described["bar_lengths"], *described["statistics"].values()]
    if not names or not described["statistics"] or any(list(part) != names for part in parts):
        return "its parts are not of the same timeframes"
    moments = [moment for of in described["statistics"].values() for both in of.values() for moment in both.values()]
    return "" if all(list(moment) == columns for moment in moments) else "its statistics are not of its features"


def inputs_of(described: dict[str, Any]) -> Inputs:
    """How windows are made, from what encoder.json says."""
    source, limits = described["source"], described["window"]
    window = Window(
        seq_len=described["seq_lens"],
        span=None,
        min_bars=1,
        stride=1,  # it would count from the first bar of a series
        min_coverage=limits["min_coverage"],
        max_staleness=limits["max_staleness"],
    )
    session = Session(**source["session"]) if source.get("session") else None
    scaling = {
        symbol: {
            name: Scaling(*(np.array(list(both[kind].values()), np.float64) for kind in ("mean", "std")))
            for name, both in of.items()
        }
        for symbol, of in described["statistics"].items()
    }
    read: dict[str, Any] = {"label": source["label"], "session": session}
    made: dict[str, Any] = {"timeframes": described["timeframes"], "window": window}
    return Inputs(
        BarsSource.model_construct(**read),
        Recipe.model_construct(**made),
        described["bar_lengths"],
        frozenset(source["files"]),
        FEATURE_SETS[described["features"]["set"]],
        scaling,
    )


def export_encoder(encoder: Encoder, path: Path) -> None:
    """Save the encoder as an ExportedProgram (.pt2) for the machine's device type, for use without Headstart.

    `torch.export.load(path).module()` takes what `Encoder.embed` takes, with any B ≥ 1: a list of normalised features,
    float32 [B, L_j, F] a timeframe, and one of close times, int64 [B, L_j]; it gives float32 [B, S, latent_len,
    d_model]. Loading a .pt2 may unpickle what it holds, and so execute it:
    load none from elsewhere. `Encoder.load` reads JSON and safetensors and executes nothing.

    Raises:
        UserError: for a path that does not end in .pt2.
    """
    if path.suffix != ".pt2":
        raise UserError(f"{path}: torch.export writes files that end in .pt2; name it {path.with_suffix('.pt2')}")
    width = len(encoder.inputs.features.columns)
    lengths = encoder.inputs.recipe.seq_lens.values()
    x = [torch.zeros(2, length, width, device=encoder.device) for length in lengths]
    close_time = [torch.zeros(2, length, dtype=torch.int64, device=encoder.device) for length in lengths]
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple([{0: batch} for _ in lengths] for _ in range(2))
    program = torch.export.export(encoder.program, (x, close_time), dynamic_shapes=shapes)
    torch.export.save(program, path)


class WindowEncoder(nn.Module):
    """A model's way from windows that hide nothing to embeddings."""

    clock: Tensor

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("clock", clock_table(), persistent=False)

    def forward(self, x: list[Tensor], close_time: list[Tensor]) -> Tensor:
        """Features [B, L_j, F] and close times [B, L_j] a timeframe → [B, S, latent_len, d_model]."""
        return self.model.encode(model_inputs(x, all_visible(x), (), close_time, self.clock))
