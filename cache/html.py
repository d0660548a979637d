"""Reports as one HTML file: nothing is loaded from elsewhere, nothing runs, and it can be printed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from cache.style import STYLE

_LONG = 30  # letters of a cell that may be broken anywhere
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """A part of a report: its anchor, heading, one sentence that says what to see in it, and its markup."""

    anchor: str
    heading: str
    sentence: str
    body: str


def page(
    title: str, lead: str, facts: Mapping[str, str], warnings: Sequence[str], sections: Sequence[Section], foot: str
) -> str:
    """The whole file. All but the bodies of sections is plain text."""
    links = "".join(f'<a href="#{one.anchor}">{escape(one.heading)}</a>' for one in sections)
    cards = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    bodies = "".join(
        f'<section id="{one.anchor}"><h2>{escape(one.heading)}</h2><p class="see">{escape(one.sentence)}</p>'
        f"{one.body}</section>\n"
        for one in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f'<body><header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{warned(warnings)}'
        f'<dl class="facts">{cards}</dl><nav aria-label="Parts of this report">{links}</nav></header>\n'
        f"<main>{bodies}</main><footer>{escape(foot)}</footer></body></html>\n"
    )


def warned(warnings: Sequence[str]) -> str:
    """A box of warnings; nothing where there are none."""
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(one)}</li>" for one in warnings)
    count = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
    return f'<aside class="warnings"><strong>{count}</strong><ul>{items}</ul></aside>'


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", heat: Mapping[str, int] | None = None
) -> str:
    """A table whose first column names its rows. `heat` gives cells a level, 1 to 5, by "row,column" from 0."""
    heat = heat or {}
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = []
    for r, (name, *cells) in enumerate(rows):
        row = "".join(_cell(cell, heat.get(f"{r},{c}")) for c, cell in enumerate(cells))
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{row}</tr>')
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = f"<table>{said}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll{" heated" if heat else ""}" tabindex="0">{body}</div>'


def figure(drawing: str, caption: str, class_: str = "", heading: str = "") -> str:
    """A drawing with its caption (plain text), which may begin with a heading."""
    strong = f"<strong>{escape(heading)}</strong>" if heading else ""
    return f'<figure class="{class_}">{drawing}<figcaption>{strong}{escape(caption)}</figcaption></figure>'


def grid(figures: Iterable[str], class_: str = "wide") -> str:
    """Drawings beside each other, as many as there is room for: `wide` or `small` ones, or at most `two`."""
    return f'<div class="grid {class_}">{"".join(figures)}</div>'


def legend(entries: Mapping[str, str]) -> str:
    """What the classes of a drawing mean."""
    items = "".join(f'<span><i class="key {class_}"></i>{escape(words)}</span>' for class_, words in entries.items())
    return f'<p class="legend">{items}</p>'


def subheading(words: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(words)}</h3>"


def paragraph(words: str, command: str = "") -> str:
    """Plain text, and a command to type."""
    return f"<p>{escape(words)}{f' <code>{escape(command)}</code>' if command else ''}</p>"


def checks(found: Iterable[tuple[bool, str, str]]) -> str:
    """A list of what was checked: whether it holds, its name and what was looked at."""
    items = "".join(
        f'<li class="{"good" if holds else "bad"}"><b>{"holds" if holds else "FAILS"}</b>'
        f"<div><strong>{escape(name)}</strong> {escape(detail)}</div></li>"
        for holds, name, detail in found
    )
    return f'<ul class="checks">{items}</ul>'


def _cell(words: str, level: int | None) -> str:
    class_ = f"t{level}" if level is not None else "long" if len(words) > _LONG else ""
    return f'<td class="{class_}">{escape(words)}</td>' if class_ else f"<td>{escape(words)}</td>"
