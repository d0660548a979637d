import re
from pathlib import Path
from typing import Any

import pytest

from cache.recipe import Recipe
from cache.recipes import parse_recipe
from configs.errors import ConfigError
from configs.loader import SHIPPED, Model, differences, load_config, model_keys


class Training(Model):
    lr: float
    batch_size: int
    betas: list[float]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def child(tmp_path: Path) -> Path:
    return write(tmp_path, "child", "defaults: [test]\n")


def message(path: Path, *overrides: str, parse: bool = True) -> str:
    with pytest.raises(ConfigError) as caught:
        config = load_config(path, overrides)
        if parse:
            config.parse("data", Recipe)
    return str(caught.value)


def test_shipped_configurations_describe_recipes():
    for path in SHIPPED.glob("*.yaml"):
        if path.stem not in ("base", "sequences", "training"):  # these are what others begin with
            assert parse_recipe(load_config(path)).name in (path.stem, "demo", "eurusd")


def test_a_child_changes_what_it_names_and_keeps_the_rest(tmp_path: Path):
    write(tmp_path, "parent", "data: {window: {seq_len: 64, stride: 2}, timeframes: [m1, m5]}\ntraining: {lr: 1}\n")
    child = write(tmp_path, "child", "defaults: [parent]\ndata: {window: {seq_len: 8}, timeframes: [m1]}\n")
    config = load_config(child)
    assert config.values == {
        "data": {"window": {"seq_len": 8, "stride": 2}, "timeframes": ["m1"]},
        "training": {"lr": 1},
    }
    assert config.origins["data.window.seq_len"] == str(child)
    assert config.origins["data.window.stride"] == str(tmp_path / "parent.yaml")


def test_later_parents_win_over_earlier_ones(tmp_path: Path):
    for name, lr in (("first", 1), ("second", 2)):
        write(tmp_path, name, f"training: {{lr: {lr}, {name}: true}}\n")
    config = load_config(write(tmp_path, "child", "defaults: [first, second]\n"))
    assert config.values == {"training": {"lr": 2, "first": True, "second": True}}


def test_a_parent_is_looked_for_beside_the_child_first(tmp_path: Path):
    write(tmp_path, "base", "training: {lr: 1}\n")
    assert load_config(write(tmp_path, "child", "defaults: [base]\n")).values == {"training": {"lr": 1}}


def test_null_can_become_a_mapping_and_the_other_way_round(child: Path):
    config = load_config(child, ["data.source.session.tz=UTC", "data.source.session.at=17:00"])
    assert config.values["data"]["source"]["session"] == {"tz": "UTC", "at": "17:00"}
    config = load_config(child, ["data.source.session={tz: UTC, at: 17:00}", "data.source.session=null"])
    assert config.values["data"]["source"]["session"] is None


def test_shipped_configurations_are_found_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/test.yaml").path == SHIPPED / "test.yaml"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        (".5", 0.5),
        ("-1.", -1.0),
        (".inf", float("inf")),
        ("64", 64),
        ("+7", 7),
        ("010", 10),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("17:00", "17:00"),
        ("2018-01-01", "2018-01-01"),
        ("2018-01-01T17:00:00Z", "2018-01-01T17:00:00Z"),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'64'", "64"),
        ("[m1, m5]", ["m1", "m5"]),
        ("{m1: 64, d: 5}", {"m1": 64, "d": 5}),
        ("a=b", "a=b"),
    ],
)
def test_scalars_mean_the_same_in_files_and_on_the_command_line(tmp_path: Path, text: str, value: Any):
    given = load_config(write(tmp_path, "empty", ""), [f"training.x={text}"]).values["training"]["x"]
    written = load_config(write(tmp_path, "full", f"training:\n  x: {text}\n")).values["training"]["x"]
    assert (given, type(given)) == (written, type(written)) == (value, type(value))


def test_parsing_is_strict_about_types(tmp_path: Path):
    path = write(tmp_path, "c", "training: {lr: 3e-4, batch_size: 64.0, betas: [0.9, x]}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path).parse("training", Training)
    assert str(caught.value).splitlines() == [
        f"{path}: training.batch_size = 64.0: input should be a valid integer",
        f"{path}: training.betas.1 = 'x': input should be a valid number",
    ]
    assert load_config(path, ["training.batch_size=64", "training.betas=[1]"]).parse("training", Training) == Training(
        lr=3e-4, batch_size=64, betas=[1.0]
    )


def test_an_unknown_key_is_named_with_its_file_and_the_nearest_one(tmp_path: Path):
    path = write(tmp_path, "child", "defaults: [test]\ndata: {window: {seqlen: 8}}\n")
    assert message(path) == f"{path}: data.window.seqlen is not a known key; did you mean data.window.seq_len?"


def test_an_unknown_key_in_a_parent_is_blamed_on_the_parent(tmp_path: Path):
    parent = write(tmp_path, "parent", "defaults: [test]\ndata: {split: {embrago: 1d}}\n")
    child = write(tmp_path, "child", "defaults: [parent]\n")
    assert message(child) == f"{parent}: data.split.embrago is not a known key; did you mean data.split.embargo?"


def test_an_unknown_key_on_the_command_line(child: Path):
    assert message(child, "data.windw.seq_len=8") == (
        "command line: data.windw is not a known key; did you mean data.window?"
    )
    assert message(child, "data.source.session={tz: UTC, at: 17:00, day: 1}").startswith(
        "command line: data.source.session.day is not a known key"
    )


def test_an_unknown_section(child: Path, tmp_path: Path):
    assert message(child, "dta.name=x") == "command line: dta is not a known section; did you mean data?"
    path = write(tmp_path, "numbered", "1: {a: 2}\n")
    assert message(path) == (
        f"{path}: 1 is not a known section; known ones: data, model, masking, loss, classify, training"
    )


def test_a_missing_file_lists_the_shipped_ones(tmp_path: Path):
    shown = message(tmp_path / "no.yaml")
    assert shown.startswith(f"{tmp_path / 'no.yaml'}: no such configuration file. Shipped ones: configs/base.yaml, ")
    assert "configs/test.yaml" in shown


def test_a_missing_parent_is_named(tmp_path: Path):
    path = write(tmp_path, "child", "defaults: [bse]\n")
    assert message(path) == (f"{path}: `defaults:` names bse, but there is no bse.yaml beside it or in {SHIPPED}")


def test_missing_keys(tmp_path: Path):
    path = write(tmp_path, "alone", "data: {name: x}\n")
    assert message(path).splitlines()[0] == (
        f"{path}: data.source is missing (`defaults: [base]` supplies the usual ones)"
    )
    path = write(tmp_path, "child", "defaults: [base]\ndata: {name: x}\n")
    assert message(path) == f"{path}: data.source.files is missing"


def test_circular_defaults(tmp_path: Path):
    write(tmp_path, "a", "defaults: [b]\n")
    write(tmp_path, "b", "defaults: [a]\n")
    assert message(tmp_path / "a.yaml") == (
        f"{tmp_path / 'a.yaml'}: `defaults:` leads back to this file (a.yaml -> b.yaml)"
    )


def test_the_same_grandparent_twice_is_no_circle(tmp_path: Path):
    write(tmp_path, "a", "defaults: [base]\n")
    write(tmp_path, "b", "defaults: [base]\n")
    assert load_config(write(tmp_path, "child", "defaults: [a, b]\n")).values["training"]["seed"] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data:\n  name: [x\n", ", line 3, column 1: not valid YAML: did not find expected ',' or ']'"),
        ("data:\n  name: x\n  name: y\n", ", line 3, column 3: not valid YAML: name stands here twice"),
        ("training:\n  lr: 1\ntraining:\n  lr: 2\n", ", line 3, column 1: not valid YAML: training stands here twice"),
        ("data: {a: *b}\n", ", line 1, column 11: not valid YAML: found undefined alias"),
        ("- data\n", ": a configuration is a mapping of sections (data, model, masking, loss, classify, training)"),
        ("defaults: base\n", ": `defaults:` is a list of configuration names, for example [base]"),
    ],
)
def test_bad_yaml_is_an_error_with_its_place(tmp_path: Path, text: str, words: str):
    path = write(tmp_path, "bad", text)
    assert message(path) == f"{path}{words}"


def test_a_file_that_is_not_text(tmp_path: Path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"data: {name: caf\xe9}\n")
    assert message(path) == f"{path}: not UTF-8 text (invalid continuation byte at byte 16)"


@pytest.mark.parametrize("override", ["x", "=3", "data=3", "training.batch size=3", "training.=3"])
def test_overrides_that_are_none(child: Path, override: str):
    assert message(child, override) == (
        f"{override!r} is not an override; write key=value, for example training.batch_size=32"
    )


def test_an_override_that_is_not_yaml(child: Path):
    assert re.fullmatch(r"command line, line \d, column \d: not valid YAML: .+", message(child, "data.name=[a"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.window.stride=2.5", "data.window.stride = 2.5: input should be a valid integer"),
        ("data.window.stride=0", "data.window.stride = 0: input should be greater than or equal to 1"),
        ("data.window.min_coverage=2", "data.window.min_coverage = 2: input should be less than or equal to 1"),
        ("data.source.label=middle", "data.source.label = 'middle': input should be 'left' or 'right'"),
        (
            "data.timeframes=[m1, 5]",
            "data.timeframes.1 = 5: '5' is not a timeframe; write for example s30, m1, m15, h4 or d",
        ),
        (
            "data.split.train_end=2018",
            "data.split.train_end = 2018: '2018' is not an instant; write for example 2018-01-01 or "
            "2018-01-01T17:00+00:00",
        ),
        (
            "data.window.max_staleness={m5: 3x}",
            "data.window.max_staleness.m5 = '3x': '3x' is not a duration; write for example 0s, 90s, 200min, 4h, 1d "
            "or 2w",
        ),
        (
            "data.source.columns={tme: t}",
            "data.source.columns.tme = 'tme': input should be 'time', 'open', 'high', 'low' or 'close'",
        ),
    ],
)
def test_wrong_values_are_named_with_key_value_and_where_they_came_from(child: Path, override: str, words: str):
    assert message(child, override) == f"command line: {words}"


def test_a_wrong_value_for_either_of_two_types_names_the_key_as_written(child: Path):
    (line,) = message(child, "data.window.seq_len=x").splitlines()
    assert line.startswith("command line: data.window.seq_len = 'x': input should be a valid integer")
    assert "command line: data.window.seq_len.m5 = 0: input should be greater than or equal to 1" in message(
        child, "data.window.seq_len={m1: 8, m5: 0, m15: 8}"
    )


def test_a_rule_between_keys_is_told_without_the_whole_recipe(child: Path):
    assert message(child, "data.timeframes=[m5, m1]") == (
        f"{child}: data: timeframes go from the base upwards, each once, but m5 stands before m1"
    )


@pytest.mark.parametrize(("text", "value"), [("data: 5\n", "5"), ("data:\n", "None"), ("data: [a]\n", "['a']")])
def test_a_section_that_is_no_mapping(tmp_path: Path, text: str, value: str):
    path = write(tmp_path, "c", text)
    assert message(path) == f"{path}: data = {value}: input should be a valid dictionary or instance of Recipe"


def test_a_dump_reads_back_as_the_same_configuration(tmp_path: Path, child: Path):
    config = load_config(child, ["training.lr=3e-4", "data.source.session={tz: UTC, at: 17:00}", "data.name='12'"])
    assert load_config(write(tmp_path, "dumped", config.dump())).values == config.values


def test_differences():
    old = {"a": {"b": 1, "c": [1], "gone": 0}, "same": 1}
    new = {"a": {"b": 2, "c": [1, 2]}, "same": 1, "came": {"d": 1}}
    assert sorted(differences(old, new)) == [
        ("a.b", 1, 2),
        ("a.c", [1], [1, 2]),
        ("a.gone", 0, None),
        ("came", None, {"d": 1}),
    ]
    assert list(differences({"a": 1}, {"a": 2}, "data")) == [("data.a", 1, 2)]


def test_all_keys_of_a_model_are_known():
    class Inner(Model):
        x: int

    class Outer(Model):
        inner: Inner
        perhaps: Inner | None
        y: str

    assert list(model_keys(Outer, "o")) == ["o.inner", "o.inner.x", "o.perhaps", "o.perhaps.x", "o.y"]


def test_a_python_file_lies_where_the_file_lies_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "below").mkdir()
    (tmp_path / "below/parent.yaml").write_text("defaults: [test]\ntraining: {task: mine.py}\n")
    (tmp_path / "below/child.yaml").write_text("defaults: [parent]\ndata: {features: {plugin: ../columns.py}}\n")
    monkeypatch.chdir(tmp_path)
    values = load_config("below/child.yaml").values
    assert values["training"]["task"] == str(tmp_path / "below/mine.py")
    assert Path(values["data"]["features"]["plugin"]).resolve() == tmp_path / "columns.py"
    assert load_config("below/child.yaml", ["training.task=other.py"]).values["training"]["task"] == str(
        tmp_path / "other.py"
    )
    assert load_config("configs/test.yaml").values["training"]["task"] == "reconstruct"
