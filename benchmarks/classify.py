"""bin/train --fold all beside classifiers of a library, on the same folds of the same store.

majority            the class that most training recordings are of
catch22 + forest    24 hand-made features of every channel (Lubba et al. 2019) and a random forest
MiniROCKET + ridge  random convolutions (Dempster et al. 2021) and a ridge classifier
headstart           bin/train --fold all with the weights of the last epoch, which nothing chose

The two in the middle are aeon's, which is installed into an environment of its own first (--environments): it does not
go with the versions of pandas and numba that are used here.

Two things tell whether a way is better than the majority: the score less the majority's, with the middle 95 % of what
it is when recordings are drawn again with replacement, fold by fold; and macro-F1 beside what it is when predictions
are shuffled among the recordings of each person, p being the share of shuffles that do as well. (Naming other classes
now and then raises macro-F1, whatever they are.)

`python -m benchmarks.classify --config bfrb --data DIR [KEY=VALUE]...`, overrides as of bin/train.
"""

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks import measure, peers
from cache.part import part_of
from cache.reader import Dataset, open_dataset
from configs.loader import load_config
from trainer.class_metrics import confusion, scores
from trainer.classify import classify_task
from trainer.config import TrainerConfig, parse_trainer
from trainer.data import WindowSource

AEON = "aeon==1.6.0"
DRAWS = 500
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """What there is to tell: `truth` int64 [n, labels] and `group` int64 [n] of recordings, those of a fold together.

    `bounds` int64 [folds + 1] tell the folds apart; `classes` are the names by label, `binary` is one of the labels.
    """

    truth: Any
    group: Any
    bounds: list[int]
    classes: Mapping[str, list[str]]
    binary: str | None

    def measures(self, predicted: Any, at: Any) -> dict[str, float]:
        """Those of bin/train, of the recordings `at`."""
        pairs = zip(self.classes.items(), self.truth[at].T, predicted[at].T, strict=True)
        return scores(
            {name: confusion(torch.from_numpy(t), torch.from_numpy(p), len(known)) for (name, known), t, p in pairs},
            self.binary,
        )

    def by_fold(self, predicted: Any, again: np.random.Generator | None = None) -> list[dict[str, float]]:
        """The measures of every fold; of recordings drawn with replacement, if `again` draws them."""
        places = [np.arange(*bounds) for bounds in pairwise(self.bounds)]
        return [self.measures(predicted, again.choice(one, len(one)) if again else one) for one in places]

    def majority(self) -> Any:
        predicted = np.empty_like(self.truth)
        for start, stop in pairwise(self.bounds):
            for k, column in enumerate(self.truth.T):
                predicted[start:stop, k] = np.bincount(np.delete(column, np.s_[start:stop])).argmax()
        return predicted

    def shuffled(self, predicted: Any, draw: np.random.Generator) -> Any:
        """Predictions in another order among the recordings of each group."""
        order = np.lexsort((draw.random(len(self.group)), self.group))
        mixed = np.empty_like(predicted)
        mixed[np.argsort(self.group, kind="stable")] = predicted[order]
        return mixed


def task_of(dataset: Dataset) -> Task:
    windows, binary = part_of(dataset, 0).windows, dataset.recipe["source"]["binary"]
    label, group = (np.asarray(windows.array(name)).astype(np.int64) for name in ("label", "group"))
    bounds = [0, *(fold.stop for fold in dataset.folds)]
    return Task(label, group, bounds, windows.manifest["classes"], binary and binary["name"])


def by_aeon(dataset: Dataset, task: Task, folder: Path, environments: Path) -> dict[str, Any]:
    """What benchmarks/classify_peer.py predicts."""
    pythons, failed = peers.install({"aeon": (AEON,)}, environments.absolute(), ())
    if failed:
        raise SystemExit(f"aeon is not installed: {failed['aeon']}")
    (length,) = dataset.seq_lens.values()
    arrays = {"label": task.truth, "bounds": np.array(task.bounds)}
    for fold in range(len(dataset.folds)):
        part = part_of(dataset, fold)
        (stream,) = part.streams.values()
        values = stream.array("values").reshape(-1, length, stream.shape("values")[1])
        arrays[f"x{fold}"] = values[part.windows.array("ends")[:, 0] // length - 1].transpose(0, 2, 1)
    np.savez(folder / "arrays.npz", **arrays)
    measure.run([pythons["aeon"], "-m", "benchmarks.classify_peer", folder / "arrays.npz", folder / "predicted.npz"])
    return dict(np.load(folder / "predicted.npz"))


def of_last_epoch(run: Path, settings: TrainerConfig, dataset: Dataset) -> Any:
    """What the weights at the end of a run of all folds predict, averaged as the run has them: int64 [n, labels]."""
    predicted = []
    for fold in range(len(dataset.folds)):
        source = WindowSource(dataset, CPU, fold=fold)
        task = classify_task(settings, dataset, CPU, fold)
        parts: dict[str, dict[str, Any]] = {}
        for name, tensor in load_file(run / f"fold{fold}/last/checkpoint.safetensors").items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        model = task.build_model()
        model.load_state_dict(parts["model"] | parts.get("average", {}))
        logits = task.predict(model, source, source.val.all(), int).logits
        predicted.append(np.stack([one.argmax(dim=1).numpy() for one in logits], axis=1))
    return np.concatenate(predicted)


def mean(folds: list[dict[str, float]], name: str) -> float:
    return statistics.fmean(one[name] for one in folds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="imu", help="one of configs/ (imu)")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of its recordings")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings, of training.seed 0 to N - 1 (3)")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache/headstart-peers", metavar="DIR")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    print(measure.environment("torch", "numpy", "scikit-learn"), f"· {AEON}")
    config = f"configs/{args.config}.yaml"
    with measure.scratch() as folder:
        data_only = [one for one in args.overrides if one.startswith("data.")]
        store = measure.build_store(args.data.resolve(), folder / "store", args.config, data_only)
        dataset = open_dataset(store, load_config(config, data_only).values["data"]["name"])
        task, settings = task_of(dataset), parse_trainer(load_config(config, args.overrides))
        ways = {"majority": task.majority(), **by_aeon(dataset, task, folder, args.environments)}
        seconds = []
        for seed in range(args.seeds):
            run = folder / f"run{seed}"
            train = [measure.ROOT / "bin/train", "--config", config, *args.overrides, "--store", store, "--fold", "all"]
            seconds.append(measure.run([*train, "--run", run, f"training.seed={seed}"]).seconds)
            ways[f"headstart, seed {seed}"] = of_last_epoch(run, settings, dataset)
    found = {way: task.by_fold(predicted) for way, predicted in ways.items()}
    names = list(found["majority"][0])
    print(f"{len(dataset.folds)} folds of {len(task.truth):,} recordings, trained in {measure.median(seconds):.0f} s\n")
    print("mean ± sd over the folds")
    rows = [
        (way, *(f"{mean(of, k):.3f} ± {statistics.stdev(o[k] for o in of):.3f}" for k in names))
        for way, of in found.items()
    ]
    measure.print_table(("", *names), rows)
    print("\nscore by fold")
    rows = [(way, *(f"{one['score']:.3f}" for one in of)) for way, of in found.items()]
    measure.print_table(("", *map(str, range(len(dataset.folds)))), rows)
    print("\nbetter than the majority?")
    measure.print_table(
        ("", "score − majority", "95 %", "macro_f1", "shuffled", "p"),
        [(way, *compared(task, predicted, ways["majority"])) for way, predicted in ways.items() if way != "majority"],
    )


def compared(task: Task, predicted: Any, majority: Any) -> tuple[str, ...]:
    """The cells of a way in the last table."""
    gains, chance = [], []
    for number in range(DRAWS):
        way, other = (mean(task.by_fold(one, np.random.default_rng(number)), "score") for one in (predicted, majority))
        gains.append(way - other)
        mixed = task.shuffled(predicted, np.random.default_rng(number))
        chance.append(mean(task.by_fold(mixed), "macro_f1"))
    score, macro = (mean(task.by_fold(predicted), name) for name in ("score", "macro_f1"))
    low, high = np.quantile(gains, (0.025, 0.975))
    p = (1 + sum(one >= macro for one in chance)) / (1 + DRAWS)
    gain = score - mean(task.by_fold(majority), "score")
    shown = f"{statistics.fmean(chance):.3f} ± {statistics.stdev(chance):.3f}"
    return f"{gain:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{macro:.3f}", shown, f"{p:.3f}"


if __name__ == "__main__":
    main()
