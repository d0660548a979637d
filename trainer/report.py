"""Scores as tables for people, at most 100 columns wide."""

from typing import Any

from trainer.scores import PREDICTORS, QUANTITIES, TIME_OF_WEEK


def table(result: dict[str, Any]) -> list[str]:
    """What evaluation found."""
    summary = result["summary"]
    rows = [
        f"On the hidden bars of {summary['windows']:,} validation windows from {summary['weeks']} calendar weeks",
        f"{'':17}{'correlation of':>31}   {'normalised o, h, l, c':>25}   {'valid':>7} {'spectral':>9}",
        f"{'':17}{'level':>9}{'log-return':>11}{'log-range':>11}   {'MSE':>7}  {'MAE':>7}  {'RMSE':>7}   "
        f"{'bars':>7} {'delta':>9}",
    ]
    for timeframe, correlation in result["correlation_per_tf"].items():
        quality, delta = result["reconstruction_quality"][timeframe], result["spectral_delta"][timeframe]
        rows.append(f"{timeframe}  ({correlation['n']:,} hidden bars)")
        for name in PREDICTORS:
            level, log_return, log_range = (_r(correlation[name][quantity]) for quantity in QUANTITIES)
            mse, mae, rmse = (_r(quality[name][error]) for error in ("mse", "mae", "rmse"))
            rows.append(
                f"  {name.replace('_', ' '):15}{level:>9}{log_return:>11}{log_range:>11}   {mse:>7}  {mae:>7}  "
                f"{rmse:>7}   {_share(quality[name]['ohlc_validity']):>7} {_r(delta[name]):>9}"
            )
        rows.append(f"  {'time of week':15}{'':20}{_r(correlation[TIME_OF_WEEK]['log_range']):>11}")
    return [*rows, *_leads(result), *_consistency(result["consistency_ratio"]), *summary["notes"]]


def probe_table(probes: dict[str, Any]) -> list[str]:
    """What the probes found, and what to think of it."""
    if "reason" in probes:
        return [f"No probes: {probes['reason']}."]
    volatility, direction, session = (probes[name] for name in ("volatility", "direction", "session"))
    rows = [
        f"What the frozen encoder knows: ridge on {probes['train_windows']:,} training windows, scored on "
        f"{probes['val_windows']:,} of validation",
        f"  of the next {probes['horizon_bars']} base bars    volatility             direction                      "
        "hour of day",
        f"{'':23}{'R²':>9}{'r':>8}{'accuracy':>12}{'AUC':>9}{'rank IC':>10}{'accuracy':>14}",
    ]
    for name, words in PROBED.items():
        scores = volatility.get(name, {})
        row = f"  {words:21}{_r(scores.get('r2')):>9}{_r(scores.get('correlation')):>8}"
        if name in direction:
            of = direction[name]
            row += f"{_r(of['accuracy']):>12}{_r(of['auc']):>9}{_r(of['rank_ic']):>10}{_r(session.get(name)):>14}"
        rows.append(row)
    errors = (direction["encoder"][f"{name}_error"] for name in ("accuracy", "auc", "rank_ic"))
    accuracy, auc, rank_ic = map(_r, errors)
    rows += [
        f"  {'majority class':21}{'':17}{_r(direction['majority_accuracy']):>12}{'':19}"
        f"{_r(session.get('majority')):>14}",
        f"  {'pure chance':21}{'':17}{'0.5000':>12}{'0.5000':>9}{'0.0000':>10}",
        f"  {'standard error of it':21}{'':17}{accuracy:>12}{auc:>9}{rank_ic:>10}",
    ]
    return rows + [f"  {line}" for line in verdicts(probes)]


PROBED = {
    "encoder": "encoder",
    "untrained": "encoder, untrained",
    "raw_window": "the bars themselves",
    "har": "HAR",
    "har_and_hour": "HAR and hour of day",
    "har_and_encoder": "HAR and encoder",
}


def verdicts(probes: dict[str, Any]) -> list[str]:
    """What to think of the probes, in sentences."""
    r2 = {name: of["r2"] for name, of in probes["volatility"].items() if of["r2"] is not None}
    said = []
    if "encoder" in r2:
        rivals = {
            name: value for name, value in r2.items() if name in ("untrained", "raw_window", "har", "har_and_hour")
        }
        best = max(rivals, key=lambda name: rivals[name])
        gap = r2["encoder"] - rivals[best]
        said.append(
            f"Volatility: {'ahead of' if gap > 0 else 'behind'} the best rival ({PROBED[best]}) by {abs(gap):.3f}."
        )
        said.append(f"Training changed that by {r2['encoder'] - rivals['untrained']:+.3f} of R².")
    of = probes["direction"]["encoder"]
    judged = [("accuracy", "accuracy", 0.5), ("auc", "AUC", 0.5), ("rank_ic", "rank IC", 0.0)]
    if probes["symbols"] > 1:
        judged = []
        said.append("Direction is not judged: symbols move together, so that errors are larger than is told here.")
    for key, what, chance in judged:
        if of[key] is None or of[f"{key}_error"] is None:
            said.append(f"Direction, {what}: cannot be told.")
        else:
            away = (of[key] - chance) / of[f"{key}_error"]
            words = "no different from chance" if abs(away) < 2 else "unlike chance, in this one stretch of time"
            said.append(f"Direction, {what}: {away:+.1f} standard errors from chance: {words}.")
    if probes["feature_set"] == "price":
        said.append("Prices as inputs flatter AUC and rank IC, even of a random walk (Stambaugh 1999); not accuracy.")
    if "reason" in probes["session"]:
        said.append(f"Hour of day: not asked, {probes['session']['reason']}.")
    ranks = probes["effective_rank"]
    said.append(
        f"Effective rank of the embeddings: {ranks['encoder']['rank']:.1f} of {ranks['encoder']['of']} "
        f"(untrained {ranks['untrained']['rank']:.1f})."
    )
    return said


def _leads(result: dict[str, Any]) -> list[str]:
    if not any(of["model_interval"]["level"] for of in result["correlation_per_tf"].values()):
        return []
    rows = [
        "Model less the best baseline, with 95 % intervals from resampled weeks",
        f"{'':5}{'level':>23}{'log-return':>23}{'log-range':>23}{'MSE':>23}",
    ]
    for timeframe, correlation in result["correlation_per_tf"].items():
        leads = correlation["model_minus_best_baseline"] | {
            "mse": result["reconstruction_quality"][timeframe]["model_minus_best_baseline"]["mse"]
        }
        rows.append(f"{timeframe:5}" + "".join(f"{_lead(leads[key]):>23}" for key in (*QUANTITIES, "mse")))
    return rows


def _consistency(consistency: dict[str, Any]) -> list[str]:
    if not consistency["pairs"]:
        return [f"Consistency between timeframes: none, {consistency['reason']}."]
    tick = f" of {consistency['tick']:g}" if consistency["tick"] else ""
    rows = [
        f"Coarse bars equal to what their predicted children make, within half a tick{tick}, and the gap",
        f"{'':11}{'bars':>9}" + "".join(f"{name.replace('_', ' '):>20}" for name in (*PREDICTORS, "truth")),
    ]
    for pair, of in consistency["pairs"].items():
        if of["eligible"]:
            shares = "".join(
                f"{_share(of[name]['ratio']):>8}{_ticks(of[name]['gap_ticks']):>12}" for name in (*PREDICTORS, "truth")
            )
            rows.append(f"{pair:11}{of['eligible']:>9,}{shares}")
        else:
            rows.append(f"{pair:11}{0:>9} {of['reason']}")
    return rows


def _r(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _ticks(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} ticks" if value >= 1000 else f"{value:.1f} ticks"


def _lead(lead: dict[str, Any] | None) -> str:
    if lead is None:
        return "–"
    if lead["interval"] is None:
        return f"{lead['difference']:+.3f}"
    low, high = lead["interval"]
    return f"{lead['difference']:+.3f} [{low:+.3f} {high:+.3f}]"
