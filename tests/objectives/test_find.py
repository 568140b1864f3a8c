"""Objectives by name, by file, by dotted path; and what is said where there is none."""

import importlib.machinery
import importlib.util
import subprocess
import sys

import pytest
from objectives.rows import refusal

from logratio.objective import Objective
from logratio.objectives import find, names

NAMES = [
    "dapo", "dpo", "grpo", "importance", "ppo", "qpo", "reward_model", "rft", "sft", "spo",
    "variance_grpo",
]  # fmt: skip


def test_the_names_are_those_of_the_files():
    assert names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_is_found_by_its_name(name):
    found = find(name)
    assert isinstance(found, Objective)
    assert found.name == name
    assert find(f"logratio.objectives.{name}:{name}") is found
    assert find(f"{name}:{name}") is found


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_has_a_preset_for_its_document_and_a_closed_form(name):
    assert "as_written" in find(name).presets
    assert find(name).coefficient is not None


SOURCE = """
from logratio.objectives.sft import sft
from dataclasses import replace
mine = replace(sft, name="mine")
number = 3
"""


def test_an_objective_is_found_in_a_file(tmp_path):
    file = tmp_path / "my_file.py"
    file.write_text(SOURCE)
    assert find(f"{file}:mine").name == "mine"
    assert refusal(find, f"{file}:mines") == (
        f"`{file}` has no objective `mines`: did you mean `mine`? it has mine, sft"
    )
    assert refusal(find, f"{file}:number") == (
        f"`{file}` has no objective `number`: it has mine, sft"
    )


def test_an_unknown_name_comes_with_the_nearest():
    known = ", ".join(NAMES)
    assert refusal(find, "grop") == (
        f"`logratio` has no objective `grop`: did you mean `grpo`? it has {known}"
    )
    assert refusal(find, "zzz") == f"`logratio` has no objective `zzz`: it has {known}"


def test_an_unknown_attribute_of_a_module():
    assert refusal(find, "logratio.objectives.grpo:gpro") == (
        "`logratio.objectives.grpo` has no objective `gpro`: did you mean `grpo`? it has grpo"
    )


def test_a_file_that_is_not_there(tmp_path):
    file = tmp_path / "missing.py"
    assert refusal(find, f"{file}:mine") == (
        f"`{file}` is not a file, but it must be a Python file with an objective"
    )


def test_a_file_that_python_can_not_load(tmp_path, monkeypatch):
    file = tmp_path / "odd.py"
    file.write_text("")
    sentence = f"`{file}` can not be imported, but it must be a Python file"
    for spec in (None, importlib.machinery.ModuleSpec("odd", None)):
        monkeypatch.setattr(importlib.util, "spec_from_file_location", lambda *_, spec=spec: spec)
        assert refusal(find, f"{file}:mine") == sentence


@pytest.mark.parametrize("place", ["nope.objectives", "logratio.objectives.nope"])
def test_a_module_that_is_not_there(place):
    assert refusal(find, f"{place}:mine") == (
        f"`{place}` is not a module that can be imported, but it must be a dotted path, or a file "
        "that ends in .py"
    )


def test_what_a_users_file_itself_can_not_import_is_said_as_it_is(tmp_path, monkeypatch):
    """The file is there: the fault is inside it, and its own error says where."""
    (tmp_path / "broken_objective.py").write_text("import there_is_no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_package"):
        find("broken_objective:mine")
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_package"):
        find(f"{tmp_path / 'broken_objective.py'}:mine")


def test_a_found_file_is_a_module_like_any_other(tmp_path):
    """Its objects can be pickled by a worker process: its module is in the table of modules."""
    file = tmp_path / "my_registered_file.py"
    file.write_text(SOURCE + "def loss(): ...\n")
    before = set(sys.modules)
    find(f"{file}:mine")
    (name,) = set(sys.modules) - before
    assert name.startswith("logratio_user_")
    assert sys.modules[name].loss.__module__ == name
    del sys.modules[name]


def test_a_file_named_like_a_module_leaves_that_module_alone(tmp_path):
    file = tmp_path / "random.py"
    file.write_text(SOURCE)
    before = sys.modules.get("random")
    find(f"{file}:mine")
    assert sys.modules.get("random") is before


def test_warnings_point_at_the_line_of_whoever_chose_the_setting(tmp_path):
    """In a process of its own, without the type checks of the tests, whose frames lie between."""
    file = tmp_path / "choose.py"
    file.write_text(
        "from logratio.objectives import find\n"
        "find('qpo').using(A=1.0)\n"
        "find('spo').using(q0='policy')\n"
    )
    run = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
    assert f"{file}:2: UserWarning: `A` is not 0" in run.stderr
    assert f"{file}:3: UserWarning: `q0` is 'policy'" in run.stderr
