"""Writes docs/code.md: what every file is for, by its own first line, and who imports whom.

.venv/bin/python -m tests.code_page
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "code.md"
PACKAGES = {
    "configs": "YAML recipes and experiments, and the loader that reads them",
    "cache": "the store: what writer and reader agree on",
    "pipeline": "raw data → entries of the store",
    "trainer": "windows of the store → model",
}
LIVE = "trainer/encode*.py"


def page() -> str:
    edges = sorted({edge for package in PACKAGES for edge in _edges(package)})
    parts = [
        "# The code",
        "Written by `.venv/bin/python -m tests.code_page` from the code itself; a test compares.",
        "Who imports whom; contracts in setup.cfg keep it so. Pipeline and trainer meet only where live inference "
        "makes windows by the pipeline's own functions:",
        "```mermaid\ngraph LR\n" + "".join(f'  {a}["{b}"]\n' for a, b in _names().items()),
    ]
    parts[-1] += "".join(f"  {one} --> {other}\n" for one, other in edges) + "```"
    for package, purpose in PACKAGES.items():
        rows = "\n".join(f"| [{path.name}](../{package}/{path.name}) | {_first(path)} |" for path in _files(package))
        parts.append(f"## {package}: {purpose}\n\n| file | |\n|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def _names() -> dict[str, str]:
    return {package: package for package in PACKAGES} | {"live": LIVE}


def _files(package: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).glob("*.py")) if path.name != "__init__.py"]


def _first(path: Path) -> str:
    """The first sentence of its docstring."""
    told = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert told, f"{path}: says in no docstring what it is for"
    return told.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _edges(package: str) -> Iterator[tuple[str, str]]:
    for path in _files(package):
        one = "live" if package == "trainer" and path.match(LIVE) else package
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                other = node.module.split(".")[0]
                if other in PACKAGES and other != package:
                    yield one, other
                elif node.module.startswith("trainer.") and one == "live":
                    yield one, "trainer"


if __name__ == "__main__":
    PAGE.write_text(page())
