"""Data flows one way: the import contract of pyproject.toml holds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_row_imports_only_rows_below_it():
    # In a process of its own: import-linter changes sys.path and its caches are global.
    code = "import sys; from importlinter.cli import lint_imports_command; sys.argv = ['lint-imports', '--no-cache']; "
    done = subprocess.run(
        [sys.executable, "-c", code + "lint_imports_command()"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data flows one way KEPT" in done.stdout


def test_no_file_imports_gradfunc_inside_a_function():
    # Such an import would pass the contract's order by doing its work late.
    for path in (ROOT / "gradfunc").rglob("*.py"):
        functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        for node in (inner for function in functions for inner in ast.walk(function)):
            own = isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("gradfunc"))
            own |= isinstance(node, ast.Import) and any(name.name.startswith("gradfunc") for name in node.names)
            assert not own, f"{path.name}:{getattr(node, 'lineno', '')}: {ast.unparse(node)}"


def test_importing_gradfunc_imports_nothing_that_only_examples_need():
    """scikit-learn alone takes a second and 140 MB, with what it imports where that is installed."""
    code = "import sys, gradfunc; print(*{name.split('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    late = {"sklearn", "pandas", "pyarrow", "matplotlib", "transformers", "faiss", "torchjd", "hypothesis", "pytest"}
    assert {"torch", "scipy"} <= set(out.split())
    assert not late & set(out.split())
