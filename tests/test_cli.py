"""What is typed, what is printed and where, and what the shell is told."""

import json
import subprocess
import sys

import pytest

from logratio import cli
from logratio.lab import verify
from logratio.lab.rows import Row
from logratio.objectives import names

GOOD = Row(part="kl", subject="grpo", case="k2", measured={"value": 0.0}, limits={"value": 1.0})
BAD = Row(
    part="kl", subject="grpo", case="k1", measured={"value": float("nan")}, limits={"value": 1.0}
)


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that types a command and tells exit code, output and errors."""

    def typed(*words):
        monkeypatch.setattr(sys, "argv", ["logratio", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return typed


def reporting(monkeypatch, *rows):
    monkeypatch.setattr(verify, "verify", lambda: verify.Report(rows=rows, seconds=2.0))


def test_verify_prints_a_table(run, monkeypatch):
    reporting(monkeypatch, GOOD)
    code, out, err = run("verify")
    assert (code, err) == (0, "")
    assert out.endswith("1 rows, 0 failed, 2 s\n")


def test_a_row_that_fails_is_exit_code_1(run, monkeypatch):
    reporting(monkeypatch, GOOD, BAD)
    code, out, _ = run("verify")
    assert code == 1
    assert "FAILED" in out


def test_json_is_one_object_and_nothing_else(run, monkeypatch):
    reporting(monkeypatch, GOOD, BAD)
    code, out, err = run("verify", "--json")
    assert (code, err) == (1, "")
    record = json.loads(out)
    assert record["passed"] is False
    assert [row["case"] for row in record["rows"]] == ["k2", "k1"]
    assert record["rows"][1]["measured"] == {"value": None}


def test_objectives_are_listed_with_what_they_are(run):
    code, out, _ = run("objectives", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()][:3] == ["dapo", "dpo", "grpo"]
    assert "the log-ratio to the reference is the reward" in out


def test_an_objective_is_shown_with_settings_parts_presets_and_needs(run):
    code, out, _ = run("objectives", "show", "dpo")
    assert code == 0
    assert "h = beta (D+ - D-)" in out
    assert "  kind = 'sigmoid'   (one of 'sigmoid', 'ipo', 'hinge', 'robust')" in out
    assert "average: per_pair" in out
    assert "  average.truncated = 'count'   (one of 'count', 'leave_out')" in out
    assert "  as_written: normalise=length" in out
    assert "  streams of the batch: pair, ref" in out
    assert out.endswith("a micro-batch must not cut a pair\n")


def test_a_setting_without_a_default_is_shown_as_required(run, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from logratio.average import AVERAGES\n"
        "from logratio.objective import Objective\n"
        "from logratio.objectives.sft import loss\n"
        "from logratio.part import Part\n"
        "mine = Objective(name='mine', loss=Part(loss), average=AVERAGES['fixed_length'])\n"
    )
    code, _, err = run("objectives", "show", f"{file}:mine")
    assert (code, err.count("\n")) == (2, 1)
    assert "`length` of `fixed_length` has no default" in err


def test_a_name_that_does_not_exist_is_one_sentence_and_exit_code_2(run):
    code, out, err = run("objectives", "show", "grop")
    assert (code, out) == (2, "")
    assert err.startswith("`logratio` has no objective `grop`: did you mean `grpo`?")
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [("verfy",), ("verify", "--jsn"), ("objectives", "show")])
def test_a_command_that_does_not_exist_is_exit_code_2(run, words):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "Usage" in err


def test_help_names_the_verbs_and_loads_no_torch():
    script = (
        "import sys; from logratio.cli import app; app(standalone_mode=False); "
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "verify" in found.stdout
    assert "objectives" in found.stdout
    assert found.stdout.endswith("False\n")


@pytest.mark.slow
def test_verify_passes_and_prints_one_object():
    command = [sys.executable, "-c", "from logratio.cli import main; main()", "verify", "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    record = json.loads(found.stdout)
    rows = record["rows"]
    assert record["passed"] is True
    assert all(row["passed"] for row in rows)
    parts = {"slopes", "coefficients", "fixed points", "identities", "kl", "bandit"}
    assert {row["part"] for row in rows} == parts
    assert {row["subject"] for row in rows if row["part"] == "slopes"} == set(names())
    assert all(row["counted"]["draws"] for row in rows if row["part"] == "slopes")
