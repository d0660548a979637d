"""What bin/cache verify found, in words: every fault by name, or of many faults the first of every kind."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from cache.check import Finding
from cache.contents import Id
from cache.layout import STAGES
from cache.tables import counted, mb, of_store
from cache.verify import Checked

_IN_FULL = 10  # faults
_OF_A_KIND = 3


def intact_line(checked: Checked) -> str:
    """When nothing is wrong."""
    stages = Counter(stage for stage, _ in checked.entries)
    of = ", ".join(f"{stage} {stages[stage]:,}" for stage in STAGES if stages[stage])
    return f"{counted(len(checked.entries), 'entry')} ({of or 'none'}), {mb(checked.bytes)} MB: all intact"


def fault_lines(checked: Checked, findings: Sequence[Finding]) -> Iterator[str]:
    """How much is intact, then what is wrong."""
    yield f"{counted(len(findings), 'fault')} in {counted(len(checked.entries), 'entry')}; {_intact(checked, findings)}"
    yield from _each(checked, findings) if len(findings) <= _IN_FULL else _by_kind(checked, findings)
    if store := of_store(checked.store):
        yield f"Commands for this store end with{store}"


def _each(checked: Checked, findings: Sequence[Finding]) -> Iterator[str]:
    return (f"{_named(checked, finding)}; {finding.remedy}" for finding in findings)


def _by_kind(checked: Checked, findings: Sequence[Finding]) -> Iterator[str]:
    kinds: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[_place(checked, finding)[0], finding.remedy].append(finding)
    for (folder, remedy), of_kind in kinds.items():
        yield f"{folder}, {counted(len(of_kind), 'fault')}: {remedy}"
        yield from (f"  {_named(checked, finding)}" for finding in of_kind[:_OF_A_KIND])
        if len(of_kind) > _OF_A_KIND:
            yield f"  … and {len(of_kind) - _OF_A_KIND:,} more"
    yield "Each of them, by name: with --json"


def of_what(checked: Checked, finding: Finding) -> str | None:
    """`SIM0007 m5`, where it is known."""
    return checked.names.get(_place(checked, finding))


def _place(checked: Checked, finding: Finding) -> Id:
    """Where something is wrong: the folder of the store and what lies there, of entries stage and key."""
    folder, name, *_ = (*finding.file.relative_to(checked.store).parts, "", "")
    return folder, name


def _named(checked: Checked, finding: Finding) -> str:
    of = of_what(checked, finding)
    return f"{finding.file}{f' ({of})' if of else ''}: {finding.what}"


def _intact(checked: Checked, findings: Iterable[Finding]) -> str:
    faulty = {_place(checked, finding) for finding in findings}
    known = [*checked.entries, *checked.missing]
    there, whole = Counter(stage for stage, _ in known), Counter(one[0] for one in known if one not in faulty)
    return f"intact: {', '.join(f'{stage} {whole[stage]:,} of {there[stage]:,}' for stage in STAGES if there[stage])}"
