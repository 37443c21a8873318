"""Notebooks: run from a clean kernel, written in one form, and compared by what they say.

    python tests/notebooks/notebook_files.py notebooks/*.ipynb      run each, and write its outputs

A notebook is written in one form: cell ids follow from sources, metadata are the kernel's name and tags of cells,
streams are joined, images are opaque PNG without a program's name. Beside an image stands what the figure says (title
and axes): for readers who cannot see it, and to be compared, as pixels move with fonts.

Two runs say the same if their words and whole numbers are equal, and numbers with a point or an exponent differ by at
most one unit in the last place that is printed: values that differ by less than half of that unit print one apart at
most, and a value with three or four digits is that far from float32's rounding. A bar of a histogram may be one
higher. Where digits are rounding themselves, or chaotic, the cell has the tag "digits-vary", its prose says so, and
only words are compared.
"""

from __future__ import annotations

import argparse
import base64
import copy
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
VARY = "digits-vary"
BARS = "▁▂▃▄▅▆▇█"
# Not the 1 of h1, but that of x1.
NUMBER = re.compile(r"(?<![a-wyzA-Z_\d.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
# What a figure says, in the place of its repr; for each cell anew, as %matplotlib takes away what is there.
FIGURES_SPEAK = """
def _spoken(figure, printer, cycle):
    parts = [figure.get_suptitle()]
    for axes in figure.axes:
        parts += [axes.get_title("left"), axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
    printer.text("Figure: " + "; ".join(" ".join(part.split()) for part in parts if part))

def _speak(*_):
    texts = get_ipython().display_formatter.formatters["text/plain"]
    texts.for_type_by_name("matplotlib.figure", "Figure", _spoken)

get_ipython().events.register("pre_run_cell", _speak)
"""


def read(path: Path) -> Any:
    """The notebook of a file."""
    return nbformat.reads(path.read_text(), as_version=4)


def written(notebook: Any) -> str:
    """The text of its file, in the one form."""
    return nbformat.writes(formed(notebook)) + "\n"


def formed(notebook: Any) -> Any:
    """A copy in the one form."""
    cells, seen = [], set()
    for cell in notebook.cells:
        name = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        while name in seen:
            name = hashlib.sha256(name.encode()).hexdigest()[:8]
        seen.add(name)
        tags = cell.metadata.get("tags", [])
        parts = {"id": name, "metadata": {"tags": tags} if tags else {}, "source": cell.source}
        if cell.cell_type == "code":
            parts |= {"execution_count": cell.execution_count, "outputs": list(_joined(cell.outputs))}
            cells.append(nbformat.v4.new_code_cell(**parts))
        else:
            cells.append(nbformat.v4.new_markdown_cell(**parts))
    return nbformat.v4.new_notebook(cells=cells, metadata=copy.deepcopy(METADATA), nbformat_minor=5)


def run(notebook: Any) -> Any:
    """What a clean kernel makes of it, in a temporary folder, on one thread; an error is raised as it comes."""
    fresh = copy.deepcopy(notebook)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as profile:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "IPYTHONDIR": profile, "OMP_NUM_THREADS": "1"}
        client = NotebookClient(fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
        with client.setup_kernel(env=environment):
            client.kc.execute(FIGURES_SPEAK, silent=True)
            for index, cell in enumerate(fresh.cells):
                client.execute_cell(cell, index)
    count = 0
    for cell in fresh.cells:
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
    return formed(fresh)


def differences(before: Any, after: Any) -> list[str]:
    """What two runs of a notebook say differently, a line each; none if they say the same."""
    found = []
    for one, other in zip(before.cells, after.cells, strict=True):
        if one.cell_type == "code":
            only_words = VARY in one.metadata.get("tags", [])
            first, second = list(_said(one)), list(_said(other))
            if [kind for kind, _ in first] != [kind for kind, _ in second]:
                found.append(f"{one.id}: outputs {[kind for kind, _ in first]}, now {[kind for kind, _ in second]}")
                continue
            for (_, was), (_, now) in zip(first, second, strict=True):
                if not alike(was, now, only_words):
                    found.append(f"{one.id}: it says\n{was}\nand now\n{now}")
    return found


def alike(was: str, now: str, only_words: bool = False) -> bool:
    """Whether two texts say the same."""
    if _words(was) != _words(now):
        return False
    if only_words:
        return True
    bars = zip(re.findall(f"[{BARS}]", was), re.findall(f"[{BARS}]", now), strict=True)
    numbers = zip(NUMBER.findall(was), NUMBER.findall(now), strict=True)
    near = all(abs(BARS.index(a) - BARS.index(b)) <= 1 for a, b in bars)
    return near and all(_near(a, b) for a, b in numbers)


def _words(text: str) -> list[str]:
    """Without numbers; bars by their count; white space and lines of tables are as wide as what is between them."""
    return re.sub(f"[{BARS}]", "▁", re.sub("─+", "─", NUMBER.sub(" # ", text))).split()


def _near(a: str, b: str) -> bool:
    a, b = a.replace(",", ""), b.replace(",", "")
    if not any(sign in a + b for sign in ".e"):
        return a == b
    return abs(float(a) - float(b)) <= 1.001 * max(_unit(a), _unit(b))  # the third digit: decimals are no binary ones


def _unit(text: str) -> float:
    """Of the last digit."""
    digits, _, power = text.partition("e")
    return float(10.0 ** (int(power or 0) - len(digits.partition(".")[2])))


def _said(cell: Any) -> Iterator[tuple[str, str]]:
    """The kind of each output and its text."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.name, output.text
        elif output.output_type == "error":
            yield "error", output.evalue
        else:
            yield " ".join(sorted(output.data)), output.data.get("text/plain", "")


def _joined(outputs: list[Any]) -> Iterator[Any]:
    """Streams joined, images small, nothing else but data."""
    stream = None
    for output in outputs:
        if output.output_type == "stream" and stream is not None and stream.name == output.name:
            stream.text += output.text
            continue
        if stream is not None:
            yield stream
        stream = None
        if output.output_type == "stream":
            stream = nbformat.v4.new_output("stream", name=output.name, text=output.text)
        elif output.output_type == "error":
            yield output
        else:
            yield nbformat.v4.new_output("display_data", data=_small(output.data))
    if stream is not None:
        yield stream


def _small(data: Mapping[str, Any]) -> dict[str, Any]:
    """Texts as they are; of a PNG nothing but the pixels, on white."""
    out = dict(data)
    if "image/png" in out:
        image = Image.open(io.BytesIO(base64.b64decode(out["image/png"])))
        if image.mode != "RGB" or image.info:
            flat = Image.new("RGB", image.size, "white")
            flat.paste(image.convert("RGBA"), mask=image.convert("RGBA").getchannel("A"))
            small = io.BytesIO()
            flat.save(small, "png", optimize=True)
            out["image/png"] = base64.b64encode(small.getvalue()).decode() + "\n"
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run notebooks, and write their outputs.")
    parser.add_argument("files", nargs="+", type=Path)
    for file in parser.parse_args().files:
        file.write_text(written(run(read(file))))
