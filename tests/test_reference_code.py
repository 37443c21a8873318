"""Every block of code of the reference runs, page by page; what needs another library runs where it is installed."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
import tiers
from sybil import Sybil
from sybil.example import Example
from sybil.parsers.markdown import PythonCodeBlockParser

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PAGES = {str(path.relative_to(NOTEBOOKS)): path for path in sorted(NOTEBOOKS.rglob("*.md"))}
# Not among what the tests install: the extra `bench` has them, and benchmarks/README.md says how to get BackPACK.
PEERS = ("opacus", "backpack", "optax", "jax", "jax_privacy")
QUICK = ("index.md", "concepts/weights.md", "concepts/stages.md", "extending/transform.md", "extending/projection.md")


def examples(page: str) -> list[Example]:
    """The blocks of a page, in order."""
    path = PAGES[page]
    document = Sybil(parsers=[PythonCodeBlockParser()], pattern="*.md", path=str(NOTEBOOKS)).parse(path)
    found = list(document.examples())
    assert len(found) == path.read_text().count("```python\n"), "a block that is not read would not be run"
    return found


def imported(example: Example) -> set[str]:
    """The packages that a block imports."""
    found = set()
    for node in ast.walk(ast.parse(str(example.parsed))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def asked(page: str) -> set[str]:
    """The peers that a page's code imports."""
    return {peer for example in examples(page) for peer in imported(example)} & set(PEERS)


WITH_CODE = [page for page, path in PAGES.items() if "```python\n" in path.read_text()]
BESIDE_PEERS = [page for page in WITH_CODE if asked(page)]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("page", tiers.quick(QUICK, WITH_CODE))
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example in examples(page):
        if not imported(example) & set(PEERS):
            example.evaluate()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # the peers' own hooks
@pytest.mark.parametrize("page", BESIDE_PEERS)
def test_a_page_agrees_with_the_library_it_speaks_of(page, tmp_path, monkeypatch) -> None:
    absent = sorted(peer for peer in asked(page) if importlib.util.find_spec(peer) is None)
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)} (pip install 'gradfunc[bench]')")
    monkeypatch.chdir(tmp_path)
    for example in examples(page):
        example.evaluate()


def test_a_block_that_fails_is_noticed(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    document = Sybil(parsers=[PythonCodeBlockParser()], pattern="*.md", path=str(tmp_path)).parse(page)
    first, second = document.examples()
    first.evaluate()
    with pytest.raises(AssertionError):
        second.evaluate()


def test_pages_of_peers_say_the_same_in_gradfunc() -> None:
    # A page whose every block needs a peer would be checked nowhere but where that is installed.
    for page in BESIDE_PEERS:
        assert any(not imported(example) & set(PEERS) for example in examples(page)), page
