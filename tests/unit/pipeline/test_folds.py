import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from cache.sequence_recipe import Folds
from configs.errors import UserError
from pipeline.folds import assign_folds


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(0, 99))
def test_folds_are_those_of_scikit_learn(seed: int, count: int, data: int):
    rng = np.random.default_rng(data)
    group = rng.integers(0, 12, 200).astype(np.int32)
    label = rng.integers(0, 4, 200).astype(np.int32)
    found = assign_folds(label, group, Folds(count=count, seed=seed), "subject")
    splits = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(label, label, group)
    for fold, (train, val) in enumerate(splits):
        np.testing.assert_array_equal(np.flatnonzero(found == fold), val)
        np.testing.assert_array_equal(np.flatnonzero(found != fold), train)
        assert not set(group[train]) & set(group[val])


@pytest.mark.filterwarnings("error")
def test_a_rare_class_is_no_warning_here():
    label, group = np.zeros(40, np.int32), np.arange(40, dtype=np.int32)
    label[0] = 1
    assert np.bincount(assign_folds(label, group, Folds(count=4, seed=0), "subject")).tolist() == [10, 10, 10, 10]


@pytest.mark.parametrize(
    ("label", "group", "message"),
    [
        (
            [0, 0, 1, 1],
            [0, 0, 1, 1],
            "there are 2 subjects, and every fold needs one of its own; lower data.folds.count",
        ),
        ([0, 1, 1], [4, 4, 4], "there is one subject, which cannot both train and validate; add recordings of others"),
        ([0, 1, 2, 3], [0, 1, 2, 3], "the sequences cannot be dealt into folds"),
    ],
)
def test_too_few(label: list[int], group: list[int], message: str):
    with pytest.raises(UserError, match=message):
        assign_folds(np.array(label, np.int32), np.array(group, np.int32), Folds(count=3, seed=0), "subject")
