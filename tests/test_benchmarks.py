"""The benchmark against TRL: its rows, its gate, what it keeps and what it prints."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from logratio.model.load import load, save

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Returns a function that imports a module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def outcome(gate, loss=2.0, **changed):
    gradient = {"a": torch.tensor([1.0, -0.5, 1e-9]), "b": torch.tensor([[0.25]])}
    moved = {name: -gate.RATE * values.double().sign() for name, values in gradient.items()}
    named = {"gradient": gradient, "moved": moved}
    for name, factor in changed.items():
        named[name] = {key: values * factor[key] for key, values in named[name].items()}
    return gate.Outcome(loss=loss, **named)


def test_the_gate_is_open_for_what_is_the_same(module):
    gate = module("speed_gate")
    found = gate.compared(outcome(gate), outcome(gate))
    assert found["passed"]
    assert (found["loss"], found["step"], found["moved"]) == (0, 0, pytest.approx(1))
    assert found["compared_weights"] == 0.75  # the gradient of 1e-9 is rounding


@pytest.mark.parametrize(
    ("figure", "ours"),
    [
        ("loss", {"loss": 2.0 * (1 + 1.1e-5)}),
        ("loss", {"loss": float("nan")}),
        ("cosine", {"gradient": {"a": torch.tensor([1.0, 1.02, 1.0]), "b": torch.tensor(1.0)}}),
        ("cosine", {"gradient": {"a": torch.tensor(float("nan")), "b": torch.tensor(1.0)}}),
        ("step", {"moved": {"a": torch.tensor([1.0, 1.002, 1.0]), "b": torch.tensor(1.0)}}),
        ("step", {"moved": {"a": torch.tensor(1.0), "b": torch.tensor(-1.0)}}),
    ],
)
def test_the_gate_is_shut_by_each_figure_alone(module, figure, ours):
    gate = module("speed_gate")
    found = gate.compared(outcome(gate, **ours), outcome(gate))
    assert not found["passed"]
    whole = gate.compared(outcome(gate), outcome(gate))
    others = {"loss", "cosine", "step"} - {figure}
    assert {name: found[name] for name in others} == pytest.approx(
        {name: whole[name] for name in others}
    )


def test_the_gate_is_shut_for_a_step_that_was_not_taken(module):
    gate = module("speed_gate")
    still = outcome(gate, moved={"a": 0.0, "b": 0.0})
    assert not gate.compared(still, still)["passed"]


def test_a_weight_whose_gradient_is_rounding_may_go_anywhere(module):
    gate = module("speed_gate")
    turned = outcome(gate, moved={"a": torch.tensor([1.0, 1.0, -1.0]), "b": torch.tensor(1.0)})
    assert gate.compared(turned, outcome(gate))["passed"]


def test_every_row_can_be_run(module):
    rows = module("speed_rows")
    full = rows.SETS["full"]
    assert len({row.name for row in full}) == len(full)
    assert {row.name for row in rows.SETS["all"]} == {
        "gpt2", "w1a", "w1b", "w2", "4.5m", "w0", "w6", "w7", "d1",
    }  # fmt: skip
    for row in [*full, *rows.SETS["quick"]]:
        load = row.workload
        count = row.prompts if row.kind == "dpo" else load.rows
        assert all(count % batch == 0 for batch in row.batches())
        assert rows.Row(**json.loads(json.dumps(row.record()))).workload == load
        assert load.reference == (row.beta > 0)
    by_name = {row.name: row for row in full}
    assert by_name["w2"].batches() == [4, 8, 16]
    assert max(by_name["w6"].workload.prompts) > min(by_name["w6"].workload.prompts)
    assert by_name["w7"].workload.epochs == 2
    assert all(row.workload.rows == 32 for _, row in rows.CURVES["group"])
    assert rows.wide(256) == rows.SMALL


def record(seconds, *, rate=100.0, memory=2.0):
    return {
        "warmup": [1.2 * seconds],
        "steps": [0.9 * seconds, seconds, 1.1 * seconds],
        "step_seconds": seconds,
        "phases": {"prefill": 0.1, "decode": 0.2, "sample": 0.05, "forward": 0.2, "backward": 0.3,
                   "optimizer": 0.1, "other": 0.05},
        "tokens": {"prompt": 3, "completion": 4},
        "peak_memory_gb": memory,
        "imports_memory_gb": 0.5,
        "ceilings": {"matmul_gflops": {"bf16": {"1x1x1": rate, "2x1x1": 1.0}}},
        "floor_phases": {"prefill": 0.05, "decode": 0.1, "train": 0.2, "optimizer": 0.05},
        "floor_seconds": 0.4,
    }  # fmt: skip


def run(side, seconds, column=None, **more):
    return {"side": side, "column": column, "wall": 60.0, "stolen": 0.01, "elsewhere": 0.02,
            "record": record(seconds, **more)}  # fmt: skip


def found(module, name="w1a", *, rate=100.0, passed=True):
    rows = {row.name: row for row in module("speed_rows").SETS["full"]}
    runs = [run("ours", 1.0), run("trl", 5.0, "headline", memory=8.0),
            run("ours", 1.0, rate=rate), run("trl", 5.0, "bf16")]  # fmt: skip
    return {
        "row": rows[name].record(),
        "stamp": {"commit": "abc", "machine": "a processor", "threads": 2,
                  "versions": {"trl": "1.16.0"}},
        "gate": {"loss": 1e-7, "cosine": 1.0, "step": 1e-5, "compared_weights": 0.9,
                 "passed": passed},
        "sweep": {"seconds": {"4": 2.0}, "best": "4"},
        "runs": runs if passed else [],
    }  # fmt: skip


def test_what_is_printed_is_what_was_measured(module):
    page = module("speed_page")
    text = page.headline([found(module)])
    assert "| w1a " in text
    assert "1 s (0.9 to 1.1; 6)" in text
    assert "5 s (4.5 to 5.5; 3)" in text
    assert "**5.00**" in text
    assert "| 4 " in text
    assert "(!)" not in text
    assert "| 0.25 " in page.memory([found(module)])
    assert "| 0.20 " in page.memory([found(module)])  # (2 - 0.5) / (8 - 0.5)
    floors = page.floors([found(module)])
    assert "0.500 / 0.200" in floors
    assert "| 0.40 " in floors


def test_a_row_measured_while_the_machine_was_busy_is_marked(module):
    text = module("speed_page").headline([found(module, rate=94.0)])
    assert "| w1a (!) " in text


def test_a_row_whose_gate_is_shut_has_no_number(module):
    page = module("speed_page")
    shut = found(module, passed=False)
    assert "| w1a" not in page.headline([shut])
    assert "SHUT" in page.gates([shut])


def test_the_page_is_written_from_the_records(module, tmp_path):
    page, rows = module("speed_page"), module("speed_rows")
    folder = tmp_path / "performance"
    folder.mkdir()
    names = ["w1a", *(row.name for _, row in rows.CURVES["group"][:3])]
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps(found(module, name)))
    page.write(folder)
    text = (tmp_path / "performance.md").read_text()
    assert "{" not in text
    assert "Code of commit abc, measured on a processor" in text
    assert "## Growth" in text
    assert "### By group" in text
    assert "### By prompt" not in text
    assert text.count("| w1a ") == 6
    for picture in ("times", "growth-group"):
        assert f"performance/{picture}.svg" in text
        ElementTree.parse(folder / f"{picture}.svg")


def test_a_picture_is_well_formed_and_to_scale(module):
    svg = module("speed_svg")
    text = svg.bars("a < b", {"x": {"one & two": 2.0, "three": 4.0}})
    root = ElementTree.fromstring(text)
    bars = [float(part.get("width")) for part in root if part.get("height") == "13"]
    assert bars[1] == pytest.approx(2 * bars[0])
    assert "a &lt; b" in text
    drawn = svg.lines("t", ("x", "y"), {"line": [(1.0, 1.0), (10.0, 10.0), (100.0, 100.0)]})
    circles = [part for part in ElementTree.fromstring(drawn) if part.tag.endswith("circle")]
    places = [(float(one.get("cx")), float(one.get("cy"))) for one in circles]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert (x1 - x0, y0 - y1) == pytest.approx((x2 - x1, y1 - y2))
    assert x0 < x1
    assert y0 > y1  # up is less


def test_a_row_is_kept_until_something_that_decides_it_changes(module, tmp_path, monkeypatch):
    speed, rows = module("speed"), module("speed_rows")
    calls = []

    def measured(row, _):
        calls.append(row.name)
        return {"gate": {"passed": True}, "runs": [], "figure": 1 / 3}

    monkeypatch.setattr(speed, "measured", measured)
    stamp = {"code": "a", "versions": {"trl": "1"}, "threads": 2, "commit": "x"}
    row = rows.SETS["quick"][0]
    first = speed.one_row(row, tmp_path, stamp)
    again = speed.one_row(row, tmp_path, {**stamp, "commit": "y"})
    assert calls == ["4.5m"]
    assert (first["figure"], again["figure"]) == (1 / 3, 0.333333)
    for change in ({"code": "b"}, {"threads": 1}, {"versions": {"trl": "2"}}):
        speed.one_row(row, tmp_path, {**stamp, **change})
    assert len(calls) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"beta": 0.04}, {"kind": "dpo", "group": 2, "beta": 0.1}],
    ids=["grpo", "dpo"],
)
def test_one_rollout_through_both_trainers_comes_to_the_same(module, tmp_path, settings):
    """In a process of its own: TRL warns of what it does itself, and warnings are errors here."""
    pytest.importorskip("trl")
    rows = module("speed_rows")
    save(load("tiny"), tmp_path / "model")
    row = rows.Row(**{"name": "tiny", "model": "tiny", "prompts": 2, "group": 4,
                      "prompt_tokens": 8, "completion_tokens": 8, **settings})  # fmt: skip
    job = {"side": "gate", "row": row.record(), "model": str(tmp_path / "model"), "threads": 1}
    command = [sys.executable, BENCHMARKS / "speed_process.py", json.dumps(job), tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "out").read_text())["passed"]
