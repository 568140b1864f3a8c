"""`logratio bench` and `logratio generate`, as they are typed."""

import json
import sys
from functools import partial

import pytest
import torch

from logratio import cli
from logratio.lab import ceilings

STEP = {
    "model", "parameters", "prompts", "rows", "prompt_tokens", "completion_tokens", "precision",
    "beta", "epochs", "device", "threads", "versions", "warmup", "steps", "step_seconds", "phases",
    "tokens", "ratio", "peak_memory_gb", "imports_memory_gb", "floor_phases", "floor_seconds",
    "floor_fraction", "ceilings",
}  # fmt: skip
PHASES = {
    "prefill", "decode", "sample", "reward", "collate", "forward", "backward", "optimizer", "other",
}  # fmt: skip
SMALL = ["--prompts", "2", "--group", "3", "--prompt-tokens", "12", "--completion-tokens", "5"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that types a command and tells exit code, output and errors."""
    monkeypatch.setattr(ceilings, "ROWS", (8,))
    monkeypatch.setattr(ceilings, "LUMP", 1.0)
    quick = partial(ceilings.measured, square=64, copy_bytes=2**20)
    monkeypatch.setattr(ceilings, "measured", quick)

    def typed(*words):
        monkeypatch.setattr(sys, "argv", ["logratio", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return typed


@pytest.mark.parametrize(
    ("more", "phases"),
    [
        ([], PHASES),
        (["--precision", "bf16", "--ragged", "--beta", "0.1", "--epochs", "2"],
         PHASES | {"reference"}),
    ],
)  # fmt: skip
def test_a_timed_step_is_one_object(run, more, phases):
    code, out, _ = run("bench", "step", *SMALL, "--steps", "2", "--json", *more)
    record = json.loads(out)
    assert code == 0
    assert record.keys() == STEP
    assert record["phases"].keys() == phases
    assert all(seconds >= 0 for seconds in record["phases"].values())
    assert len(record["steps"]) == 2
    assert min(record["steps"]) <= record["step_seconds"] <= max(record["steps"])
    whole = sum(record["phases"].values())
    assert whole == pytest.approx(record["step_seconds"], rel=0.5)  # medians of two steps each
    assert record["rows"] == 6
    assert record["tokens"]["trained"] == (
        record["tokens"]["prompt"] + record["tokens"]["completion"]
    )
    if not more:
        assert record["tokens"] == {"prompt": 24, "completion": 30, "trained": 54}
        assert record["ratio"] == pytest.approx(1, abs=1e-4)
    assert sum(record["floor_phases"].values()) == pytest.approx(record["floor_seconds"])
    assert record["floor_fraction"] == record["floor_seconds"] / record["step_seconds"]
    assert 0 < record["floor_fraction"] < 1
    assert 0 < record["imports_memory_gb"] <= record["peak_memory_gb"] < 64
    assert record["threads"] == torch.get_num_threads()


def test_a_timed_step_is_a_table(run):
    code, out, _ = run("bench", "step", *SMALL, "--steps", "1")
    assert code == 0
    assert out.startswith("tiny: 2 x 3 x (12 + 5), fp32")
    for phase in PHASES:
        assert f" {phase} " in out
    assert "of the serial floor" in out


def test_decoding_is_swept_over_rows(run):
    words = ["--rows", "1,4", "--prompt-tokens", "8", "--completion-tokens", "6", "--steps", "1"]
    code, out, _ = run("bench", "decode", *words, "--json")
    lines = json.loads(out)["sweep"]
    assert code == 0
    assert [one["rows"] for one in lines] == [1, 4]
    for one in lines:
        assert one["tokens_per_second"] == pytest.approx(one["rows"] * 1e3 / one["step_ms"])
        assert 0 < one["floor_ms"] < one["step_ms"]


def test_updates_are_timed_alone(run):
    code, out, _ = run("bench", "train", *SMALL, "--steps", "1", "--json")
    (line,) = json.loads(out)["sweep"]
    assert code == 0
    assert line["tokens"] == 54
    assert 0 < line["floor_seconds"] < line["seconds"]


def test_ceilings_are_printed(run):
    code, out, _ = run("bench", "ceilings")
    assert code == 0
    assert "64x64x64" in out
    assert "GB/s: copy" in out


def test_a_model_of_a_shape_is_written_and_read_again(run, tmp_path):
    folder = str(tmp_path / "model")
    code, out, _ = run("bench", "model", "qwen2-4.5m", folder)
    assert (code, out) == (0, f"qwen2-4.5m: 4,460,800 weights in {folder}\n")
    code, _, err = run("bench", "model", "qwen2-4.5m", folder)
    assert (code, err) == (
        2, f"`{folder}` is there already, but it must be a new or an empty folder\n",
    )  # fmt: skip
    code, out, _ = run("generate", folder, "a b", "--max-tokens", "3", "--greedy", "--json")
    (line,) = map(json.loads, out.splitlines())
    assert (code, line["prompt"], len(line["ids"])) == (0, "a b", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step", "--prompts", "0"], "`prompts` is 0, but it must be at least 1"),
        (["step", "--completion-tokens", "0"], "`completion-tokens` is 0, but it must be"),
        (["step", "--steps", "0"], "`steps` is 0, but it must be at least 1"),
        (["step", "--precision", "fp16"], "`precision` is `fp16`, but it must be fp32 or bf16"),
        (["step", "--model", "./none"], "`model` is `./none`, which is no folder"),
        (["step", "--beta", "-1"], "`beta` is -1.0, but it must be a number in [0, inf)"),
        (["step", "--epochs", "0"], "`epochs` is 0, but it must be at least 1"),
        (["decode", "--rows", "1,x"], "`rows` is `1,x`, but it must be whole numbers"),
        (["decode", "--rows", "0"], "`rows` is `0`, but it must be whole numbers above 0"),
        (["model", "gtp2", "x"], "`bench model` has no shape `gtp2`: did you mean `gpt2`?"),
    ],
)
def test_what_can_not_be_timed_is_one_sentence(run, words, message):
    code, out, err = run("bench", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_prompt_with_nothing_to_say_it_to(run):
    code, _, err = run("generate", "tiny", "a", "--greedy", "--temperature", "0.5")
    assert (code, err) == (2, "`temperature` is 0.5, but --greedy sets it to 0: give one\n")
    code, _, err = run("generate", "tiny", "a", "--top-p", "0")
    assert code == 2
    assert "`top_p` is 0.0, but it must be a number in (0, 1]" in err


@pytest.mark.parametrize(
    "verb",
    [["generate"], *(["bench", verb] for verb in ("step", "decode", "train", "ceilings", "model"))],
)
def test_the_help_of_a_verb_has_an_example(run, verb):
    code, out, _ = run(*verb, "--help")
    assert code == 0
    assert f"logratio {' '.join(verb)} " in out
