"""Small stores of simulated recordings, and small settings to train on them."""

from pathlib import Path
from typing import Any

from cache.reader import Dataset, open_dataset
from configs.loader import load_config
from pipeline.build_command import main as build_cache
from pipeline.simulate_imu import simulate_imu
from trainer.config import TrainerConfig, parse_trainer

DATA = (
    "data.folds.count=3",
    "data.length.seq_len=26",
    "data.derive=[sign_continuity, magnitude]",
    "data.source.sentinels=[-999.0]",
)
PAD = (*DATA, "data.length.mode=pad", "data.length.seq_len=64", "data.name=padded")
SMALL = (
    "model.d_model=16",
    "model.n_heads=2",
    "model.encoder.n_layers=1",
    "training.batch_size=16",
    "training.max_epochs=2",
    "training.log_every=4",
    "training.checkpoint_every=3",
    "loss.stft.n_ffts=[8]",
)
RECONSTRUCT = ("training.task=reconstruct", "training.monitor=loss")
AUGMENTED = (
    "classify.augment.noise=0.1",
    "classify.augment.scale=0.1",
    "classify.augment.time_warp=0.3",
    "classify.augment.rotate=15",
    "classify.augment.mirror=0.5",
    "classify.augment.mixup=0.3",
)


def simulate(folder: Path, sequences: int = 160) -> Path:
    """Write imu_sequences.csv: recordings of four persons or more."""
    folder.mkdir(parents=True, exist_ok=True)
    simulate_imu(folder / "imu_sequences.csv", sequences, 3, lambda written: None)
    return folder


def build(data: Path, store: Path, *overrides: str) -> None:
    """Build the dataset of configs/imu.yaml."""
    options = ["--config", "configs/imu.yaml", "--data-dir", str(data), "--store", str(store), *overrides]
    build_cache(options, standalone_mode=False)


def opened(store: Path, name: str = "imu") -> Dataset:
    return open_dataset(store, name)


def settings(*overrides: Any) -> TrainerConfig:
    return parse_trainer(load_config("configs/imu.yaml", [*DATA, *SMALL, *overrides]))
