from datetime import UTC, datetime
from typing import Any

import pytest

from cache.recipe import Recipe
from configs.errors import ConfigError
from configs.loader import load_config

NAME = "a name begins with a letter or a digit, goes on with letters, digits, . _ and -, and has at most 100 characters"

NOT_AMONG = "which is not among timeframes = ['m1', 'm5', 'm15']; add it there, or take it out"


def recipe(*overrides: str) -> Recipe:
    return load_config("configs/test.yaml", overrides).parse("data", Recipe)


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe(*overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.timeframes=[m5, m1]"], "timeframes go from the base upwards, each once, but m5 stands before m1"),
        (["data.timeframes=[m1, m1]"], "timeframes go from the base upwards, each once, but m1 stands before m1"),
        (
            ["data.timeframes=[m2, m15]", "data.source.files={m2: x}"],
            "timeframe m15 is not a whole number of m2 bars; leave one of the two out",
        ),
        (
            ["data.timeframes=[m5, m15]"],
            "source.files has no entry for m5, the base timeframe; it has ['m1']",
        ),
        (
            ["data.source.files={h1: x}"],
            f"source.files names h1, {NOT_AMONG}",
        ),
        (
            ["data.window.max_staleness={h1: 3h}"],
            f"window.max_staleness names h1, {NOT_AMONG}",
        ),
        (
            ["data.window.seq_len={m1: 8, m5: 8, m15: 8, h1: 8}"],
            f"window.seq_len names h1, {NOT_AMONG}",
        ),
        (["data.window.seq_len={m5: 8}"], "window.seq_len names no length for m1, m15; give one for each"),
        (["data.window.seq_len=null"], "window says neither seq_len nor span; give one of them"),
        (["data.split.val_fraction=null"], "split says neither val_fraction nor train_end; give one of them"),
        (
            ["data.window.span=60min"],
            "window.span = 60min is 4 bars of m15, fewer than window.min_bars = 8; lengthen the span or leave m15 out",
        ),
    ],
)
def test_rules_between_keys(overrides: list[str], words: str):
    assert refusal(*overrides).endswith(f"configs/test.yaml: data: {words}")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["data.source.files={m1: '{symbol}.csv', m5: m5.csv}"],
            "files.m5 lacks the {symbol} that files.m1 has; every entry has it, or none",
        ),
        (
            ["data.source.files={m1: '{symbol}.csv'}", "data.source.symbol_columns=[coin]"],
            "symbols come from symbol_columns or from {symbol} in files, not from both; leave one out",
        ),
        (
            ["data.source.symbol=EURUSD", "data.source.symbol_columns=[coin]"],
            "symbol names one symbol, but the files hold several; leave it out",
        ),
        (
            ["data.source.exclude=[BTC]"],
            "exclude chooses among several symbols, but neither symbol_columns nor a {symbol} in files tells them "
            "apart; give one of the two",
        ),
    ],
)
def test_rules_of_the_source(overrides: list[str], words: str):
    assert refusal(*overrides).endswith(f"configs/test.yaml: data.source: {words}")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.name=a/b", f"data.name = 'a/b': {NAME}"),
        ("data.name=.hidden", f"data.name = '.hidden': {NAME}"),
        (f"data.name={'x' * 101}", f"data.name = '{'x' * 101}': {NAME}"),
        ("data.window.seq_len=zwei", "data.window.seq_len = 'zwei': input should be a valid integer"),
        ("data.window.seq_len=0", "data.window.seq_len = 0: input should be greater than or equal to 1"),
        ("data.window.seq_len={m1: 0}", "data.window.seq_len.m1 = 0: input should be greater than or equal to 1"),
        ("data.timeframes=[]", "data.timeframes = []: list should have at least 1 item"),
        ("data.timeframes=[m1, m7]", "data.timeframes.1 = 'm7': 'm7' does not divide a day evenly"),
        (
            "data.source.timezone=Mars",
            "data.source.timezone = 'Mars': 'Mars' is not a time zone; write an IANA name such as UTC or "
            "America/New_York",
        ),
        ("data.source.session={tz: UTC, at: 24:00}", "data.source.session.at = '24:00': string should match pattern"),
        (
            "data.split.train_end=soon",
            "data.split.train_end = 'soon': 'soon' is not an instant; write for example 2018-01-01 or "
            "2018-01-01T17:00+00:00",
        ),
        ("data.split.val_fraction=1", "data.split.val_fraction = 1: input should be less than 1"),
        ("data.split.embargo=-1d", "data.split.embargo = '-1d': '-1d' is not a duration"),
    ],
)
def test_single_values(override: str, words: str):
    assert refusal(override).startswith(f"command line: {words}")
    assert len(refusal(override).splitlines()) == 1


def test_a_name_of_a_hundred_characters():
    assert recipe(f"data.name={'x' * 100}").name == "x" * 100


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.window.seq_len=32", {"m1": 32, "m5": 32, "m15": 32}),
        ("data.window.seq_len={m15: 8, m1: 64, m5: 16}", {"m1": 64, "m5": 16, "m15": 8}),
        ("data.window.span=200min", {"m1": 200, "m5": 40, "m15": 13}),
        ("data.window.span=2h", {"m1": 120, "m5": 24, "m15": 8}),
    ],
)
def test_seq_lens_in_timeframe_order(override: str, expected: dict[str, int]):
    assert list(recipe(override).seq_lens.items()) == list(expected.items())


def test_min_bars_binds_spans_only():
    assert recipe("data.window.seq_len=2").seq_lens["m15"] == 2
    assert recipe("data.window.span=60min", "data.window.min_bars=4").seq_lens["m15"] == 4


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2018-01-01", datetime(2018, 1, 1, tzinfo=UTC)),
        ("2018-01-01T17:00", datetime(2018, 1, 1, 17, tzinfo=UTC)),
        ("2018-01-01T17:00-05:00", datetime(2018, 1, 1, 22, tzinfo=UTC)),
    ],
)
def test_train_end_is_utc_unless_it_says_otherwise(text: str, instant: datetime):
    assert recipe(f"data.split.train_end={text}").train_end_ns == int(instant.timestamp()) * 10**9


def test_what_follows_from_the_recipe():
    assert (recipe().base, recipe().symbol, recipe().train_end_ns) == ("m1", "TEST", None)
    assert recipe("data.source.symbol=eurusd").symbol == "eurusd"


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        recipe().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["data.window.seq_len=48"], [("data.window.seq_len", 32, 48)]),
        (
            ["data.window.seq_len={m1: 8, m5: 8, m15: 8}", "data.features.set=price"],
            [("data.window.seq_len", 32, {"m1": 8, "m5": 8, "m15": 8}), ("data.features.set", "returns", "price")],
        ),
        (["data.timeframes=[m1, m5]"], [("data.timeframes", ["m1", "m5", "m15"], ["m1", "m5"])]),
        (["data.window.max_staleness={m5: 1h}"], [("data.window.max_staleness.m5", None, "1h")]),
    ],
)
def test_differences(overrides: list[str], expected: list[tuple[str, Any, Any]]):
    assert list(recipe(*overrides).differs_from(recipe().model_dump())) == expected


def test_differences_name_keys_that_only_one_side_knows():
    dumped = recipe().model_dump()
    del dumped["window"]["min_bars"]
    dumped["window"]["older"] = 1
    assert list(recipe().differs_from(dumped)) == [
        ("data.window.min_bars", None, 8),
        ("data.window.older", 1, None),
    ]
