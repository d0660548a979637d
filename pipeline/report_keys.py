"""The certificate, how sources were understood, and the keys of all entries with what each was made from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cache.contents import Id, inputs
from cache.entries import Entry, StoreError, open_entry
from cache.html import checks, figure, paragraph, table
from cache.layout import FITTED
from cache.reader import Dataset, SymbolEntries
from cache.show import sources_of
from cache.svg import element, number, panel, text

_COLUMNS = {  # what is made of what, from left to right
    "bars": ("source", "bars", "fitted", "streams", "windows", "dataset"),
    "sequences": ("source", "recordings", "windows", "streams", "dataset"),
}
_WIDTH, _ROW = 72.0, 31.0
_MOST = 16  # nodes of a column; more of them are one node
_UNSCALED = "fill"  # a field that the stream has which those of the folds are made of

Node = tuple[str, str]  # column, name
Nodes = dict[Node, tuple[str, str]]  # words, key


def certificate_body(dataset: Dataset) -> str:
    """What was checked when the dataset was published."""
    certificate = dataset.entry.manifest.get("certificate")
    if not certificate:
        return paragraph("This dataset holds no certificate; build it again to have one.")
    found = ((of["passed"], name, of["detail"]) for name, of in certificate["checks"].items())
    return checks(found) + paragraph(
        f"Made with {certificate['samples']} windows when the dataset was built. To repeat it with more of them:",
        f"bin/cache certify {dataset.name} --samples 1000",
    )


def sources_body(dataset: Dataset, store: Path) -> str:
    """Every file once: how its columns were understood, and what was repaired."""
    files: dict[str, list[Entry]] = {}
    for entries in dataset.symbols.values():
        for source in sources_of(entries.windows, store):
            if "derived_from" not in source.manifest["components"]["fields"]:
                files.setdefault(source.manifest["origin"], []).append(source)
    if not files:
        return paragraph("What the dataset was made from is no longer in the store; training needs none of it.")
    lines = []
    for origin, parts in list(files.items())[:_MOST]:
        manifest = parts[0].manifest
        rows = sum(
            next(iter(part.manifest["arrays"].values()))["shape"][0] for part in parts if part.manifest["arrays"]
        )
        understood = ", ".join(f"{role} = {column}" for role, column in manifest.get("recognised", {}).items())
        repaired = ", ".join(
            f"{fault} {_counted(of)}" for part in parts for fault, of in part.manifest["repaired"].items()
        )
        remarks = "; ".join(dict.fromkeys(remark for part in parts for remark in part.manifest.get("remarks", ())))
        more = [("understood as", understood), ("repaired", repaired or "nothing"), ("remarks", remarks)]
        items = "".join(f"<li>{name}: {escape(words)}</li>" for name, words in more if words)
        lines.append(f"<li><strong>{escape(origin)}</strong>, {rows:,} rows<ul>{items}</ul></li>")
    left = len(files) - len(lines)
    return f'<ul class="sources">{"".join(lines)}</ul>' + (paragraph(f"… and {left:,} more files.") if left > 0 else "")


def keys_body(dataset: Dataset, symbol: str, store: Path) -> str:
    """The graph of one symbol's entries, and their keys and sizes as a table."""
    nodes, edges = _graph(dataset, dataset.symbols[symbol], store)
    used = [column for column in _COLUMNS[dataset.kind] if any(node[0] == column for node in nodes)]
    by_column = {column: [node for node in nodes if node[0] == column] for column in used}
    height = _ROW * max(map(len, by_column.values())) + 22
    places: dict[Node, tuple[float, float]] = {}
    parts: list[str] = []
    for c, (column, of) in enumerate(by_column.items()):
        parts.append(text(c * _WIDTH + 4, 10, column, "tiny soft"))
        top = 16 + (height - 22 - _ROW * len(of)) / 2
        places |= {node: (c * _WIDTH + 2, top + r * _ROW + 3) for r, node in enumerate(of)}
    box, tall = _WIDTH - 16, _ROW - 7
    for left, right in edges:
        (x, y), (to, at) = places[left], places[right]
        a, b, middle = y + tall / 2, at + tall / 2, (x + box + to) / 2
        points = ((x + box, a), (middle, a), (middle, b), (to, b))
        start, *rest = (f"{number(px)} {number(py)}" for px, py in points)
        parts.append(element("path", d=f"M{start}C{' '.join(rest)}", class_="edge"))
    for node, (x, y) in places.items():
        words, key = nodes[node]
        end = " end" if node[0] == "dataset" else ""
        shape = element(
            "rect",
            element("title", escape(f"{words}: {key}")),
            x=x,
            y=y,
            width=box,
            height=tall,
            rx=3,
            class_="node" + end,
        )
        parts += [shape, text(x + 4, y + 10, words if len(words) < 11 else words[:8] + "…", "tiny")]
        parts += [text(x + 4, y + 20, key[:8], "mono")] if key else []
    title = f"The entries of {dataset.name} and what each was made from"
    drawing = panel(
        title, f"{len(nodes)} entries in {len(used)} stages.", len(used) * _WIDTH - 12, height, parts, "graph"
    )
    others = f"; those of other symbols than {symbol} are only counted" * (len(dataset.symbols) > 1)
    entries = [dataset.entry, dataset.symbols[symbol].windows, *dataset.symbols[symbol].streams.values()]
    lines = [(_named(one), one.key, f"{one.bytes / 1e6:,.1f}") for one in entries]
    return figure(
        drawing, f"Each box is an entry of the store under the first 8 digits of its key{others}", "graph"
    ) + table(("entry", "key", "MB"), lines)


def _graph(
    dataset: Dataset, symbol: SymbolEntries, store: Path
) -> tuple[dict[Node, tuple[str, str]], set[tuple[Node, Node]]]:
    """Nodes with their words and key, and edges from what was needed to what was made of it."""
    found: dict[Id, Entry] = {("datasets", dataset.entry.key): dataset.entry}
    mine = [symbol.windows, *symbol.streams.values()]
    waiting = [(one.path.parent.name, one.key) for one in mine]
    of_dataset = list(waiting)
    while waiting:
        one = waiting.pop()
        if one not in found:
            try:
                found[one] = open_entry(store, *one)
            except StoreError:  # sources may be gone; the graph ends there
                continue
            waiting.extend(inputs(found[one]))
    own = _own(found, of_dataset) | {("datasets", dataset.entry.key)}
    nodes: Nodes = {}
    place: dict[Id, Node] = {}
    drawn, left = Counter[str](), Counter[str]()
    for one in sorted(found, key=lambda one: _order(dataset, found[one])):
        column = _column(found[one], one[0])
        if one in own and drawn[column] < _MOST:
            drawn[column] += 1
            place[one] = (column, one[1])
            nodes[place[one]] = (_named(found[one]), one[1])
        else:
            left[column] += 1
            place[one] = (column, "more")
    nodes |= {(column, "more"): (f"+ {count} more", "") for column, count in left.items()}
    edges: set[tuple[Node, Node]] = set()
    for one, entry in found.items():
        wanted = of_dataset if one[0] == "datasets" else inputs(entry)
        edges |= {(place[need], place[one]) for need in wanted if need in place and place[need][0] != place[one][0]}
        if content := entry.manifest["components"]["inputs"].get("content"):
            if len([node for node in nodes if node[0] == "source"]) < _MOST:
                nodes[("source", content)] = (entry.manifest["origin"], content)
            if ("source", content) in nodes:
                edges.add((("source", content), place[one]))
    return nodes, edges


def _own(found: Mapping[Id, Entry], mine: Sequence[Id]) -> set[Id]:
    """What one symbol is made of: its entries `mine`, their bars, and what was fitted on those alone or for it."""
    own: set[Id] = set()
    waiting = [one for one in mine if one in found]
    while waiting:
        one = waiting.pop()
        if one not in own:
            own.add(one)
            if one[0] not in FITTED:
                waiting.extend(need for need in inputs(found[one]) if need in found)
    alone = {one for one in found if one[0] in FITTED and own.issuperset(need for need in inputs(found[one]))}
    return own | alone


def _column(entry: Entry, stage: str) -> str:
    """Where an entry stands; the stream that the streams of the folds are made of stands before them."""
    if stage == "streams" and _UNSCALED in entry.manifest["components"]["fields"]:
        return "windows"
    return {**dict.fromkeys(FITTED, "fitted"), "datasets": "dataset"}.get(stage, stage)


def _order(dataset: Dataset, entry: Entry) -> tuple[int, str]:
    """By timeframe, as the dataset has them."""
    fields: Mapping[str, Any] = entry.manifest["components"]["fields"]
    name = fields.get("timeframe", "")
    return (dataset.timeframes.index(name) if name in dataset.timeframes else 0, str(fields.get("fold", "")))


def _named(entry: Entry) -> str:
    fields, stage = entry.manifest["components"]["fields"], entry.path.parent.name
    if _UNSCALED in fields:
        return "unscaled"
    if "fold" in fields:
        return f"fold {fields['fold']}"
    return str(fields.get("timeframe", {"datasets": "dataset"}.get(stage, stage)))


def _counted(change: Mapping[str, Any]) -> str:
    return " ".join(f"{unit} {count:,}" for unit, count in change.items() if unit != "first_row")
