"""bin/cache explain: what a build would do, and why."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache.console import Console, command, examples
from cache.recipes import parse_recipe
from configs.loader import load_config
from pipeline.explain_lines import explanation_lines
from pipeline.universe import Faults

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
    that is there, field by field. Of more than 70 entries those with the same cause are counted together; --json lists
    each. Whether the recipe leaves any windows is not judged: the build finds that out.
    Symbols that the last build left out count as left out again, where their files and data.source are the same.
    """
    recipe = parse_recipe(load_config(config_path, overrides))
    from pipeline.explain import explain, left_out_before  # pyarrow and numba, which bad arguments need not wait for
    from pipeline.ways import way_of

    way = way_of(recipe)
    console = Console(sys.stderr)
    with console.phase("fingerprint sources"):
        sources = way.find_sources(recipe, data_dir, store)
    plan = way.make_plan(recipe, sources, left_out_before(recipe, sources, data_dir, store))
    with console.phase("compare with the store"):
        explanation = explain(plan, sources, data_dir, store)
    if as_json:
        click.echo(json.dumps(_as_json(explanation, plan.left_out), indent=2))
    else:
        click.echo("\n".join(explanation_lines(recipe.name, explanation, plan.left_out)))


def _as_json(explanation: "Explanation", left_out: Faults) -> dict[str, object]:
    return {
        "files": [asdict(file) for file in explanation.files],
        "changes": list(explanation.changes),
        "left_out": dict(left_out),
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
