"""Faults planted by machine in the core: which of them do the tests see?

    $ pip install -e ".[test,mutation]"
    $ OMP_NUM_THREADS=1 python tests/mutation.py --sample 500 --seed 0 --out benchmarks/mutation.json

Mutants are mutmut's (an operator, a constant, an argument or a condition changed), drawn without replacement. Three
kinds are left out and counted: texts for people (what an error or a warning says, the call it repeats), names that only
annotations use, and devices (a machine with one device cannot tell them apart; the identity suite asks on CUDA).

mutmut's own runner rewrites functions as wrappers, which a library that asks classes for their members and reads lines
of source does not bear; so each mutant is compiled from its changed source in a forked process, which then runs the
tests that reach the changed line, quickest first. A mutant that no test sees has survived: it is listed.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import libcst as cst
from mutmut.mutation import file_mutation

ROOT = Path(__file__).parent.parent
CORE = ("_factors", "_capture", "_reduce.py", "_weights.py", "_transform", "_per_sample")
# What holds the core; not the tests of what is built upon it, nor tests that plant faults in sources of their own.
AWAY = ("diagnose", "train", "store", "plot", "init", "hf", "audit", "bench", "typing")
AWAY_FILES = "*mutants*", "*cli*", "test_readme*", "test_public*", "test_layout*", "test_page*", "test_notebooks*"
TALK = {"message", "warn", "warned", "GradfuncWarning"}  # calls whose texts are for people
TEXTS = {"call", "got", "do", "text", "said", "expected", "why", "note", "described"}  # names of such texts

UNCHANGED = "as it is"


@dataclass(frozen=True)
class Mutant:
    """One changed line."""

    path: str
    line: int
    was: str
    now: str
    source: str


@dataclass(frozen=True)
class Met:
    """A mutant, and what became of it."""

    path: str
    line: int
    was: str
    now: str
    fate: str
    by: str
    seconds: float


class Sites:
    """What can be changed in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.code = path.read_text()
        self.module, found, _, _ = file_mutation.create_mutations(str(path), self.code)
        apart = Apart()
        self.module.visit(apart)
        kinds = [apart.kind(one.original_node, one.mutated_node) for one in found]
        self.found = [one for one, kind in zip(found, kinds, strict=True) if kind is None]
        self.left_out = Counter(kind for kind in kinds if kind is not None)

    def mutant(self, k: int) -> Mutant:
        """With its source."""
        one = self.found[k]
        tree = file_mutation.deep_replace(self.module, one.original_node, one.mutated_node)
        assert isinstance(tree, cst.Module)
        lines, changed = self.code.splitlines(), tree.code.splitlines()
        (a, b, c, d) = next(
            e[1:] for e in SequenceMatcher(None, lines, changed, False).get_opcodes() if e[0] != "equal"
        )
        was, now = (" ".join(" ".join(part).split()) for part in (lines[a:b], changed[c:d]))
        return Mutant(str(self.path.relative_to(ROOT)), a + 1, was, now, tree.code)


class Apart(cst.CSTVisitor):
    """Which nodes no number depends on."""

    def __init__(self) -> None:
        self.nodes: dict[int, str] = {}

    def kind(self, was: cst.CSTNode, now: cst.CSTNode) -> str | None:
        """Of a mutation; None: it counts."""
        if id(was) in self.nodes:
            return self.nodes[id(was)]
        if isinstance(was, cst.Call) and isinstance(now, cst.Call) and len(was.args) >= len(now.args):
            kept = [arg.value for arg in now.args]
            for before, arg in zip([None, *was.args], was.args, strict=False):
                if not any(arg.value is value for value in kept):  # this argument was dropped, or is None now
                    return _text_or_device(arg) or ("text" if _is_name(before, arg) else None)
        return None

    def _leave_out(self, node: cst.CSTNode, kind: str) -> None:
        for one in file_mutation._walk(node):
            self.nodes.setdefault(id(one), kind)

    def visit_Call(self, node: cst.Call) -> None:
        if isinstance(node.func, cst.Name) and node.func.value in TALK:
            self._leave_out(node, "text")
        for before, arg in zip([None, *node.args], node.args, strict=False):
            kind = _text_or_device(arg) or (_is_name(before, arg) and "text")
            if kind:
                self._leave_out(arg, kind)

    def visit_Raise(self, node: cst.Raise) -> None:
        self._leave_out(node, "text")

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        if " " in node.value or node.value.strip("'\"").startswith("gf."):
            self._leave_out(node, "text")

    def visit_FormattedString(self, node: cst.FormattedString) -> None:
        self._leave_out(node, "text")

    def visit_Assign(self, node: cst.Assign) -> None:
        self._assigned(node, [target.target for target in node.targets])

    def visit_AnnAssign(self, node: cst.AnnAssign) -> None:
        self._assigned(node, [node.target])

    def visit_Param(self, node: cst.Param) -> None:
        self._assigned(node, [node.name])

    def _assigned(self, node: cst.CSTNode, targets: list[Any]) -> None:
        names = [target.value for target in targets if isinstance(target, cst.Name)]
        if any(name in TEXTS for name in names):
            self._leave_out(node, "text")
        elif isinstance(node, cst.Assign) and names and _is_type(names[0], node.value):
            self._leave_out(node, "type")


def _text_or_device(arg: cst.Arg) -> str | None:
    name = arg.keyword.value if arg.keyword else ""
    value = arg.value.attr.value if isinstance(arg.value, cst.Attribute) else getattr(arg.value, "value", "")
    if "device" in (name, value):
        return "device"
    spelt = isinstance(arg.value, cst.SimpleString) and (" " in value or value.strip("'\"").startswith("gf."))
    return "text" if spelt or isinstance(arg.value, cst.FormattedString) or {name, value} & TEXTS else None


def _is_name(before: cst.Arg | None, arg: cst.Arg) -> bool:
    """`check_number(call, "lr", lr)`: the argument's name, behind the call, as the error says it."""
    return before is not None and _text_or_device(before) == "text" and isinstance(arg.value, cst.SimpleString)


def _is_type(name: str, value: cst.CSTNode) -> bool:
    """`Rows = Callable[[Tensor], Tensor]`."""
    return (
        name.lstrip("_")[:1].isupper() and not name.isupper() and isinstance(value, cst.Subscript | cst.BinaryOperation)
    )


def tests() -> list[str]:
    """Arguments of pytest."""
    return ["tests", "-p", "no:cacheprovider", *[f"--ignore=tests/{name}" for name in AWAY], *[
        f"--ignore-glob={name}" for name in AWAY_FILES
    ]]  # fmt: skip


class Times:
    """A plugin: seconds of each test, in the order in which they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)


class Contexts:
    """A plugin: coverage by test."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logfinish(self) -> None:
        self.coverage.switch_context("")


def reach(out: Path) -> None:
    """Writes which tests reach which lines, and what each takes. Runs in a process of its own."""
    import coverage
    import pytest

    cover = coverage.Coverage(
        data_file=str(out.with_suffix(".coverage")), source=[str(ROOT / "gradfunc")], branch=False
    )
    times = Times()
    cover.start()
    pytest.main([*tests(), "-q"], plugins=[times, Contexts(cover)])
    cover.stop()
    cover.save()
    data = cover.get_data()
    by_line: dict[str, dict[str, list[str]]] = {}
    for name in data.measured_files():
        path = str(Path(name).relative_to(ROOT))
        if path.split("/")[1] in CORE:
            lines = data.contexts_by_lineno(name).items()
            by_line[path] = {str(line): sorted(c for c in contexts if c) for line, contexts in lines}
    times_taken = {name: s for name, s in times.seconds.items() if name not in times.failed}
    out.write_text(json.dumps({"seconds": times_taken, "lines": by_line, "failed": times.failed}))


def reaching(mutant: Mutant, known: dict[str, Any], most: float) -> list[str]:
    """Tests that run the line (or the nearest before it that ran), quickest first, as many as fit in `most` seconds."""
    lines = known["lines"].get(mutant.path, {})
    near = [int(line) for line in lines if int(line) <= mutant.line and lines[line]]
    found = set(lines[str(max(near))]) if near else set()
    if not found:  # a line that runs while the file is imported
        found = {test for tests in lines.values() for test in tests}
    seconds = known["seconds"]
    chosen, total = [], 0.0
    for test in sorted(found & set(seconds), key=seconds.__getitem__):
        total += seconds[test]
        if total > most:
            break
        chosen.append(test)
    return chosen


class Planted(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from another source."""

    def __init__(self, mutant: Mutant) -> None:
        self.path = str(ROOT / mutant.path)
        self.source = mutant.source.encode()
        parts = mutant.path.removesuffix(".py").split("/")
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.package = parts[-1] == "__init__"

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            self.path,
            loader=self,
            submodule_search_locations=[str(Path(self.path).parent)] if self.package else None,
        )

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str | bytes) -> bytes:
        if str(path).endswith(".pyc"):
            raise OSError
        return self.source


def met(mutant: Mutant, known: dict[str, Any], most: float) -> Met:
    """Runs the tests on it."""
    chosen = reaching(mutant, known, most)
    if not chosen:
        return Met(mutant.path, mutant.line, mutant.was, mutant.now, "unreached", "", 0.0)
    usual = sum(known["seconds"][test] for test in chosen)
    start = time.monotonic()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _run(mutant, chosen, write)
    os.close(write)
    limit = 90 + 6 * usual
    said = b""
    code = None
    while code is None:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        elif time.monotonic() - start > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            code = -1
        else:
            time.sleep(0.05)
    said = os.read(read, 4000)
    os.close(read)
    if code not in (0, 1, -1) and mutant.now != UNCHANGED:
        # Nothing was run: by the mutant's doing, or for another reason?
        same = replace(mutant, now=UNCHANGED, source=(ROOT / mutant.path).read_text())
        code = 1 if met(same, known, most).fate == "survived" else code
    fate = {0: "survived", 1: "killed", -1: "timeout"}.get(code, "error")
    by = said.decode(errors="replace") if code else ""
    return Met(mutant.path, mutant.line, mutant.was, mutant.now, fate, by, round(time.monotonic() - start, 1))


def _run(mutant: Mutant, chosen: list[str], write: int) -> None:
    code = 3
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.dont_write_bytecode = True
        sys.meta_path.insert(0, Planted(mutant))
        import pytest

        class First:
            def pytest_runtest_logreport(self, report: Any) -> None:
                if report.failed:
                    os.write(write, report.nodeid.encode()[:1000])

            def pytest_collectreport(self, report: Any) -> None:
                if report.failed:
                    os.write(write, f"collecting {report.nodeid}".encode()[:1000])

        # A few first, so that most mutants meet no more than a file or two of tests; most are killed there.
        first, rest = chosen[:25], chosen[25:]
        for part in (first, rest):
            arguments = [*part, "-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            code = int(pytest.main(arguments, plugins=[First()])) if part else 0
            if code:
                break
    except BaseException as error:
        os.write(write, repr(error)[:1000].encode())
    finally:
        os._exit(code)


def say(text: str) -> None:
    """To stderr, at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def interval(killed: int, n: int) -> tuple[float, float]:
    """The share killed, 95% (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    low = 0.0 if killed == 0 else float(beta.ppf(0.025, killed, n - killed + 1))
    high = 1.0 if killed == n else float(beta.ppf(0.975, killed + 1, n - killed))
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0, help="so many mutants of all; 0: every one")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", help="files whose path holds this")
    parser.add_argument("--most", type=float, default=60.0, help="seconds of tests a mutant meets at most")
    parser.add_argument("--workers", type=int, default=1, help="mutants at a time")
    parser.add_argument("--reach", type=Path, default=Path("/tmp/gradfunc-reach.json"), help="kept between runs")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--measure-reach", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if asked.measure_reach:
        reach(asked.reach)
        return
    if not asked.reach.exists():
        say("measuring which tests reach which lines ...")
        subprocess.run([sys.executable, __file__, "--measure-reach", "--reach", str(asked.reach)], check=True)
    known = json.loads(asked.reach.read_text())
    parts = [ROOT / "gradfunc" / name for name in CORE]
    files = sorted(path for part in parts for path in ([part] if part.suffix else part.rglob("*.py")))
    sites = [Sites(path) for path in files if asked.only in str(path)]
    every = [(site, k) for site in sites for k in range(len(site.found))]
    chosen = random.Random(asked.seed).sample(every, asked.sample) if asked.sample else every
    left_out = sum((site.left_out for site in sites), Counter[str]())
    say(f"{len(chosen)} of {len(every)} mutants of {len(files)} files; left out: {dict(left_out)}")
    code = "import json, torch; from gradfunc.bench._environment import environment as read;"
    code += "print(json.dumps(read(torch.device('cpu'))))"
    where = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    _preload()
    for site, _ in random.Random(asked.seed).sample(every, 3):
        same = Mutant(str(site.path.relative_to(ROOT)), len(site.code.splitlines()), "", UNCHANGED, site.code)
        assert met(same, known, asked.most).fate == "survived", f"the tests fail without a mutant: {same.path}"
    results: list[Met] = []
    with ThreadPoolExecutor(asked.workers) as pool:
        for k, result in enumerate(pool.map(lambda one: met(one[0].mutant(one[1]), known, asked.most), chosen), 1):
            results.append(result)
            killed = sum(r.fate in ("killed", "timeout") for r in results)
            say(f"{k}/{len(chosen)} killed {killed}  {result.fate} {result.path}:{result.line} {result.seconds} s")
            if result.fate not in ("killed", "timeout"):
                say(f"    - {result.was}\n    + {result.now}")
            if asked.out:
                asked.out.write_text(
                    json.dumps(_record(where, asked.seed, len(every), left_out, results, known), indent=1) + "\n"
                )


def _record(
    where: Any, seed: int, of: int, left_out: Counter[str], results: list[Met], known: dict[str, Any]
) -> dict[str, Any]:
    fates = Counter(r.fate for r in results)
    killed = fates["killed"] + fates["timeout"]
    low, high = interval(killed, len(results))
    parts = {part: Counter(r.fate for r in results if r.path.split("/")[1] == part) for part in CORE}
    return {
        "environment": where,
        "mutants": of,
        "left_out": dict(left_out),
        "sampled": len(results),
        "seed": seed,
        "tests": len(known["seconds"]),
        "fates": dict(fates),
        "share_killed": killed / len(results),
        "share_killed_95": [low, high],
        "by_part": {part: dict(count) for part, count in parts.items() if count},
        "survivors": [asdict(r) for r in results if r.fate not in ("killed", "timeout")],
    }


def _preload() -> None:
    """What every child would import again; not gradfunc."""
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import scipy.integrate
    import scipy.optimize
    import scipy.sparse.linalg
    import scipy.stats  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torch._dynamo
    import torch.func

    torch.set_num_threads(1)
    assert not any(name.split(".")[0] == "gradfunc" for name in sys.modules), "a mutant must be imported afresh"


if __name__ == "__main__":
    main()
