"""The layer table in docs/design.md is a rule: this test reads it, and every import in the package."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import mlpdeploy

PACKAGE = Path(mlpdeploy.__file__).parent
DESIGN = PACKAGE.parent / "docs" / "design.md"
CORE = ("errors", "env", "manifest", "artifact", "images")
FREE = {*sys.stdlib_module_names, "numpy"}


def table() -> dict[str, set[str]]:
    """Return {module: what it may import} of the design document's layer table."""
    section = DESIGN.read_text().partition("## Layers")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) ?\|$", section, re.MULTILINE)
    allowed = {}
    for module, text in rows:
        names = {name.strip().strip("`") for name in text.split(",") if name.strip()}
        allowed[module] = names | set(CORE) if "core" in names else names
    return allowed


def layer_of(name: str, allowed: dict[str, set[str]]) -> str | None:
    """Return the longest row of the table that covers a module, e.g. `runtime.torch` or `models`."""
    parts = name.split(".")
    rows = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((row for row in rows if row in allowed), None)


def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, imported module) of every import in a file that runs: not those for type checkers only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [
                (node.lineno, name if (PACKAGE.parent / f"{name.replace('.', '/')}.py").exists() else node.module)
                for name in inside
            ]
    return found


def violations(path: Path, module: str, allowed: dict[str, set[str]]) -> list[str]:
    row = layer_of(module, allowed)
    if row is None:
        return [f"{path}:1: {module} stands in no row of the layer table"]
    if "everything" in allowed[row]:
        return []
    wrong = []
    for line, name in imports(path):
        top = name.partition(".")[0]
        if top != "mlpdeploy":
            fine = top in FREE or top in allowed[row]
        else:
            other = name.partition(".")[2]
            target = layer_of(other, allowed) if other else None
            own = target is None or target == row or target.startswith(f"{row}.")
            fine = own or any(other == entry or other.startswith(f"{entry}.") for entry in allowed[row])
        if not fine:
            wrong.append(f"{path}:{line}: {module} imports {name}")
    return wrong


def test_every_import_is_in_the_table() -> None:
    allowed = table()
    assert len(allowed) > 15
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if module in ("__init__", "__main__") or path.name == "__init__.py":
            continue
        wrong += violations(path, module, allowed)
    assert not wrong, "\n".join(wrong)


def test_a_seeded_fault_is_found(tmp_path: Path) -> None:
    fault = tmp_path / "session.py"
    fault.write_text("import numpy\nfrom mlpdeploy.errors import UsageError\n\ndef f():\n    import torch\n")
    assert violations(fault, "runtime.session", table()) == [f"{fault}:5: runtime.session imports torch"]
    fault.write_text("from mlpdeploy.export.lower import lower\n")
    assert violations(fault, "runtime.session", table())
    assert violations(fault, "unknown", table())
