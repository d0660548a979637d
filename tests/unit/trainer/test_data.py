import hashlib
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.reader import Dataset, open_dataset
from configs.loader import load_config
from pipeline.build_command import main as build_cache
from trainer.batches import train_windows
from trainer.config import parse_trainer
from trainer.data import Batch, WindowSource, spread
from trainer.train_command import main as train
from trainer.windows import Windows

CPU = torch.device("cpu")
OVERRIDE = "data.window.seq_len={m1: 40, m5: 17, m15: 8}"
LENGTHS = {"even": (32, 32, 32), "uneven": (40, 17, 8)}


@pytest.fixture(scope="module")
def stores(test_store: Path, simulated_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Windows as long in every timeframe, and of another length in each."""
    uneven = tmp_path_factory.mktemp("uneven") / "store"
    options = ["--config", "configs/test.yaml", "--data-dir", str(simulated_dir), "--store", str(uneven)]
    build_cache([*options, OVERRIDE], standalone_mode=False)
    return {"even": test_store, "uneven": uneven}


@pytest.fixture(params=["even", "uneven"])
def dataset(request: pytest.FixtureRequest, stores: dict[str, Path]) -> Dataset:
    return open_dataset(stores[request.param], "test")


class SlowReader:
    """Windows one by one, through zarr-python."""

    def __init__(self, dataset: Dataset) -> None:
        (entries,) = dataset.symbols.values()
        self.ends = zarr.open_group(entries.windows.path, mode="r")["ends"][:]
        self.streams = [zarr.open_group(entry.path, mode="r")["values"][:] for entry in entries.streams.values()]
        self.lengths = list(dataset.seq_lens.values())

    def window(self, number: int) -> list[np.ndarray]:
        ends = self.ends[number]
        return [values[end - n : end] for values, end, n in zip(self.streams, ends, self.lengths, strict=True)]


def assert_windows(found: Batch, slow: SlowReader, numbers: list[int]) -> None:
    got = found.x
    assert len(got) == len(slow.lengths)
    for j, batch in enumerate(got):
        assert batch.dtype == torch.float32
        assert batch.shape == (len(numbers), slow.lengths[j], 6)
    for row, number in enumerate(numbers):
        for batch, expected in zip(got, slow.window(number), strict=True):
            np.testing.assert_array_equal(batch[row].numpy(), expected)


def test_gather_equals_slicing_one_window_after_the_other(dataset: Dataset):
    source, slow = WindowSource(dataset, CPU), SlowReader(dataset)
    rng = np.random.default_rng(0)
    total = len(slow.ends)
    for batch in (5, 5, 1, 64, 64, 7):
        numbers = rng.integers(total, size=batch).tolist()
        assert_windows(source.gather(torch.tensor(numbers)), slow, numbers)


def test_first_and_last_windows_and_repeated_ones(dataset: Dataset):
    source, slow = WindowSource(dataset, CPU), SlowReader(dataset)
    last = len(slow.ends) - 1
    numbers = [0, last, source.train[0], source.train[-1], source.val[0], source.val[-1], last, last, 0]
    assert_windows(source.gather(torch.tensor(numbers)), slow, numbers)
    # the oracle would not notice a window that is cut off at the beginning of its stream
    assert all(len(part) == length for part, length in zip(slow.window(0), slow.lengths, strict=True))


def test_what_the_dataset_says_is_what_the_source_offers(stores: dict[str, Path]):
    for name, store in stores.items():
        dataset = open_dataset(store, "test")
        source = WindowSource(dataset, CPU)
        assert source.seq_lens == LENGTHS[name]
        assert source.placement == "host"
        bounds = [dataset.splits[part]["windows"]["TEST"] for part in ("train", "val")]
        (train,), (val,) = source.train.ranges, source.val.ranges
        assert [[part.start, part.stop] for part in (train, val)] == bounds
        assert 0 == train.start < train.stop < val.start < val.stop


def test_batches_of_one_size_come_in_the_same_memory(dataset: Dataset):
    source = WindowSource(dataset, CPU)
    first = source.gather(torch.arange(6))  # kept, or else new memory could lie at the same place
    second = source.gather(torch.arange(20, 26))
    assert [part.data_ptr() for part in second.x] == [part.data_ptr() for part in first.x]


def test_a_batch_is_the_callers_to_change(dataset: Dataset):
    source, slow = WindowSource(dataset, CPU), SlowReader(dataset)
    for part in source.gather(torch.arange(3)).x:
        part.fill_(torch.nan)
    # other windows with the same bars
    assert_windows(source.gather(torch.arange(1, 4)), slow, [1, 2, 3])


def fingerprint(store: Path) -> dict[str, tuple[int, int, str]]:
    return {
        str(path.relative_to(store)): (
            path.stat().st_mtime_ns,
            path.stat().st_ino,
            hashlib.md5(path.read_bytes()).hexdigest(),
        )
        for path in store.rglob("*")
        if path.is_file() and path.name != "uses.jsonl"
    }


def test_training_leaves_the_store_as_it_was(stores: dict[str, Path], tmp_path: Path):
    store = stores["uneven"]
    before = fingerprint(store)
    options = ["--config", "configs/test.yaml", "--store", str(store), "--run", str(tmp_path / "run"), OVERRIDE]
    train([*options, "training.max_epochs=2", "training.steps_per_epoch=4"], standalone_mode=False)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 8
    assert fingerprint(store) == before
    assert len(before) > 20


def test_accumulated_batches_are_the_large_batch_in_parts(stores: dict[str, Path]):
    source = WindowSource(open_dataset(stores["even"], "test"), CPU)
    whole = parse_trainer(load_config("configs/test.yaml", ["training.batch_size=24"])).training
    parts = parse_trainer(load_config("configs/test.yaml", ["training.batch_size=8", "training.accumulate=3"])).training
    for epoch, step in ((0, 0), (0, 5), (3, 41)):
        expected = train_windows(whole, source, torch.tensor(epoch), torch.tensor(step))
        places = [torch.tensor(step * 3 + part) for part in range(3)]
        got = torch.cat([train_windows(parts, source, torch.tensor(epoch), place) for place in places])
        assert got.tolist() == expected.tolist()


def test_an_epoch_takes_training_windows_only_and_none_twice(stores: dict[str, Path]):
    source = WindowSource(open_dataset(stores["even"], "test"), CPU)
    settings_ = parse_trainer(load_config("configs/test.yaml", ["training.batch_size=1000"])).training
    steps = torch.arange(len(source.train) // 1000)
    batches = [train_windows(settings_, source, torch.tensor(2), step) for step in steps]
    numbers = torch.cat(batches).tolist()
    assert len(set(numbers)) == len(numbers) == len(source.train) // 1000 * 1000
    assert set(numbers) <= set(source.train)


@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, 10**9), length=st.integers(0, 5000), count=st.integers(1, 6000))
def test_spread(start: int, length: int, count: int):
    found = spread(Windows(np.array([[start, start + length]])), count)
    assert found.dtype == torch.int64
    numbers = found.tolist()
    assert len(numbers) == min(count, length)
    assert numbers == sorted(set(numbers))
    for i, number in enumerate(numbers):
        assert start <= number < start + length
        # evenly: each within one window of its exact place
        assert abs(number - start - i * max(Fraction(length, count), Fraction(1))) <= 1
