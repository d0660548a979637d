import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from trainer.class_metrics import accuracy, binary_f1, confusion, macro_f1, scores
from trainer.measures import in_words


@st.composite
def answers(draw: st.DrawFn, most: int = 6) -> tuple[list[int], list[int], int]:
    """True and predicted classes of some recordings, and how many classes there are."""
    n = draw(st.integers(2, most))
    classes = st.integers(0, n - 1)
    pairs = draw(st.lists(st.tuples(classes, classes), min_size=1, max_size=40))
    truth, predicted = map(list, zip(*pairs, strict=True))
    return truth, predicted, n


@given(answers())
def test_measures_are_those_of_scikit_learn(case: tuple[list[int], list[int], int]) -> None:
    truth, predicted, n = case
    counts = confusion(torch.tensor(truth), torch.tensor(predicted), n)
    assert counts.tolist() == confusion_matrix(truth, predicted, labels=range(n)).tolist()
    assert accuracy(counts) == pytest.approx(accuracy_score(truth, predicted))
    assert macro_f1(counts) == pytest.approx(f1_score(truth, predicted, average="macro"))


@given(answers(most=2))
def test_binary_f1_is_that_of_scikit_learn(case: tuple[list[int], list[int], int]) -> None:
    truth, predicted, _ = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a positive case
        expected = f1_score(truth, predicted)
    assert binary_f1(confusion(torch.tensor(truth), torch.tensor(predicted), 2)) == pytest.approx(expected)


def test_the_score_is_the_mean_of_all_f1() -> None:
    gesture, phase, target = (
        torch.tensor([[3, 1], [0, 4]]),
        torch.tensor([[1, 2], [3, 4]]),
        torch.tensor([[5, 1], [2, 7]]),
    )
    found = scores({"gesture": gesture, "phase": phase, "target": target}, "target")
    assert found == {
        "accuracy": 7 / 8,
        "macro_f1": macro_f1(gesture),
        "macro_f1/phase": macro_f1(phase),
        "binary_f1": 14 / 17,
        "score": pytest.approx((macro_f1(gesture) + macro_f1(phase) + 14 / 17) / 3),
    }
    assert scores({"gesture": gesture}, None).keys() == {"accuracy", "macro_f1", "score"}
    words = "accuracy 0.875, macro-F1 0.873, binary F1 0.824, score 0.716"
    assert in_words(found) == words
