"""A user's own Python file: columns beside a feature set's (`data.features.plugin`), or a task (`training.task`).

It is executed, once a process, where something of it is used. Its MD5 is part of the keys of what it makes; what it
imports in its turn is not looked at.
"""

import hashlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from cache.keys import Identity, file_identity, file_md5
from cache.reader import Dataset
from configs.errors import UserError


@dataclass(frozen=True)
class Plugin:
    """A file that has been executed, what it held then, and its MD5."""

    path: Path
    md5: str
    source: bytes
    module: ModuleType

    def get(self, name: str, meaning: str) -> Any:
        """What the file calls `name`. Raises UserError that tells its `meaning` where it calls nothing so."""
        if not hasattr(self.module, name):
            raise UserError(f"{self.path}: does not define {name}, {meaning}")
        return getattr(self.module, name)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Turn what the file's own code raises into a UserError that names the line."""
        try:
            yield
        except (UserError, OSError):
            raise
        except Exception as error:
            lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.path)]
            if not lines:
                raise
            raise UserError(
                f"{self.path}, line {lines[-1].lineno}, in {lines[-1].name}: {type(error).__name__}: {error}"
            ) from error


def load_plugin(path: str | Path) -> Plugin:
    """Execute a file, unless this process has executed just this content of it. Raises UserError."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; a plug-in is a Python file, named from where the configuration lies, or on "
            "the command line from the working directory"
        )
    return _loaded(path, file_identity(path))


@lru_cache(maxsize=8)
def _loaded(path: Path, identity: Identity) -> Plugin:
    source = path.read_bytes()
    digest = hashlib.md5(source, usedforsecurity=False).hexdigest()
    module = ModuleType(f"headstart_plugin_{digest}")
    module.__file__ = str(path)
    plugin = Plugin(path, digest, source, module)
    sys.modules[module.__name__] = module  # where dataclasses look for the names of annotations
    try:
        code = compile(source, path, "exec")
    except (SyntaxError, ValueError) as error:  # ValueError: a zero byte
        at = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{path}{at}: not Python: {getattr(error, 'msg', error)}") from None
    with plugin.blamed():
        exec(code, module.__dict__)
    return plugin


def features_plugin(dataset: Dataset, recipe: Mapping[str, Any]) -> Path | None:
    """The file that a recipe names for columns of a dataset, which was built with it; None where it names none.

    Raises UserError when it is gone, or not what it was then.
    """
    named = recipe.get("features", {}).get("plugin")
    if named is None:
        return None
    path, stream = Path(named), next(iter(next(iter(dataset.symbols.values())).streams.values()))
    again = "put it back as it was, or build again with bin/build-cache"
    if not path.is_file():
        raise UserError(f"{path}: no such file, and columns of {dataset.name} were made by it; {again}")
    if file_md5(path) != stream.manifest["components"]["fields"]["features"]["plugin"]["code"]:
        raise UserError(f"{path}: changed since {dataset.name} was built with it; {again}")
    return path
