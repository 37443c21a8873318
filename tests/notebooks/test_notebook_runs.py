"""Each notebook, run from a clean kernel in a temporary folder, says what its committed outputs say."""

from __future__ import annotations

import resource

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from notebook_files import NOTEBOOKS, ROOT, differences, read, run, written

pytestmark = pytest.mark.slow
SECONDS = 120


def used():
    """Seconds of one core that processes which have ended took."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def of(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_says_the_same(path):
    before, start = read(path), used()
    after = run(before)
    spent = used() - start
    found = differences(before, after)
    assert not found, "\n".join([*found, f"python tests/notebooks/notebook_files.py notebooks/{path.name}"])
    assert 1 < spent < SECONDS  # the kernel has ended, and is counted


def test_the_kernel_is_clean():
    """An empty folder, the gradfunc of this tree, one thread; streams are joined, and figures speak."""
    cells = [
        "import os, sys, gradfunc, torch\nprint(os.listdir(), flush=True)\nprint(torch.get_num_threads())",
        "gradfunc.__file__",
        "%matplotlib inline\nfigure = gradfunc.plot.clip_geometry()",
        "figure",
    ]
    made = run(of(*cells))
    assert [cell.execution_count for cell in made.cells] == [1, 2, 3, 4]
    (stream,), (where,), _, (drawn,) = (cell.outputs for cell in made.cells)
    assert stream.text == "[]\n1\n"
    assert where.data["text/plain"] == repr(str(ROOT / "gradfunc" / "__init__.py"))
    assert drawn.data["text/plain"].startswith("Figure: Clipping by value turns the gradient by 20.92°")
    assert written(run(made)) == written(made)  # the same run, the same file, bit by bit


def test_an_error_is_raised():
    with pytest.raises(CellExecutionError, match="wanted"):
        run(of("1 + 1", "raise RuntimeError('wanted')"))


def test_a_number_that_has_moved_is_seen():
    before = run(of("print(f'{1 / 3:.3f}')", "2 + 2"))
    before.cells[0].outputs[0].text = before.cells[0].outputs[0].text.replace("0.333", "0.344")
    assert len(differences(before, run(before))) == 1
