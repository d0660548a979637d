"""One process of benchmarks/classify.py: aeon's classifiers, in an environment where aeon is installed.

`python -m benchmarks.classify_peer ARRAYS OUT`: reads windows as each fold has them (`x0`, `x1` … float32 [n, F, L]),
`label` int64 [n, labels] and the `bounds` of folds, int64 [folds + 1]; writes what each way predicts.
"""

import sys
from itertools import pairwise
from typing import Any

import numpy as np
from aeon.transformations.collection.convolution_based import MiniRocket
from aeon.transformations.collection.feature_based import Catch22
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# As aeon's Catch22Classifier and MiniRocketClassifier have them, but for penalties up to 10⁶; taken apart, so that all
# labels share the features.
WAYS: dict[str, tuple[Any, Any]] = {
    "catch22 + forest": (
        Catch22(catch24=True, replace_nans=True),
        RandomForestClassifier(200, random_state=0, n_jobs=-1),
    ),
    "MiniROCKET + ridge": (
        MiniRocket(random_state=0),
        make_pipeline(StandardScaler(with_mean=False), RidgeClassifierCV(np.logspace(-3, 6, 19))),
    ),
}


def main(arrays: str, out: str) -> None:
    """Predict every fold from the others."""
    given = np.load(arrays)
    label, bounds = given["label"], given["bounds"]
    predicted = {way: np.empty_like(label) for way in WAYS}
    for fold, (start, stop) in enumerate(pairwise(bounds)):
        x, val = given[f"x{fold}"].astype(np.float64), np.arange(start, stop)
        train = np.setdiff1d(np.arange(len(label)), val)
        for way, (transform, model) in WAYS.items():
            transform.fit(x[train])
            seen, unseen = transform.transform(x[train]), transform.transform(x[val])
            for k in range(label.shape[1]):
                predicted[way][val, k] = model.fit(seen, label[train, k]).predict(unseen)
    np.savez(out, **predicted)


if __name__ == "__main__":
    main(*sys.argv[1:])
