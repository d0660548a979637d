import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.seal import canonical_json, content_md5, sealed, unsealed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(st.text().filter(lambda name: name != "md5"), JSON, min_size=1, max_size=4)
BROKEN = "its content does not have the MD5 that it carries"


def test_a_seal_is_the_md5_of_the_canonical_content():
    record = {"b": 1, "a": "é"}
    assert content_md5(record) == "6c8660a908225bf1947650b37eacadfc"
    assert sealed(record) == {**record, "md5": content_md5(record)}
    assert list(sealed(record)) == ["b", "a", "md5"]


@given(RECORDS)
def test_what_was_sealed_reads_back(record: dict[str, Any]):
    assert unsealed(json.loads(canonical_json(sealed(record)))) == record


@settings(max_examples=200)
@given(RECORDS, st.data())
def test_no_flipped_bit_reads_as_other_content(record: dict[str, Any], data: st.DataObject):
    """A flip either fails, or leaves the content as it was (`1e5` and `1E5`); other bytes are seen by verify."""
    content = bytearray(canonical_json(sealed(record)))
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    try:
        found = unsealed(json.loads(bytes(content)))
    except ValueError:
        return
    assert canonical_json(found) == canonical_json(record)
    assert canonical_json(sealed(found)) != bytes(content)


@pytest.mark.parametrize(
    "record",
    [
        None,
        5,
        "text",
        [],
        {},
        {"a": 1},
        {"a": 1, "md5": None},
        {"a": 1, "md5": "0" * 32},
        {"md5": content_md5({"a": 1})},
    ],
)
def test_what_is_not_sealed(record: Any):
    with pytest.raises(ValueError, match=BROKEN):
        unsealed(record)


@pytest.mark.parametrize("change", [{"a": 2}, {"b": 1}, {"a": 1.0}, {"a": True}])
def test_what_changed_since(change: dict[str, Any]):
    with pytest.raises(ValueError, match=BROKEN):
        unsealed({**sealed({"a": 1}), **change})


def test_numbers_that_json_lacks_cannot_be_sealed():
    with pytest.raises(ValueError, match="not JSON compliant"):
        sealed({"a": float("nan")})
