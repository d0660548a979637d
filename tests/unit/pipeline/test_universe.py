import pytest

from configs.errors import ConfigError, UserError
from pipeline.universe import choose, fault_table, held_out, matching, unusable, weights
from tests.unit.pipeline.making import make_recipe

FOUND = ["a-BTC", "a-ETH", "b-BTC", "b-ETH", "c"]
MANY = ("source.files={m1: '{symbol}.parquet'}",)


def recipe(*overrides: str):
    return make_recipe(*MANY, *overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), FOUND),
        (("source.symbols=[c, a-ETH]",), ["a-ETH", "c"]),
        (("source.symbols=['?-ETH', c]",), ["a-ETH", "b-ETH", "c"]),
        (("source.exclude=['*-BTC']",), ["a-ETH", "b-ETH", "c"]),
        (("source.symbols=['a-*']", "source.exclude=[a-ETH]"), ["a-BTC"]),
        (("source.symbols=['[ab]-ETH']",), ["a-ETH", "b-ETH"]),
    ],
)
def test_symbols_are_chosen_by_name_and_pattern(overrides: tuple[str, ...], expected: list[str]):
    assert choose(recipe(*overrides), FOUND[::-1]) == expected


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("source.symbols=[a-BTX]", "data.source.symbols names a-BTX, which the files do not hold; did you mean a-BTC?"),
        (
            "source.exclude=['z*']",
            "data.source.exclude names z*, which the files do not hold; they hold a-BTC, a-ETH, ",
        ),
        (
            "universe.hold_out=[bb-ETH]",
            "data.universe.hold_out names bb-ETH, which the files do not hold; did you mean",
        ),
        ("universe.weights={d: 2}", "data.universe.weights names d, which the files do not hold"),
        ("source.exclude=['*']", "data.source.exclude leaves none of the 5 symbols; take something off its list"),
    ],
)
def test_names_that_mean_nothing_are_refused(override: str, said: str):
    with pytest.raises(UserError) as caught:
        choose(recipe(override), FOUND)
    assert said in str(caught.value)


def test_a_name_is_no_pattern_and_a_pattern_no_name():
    assert matching(["a", "A", "ab"], ["a"]) == ["a"]
    assert matching(["x[1]", "x1"], ["x[1]"]) == ["x1", "x[1]"]


def test_held_out_symbols():
    assert held_out(recipe("universe.hold_out=['*-BTC']"), FOUND) == ["a-BTC", "b-BTC"]
    assert held_out(recipe(), FOUND) == []
    with pytest.raises(UserError, match=r"holds out all 2 symbols, and none is left to train on"):
        held_out(recipe("universe.hold_out=['*-BTC']"), ["a-BTC", "b-BTC"])


def test_weights_prefer_the_name_and_then_the_first_pattern():
    given = recipe("universe.weights={'*-BTC': 3, 'a-*': 2, a-BTC: 0.5}")
    assert weights(given, FOUND) == {"a-BTC": 0.5, "a-ETH": 2, "b-BTC": 3, "b-ETH": 1, "c": 1}


@pytest.mark.parametrize("weight", ["0", "-1", ".inf", ".nan"])
def test_weights_are_finite_and_above_zero(weight: str):
    with pytest.raises(ConfigError, match=r"universe\.weights\.c"):
        recipe(f"universe.weights={{c: {weight}}}")


def test_the_error_for_symbols_that_cannot_be_built():
    assert str(unusable({"A": "A: empty"}, 1)) == "A: empty"
    remedy = (
        "data.universe.failing=leave_out builds the dataset without such symbols, data.source.exclude without those "
        "that it names"
    )
    assert str(unusable({"A": "A: empty"}, 3)).splitlines() == [
        "1 of 3 symbols cannot be built:",
        "  symbol  why",
        "  A       A: empty",
        remedy,
    ]
    assert str(unusable({"A": "old", "BB": "x.csv: damaged", "C": "x.csv: damaged"}, 9)).splitlines() == [
        "3 of 9 symbols cannot be built:",
        "  symbol         why",
        "  A              old",
        "  BB and 1 more  x.csv: damaged",
        remedy,
    ]
    assert str(unusable({"A": "old", "B": "damaged"}, 2)).splitlines() == [
        "none of the 2 symbols can be built:",
        "  symbol  why",
        "  A       old",
        "  B       damaged",
        "that leaves no dataset; correct some of them",
    ]
    assert len(fault_table({"A": "x", "B": "y"})) == 3
