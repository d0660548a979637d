"""The certificate: proof that no window of a finished dataset holds anything that was not known at its decision time.

completion     all windows end with the last bar that was over, in every timeframe
purge          training and validation share no instant, all windows
statistics     means and deviations were fitted on training bars alone
masks          a hidden bar cannot be worked out from what stays visible
truncation     sampled windows, made again from bars cut off after them, are the same to the byte
randomisation  the same with other prices after them, and a third of those bars missing
streams        of a dataset in the store: every row of every stream is what its bars give
"""

import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cache.console import Console
from cache.plugin import features_plugin
from cache.reader import Dataset
from cache.recipe import Recipe
from cache.timeframes import duration_ns
from configs.errors import UserError
from pipeline.certify_completion import check_completion
from pipeline.certify_evidence import Evidence, Finding
from pipeline.certify_purge import check_purge, end_of_training
from pipeline.certify_rows import check_details, check_rows, stream_rows
from pipeline.certify_streams import check_masks, check_statistics
from pipeline.certify_windows import check_moment, draw_moments
from pipeline.own_features import RULE
from pipeline.series import BarSeries
from pipeline.universe import held_out

_LONG = 1 << 16  # base bars of a symbol, from which on statistics are fitted again beside the other checks
CHECKS = ("completion", "purge", "statistics", "masks", "truncation", "randomisation")
Certificate = dict[str, Any]


def certify(
    recipe: Recipe,
    symbols: Mapping[str, Evidence],
    splits: Mapping[str, Any],
    samples: int,
    seed: int,
    advance: Callable[[int], object] = lambda windows: None,
) -> Certificate:
    """Prove a dataset, published or about to be: {"passed", "samples", "seed", "checks": {name: {"passed", …}}}.

    Args:
        recipe: what was built.
        symbols: what the store holds of every symbol.
        splits: {"train": {"until", "windows": {symbol: [0, a]}}, "val": {"from", "windows": {symbol: [b, n]}}}.
        samples: about how many windows to make again; the first and the last of every part are among them.
        seed: decides which, and what stands in for their future.
        advance: hears of every window that has been made again.

    Nothing is raised for what does not pass. Entries that are missing or damaged raise StoreError.
    """
    rng = np.random.default_rng(seed)
    start = end_of_training(recipe, symbols, splits["val"]["from"])
    cutoff = start - duration_ns(recipe.split.embargo)
    moments = draw_moments(recipe, symbols, splits, samples, rng)
    proved = [evidence.proved for evidence in symbols.values() if evidence.proved]
    refit = partial(check_statistics, symbols, cutoff, held_out(recipe, symbols))
    with ThreadPoolExecutor(1) as beside:
        # two threads that each read many short arrays wait for each other more than they gain
        long = sum(len(evidence.bars[recipe.base]) for evidence in symbols.values()) > _LONG * len(symbols)
        statistics = beside.submit(refit).result if long else refit
        findings = {
            "completion": check_completion(recipe, symbols),
            "purge": check_purge(recipe, symbols, splits, start),
            "masks": check_masks(symbols, samples, rng),
            "truncation": Finding(),
            "randomisation": Finding(),
        }
        for moment in moments:
            for name, faults in check_moment(recipe, symbols[moment.symbol], moment, rng).items():
                findings[name].checked += 1
                findings[name].faults += faults
            advance(1)
        findings["statistics"] = statistics()
    several = len({moment.symbol for moment in moments})
    for name, future in (("truncation", "are cut off"), ("randomisation", "have other prices and a third is gone")):
        findings[name].detail = (
            f"{len(moments)} windows of {several} symbol{'s' * (several > 1)}, made again where the bars after them "
            f"{future}, are the same to the byte"
        )
    return {
        "passed": not any(finding.faults for finding in findings.values()),
        "samples": len(moments),
        "seed": seed,
        **({"taken_over": {proved[0].dataset: sum(one.windows for one in proved)}} if proved else {}),
        "checks": {name: findings[name].as_dict() for name in CHECKS},
    }


def evidence_of(dataset: Dataset, store: Path) -> dict[str, Evidence]:
    """What a published dataset rests on. Raises StoreError when its bars are gone."""
    return {
        symbol: Evidence(
            entries.windows,
            entries.streams,
            {name: BarSeries(store, keys) for name, keys in entries.windows.manifest["components"]["inputs"].items()},
            dataset.recipe["features"].get("plugin"),
        )
        for symbol, entries in dataset.symbols.items()
    }


def certify_dataset(
    dataset: Dataset, store: Path, samples: int, seed: int, console: Console | None = None
) -> Certificate:
    """The certificate of a published dataset, with the check `streams`. Raises StoreError.

    Entries that are not what the recipe says get no other check.
    """
    console = console or Console(io.StringIO())
    plugin = features_plugin(dataset, dataset.recipe)
    recipe = Recipe.model_validate(dataset.entry.manifest["recipe"])
    if plugin:  # may have moved since
        recipe = recipe.model_copy(update={"features": recipe.features.model_copy(update={"plugin": str(plugin)})})
    symbols = evidence_of(dataset, store)
    found = check_details(recipe, dataset.entry, symbols)
    if found.faults:
        return {"passed": False, "samples": 0, "seed": seed, "checks": {"streams": found.as_dict()}}
    with console.bar("comparing streams with bars", "rows", stream_rows(symbols)) as bar:
        compared = check_rows(recipe, symbols, bar.update)
    with console.bar("certifying", "windows", samples) as bar:
        certificate = certify(recipe, symbols, dataset.splits, samples, seed, bar.update)
    certificate["checks"]["streams"] = compared.as_dict()
    return {**certificate, "passed": certificate["passed"] and not compared.faults}


def certificate_error(certificate: Certificate, name: str, plugin: str | None = None) -> UserError:
    """The error for a dataset that does not pass: it must not be published."""
    failed = {check: result for check, result in certificate["checks"].items() if not result["passed"]}
    lines = "".join(f"\n  {check}: {result['detail']}" for check, result in failed.items())
    cause = (
        f"The likely cause is {plugin}: its function {RULE}"
        if plugin
        else "Your data cannot cause this: either an entry of the store was changed, and building into a new one "
        "(--store) helps, or Headstart has a fault; please report these lines"
    )
    return UserError(
        f"{name}: not published, because it does not prove that every window holds only what was known at its time."
        f"{lines}\n{cause}"
    )
