"""bin/cache explain: what a build would do, and why."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache.console import Console, command, examples
from cache.recipes import parse_recipe
from configs.loader import load_config

if TYPE_CHECKING:
    from pipeline.explain import Explanation


@command(
    name="explain",
    epilog=examples(
        "bin/cache explain --config configs/demo.yaml --data-dir data/demo",
        "bin/cache explain --config configs/demo.yaml --data-dir data/demo data.window.seq_len=64",
    ),
)
@click.option("--config", "config_path", required=True, help="YAML file with a data: section.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=".",
    show_default=True,
    help="Where the recipe's paths begin, as for bin/build-cache.",
)
@click.option("--store", type=click.Path(path_type=Path), default="store", show_default=True, help="The store.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def explain_command(config_path: str, overrides: tuple[str, ...], data_dir: Path, store: Path, as_json: bool) -> None:
    """Say what a build would do, and why.

    With the arguments of bin/build-cache; nothing is built. For every entry: hit (it is there), build, or stale source
    (to be built anew because the content of a source file changed). A missing entry is compared with the nearest one
    that is there, field by field. Whether the recipe leaves any windows is not judged: the build finds that out.
    """
    recipe = parse_recipe(load_config(config_path, overrides))
    from pipeline.explain import explain  # pyarrow and numba, which bad arguments need not wait for
    from pipeline.ways import way_of

    way = way_of(recipe)
    with Console(sys.stderr).phase("fingerprint sources"):
        sources = way.find_sources(recipe, data_dir, store)
    explanation = explain(way.make_plan(recipe, sources, {}), sources, data_dir, store)
    if as_json:
        click.echo(json.dumps(_as_json(explanation), indent=2))
    else:
        click.echo("\n".join(_lines(recipe.name, explanation)))


def _lines(name: str, explanation: "Explanation") -> Iterator[str]:
    missing, total = len(explanation.missing), len(explanation.verdicts)
    yield f"{name}: {total - missing} of {total} entries are in the store, {missing} to build"
    if explanation.files:
        yield "\nSource files, against the last build under this name:"
        yield from (f"  {file.timeframe:<4} {file.path}: {file.state}" for file in explanation.files)
    if explanation.changes:
        yield "\nThe recipe, against the last build under this name:"
        yield from (f"  {change}" for change in explanation.changes)
    yield "\nEntries:"
    for verdict in explanation.verdicts:
        yield f"  {verdict.state:<12}  {verdict.node.label}  {verdict.node.components.key}"
        yield from (f"                  {reason}" for reason in verdict.reasons)
        if verdict.nearest:
            yield f"                  (compared with {verdict.nearest}, the nearest there is)"


def _as_json(explanation: "Explanation") -> dict[str, object]:
    return {
        "files": [asdict(file) for file in explanation.files],
        "changes": list(explanation.changes),
        "entries": [
            {
                "stage": verdict.node.components.stage,
                "symbol": verdict.node.symbol,
                "timeframe": verdict.node.timeframe,
                "file": verdict.node.file and verdict.node.file.path.name,
                "key": verdict.node.components.key,
                "state": verdict.state,
                "reasons": list(verdict.reasons),
                "nearest": verdict.nearest,
            }
            for verdict in explanation.verdicts
        ],
    }
