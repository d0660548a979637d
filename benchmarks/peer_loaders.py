"""One way each to prepare and to read the windows that benchmarks/peers.py times.

All begin with the same arrays, a folder of .npy files, and must deliver the same: endlessly (window numbers int64 [B],
one float32 tensor [B, L, F] a stream), shuffled. Those with windows written out read [B, S, L, F] and take it apart.
Every way is the one that the page cited recommends. Imports stand inside functions, because every library is
installed in an environment of its own.
"""

import functools
import importlib
import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from benchmarks.peer_windows import SEQ_LEN, Batches, Slices, again, apart, open_arrays, shuffled, window, written

NAME, SEED = "peers", 1


def read_headstart(arrays: Path, made: Path, batch: int) -> Batches:
    """The trainer's own way to a batch; it brings times, rows and closes of the windows along."""
    from cache.reader import open_dataset
    from trainer.data import WindowSource
    from trainer.order import batch_indices

    source = WindowSource(open_dataset(made, NAME), torch.device("cpu"))
    count, epoch = len(source.train), 0
    while True:
        for steps in torch.arange(count // batch).split(32):  # drawn together, as the trainer does
            for index in source.train.at(batch_indices(steps[:, None], batch, count, SEED, epoch)):
                yield index, source.gather(index).x
        epoch += 1


def prepare_frames(arrays: Path, made: Path, windows: int) -> None:
    import pandas as pd

    made.mkdir()
    for j, values in enumerate(open_arrays(arrays)[0]):
        index = pd.DatetimeIndex(np.load(arrays / f"time{j}.npy"), name="time")
        pd.DataFrame(values, index, [f"f{i}" for i in range(values.shape[1])]).to_parquet(made / f"x{j}.parquet")


def read_frames(made: Path, streams: int) -> list[Any]:
    import pandas as pd

    return [pd.read_parquet(made / f"x{j}.parquet") for j in range(streams)]


def read_pandas(arrays: Path, made: Path, batch: int) -> Batches:
    """https://docs.pytorch.org/tutorials/beginner/data_loading_tutorial.html, with a slice of each frame a window."""
    ends = open_arrays(arrays)[1]
    frames = read_frames(made, ends.shape[1])
    return shuffled(Slices(ends, [lambda end, f=f: f.iloc[end - SEQ_LEN : end].to_numpy() for f in frames]), batch)


def prepare_memmap(arrays: Path, made: Path, windows: int) -> None:
    values, ends = open_arrays(arrays)
    made.mkdir()
    for name, array in {"ends": ends, **{f"x{j}": one for j, one in enumerate(values)}}.items():
        np.save(made / f"{name}.npy", array)


def read_memmap(arrays: Path, made: Path, batch: int) -> Batches:
    """The same, with a slice of each https://numpy.org/doc/stable/reference/generated/numpy.memmap.html a window."""
    values, ends = open_arrays(made)
    return shuffled(Slices(ends, [lambda end, v=v: torch.from_numpy(v[end - SEQ_LEN : end]) for v in values]), batch)


class Batched(Dataset):
    """A dataset that is asked for whole batches, and takes them out of the maps at once."""

    def __init__(self, values: list[np.ndarray], ends: np.ndarray) -> None:
        self.values, self.ends, self.bars = values, ends, np.arange(-SEQ_LEN, 0)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, numbers: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        ends = self.ends[numbers]
        x = [torch.from_numpy(v[ends[:, j, None] + self.bars]) for j, v in enumerate(self.values)]
        return torch.tensor(numbers), x


def read_memmap_batches(arrays: Path, made: Path, batch: int) -> Batches:
    """https://docs.pytorch.org/docs/stable/data.html, "Disable automatic batching": bulk reads by a BatchSampler."""
    dataset = Batched(*open_arrays(made))
    sampler = BatchSampler(RandomSampler(dataset), batch, drop_last=True)
    return again(DataLoader(dataset, sampler=sampler, batch_size=None))


def prepare_tensors(arrays: Path, made: Path, windows: int) -> None:
    made.mkdir()
    x = torch.from_numpy(np.stack([one["x"] for one in written(windows, arrays)]))
    torch.save(x, made / "x.pt")


def read_tensors(arrays: Path, made: Path, batch: int) -> Batches:
    """https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.TensorDataset, all windows in memory."""
    x = torch.load(made / "x.pt")
    loader = shuffled(TensorDataset(torch.arange(len(x)), x), batch)
    return apart({"number": numbers, "x": windows} for numbers, windows in loader)


def prepare_litdata(arrays: Path, made: Path, windows: int) -> None:
    import litdata

    make = functools.partial(window, arrays=arrays)
    litdata.optimize(make, list(range(windows)), str(made), chunk_bytes="64MB", num_workers=1, verbose=False)


def read_litdata(arrays: Path, made: Path, batch: int) -> Batches:
    """https://github.com/Lightning-AI/litData#readme: optimize, then StreamingDataset and StreamingDataLoader."""
    import litdata

    dataset = litdata.StreamingDataset(str(made), shuffle=True, drop_last=True)
    return apart(again(litdata.StreamingDataLoader(dataset, batch_size=batch)))


def import_streaming() -> Any:
    """Streaming imports torchvision, which PyPI has for CUDA only; it fails where its operators cannot be loaded."""
    if "+cpu" not in importlib.metadata.version("torchvision"):
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("streaming")


def prepare_streaming(arrays: Path, made: Path, windows: int) -> None:
    streaming = import_streaming()
    columns = {"number": "int", "x": f"ndarray:float32:{','.join(map(str, window(0, arrays)['x'].shape))}"}
    with streaming.MDSWriter(out=str(made), columns=columns) as writer:
        for one in written(windows, arrays):
            writer.write(one)


def read_streaming(arrays: Path, made: Path, batch: int) -> Batches:
    """https://docs.mosaicml.com/projects/streaming/en/stable/getting_started/main_concepts.html."""
    streaming = import_streaming()
    dataset = streaming.StreamingDataset(local=str(made), shuffle=True, batch_size=batch)
    return apart(again(streaming.StreamingDataLoader(dataset, batch_size=batch, drop_last=True)))


def prepare_webdataset(arrays: Path, made: Path, windows: int) -> None:
    import webdataset

    made.mkdir()
    with webdataset.ShardWriter(str(made / "%04d.tar"), maxcount=5_000, verbose=0) as writer:
        for one in written(windows, arrays):
            writer.write({"__key__": f"{one['number']:08d}", "x.npy": one["x"]})


def read_webdataset(arrays: Path, made: Path, batch: int) -> Batches:
    """https://webdataset.github.io/webdataset/sharding/: shards shuffled, then a buffer of 1,000 samples."""
    import webdataset

    shards = sorted(map(str, made.glob("*.tar")))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1_000).decode()
    loader = webdataset.WebLoader(dataset.to_tuple("__key__", "x.npy").batched(batch, partial=False), batch_size=None)
    return apart({"number": torch.tensor([*map(int, keys)]), "x": torch.as_tensor(x)} for keys, x in again(loader))


def prepare_datasets(arrays: Path, made: Path, windows: int) -> None:
    import datasets

    features = datasets.Features(
        {"number": datasets.Value("int64"), "x": datasets.Array3D(window(0, arrays)["x"].shape, "float32")}
    )
    generator = functools.partial(written, windows, arrays)
    with tempfile.TemporaryDirectory(dir=made.parent) as cache:
        datasets.Dataset.from_generator(generator, features=features, cache_dir=cache).save_to_disk(str(made))


def read_datasets(arrays: Path, made: Path, batch: int) -> Batches:
    """https://huggingface.co/docs/datasets/use_with_pytorch: Array3D, with_format("torch"), a DataLoader."""
    import datasets

    return apart(shuffled(datasets.load_from_disk(str(made)).with_format("torch"), batch))


def prepare_xarray(arrays: Path, made: Path, windows: int) -> None:
    import xarray

    for j, values in enumerate(open_arrays(arrays)[0]):
        times = np.load(arrays / f"time{j}.npy").astype("datetime64[ns]")
        one = xarray.Dataset({"x": (("time", "feature"), values)}, {"time": times})
        one.to_zarr(made / f"x{j}.zarr", consolidated=False)


def open_xarray(made: Path, streams: int) -> list[Any]:
    import xarray

    return [xarray.open_zarr(made / f"x{j}.zarr", chunks=None, consolidated=False).load() for j in range(streams)]


def read_xarray(arrays: Path, made: Path, batch: int) -> Batches:
    """https://docs.xarray.dev/en/stable/user-guide/indexing.html: loaded first, then vectorised indexing, a batch."""
    import xarray

    ends = open_arrays(arrays)[1]
    streams = [one.x for one in open_xarray(made, ends.shape[1])]
    bars = np.arange(-SEQ_LEN, 0)
    for chosen in again(BatchSampler(RandomSampler(ends), batch, drop_last=True)):
        rows = [xarray.DataArray(ends[chosen, j, None] + bars, dims=("window", "bar")) for j in range(len(streams))]
        x = [one.isel(time=row).values for one, row in zip(streams, rows, strict=True)]
        yield torch.tensor(chosen), [torch.from_numpy(one) for one in x]


def read_xbatcher(arrays: Path, made: Path, batch: int) -> Batches:
    """https://xbatcher.readthedocs.io/en/latest/demo.html: BatchGenerator with input_overlap, indexed at random."""
    import xbatcher

    ends = open_arrays(arrays)[1]
    dims, overlap = {"time": SEQ_LEN}, {"time": SEQ_LEN - 1}
    streams = [xbatcher.BatchGenerator(o.x, dims, overlap) for o in open_xarray(made, ends.shape[1])]
    return shuffled(Slices(ends, [lambda end, s=s: s[end - SEQ_LEN].values for s in streams]), batch)


def read_qlib(arrays: Path, made: Path, batch: int) -> Batches:
    """https://qlib.readthedocs.io/en/latest/component/data.html: one TSDataSampler a timeframe, of one instrument."""
    import pandas as pd
    from qlib.data.dataset import TSDataSampler

    ends = open_arrays(arrays)[1]
    streams = []
    for frame in read_frames(made, ends.shape[1]):
        frame.index = pd.MultiIndex.from_product([frame.index, ["X"]], names=["datetime", "instrument"])
        streams.append(TSDataSampler(frame, frame.index[0][0], frame.index[-1][0], SEQ_LEN, dtype=np.float32))
    return shuffled(Slices(ends, [lambda end, s=s: s[end - 1] for s in streams]), batch)


PREPARE = {
    "pandas": prepare_frames, "memmap": prepare_memmap, "memmap_batches": prepare_memmap, "tensors": prepare_tensors,
    "litdata": prepare_litdata, "streaming": prepare_streaming, "webdataset": prepare_webdataset,
    "datasets": prepare_datasets, "xarray": prepare_xarray, "xbatcher": prepare_xarray, "qlib": prepare_frames,
}  # fmt: skip
READ = {name: globals()[f"read_{name}"] for name in ("headstart", *PREPARE)}
