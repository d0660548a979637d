"""Recipes of every kind: `data.source.kind` decides which model a `data:` section follows."""

from typing import Any

from cache.recipe import Recipe
from cache.sequence_recipe import SequenceRecipe
from configs.errors import ConfigError
from configs.loader import Config

AnyRecipe = Recipe | SequenceRecipe
_MODELS: dict[str, type[Recipe] | type[SequenceRecipe]] = {"bars": Recipe, "sequences": SequenceRecipe}


def parse_recipe(config: Config) -> AnyRecipe:
    """The `data:` section as a typed recipe. Raises ConfigError."""
    kind = _kind(config.values.get("data"))
    if kind not in _MODELS:
        where = config.origins.get("data.source.kind", config.path)
        raise ConfigError(
            f"{where}: data.source.kind = {kind!r} is not a kind of source; known ones: {', '.join(_MODELS)}"
        )
    return config.parse("data", _MODELS[kind])


def validate_recipe(values: Any) -> AnyRecipe:
    """A recipe that was dumped earlier. Raises pydantic.ValidationError."""
    return _MODELS.get(_kind(values), Recipe).model_validate(values)


def _kind(values: Any) -> str:
    """What a section says, bars where it says nothing: the model of bars then tells what is missing."""
    source = values.get("source") if isinstance(values, dict) else None
    return str(source.get("kind", "bars")) if isinstance(source, dict) else "bars"
