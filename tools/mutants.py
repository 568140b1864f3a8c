"""Mutation testing of the mathematics with mutmut; the table goes to docs/mutants.md.

    python tools/mutants.py [--files numerics,credit] [--resume | --report]

mutmut works on a copy in build/mutation. It changes nothing outside functions, no decorated
function, and hides what it makes of a default from whoever reads signatures. So in that copy a
function makes each table of a module, and each default, and decorators are called after the fact.
Not mutated: annotations, docstrings, `len` and `isinstance`.

Exit 1 if a file has no mutants, or fewer than 95 % killed without those that docs/log.md
declares equivalent, each with its proof, or more than 3 % of those.
"""

import argparse
import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutation"
RAN = WORK / "ran.json"  # the commit, and the seconds of all runs that resumed it
PACKAGE = Path("src") / "logratio"
NAMES = ("numerics", "average", "keep", "credit", "weight")
KILLED, LEAST, MOST = "killed", 0.95, 0.03
SKIPPED = 34  # mutmut's exit code of a mutant that nobody asked for
VALUES = ast.Call | ast.Dict | ast.DictComp | ast.Tuple | ast.Constant
TERMINAL = sys.stdout
HEADING = "## Equivalent mutants"


@dataclass(frozen=True)
class Mutant:
    """One change of one file, and what the tests said of it."""

    function: str
    change: str
    outcome: str
    equivalent: bool


@dataclass(frozen=True)
class Row:
    """What became of the mutants of one file."""

    file: str
    mutants: int
    counts: Counter[str]
    equivalent: int

    @property
    def share(self) -> float:
        """The part that was killed, of those that can be."""
        return self.counts[KILLED] / max(1, self.mutants - self.equivalent)

    @property
    def good(self) -> bool:
        """Says whether enough were killed, and few enough declared equivalent."""
        return self.mutants > 0 and self.share >= LEAST and self.equivalent <= MOST * self.mutants

    def cells(self) -> list[str]:
        """Returns the row as text."""
        words = (KILLED, "survived", "timeout", "no tests")
        other = self.mutants - self.equivalent - sum(self.counts[word] for word in words)
        counts = (self.mutants, *(self.counts[word] for word in words), other, self.equivalent)
        return [self.file, *map(str, counts), f"{self.share:.1%}", "yes" if self.good else "NO"]


def files() -> list[Path]:
    """Lists the files that are mutated."""
    objectives = sorted((ROOT / PACKAGE / "objectives").glob("*.py"))
    return [PACKAGE / f"{name}.py" for name in NAMES] + [p.relative_to(ROOT) for p in objectives]


def opened(source: str) -> str:
    """Returns a module's source with nothing left that mutmut would pass over.

    >>> print(opened("LIMIT = 2"))
    def table_LIMIT():
        return (2)
    LIMIT = table_LIMIT()
    """
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if isinstance(value, VALUES):
                text = ast.get_source_segment(source, value)
                made = [f"def table_{name}():", f"    return ({text})", f"{name} = table_{name}()"]
                lines[node.lineno - 1 : node.end_lineno] = "\n".join(made).split("\n")
            case ast.FunctionDef():
                calls = [ast.unparse(one) for one in node.decorator_list]
                after = [f"{node.name} = {call}({node.name})" for call in calls]
                lines[node.end_lineno : node.end_lineno] = after
                first = min([node, *node.decorator_list], key=lambda one: one.lineno).lineno - 1
                lines[first : node.lineno - 1] = defaults(node, lines)
            case _:
                pass
    return "\n".join(lines)


def defaults(function: ast.FunctionDef, lines: list[str]) -> list[str]:
    """Puts a call in the place of each constant default; returns the functions that it calls."""
    given = function.args
    some = given.args[len(given.args) - len(given.defaults) :]
    pairs = [*zip(some, given.defaults, strict=True)]
    pairs += [*zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    made: list[str] = []
    for argument, value in reversed(pairs):
        if isinstance(value, ast.Constant) and value.value is not None:
            name = f"table_{function.name}_{argument.arg}"
            line = lines[value.lineno - 1].encode()
            text = line[value.col_offset : value.end_col_offset].decode()
            made += [f"def {name}():", f"    return {text}"]
            ends = line[: value.col_offset], line[value.end_col_offset :]
            lines[value.lineno - 1] = f"{ends[0].decode()}{name}(){ends[1].decode()}"
    return made


def copy() -> None:
    """Brings the copy up to date; a file that did not change keeps its time, and its verdicts."""
    WORK.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(WORK / "tests", ignore_errors=True)
    shutil.rmtree(WORK / "mutants" / "tests", ignore_errors=True)
    shutil.copytree(ROOT / "tests", WORK / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", WORK)
    (WORK / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)  # which test reads what
    mutated = files()
    for path in sorted((ROOT / "src").rglob("*.py")):
        place = path.relative_to(ROOT)
        text = opened(path.read_text()) if place in mutated else path.read_text()
        target = WORK / place
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            (WORK / "mutants" / place).unlink(missing_ok=True)


def ask(wanted: Sequence[Path], mutmut: Any, workers: int) -> None:
    """Makes the mutants, and forgets every verdict on the wanted files but `killed`."""
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.create_mutants(workers)
    for path in files():
        data = mutmut.SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            if path not in wanted:
                data.exit_code_by_key[name] = SKIPPED if code is None else code
            elif mutmut.status_by_exit_code[code] != KILLED:
                data.exit_code_by_key[name] = None
        data.save()


def run(wanted: Sequence[Path], workers: int) -> None:
    """Runs mutmut in the copy."""
    os.chdir(WORK)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = str(ROOT / "tools")
    sys.path.insert(0, str(ROOT / "tools"))
    from mutmut import __main__ as mutmut  # noqa: PLC0415 (reads its table where it is imported)

    Path("mutants").mkdir(exist_ok=True)
    if not sys.stdout.isatty():  # its progress is for eyes
        sys.stdout = sys.__stdout__ = (WORK / "log").open("w")
    ask(wanted, mutmut, workers)
    mutmut._run((), workers)
    sys.stdout = sys.__stdout__ = TERMINAL


def change(before: str, after: str) -> str:
    """Returns the first line that a mutant changed, as it reads then; without it, what went."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    added = [line[2:].strip() for line in lines if line.startswith("+ ")]
    gone = [line[2:].strip() for line in lines if line.startswith("- ")]
    if not added:
        return f"without {gone[0]}" if gone else "nothing that can be read"
    alike = [one == other for one, other in zip(added[0], "".join(gone[:1]), strict=False)]
    same = [*alike, False].index(False)
    start, end = max(0, same - 70), same + 70
    head, tail = "..." * (start > 0), "..." * (end < len(added[0]))
    return f"{head}{added[0][start:end]}{tail}"


def mutants(path: Path, declared: set[tuple[str, str]]) -> list[Mutant]:
    """Returns the mutants of one file, from what mutmut has written down."""
    from mutmut.stats import status_by_exit_code  # noqa: PLC0415

    folder = WORK / "mutants"
    meta = json.loads((folder / f"{path}.meta").read_text())["exit_code_by_key"]
    tree = ast.parse((folder / path).read_text())
    bodies = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found: list[Mutant] = []
    for name, code in meta.items():
        module, _, key = name.rpartition(".")
        function = key.partition("__mutmut_")[0]
        texts = [ast.unparse(bodies[one]) for one in (f"{function}__mutmut_orig", key)]
        text = change(*(re.sub(r"(?<=^def )\w+", "", text) for text in texts))
        place = f"{module.rpartition('.')[2]}.{function.removeprefix('x_')}"
        outcome = status_by_exit_code[code]
        found.append(Mutant(place, text, outcome, (place, text) in declared))
    return found


def declarations() -> set[tuple[str, str]]:
    """Returns what docs/log.md declares equivalent: - `file.function`: `changed line`: proof."""
    _, _, section = (ROOT / "docs" / "log.md").read_text().partition(HEADING)
    lines = section.partition("\n## ")[0].splitlines()
    pattern = re.compile(r"- `([\w.]+)`: (`+)(.+?)\2: \S")
    return {(m[1], m[3].strip()) for line in lines if (m := pattern.match(line))}


def row(file: str, found: Iterable[Mutant]) -> Row:
    """Returns one file's counts; what is declared equivalent counts as nothing else."""
    found = list(found)
    counts = Counter(one.outcome for one in found if not spared(one))
    return Row(file, len(found), counts, sum(spared(one) for one in found))


def spared(one: Mutant) -> bool:
    """Says whether a mutant survived and was declared equivalent."""
    return one.equivalent and one.outcome == "survived"


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table."""
    head = ["file", "mutants", KILLED, "survived", "timeout", "no tests", "other", "equivalent"]
    lines = [[*head, "share killed", "good"], ["---"] + ["---:"] * 8 + ["---"]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *(r.cells() for r in rows)])


def commit() -> str:
    """Returns the commit of the checkout, and whether files differ from it."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(
        asked, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def page(rows: Sequence[Row], alive: Sequence[Mutant], ran: Mapping[str, Any]) -> str:
    """Returns docs/mutants.md."""
    told = str(__doc__).partition("\n\n")[2].partition("\n\n")[2].partition("\n\nExit 1")[0]
    lines = "\n".join(f"- `{m.function}`: `{m.change}`: {m.outcome}" for m in alive)
    minutes = ran["seconds"] / 60
    return (
        f"# Mutants\n\nWritten by `make mutants` at commit {ran['commit']}, in {minutes:.0f} "
        f"minutes on {os.cpu_count()} cores.\n\n{told}\n\n{table(rows)}\n\nThe share killed leaves "
        "out what docs/log.md declares equivalent; a time-out counts as not killed.\n\n"
        f"## Not killed\n\n{lines or 'None.'}\n"
    )


def main() -> int:
    """Prints the table; returns 1 if a file is not good."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--files", default="", help="names without .py, with commas between")
    parser.add_argument("--resume", action="store_true", help="keep what is killed already")
    parser.add_argument("--report", action="store_true", help="run nothing: write what is known")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    names = asked.files.split(",") if asked.files else [path.stem for path in files()]
    wanted = [path for path in files() if path.stem in names]
    if not wanted:
        parser.error(f"--files is {asked.files}, but it must be some of {', '.join(names)}")
    if not asked.resume and not asked.report:
        shutil.rmtree(WORK, ignore_errors=True)
    ran: dict[str, Any] = json.loads(RAN.read_text()) if RAN.exists() else {"seconds": 0.0}
    if not asked.report:
        began, ran["commit"] = time.monotonic(), commit()
        copy()
        run(wanted, asked.workers)
        ran["seconds"] += time.monotonic() - began
        RAN.write_text(json.dumps(ran))
    declared = declarations()
    found = {str(path.relative_to(PACKAGE)): mutants(path, declared) for path in wanted}
    alive = [m for one in found.values() for m in one if m.outcome != KILLED and not spared(m)]
    rows = [row(name, one) for name, one in found.items()]
    written = page(rows, alive, ran)
    print(written)
    if len(wanted) == len(files()):
        (ROOT / "docs" / "mutants.md").write_text(written)
    return int(not all(one.good for one in rows))


if __name__ == "__main__":
    sys.exit(main())
