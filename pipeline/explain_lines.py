"""What a build would do, and why, in words: a line an entry, or of many entries a line a cause."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cache.tables import few, first_of, table
from pipeline.universe import Faults, fault_table

if TYPE_CHECKING:
    from pipeline.explain import Explanation, Verdict

_IN_FULL = 70  # entries: three symbols in six timeframes have 66
_FILES = 5
_LEFT_OUT = 10
_CAUSES = 15


def explanation_lines(name: str, explanation: "Explanation", left_out: Faults) -> Iterator[str]:
    """All that bin/cache explain prints."""
    in_full = len(explanation.verdicts) <= _IN_FULL
    missing, total = len(explanation.missing), len(explanation.verdicts)
    yield f"{name}: {total - missing:,} of {total:,} entries are in the store, {missing:,} to build"
    if explanation.files:
        yield "\nSource files, against the last build under this name:"
        yield from _file_lines(explanation, in_full)
    if explanation.changes:
        yield "\nThe recipe, against the last build under this name:"
        yield from (f"  {change}" for change in explanation.changes)
    if left_out:
        yield "\nLeft out, as far as is known before the build:"
        yield from (f"  {line}" for line in first_of(fault_table(left_out), _LEFT_OUT))
    if in_full:
        yield "\nEntries:"
        for verdict in explanation.verdicts:
            yield f"  {verdict.state:<12}  {verdict.node.label}  {verdict.node.components.key}"
            yield from (f"                  {reason}" for reason in verdict.reasons)
            if verdict.nearest:
                yield f"                  (compared with {verdict.nearest}, the nearest there is)"
    else:
        yield from _by_cause(explanation)


def _file_lines(explanation: "Explanation", in_full: bool) -> Iterator[str]:
    """Of many files a count by state, and the first of those that are not as they were."""
    lines = [(file.state, f"{file.timeframe:<4} {file.path}: {file.state}") for file in explanation.files]
    if in_full:
        yield from (f"  {line}" for _, line in lines)
        return
    unchanged = sum(state == "unchanged" for state, _ in lines)
    yield f"  unchanged: {unchanged:,} of {len(lines):,}"
    yield from (f"  {line}" for line in first_of([line for state, line in lines if state != "unchanged"], _FILES))


def _by_cause(explanation: "Explanation") -> Iterator[str]:
    """By stage how many entries are there, then those to build by stage and cause, with the symbols they are of."""
    there, missing = Counter[str](), Counter[str]()
    causes: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for verdict in explanation.verdicts:
        stage = verdict.node.components.stage
        if verdict.state == "hit":
            there[stage] += 1
        else:
            missing[stage] += 1
            causes[stage, verdict.state, _cause(verdict)].append(verdict.node.symbol)
    yield ""
    stages = dict.fromkeys(verdict.node.components.stage for verdict in explanation.verdicts)
    rows = [(stage, f"{there[stage]:,}", f"{missing[stage]:,}") for stage in stages]
    yield from table([("stage", "in the store", "to build"), *rows], right={1, 2})
    if causes:
        yield "\nTo build, and why, against the nearest entries there are:"
        yield from first_of(list(_cause_lines(causes, list(stages))), _CAUSES)
    yield "\nEvery entry, its key and what it was compared with: the same command with --json"


def _cause_lines(causes: Mapping[tuple[str, str, str], list[str]], stages: list[str]) -> Iterator[str]:
    for (stage, state, why), symbols in sorted(causes.items(), key=lambda one: stages.index(one[0][0])):
        yield f"  {state:<12}  {len(symbols):,} {stage} of {few(sorted(set(symbols)))}\n                  {why}"


def _cause(verdict: "Verdict") -> str:
    """The reasons, without what is one entry's own."""
    if verdict.state == "stale source" and verdict.node.file:
        return "the content of the source file changed"
    timeframe = f" of {verdict.node.timeframe}"
    return "; ".join(verdict.reasons) if verdict.nearest else verdict.reasons[0].replace(timeframe, "")
