"""Tells whether a value from JSON is of a type that is written down as a value.

A type is `int`, `float` (whole numbers count), `bool`, `str`, `dict` (anything inside), a pattern of an MD5, `datetime`
(ISO 8601 with a zone), `[T]` (a list of T), `(T, U)` (a list of just these), `{str: T}` (T by any name), or a record
`{"a": T, "b?": U}` that has at least `a`, and may have `b`.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any


def fault(value: Any, wanted: Any) -> str:
    """Where a value from JSON is not of a type, and why, in words; "" when it is of it."""
    found = _fault(value, wanted)
    return found.removeprefix(".") if found.startswith((".", "[")) or not found else f"it{found}"


def _fault(value: Any, wanted: Any) -> str:
    """The place, as `.name` and `[index]`, and what is wrong there."""
    if type(value) is wanted:  # most are, and opening a dataset should cost nothing
        return ""
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return " is not an object"
        if str in wanted:
            wanted = dict.fromkeys(value, wanted[str])
        for name, inner in wanted.items():
            if name in value:
                if type(value[name]) is not inner and (found := _fault(value[name], inner)):
                    return f".{name}{found}"
            elif not name.endswith("?"):
                return f".{name} is missing"
            elif name[:-1] in value and (found := _fault(value[name[:-1]], inner)):
                return f".{name[:-1]}{found}"
        return ""
    if isinstance(wanted, list | tuple):
        if not isinstance(value, list) or (isinstance(wanted, tuple) and len(value) != len(wanted)):
            return " is not a list" + (f" of {len(wanted)}" if isinstance(wanted, tuple) else "")
        if isinstance(wanted[0], re.Pattern) and all(type(one) is str and wanted[0].fullmatch(one) for one in value):
            return ""  # thousands of MD5s
        for number, one in enumerate(value):
            if found := _fault(one, wanted[number if isinstance(wanted, tuple) else 0]):
                return f"[{number}]{found}"
        return ""
    return "" if _is(value, wanted) else f" is not {_WORDS.get(wanted, 'an MD5')}"


def _is(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, re.Pattern):
        return isinstance(value, str) and wanted.fullmatch(value) is not None
    if wanted is datetime:
        try:
            return datetime.fromisoformat(value).tzinfo is not None
        except (TypeError, ValueError):
            return False
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)


_WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "an object",
    datetime: "an instant with its zone",
}
