"""CONTRIBUTING, followed to the letter: a new objective is one file, and every law runs on it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def example() -> str:
    """Returns the file that CONTRIBUTING says to write."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def checkout(tmp_path):
    """Gives a copy of the repository's source and laws, without the new file."""
    for place in ("src", "tests/laws"):
        shutil.copytree(ROOT / place, tmp_path / place)
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def laws(checkout):
    """Runs the laws on what is named doubt, and returns what pytest printed and how it ended."""
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/laws",
            "-k",
            "doubt",
        ],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.stdout + ended.stderr, ended.returncode


@pytest.mark.slow
def test_a_new_objective_in_one_file_passes_every_law(checkout):
    (checkout / "src/logratio/objectives/doubt.py").write_text(example())
    said, code = laws(checkout)
    assert code == 0, said
    assert "7 passed" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('{"logp": -doubt * error}', '{"logp": doubt * error}'),
        ("stop(error) * policy.logp", "stop(error).mean() * policy.logp"),
    ],
)
def test_a_wrong_one_fails_them(checkout, right, wrong):
    """A sign turned in the closed form; a mean across items, which cutting the batch shows."""
    assert right in example()
    (checkout / "src/logratio/objectives/doubt.py").write_text(example().replace(right, wrong))
    said, code = laws(checkout)
    assert code == 1, said
