"""bin/train --fold all beside a classifier of hand-made features, on the same folds of the same store.

features   means, deviations, quantiles, differences, spectra and correlations of the channels of every recording, and
           scikit-learn's ridge classifier, its penalty chosen on training recordings
majority   the class that most training recordings are of
headstart  bin/train --fold all; `last` are the weights of the last epoch, `best` those of the best, which were chosen
           on the very recordings that score them

`python -m benchmarks.classify --config bfrb --data DIR [KEY=VALUE]...`, overrides as of bin/train.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import measure
from cache.part import part_of
from cache.reader import Dataset, open_dataset
from configs.loader import load_config

BANDS = (1, 2, 4, 8, 16, 32)  # numbers of whole periods a recording, between which power is summed


def features(x: Any) -> Any:
    """Hand-made features of recordings [n, L, F]."""
    change = np.diff(x, axis=1)
    centred = x - x.mean(axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(centred, axis=1)) ** 2
    bands = [np.log1p(power[:, low:high].sum(axis=1)) for low, high in zip(BANDS, (*BANDS[1:], None), strict=True)]
    scaled = centred / (x.std(axis=1, keepdims=True) + 1e-6)
    upper = np.triu_indices(x.shape[2], 1)
    correlation = np.einsum("nlf,nlg->nfg", scaled, scaled)[:, upper[0], upper[1]] / x.shape[1]
    quantiles = np.quantile(x, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1)
    parts = [x.mean(axis=1), x.std(axis=1), *quantiles, change.std(axis=1), np.abs(change).mean(axis=1), *bands]
    return np.concatenate([*parts, correlation], axis=1)


def ridge_scores(dataset: Dataset) -> Iterator[dict[str, float]]:
    """Accuracy, macro-F1, binary F1 and their score, fold by fold."""
    binary = dataset.recipe["source"]["binary"]
    (length,) = dataset.seq_lens.values()
    for fold in range(len(dataset.folds)):
        part = part_of(dataset, fold)
        (stream,) = part.streams.values()
        values = stream.array("values").reshape(-1, length, stream.shape("values")[1])
        x, labels = features(values[part.windows.array("ends")[:, 0] // length - 1]), part.windows.array("label")
        val = np.arange(part.val.start, part.val.stop)
        train = np.concatenate([np.arange(one.start, one.stop) for one in part.train])
        told = []
        for column in labels.T:
            model = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-2, 4, 13)))
            told.append(model.fit(x[train], column[train]).predict(x[val]))
        found = {
            "accuracy": accuracy_score(labels[val, 0], told[0]),
            "macro_f1": f1_score(labels[val, 0], told[0], average="macro"),
        }
        if binary:
            found["binary_f1"] = f1_score(labels[val, -1], told[-1])
        yield found | {"score": statistics.fmean(list(found.values())[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="imu", help="one of configs/ (imu)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of its recordings")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    print(measure.environment("torch", "numpy", "scikit-learn"))
    config = f"configs/{args.config}.yaml"
    with measure.scratch() as folder:
        data_only = [one for one in args.overrides if one.startswith("data.")]
        store = measure.build_store(args.data.resolve(), folder / "store", args.config, data_only)
        train = [measure.ROOT / "bin/train", "--config", config, *args.overrides, "--store", store, "--fold", "all"]
        ended = measure.run([*train, "--run", folder / "run"])
        folds = json.loads((folder / "run" / "folds.json").read_text())["folds"]
        ridge = list(ridge_scores(open_dataset(store, load_config(config, data_only).values["data"]["name"])))
    names = list(ridge[0])
    rows = {
        "features + ridge": ridge,
        "majority": [{name: one[f"majority_{name}"] for name in names} for one in folds],
        "headstart, best": folds,
        "headstart, last": [{"score": one["last"]} for one in folds],
    }
    table = [
        (name, *(_mean_and_sd([one[k] for one in found]) if k in found[0] else "" for k in names))
        for name, found in rows.items()
    ]
    print(f"{len(folds)} folds in {ended.seconds:.0f} s; mean ± sd\n")
    measure.print_table(("", *names), table)
    print("\nscore by fold")
    scores = [(name, *(f"{one['score']:.3f}" for one in found)) for name, found in rows.items()]
    measure.print_table(("", *map(str, range(len(folds)))), scores)


def _mean_and_sd(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
