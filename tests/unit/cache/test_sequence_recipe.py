import pytest
from pydantic import ValidationError

from cache.recipe import Recipe
from cache.recipes import parse_recipe, validate_recipe
from cache.sequence_recipe import SequenceRecipe
from configs.errors import ConfigError
from configs.loader import load_config


def refused(*overrides: str, config: str = "configs/imu.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(load_config(config, overrides))
    return str(caught.value)


def test_the_kind_of_source_decides():
    bars, sequences = (parse_recipe(load_config(f"configs/{name}.yaml")) for name in ("test", "imu"))
    assert isinstance(bars, Recipe) and isinstance(sequences, SequenceRecipe)
    for recipe in (bars, sequences):
        assert validate_recipe(recipe.model_dump()) == recipe
        assert list(recipe.differs_from(recipe.model_dump())) == []
    assert sequences.labels == ["gesture", "target"]
    assert sequences.streams == ["fold-0", "fold-1", "fold-2", "fold-3", "fold-4"]


def test_a_kind_that_is_none():
    assert refused("data.source.kind=sounds") == (
        "command line: data.source.kind = 'sounds' is not a kind of source; known ones: bars, sequences"
    )
    with pytest.raises(ValidationError):
        validate_recipe({"source": {"kind": "sounds"}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.source.labels=[subject]", "data.source: names column subject twice; id, order, group and labels"),
        ("data.source.binary.label=hand", "data.source: binary.label = hand is not among labels = ["),
        ("data.source.binary.name=gesture", "data.source: binary.name = gesture is a label already; call it"),
        (
            "data.fill=[forward]",
            "data: fill = ['forward'] must end with zero, or channels without any value stay empty",
        ),
        ("data.fill=[linear, zero]", "command line: data.fill.0 = 'linear': input should be 'forward', 'backward' or"),
        ("data.length.seq_len=1", "command line: data.length.seq_len = 1: input should be greater than or equal to 2"),
        ("data.folds.count=1", "command line: data.folds.count = 1: input should be greater than or equal to 2"),
        ("data.normalise=minmax", "command line: data.normalise = 'minmax': input should be 'robust', 'standard' or"),
        ("data.lenght.mode=pad", "command line: data.lenght is not a known key; did you mean data.length?"),
    ],
)
def test_what_is_refused(override: str, message: str):
    assert message in refused(override)


def test_the_hint_at_defaults_is_of_the_kind(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("data: {name: own, source: {kind: sequences, files: a.csv}}\n")
    assert "data.length is missing (`defaults: [sequences]` supplies the usual ones)" in refused(config=str(path))
