"""The reference is built without a warning, has every public name, and a broken reference stops it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from _site import benchmarks
from _site.names import names

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """The command of README, beside the tree."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", f"{out}-doctrees"]
    return subprocess.run([*command, str(source), str(out)], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    before = sorted(NOTEBOOKS.rglob("*"))
    out = tmp_path_factory.mktemp("reference") / "site"
    done = build(NOTEBOOKS, out)
    assert done.returncode == 0, done.stderr
    caches = [path for path in NOTEBOOKS.rglob("*") if "__pycache__" in path.parts]
    assert sorted(set(NOTEBOOKS.rglob("*")) - set(caches)) == [path for path in before if path not in caches]
    return out


@pytest.mark.slow
def test_every_public_name_has_an_entry(site) -> None:
    inventory = (site / "objects.inv").read_bytes()
    listed = zlib.decompress(inventory.split(b"\n", 4)[4]).decode()
    entries = {line.split(" ")[0] for line in listed.splitlines() if " py:" in line}
    assert [name.path for name in names().values() if name.path not in entries and name.same is None] == []


@pytest.mark.slow
def test_an_entry_has_its_signature_example_and_source(site) -> None:
    page = (site / "reference" / "per_sample_stages.html").read_text()
    entry = page.split('id="gradfunc.clip_per_sample"')[1].split('id="gradfunc.clip_value_per_sample"')[0]
    text = re.sub(r"<[^>]+>", "", entry)
    for part in ("max_norm", "Raises", "&gt;&gt;&gt; ", "[source]", "Abadi et al. 2016"):
        assert part in text, part


@pytest.mark.slow
def test_a_name_in_prose_is_a_link(site) -> None:
    page = (site / "concepts" / "weights.html").read_text()
    assert 'href="../reference/per_sample_stages.html#gradfunc.normalize_weights"' in page


BROKEN = {
    "A span: `gf.no_such_name(1)`.": "gradfunc has no gf.no_such_name",
    "A part of one: `gf.mean() >> gf.losses.no_such_loss`.": "gradfunc has no gf.losses.no_such_loss",
    "A page: [there](concepts/no_such_page.md).": "no_such_page",
    "A name: {py:func}`gradfunc.no_such_function`.": "no_such_function",
    "```{eval-rst}\n.. namespace:: gradfunc.nowhere\n```": "gradfunc has no namespace gradfunc.nowhere",
    "```{eval-rst}\n.. group:: of nothing\n```": "gf has no names of the group of nothing",
}


def alone(folder: Path, text: str) -> Path:
    """A source of one page."""
    source = folder / "notebooks"
    shutil.copytree(NOTEBOOKS / "_site", source / "_site")
    shutil.copy(NOTEBOOKS / "conf.py", source)
    (source / "index.md").write_text(f"# Planted\n\n{text}\n")
    return source


@pytest.mark.slow
def test_a_broken_reference_stops_the_build(tmp_path) -> None:
    done = build(alone(tmp_path, "\n\n".join(BROKEN)), tmp_path / "out")
    assert done.returncode != 0
    warned = [
        line for line in done.stderr.splitlines() if "index.md" in line and ("WARNING" in line or "ERROR" in line)
    ]
    assert [text for text, said in BROKEN.items() if not any(said in line for line in warned)] == []
    assert len(warned) == len(BROKEN)


@pytest.mark.slow
def test_a_page_with_nothing_broken_is_built(tmp_path) -> None:
    # So that the one before fails by what is planted.
    done = build(alone(tmp_path, "A span: `x`."), tmp_path / "out")
    assert done.returncode == 0, done.stderr


README = {
    "**gradfunc**, natively batched": "gradfunc",
    "**gradfunc**, under vmap": "gradfunc-vmap",
    "`vmap(grad)`, all rows held": "vmap(grad)",
    "torch's expanded weights": "expanded-weights",
    "Opacus, hooks": "opacus",
    "Opacus, ghost clipping": "opacus-ghost",
    "BackPACK, `BatchL2Grad`": "backpack-l2",
    "BackPACK, `BatchGrad`": "backpack",
}


def test_the_tables_are_those_that_readme_shows() -> None:
    made = rows(benchmarks.ratios("peers-cpu.json", "clip-and-sum"))
    shown = rows((ROOT / "README.md").read_text().split("| clip and sum, x one plain backward |")[1])
    assert {name: shown[name] for name in README} == {name: made[own] for name, own in README.items()}
    counts = rows(benchmarks.verdicts("zoo-cpu.json"))
    assert counts == {name: rows((ROOT / "README.md").read_text())[name] for name in counts}


def rows(text: str) -> dict[str, list[str]]:
    """The rows of Markdown tables by their first cell; of two the first."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| of "):
            first, *cells = (cell.strip() for cell in line.strip("| ").split(" | "))
            found.setdefault(first, cells)
    return {name: cells for name, cells in found.items() if cells and not name.startswith(("---", "clip-and-sum,"))}
