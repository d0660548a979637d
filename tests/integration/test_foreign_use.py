"""The store without the trainer: NumPy alone, processes of a DataLoader, Lightning; what each of them loads."""

import pickle
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

from cache.reader import Dataset, open_dataset
from cache.window_dataset import Sample, WindowDataset
from configs.errors import UserError
from pipeline.build import build as build_bars
from tests.checkout import ROOT
from tests.unit.pipeline.making import MINUTE, MONDAY, make_recipe, quiet, random_ohlc, write_parquet
from tests.unit.trainer.making_imu import PAD, build, simulate

HEAVY = {"pipeline", "trainer", "zarr", "numba", "pandas", "pyarrow"}
WITHOUT_TORCH = """
import sys
import numpy as np
from cache.window_dataset import WindowDataset

data = WindowDataset(sys.argv[1], "test", "val")
batch = data[np.arange(0, len(data), 97)]
assert batch["m5"].dtype == np.float32 and batch["m5"].flags.c_contiguous
print(" ".join(sys.modules))
"""


@pytest.fixture(scope="module")
def dataset(test_store: Path) -> Dataset:
    return open_dataset(test_store, "test")


def by_hand(dataset: Dataset, part: str, place: int) -> Sample:
    """A window, by the words of docs/format.md."""
    ((symbol, entries),) = dataset.symbols.items()
    window = dataset.splits[part]["windows"][symbol][0] + place
    ends = entries.windows.array("ends")[window]
    streams = zip(entries.streams.items(), dataset.seq_lens.values(), ends, strict=True)
    found = {name: stream.array("values")[end - length : end] for (name, stream), length, end in streams}
    return {**found, "time": entries.windows.array("time")[window]}


@pytest.mark.parametrize("part", ["train", "val"])
def test_windows_are_those_of_the_store(part: str, test_store: Path, dataset: Dataset) -> None:
    data = WindowDataset(test_store, "test", part)
    start, stop = dataset.splits[part]["windows"]["TEST"]
    assert len(data) == stop - start
    places = [0, 77, len(data) - 1, 77, -1]
    several, each = data[places], data.__getitems__(places)
    for at, place in enumerate(places):
        expected = by_hand(dataset, part, place % len(data))
        for found in (data[place], each[at], {name: values[at] for name, values in several.items()}):
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values)
    with pytest.raises(IndexError, match=r"test has .* windows in the part"):
        data[len(data)]


def test_parts_that_are_not_there(test_store: Path) -> None:
    with pytest.raises(UserError, match="test: has no part test; it has train, val"):
        len(WindowDataset(test_store, "test", "test"))


def test_recordings(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("recordings")
    build(simulate(folder), folder / "store", *PAD)
    train, val = (WindowDataset(folder / "store", "padded", part, 1) for part in ("train", "val"))
    dataset = val.dataset
    (entries,) = dataset.symbols.values()
    fold = dataset.folds[1]
    assert (len(val), len(train) + len(val)) == (len(fold), dataset.folds[-1].stop)
    ends, starts, label = (entries.windows.array(name) for name in ("ends", "starts", "label"))
    for data, place, window in ((val, 3, fold.start + 3), (train, 0, 0), (train, len(train) - 1, len(ends) - 1)):
        found = data[place]
        rows = np.arange(ends[window, 0] - 64, ends[window, 0])
        np.testing.assert_array_equal(found["sequence"], entries.streams["fold-1"].array("values")[rows])
        np.testing.assert_array_equal(found["padding"], rows < starts[window, 0])
        np.testing.assert_array_equal(found["label"], label[window])


def test_numpy_alone_is_enough(test_store: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, test_store]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {*loaded} & {*HEAVY, "torch"}


class Noting:
    """The dataset, and beside each window which worker gave it, and how long that took until it had its first."""

    def __init__(self, data: WindowDataset) -> None:
        self.data, self.seconds = data, 0.0

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, places: list[int]) -> list[dict[str, object]]:
        worker, began = get_worker_info(), time.perf_counter()
        samples = self.data.__getitems__(places)
        self.seconds = self.seconds or time.perf_counter() - began
        assert worker is not None
        return [{**sample, "worker": worker.id, "seconds": self.seconds} for sample in samples]


def as_they_are(samples: list[dict[str, object]]) -> list[dict[str, object]]:
    return samples


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # on two cores
def test_four_workers_of_a_data_loader_start_at_once(test_store: Path) -> None:
    """Started afresh, not forked, so that what they load is their own."""
    data = WindowDataset(test_store, "test", "train")
    assert len(data)  # it is open here, and is pickled as its arguments all the same
    assert len(pickle.dumps(data)) < 500 and vars(pickle.loads(pickle.dumps(data))).keys() == {"_arguments"}
    sampler = torch.randperm(len(data))[:512].tolist()
    loader = DataLoader(
        Noting(data), 32, sampler=sampler, num_workers=4, multiprocessing_context="spawn", collate_fn=as_they_are
    )
    samples = [sample for batch in loader for sample in batch]
    assert {sample["worker"] for sample in samples} == {0, 1, 2, 3}
    assert (
        max(sample["seconds"] for sample in samples) < 0.25
    )  # opened, mapped, gathered; milliseconds where it is quiet
    for sample, place in zip(samples, sampler, strict=True):
        np.testing.assert_array_equal(sample["m5"], data[place]["m5"])


def test_the_usual_data_loader(test_store: Path) -> None:
    data = WindowDataset(test_store, "test", "val")
    batch = next(iter(DataLoader(data, batch_size=16)))
    assert batch["m15"].shape == (16, 32, 6) and batch["time"].dtype == torch.int64
    np.testing.assert_array_equal(batch["m15"].numpy(), data[list(range(16))]["m15"])


def test_a_worker_needs_neither_pipeline_nor_trainer(test_store: Path) -> None:
    code = (
        "import pickle, sys, torch.utils.data\n"
        f"data = pickle.loads({pickle.dumps(WindowDataset(test_store, 'test'))!r})\n"
        f"data[[1, 2]]\nassert not {HEAVY!r} & {{*sys.modules}}, {HEAVY!r} & {{*sys.modules}}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.skipif(find_spec("lightning") is None, reason="lightning is not installed")
def test_a_lightning_module_trains_on_it(test_store: Path) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(32 * 6, 1)
            self.seen: list[float] = []

        def training_step(self, batch: dict[str, torch.Tensor], number: int) -> torch.Tensor:
            loss = (self.head(batch["m1"].flatten(1)) - batch["m1"][:, -1, 3:4]).square().mean()
            self.seen.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 0.01)

    module = Module()
    loader = DataLoader(WindowDataset(test_store, "test"), 64, shuffle=True, num_workers=2)
    lightning.Trainer(
        max_steps=200, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    ).fit(module, loader)
    assert np.mean(module.seen[-20:]) < 0.5 * np.mean(module.seen[:5])


def test_several_symbols_lie_one_behind_another(tmp_path: Path) -> None:
    for seed, name in enumerate(("AAA", "BBB", "CCC")):
        label = MONDAY + MINUTE * np.arange(1500 + 100 * seed)
        write_parquet(tmp_path / f"{name}.parquet", label, random_ohlc(np.random.default_rng(seed), len(label)))
    files = ("source.files={m1: '{symbol}.parquet'}", "timeframes=[m1, m5]", "window.seq_len=16")
    build_bars(make_recipe(*files), tmp_path, tmp_path / "store", 2, quiet())
    data = WindowDataset(tmp_path / "store", "test", "val")
    whole, at = data[np.arange(len(data))], 0
    for symbol, entries in data.dataset.symbols.items():
        for window in range(*data.dataset.splits["val"]["windows"][symbol]):
            end = entries.windows.array("ends")[window]
            assert whole["time"][at] == entries.windows.array("time")[window]
            for name, stop in zip(entries.streams, end, strict=True):
                np.testing.assert_array_equal(whole[name][at], entries.streams[name].array("values")[stop - 16 : stop])
            at += 1
    assert at == len(data)
