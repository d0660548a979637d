"""JSON records that carry the MD5 of their own content, so that a flipped bit anywhere in them is seen."""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no white space; floats in Python's shortest round-trip form, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def content_md5(value: Any) -> str:
    """MD5 of the canonical JSON of a value, 32 hexadecimal digits."""
    return hashlib.md5(canonical_json(value), usedforsecurity=False).hexdigest()


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its MD5 under `md5`, last."""
    return {**record, "md5": content_md5(record)}


def unsealed(record: Any) -> dict[str, Any]:
    """The record without its seal. Raises ValueError when it is none, or has changed since it was sealed."""
    content = {key: value for key, value in record.items() if key != "md5"} if isinstance(record, dict) else {}
    if not content or record.get("md5") != content_md5(content):
        raise ValueError("its content does not have the MD5 that it carries")
    return content
