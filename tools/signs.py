"""Flips every sign, min / max and comparison of every loss, one by one; the tests must notice.

    python tools/signs.py [FILE ...]

Each flip runs in a process forked from one that has loaded torch, against the tests of its file,
then, if those pass, against all fast tests and `logratio verify`. Exit 1 if one survives.
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import hypothesis  # noqa: F401 (loaded here, once for every fork)
import pytest
import torch
from flips import Flip, flips

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "logratio"
LIMIT = 300  # seconds before a flip counts as noticed because it hangs
QUIET = "ignore::pytest.PytestAssertRewriteWarning"  # hypothesis is loaded before the fork
PLAIN = ["-W", QUIET, "-x", "-q", "-p", "no:cacheprovider", "-p", "no:jaxtyping", "-m", "not slow"]
ADDOPTS = "addopts=--import-mode=importlib --strict-markers"


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module from changed source; every other is found as ever."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        """Keeps which module it stands for."""
        self.name, self.path, self.source = name, path, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns a spec for the one module."""
        del path, target
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the changed source as the module."""
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


@dataclass(frozen=True)
class Trial:
    """One flip of one file, with how it ended."""

    path: Path
    flip: Flip
    tests: tuple[str, ...]

    @property
    def module(self) -> str:
        """The dotted name of the file."""
        return ".".join(self.path.relative_to(ROOT / "src").with_suffix("").parts)


def tests_of(path: Path) -> tuple[str, ...]:
    """Returns the tests of a file, narrow before wide."""
    name = path.stem
    if path.parent.name == "objectives":
        own = sorted((ROOT / "tests" / "objectives").glob(f"test_{name}*.py"))
    else:
        own = sorted((ROOT / "tests").glob(f"test_{name}*.py"))
    return tuple(str(one.relative_to(ROOT)) for one in own)


def run(trial: Trial) -> int:
    """Runs in a fork: 0 if every test passes with the fault in place, else 1."""
    os.chdir(ROOT)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.path.insert(0, str(ROOT / "src"))
    sys.meta_path.insert(0, Replaced(trial.module, trial.path, trial.flip.source))
    if pytest.main([*PLAIN, "-o", ADDOPTS, *trial.tests]) != 0:
        return 1
    if not trial.flip.line:  # nothing was flipped: the narrow tests alone must pass
        return 0
    others = ["tests/test_identities.py", "tests/laws", "tests"]
    if any(pytest.main([*PLAIN, "-o", ADDOPTS, test]) != 0 for test in others):
        return 1
    sys.argv = ["logratio", "verify"]
    try:
        importlib.import_module("logratio.cli").main()
    except SystemExit as ended:
        return int(bool(ended.code))
    return 0


def start(trial: Trial) -> int:
    """Returns the process that tries one flip."""
    child = os.fork()
    if child:
        return child
    signal.alarm(LIMIT)
    code = 1
    try:
        code = run(trial)
    finally:
        os._exit(code)


def attempt(trials: list[Trial], workers: int) -> list[tuple[Trial, str]]:
    """Returns how each flip ended: noticed, survived or hung."""
    running: dict[int, Trial] = {}
    ended: list[tuple[Trial, str]] = []
    waiting = list(reversed(trials))
    while waiting or running:
        while waiting and len(running) < workers:
            trial = waiting.pop()
            running[start(trial)] = trial
        child, status = os.wait()
        trial = running.pop(child)
        hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        outcome = "hung" if hung else "survived" if status == 0 else "noticed"
        ended.append((trial, outcome))
        if outcome != "noticed" and trial.flip.line:
            print(f"{outcome}: {trial.path.name}:{trial.flip.line}  {trial.flip.what}", flush=True)
    return ended


def main() -> int:
    """Prints what each file's flips came to; returns 1 if one survived."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    wanted = parser.parse_args()
    found = [*sorted((SOURCE / "objectives").glob("[a-z]*.py")), SOURCE / "numerics.py"]
    files = [path.resolve() for path in wanted.files] or found
    torch.set_num_threads(1)
    began, survived = time.monotonic(), 0
    for path in files:
        source, tests = path.read_text(), tests_of(path)
        if attempt([Trial(path, Flip(0, "nothing", source), tests)], 1)[0][1] != "survived":
            print(f"{path.name}: the tests fail before anything is flipped")
            return 1
        trials = [Trial(path, flip, tests) for flip in flips(source)]
        ended = attempt(trials, wanted.workers)
        counts = {
            word: sum(outcome == word for _, outcome in ended) for word in ("noticed", "hung")
        }
        survived += (alive := len(ended) - sum(counts.values()))
        print(f"{path.name:20} {len(ended):4} flips  {counts['noticed']:4} noticed  "
              f"{counts['hung']:2} hung  {alive:2} survived", flush=True)  # fmt: skip
    print(f"{survived} survived, {time.monotonic() - began:.0f} s")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
