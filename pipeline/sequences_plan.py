"""The entries of a dataset of sequences, as a pure function of the recipe and the sources' fingerprints.

recordings   one a file, or a part of it: what was read, checked
streams      all: filled, derived, of one length      fold-k: the same, normalised by what fold k trains on
windows      which rows are which sequence; labels, groups and folds
datasets     all of it, certified
"""

from typing import Any

from cache.keys import Components
from cache.layout import ALL_FOLDS, SEQUENCES, fold_name
from cache.sequence_recipe import SequenceRecipe
from pipeline.channels import derivation
from pipeline.plan import Node, Plan, SourceFile, Sources

STAGE_VERSIONS = {"recordings": 2, "streams": 1, "windows": 1, "datasets": 1}


def make_sequence_plan(recipe: SequenceRecipe, sources: Sources) -> Plan:
    """Plan a dataset. Raises UserError for derivations that are not known."""
    nodes = [_recordings(recipe, file) for file in sources[recipe.name]["recordings"]]
    recordings = tuple(node.components.key for node in nodes)
    raw = _node(recipe, "streams", _stream_fields(recipe), {"recordings": recordings}, recordings, ALL_FOLDS)
    windows = _node(recipe, "windows", _window_fields(recipe), {"recordings": recordings}, recordings)
    nodes += [raw, windows]
    streams = {ALL_FOLDS: raw.components.key}
    if recipe.normalise != "none":
        needs = (raw.components.key, windows.components.key)
        inputs = {"streams": needs[:1], "windows": needs[1:]}
        scaled = [
            _node(recipe, "streams", {"normalise": recipe.normalise, "fold": k}, inputs, needs, fold_name(k))
            for k in range(recipe.folds.count)
        ]
        nodes += scaled
        streams = {str(node.timeframe): node.components.key for node in scaled}
    entries = {recipe.name: {"windows": windows.components.key, "streams": streams}}
    nodes.append(_node(recipe, "datasets", {}, entries, (windows.components.key, *streams.values())))
    unique = {node.components.key: node for node in nodes}
    return Plan(recipe, tuple(unique.values()))


def _node(
    recipe: SequenceRecipe,
    stage: str,
    fields: dict[str, Any],
    inputs: dict[str, Any],
    needs: tuple[str, ...],
    stream: str | None = None,
) -> Node:
    components = Components(stage, STAGE_VERSIONS[stage], {"kind": SEQUENCES, **fields}, inputs)
    return Node(components, needs, recipe.name, stream)


def _recordings(recipe: SequenceRecipe, file: SourceFile) -> Node:
    fields = recipe.source.model_dump(exclude={"kind", "files", "binary"})
    inputs = {"content": file.md5, **({"span": file.span} if file.span else {})}
    components = Components("recordings", STAGE_VERSIONS["recordings"], {"kind": SEQUENCES, "source": fields}, inputs)
    return Node(components, (), recipe.name, None, file)


def _stream_fields(recipe: SequenceRecipe) -> dict[str, Any]:
    return {
        "fill": recipe.fill,
        "derive": [[name, derivation(name).version] for name in recipe.derive],
        "length": recipe.length.model_dump(),
    }


def _window_fields(recipe: SequenceRecipe) -> dict[str, Any]:
    binary = recipe.source.binary
    return {
        "length": recipe.length.model_dump(),
        "source": {"labels": recipe.source.labels, "binary": binary.model_dump() if binary else None},
        "folds": recipe.folds.model_dump(),
    }
