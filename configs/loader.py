"""Reads experiment configurations: YAML with `defaults:` inheritance and dotted overrides.

A configuration has up to six sections: `data` is the recipe (cache/recipe.py), the others belong to the trainer
(trainer/config.py). This module only merges them and words the errors; the typed models live with their owners.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from configs.errors import ConfigError

SECTIONS = ("data", "model", "masking", "loss", "classify", "training")
PLUGINS = (("data", "features", "plugin"), ("training", "task"))  # where a user's own Python file may be named
COMMAND_LINE = "command line"
SHIPPED = Path(__file__).parent

M = TypeVar("M", bound="Model")


class Model(BaseModel):
    """Base of all typed configuration: immutable, strict about types, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Config:
    """A merged configuration: `values` by section, `origins` says which file (or the command line) set a dotted key."""

    path: Path
    values: dict[str, Any]
    origins: dict[str, str]
    overrides: tuple[str, ...]

    def parse(self, section: str, model: type[M]) -> M:
        """The section as a typed model.

        Raises ConfigError naming the file, the dotted key, the value and the nearest valid key.
        """
        try:
            return model.model_validate(self.values.get(section, {}))
        except ValidationError as error:
            raise ConfigError("\n".join(self._explain(section, model, error))) from None

    def _explain(self, section: str, model: type[M], error: ValidationError) -> Iterator[str]:
        for fault in error.errors():
            key, where = self._written(section, fault["loc"])
            message = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                yield f"{where}: {key} is not a known key{_nearest(key, list(model_keys(model, section)))}"
            elif fault["type"] == "missing":
                hint = self._hint()
                yield f"{self.path}: {key}.{fault['loc'][-1]} is missing{hint}"
            elif fault["type"] == "value_error" and isinstance(fault["input"], Mapping):  # a rule between several keys
                yield f"{self.path}: {key}: {message}"
            else:
                hint = "; write a space behind the colon" if fault["input"] is None and ":" in key else ""
                yield f"{where}: {key} = {fault['input']!r}: {message[:1].lower()}{message[1:]}{hint}"

    def _hint(self) -> str:
        """What to begin with, where a configuration begins with no defaults."""
        origins = str(self.origins.values())
        if "base.yaml" in origins or "sequences.yaml" in origins:
            return ""
        data = self.values.get("data")
        source = data.get("source") if isinstance(data, dict) else None
        of_sequences = isinstance(source, dict) and source.get("kind") == "sequences"
        return f" (`defaults: [{'sequences' if of_sequences else 'base'}]` supplies the usual ones)"

    def _written(self, section: str, loc: tuple[int | str, ...]) -> tuple[str, str | Path]:
        """The dotted key of a fault, and who set it. Union members and `[key]` in `loc` are left out."""
        value: Any = self.values.get(section)
        key, where = section, self.origins.get(section)
        for part in loc:
            children: Any = dict(enumerate(value)) if isinstance(value, list) else value
            if isinstance(children, Mapping) and part in children:
                value, key = children[part], f"{key}.{part}"
                where = self.origins.get(key, where)
        return key, where or self.path

    def dump(self) -> str:
        """The resolved configuration as YAML."""
        return yaml.safe_dump(self.values, sort_keys=False)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, merge what its `defaults:` name (earlier ones first) and apply `key=value` overrides.

    A path that does not exist as given is also looked for beside the shipped configurations' folder, so that
    `configs/demo.yaml` works from any directory. Raises ConfigError.
    """
    found = next((p for p in (Path(path), SHIPPED.parent / path) if p.is_file()), None)
    if found is None:
        shipped = ", ".join(f"configs/{p.name}" for p in sorted(SHIPPED.glob("*.yaml")))
        raise ConfigError(f"{path}: no such configuration file. Shipped ones: {shipped}")
    values, origins = _read(found, ())
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not re.fullmatch(r"\w+(\.\w+)+", key):
            raise ConfigError(f"{override!r} is not an override; write key=value, for example training.batch_size=32")
        value: Any = _parse_yaml(text, COMMAND_LINE)
        for part in reversed(key.split(".")):
            value = {part: value}
        _merge(values, origins, value, COMMAND_LINE)
    unknown = [str(section) for section in values if section not in SECTIONS]
    if unknown:
        where = next((f for k, f in origins.items() if k.split(".")[0] == unknown[0]), str(found))
        raise ConfigError(f"{where}: {unknown[0]} is not a known section{_nearest(unknown[0], SECTIONS)}")
    for place in PLUGINS:
        _from_its_file(values, origins, place)
    return Config(found, values, origins, tuple(overrides))


def model_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """All dotted keys that `model` knows, `prefix` first."""
    for name, field in model.model_fields.items():
        yield f"{prefix}.{name}"
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from model_keys(part, f"{prefix}.{name}")


def differences(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys below `at` whose values differ: (key, old value, new value)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**new, **old}:
            yield from differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield at, old, new


def _from_its_file(values: dict[str, Any], origins: Mapping[str, str], key: Sequence[str]) -> None:
    """Make the path of a Python file absolute: it is told from where the file lies that names it."""
    place: Any = values
    for part in key[:-1]:
        place = place.get(part) if isinstance(place, dict) else None
    named = place.get(key[-1]) if isinstance(place, dict) else None
    if isinstance(named, str) and named.endswith(".py"):
        origin = origins[".".join(key)]
        folder = Path() if origin == COMMAND_LINE else Path(origin).parent
        place[key[-1]] = str((folder / named).absolute())


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known ones: {', '.join(known)}"


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `defaults:` leads back to this file ({' -> '.join(p.name for p in seen)})")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    own = _parse_yaml(text, str(path)) or {}
    if not isinstance(own, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of sections ({', '.join(SECTIONS)})")
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    parents = own.pop("defaults", [])
    if not isinstance(parents, list):
        raise ConfigError(f"{path}: `defaults:` is a list of configuration names, for example [base]")
    for name in parents:
        parent = next((p for p in (path.parent / f"{name}.yaml", SHIPPED / f"{name}.yaml") if p.is_file()), None)
        if parent is None:
            raise ConfigError(
                f"{path}: `defaults:` names {name}, but there is no {name}.yaml beside it or in {SHIPPED}"
            )
        parent_values, parent_origins = _read(parent, (*seen, path.resolve()))
        _merge(values, origins, parent_values, "")
        origins.update(parent_origins)
    _merge(values, origins, own, str(path))
    return values, origins


def _merge(values: dict[str, Any], origins: dict[str, str], new: Mapping[str, Any], origin: str, at: str = "") -> None:
    """Merge mappings key by key into `values`; anything else, lists included, replaces what was there."""
    for key, value in new.items():
        dotted = f"{at}{key}"
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], origins, value, origin, dotted + ".")
            continue
        values[key] = {} if isinstance(value, Mapping) else value
        origins[dotted] = origin
        if isinstance(value, Mapping):
            _merge(values[key], origins, value, origin, dotted + ".")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML with the scalars of version 1.2: `3e-4` is a number; `no`, `17:00` and `2018-01-01` are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} stands here twice", node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value, 10))


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{at}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
