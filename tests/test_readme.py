"""README's code runs, and what it shows of the audit is what the audit prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import gradfunc as gf
from gradfunc.audit._demo import demo
from gradfunc.testing._demo import demo as check_demo

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_code_runs_from_top_to_bottom(capsys) -> None:
    document = Sybil(parsers=[PythonCodeBlockParser()], pattern="README.md", path=str(README.parent)).parse(README)
    examples = list(document.examples())
    assert len(examples) == README.read_text().count("```python")
    for example in examples:
        example.evaluate()
    assert "Verdict" in capsys.readouterr().out


def test_the_audit_prints_what_readme_shows() -> None:
    shown = re.search(r"```text\n(.*?)```", README.read_text(), re.DOTALL)
    assert shown is not None
    printed = str(demo())
    for line in shown.group(1).splitlines():
        words = re.sub(r"\d\.\d\de-\d\d", "x", line).rstrip()  # measured digits may move with torch
        assert words in {re.sub(r"\d\.\d\de-\d\d", "x", printed_line) for printed_line in printed.splitlines()}, line


def test_the_check_prints_what_readme_shows() -> None:
    shown = re.findall(r"```text\n(.*?)```", README.read_text(), re.DOTALL)[1]
    printed = {re.sub(r"\d\.\d\de-\d\d", "x", line) for line in str(check_demo()).splitlines()}
    for line in shown.splitlines():
        assert re.sub(r"\d\.\d\de-\d\d", "x", line).rstrip() in printed, line


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_explain_prints_what_readme_shows(capsys) -> None:
    document = Sybil(parsers=[PythonCodeBlockParser()], pattern="README.md", path=str(README.parent)).parse(README)
    for example in document.examples():
        capsys.readouterr()
        example.evaluate()
        if "print(g.explain())" in str(example.parsed):
            break
    shown = re.findall(r"```text\n(.*?)```", README.read_text(), re.DOTALL)[2]
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == shown.splitlines()


def test_the_numbers_in_words() -> None:
    text = " ".join(README.read_text().split())
    assert len(gf.audit.MECHANISMS) == 18
    assert "and seventeen other ways" in text
    assert "eighteen mechanisms" in " ".join((README.parent / "CHANGELOG.md").read_text().split())


def test_the_numbers_of_the_store_are_those_recorded() -> None:
    steps = json.loads((README.parent / "benchmarks" / "store-cpu.json").read_text())["steps"]
    query, disk = steps["top_k of 1, cold"], steps["read, cold"]
    text = " ".join(README.read_text().split())
    speeds = f"reads {query['bytes_a_second'] / 1e6:.0f} MB/s where the disk gives {disk['bytes_a_second'] / 1e6:.0f}"
    assert f"{speeds}, in {query['peak_bytes'] / 1e6:.0f} MB of memory" in text
    assert max(step["peak_bytes"] for step in steps.values()) < 1e9  # the whole store has 8 GB
