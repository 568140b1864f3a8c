"""The house rules that no tool of `make check` holds by itself."""

import ast
import re
import subprocess
import sys
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "logratio"
SOURCES = sorted(PACKAGE.rglob("*.py"))
OBJECTIVES = sorted(PACKAGE.glob("objectives/[!_]*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OUR_PYTHON = [ROOT / name for name in ("benchmarks", "examples", "src", "tests", "tools")]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


every_source = pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
every_objective = pytest.mark.parametrize("path", OBJECTIVES, ids=names(OBJECTIVES))
every_test = pytest.mark.parametrize("path", TESTS, ids=names(TESTS))


def functions(path: Path) -> Iterator[Function]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return (node for node in nodes if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Counts from the first statement to the last, without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def positional(function: Function) -> list[str]:
    """Names what a caller may pass by position: no keyword-only settings, no `self` of any kind."""
    arguments = [argument.arg for argument in function.args.posonlyargs + function.args.args]
    return [name for name in arguments if name not in {"self", "cls", "ctx"}]


def committed() -> list[Path]:
    """Lists what git holds or would add; a folder without git is read whole."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        found = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if ".venv" not in path.parts]
    return [path for path in found if path.is_file()]


def python(*arguments: str) -> tuple[set[str], float]:
    """Runs a fresh interpreter; returns the top-level modules that it loaded, and its seconds."""
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - start
    return set(re.findall(r"\| +(\w+)[\w.]*$", run.stderr, re.MULTILINE)), seconds


@every_source
def test_a_file_is_short(path):
    limit = 300
    if path in OBJECTIVES:
        limit = 200 if path.stem == "qpo" else 150
    assert len(path.read_text().splitlines()) <= limit


@every_source
def test_a_function_is_short_and_takes_few_positional_arguments(path):
    # a kernel names every number of its launch first, which no caller can do for it
    limit = 50 if path.parent.name == "cuda" else 40
    long = {f.name: lines for f in functions(path) if (lines := body_lines(f)) > limit}
    wide = {f.name: arguments for f in functions(path) if len(arguments := positional(f)) > 4}
    assert not long
    assert not wide


@every_source
def test_a_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_a_module_is_named_after_what_it_holds():
    vague = re.compile(r"(^|_)(utils?|helpers?|managers?|base)(_|$)")
    files = [path for folder in OUR_PYTHON for path in folder.rglob("*.py")]
    assert not [path for path in files if vague.search(path.stem) or vague.search(path.parent.name)]


@every_objective
def test_an_objective_has_a_test_and_a_page(path):
    assert (ROOT / "tests" / "objectives" / f"test_{path.stem}.py").is_file()
    assert (ROOT / "docs" / "objectives" / f"{path.stem}.md").is_file()


@every_test
def test_a_wide_tolerance_says_which_arithmetic_needs_it(path):
    with tokenize.open(path) as file:
        tokens = tokenize.generate_tokens(file.readline)
        explained = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    wide = {
        keyword.lineno
        for keyword in ast.walk(ast.parse(path.read_text()))
        if isinstance(keyword, ast.keyword)
        and keyword.arg in {"rtol", "atol", "rel", "abs"}
        and isinstance(keyword.value, ast.Constant)
        and isinstance(keyword.value.value, int | float)
        and keyword.value.value > 1e-3
    }
    assert not wide - explained


LIGHT = ("settings", "part", "records", "recipe", "run", "store", "report")


@pytest.mark.parametrize(
    "module",
    ["logratio", *(f"logratio.{name}" for name in LIGHT if list(PACKAGE.glob(f"{name}*")))],
)
def test_a_module_without_tensors_loads_no_torch(module):
    loaded, _ = python("-c", f"import {module}")
    assert "logratio" in loaded
    assert "torch" not in loaded


def test_the_help_is_quick_and_loads_no_torch():
    runs = [python("-c", "from logratio.cli import main; main()", "--help") for _ in range(5)]
    assert all("logratio" in loaded and "torch" not in loaded for loaded, _ in runs)
    assert min(seconds for _, seconds in runs) < 0.4


def test_nothing_committed_names_a_machine_or_a_registry():
    private = re.compile(
        r"(?<![\w.~-])/(?:work|root|home)/|--(?:extra-)?index-url"
        r"|(?:pypi|pythonhosted|npmjs|anaconda|download\.pytorch)\.(?:org|com)"
    )
    found = {
        (str(path.relative_to(ROOT)), match.group())
        for path in committed()
        if (match := private.search(path.read_text(errors="ignore")))
    }
    assert not found
