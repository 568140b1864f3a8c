"""The command line: verbs only. What a verb needs is imported inside it, so that help is quick."""

# ruff: noqa: PLC0415

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from logratio.settings import Refused

app = typer.Typer(
    name="logratio",
    help="Every way to post-train a language model as one short pure function over one batch.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
objectives = typer.Typer(help="What can be trained for.", no_args_is_help=True)
app.add_typer(objectives, name="objectives")
bench = typer.Typer(
    help="What takes how long, and how long it would have to.", no_args_is_help=True
)
app.add_typer(bench, name="bench")

FAILED, REFUSED = 1, 2  # exit codes; 0 is done

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Name = Annotated[str, typer.Argument(help="A name from the list, or my_file.py:my_objective.")]
Model = Annotated[str, typer.Option(help="A model's folder, a hub name, or tiny or tiny-gpt2.")]
Precision = Annotated[str, typer.Option(help="fp32, or bf16 with fp32 masters.")]
Prompts = Annotated[int, typer.Option(help="How many prompts.")]
Group = Annotated[int, typer.Option(help="Completions of each prompt.")]
PromptTokens = Annotated[int, typer.Option(help="Tokens of a prompt.")]
CompletionTokens = Annotated[int, typer.Option(help="Tokens of a completion.")]
Steps = Annotated[int, typer.Option(help="How many are timed, after one that is not.")]
Ragged = Annotated[
    bool, typer.Option("--ragged", help="Prompts of P/4 to P; longest completion 2.5 x the mean.")
]


def main() -> None:
    """Runs the command that was typed; a refused input is one sentence and exit code 2."""
    try:
        app()
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(REFUSED)


@app.callback()
def root() -> None:
    """Keeps verbs apart even while there is only one."""


@app.command()
def verify(as_json: Json = False) -> None:
    """Check gradients and fixed points of every objective against closed forms."""
    import torch

    from logratio.lab.verify import verify as measured

    torch.set_num_threads(1)  # the tensors are tiny
    report = measured()
    print(json.dumps(report.record()) if as_json else report.text())
    if not report.passed:
        raise typer.Exit(FAILED)


@app.command("generate")
def generate(
    model: Annotated[str, typer.Argument(help="A model's folder, a hub name, or tiny.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts as text.")] = None,
    *,
    prompts: Annotated[
        Path | None, typer.Option(help="A file: a prompt a line, or a .jsonl with `prompt`.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Completions of each prompt.")] = 1,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a completion.")] = 128,
    min_tokens: Annotated[int, typer.Option(help="No end before this many.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="As --temperature 0.")] = False,
    top_k: Annotated[int | None, typer.Option(help="Only so many tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Only the likeliest of this share.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Only above this part of the likeliest.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed, other completions.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, with ids and log-probs.")
    ] = False,
) -> None:
    """Complete prompts, given here or in a file.

    logratio generate tiny "Once upon a time" --samples 2 --max-tokens 20
    """
    from logratio.generate import read, shown, written
    from logratio.sampler import Sampling

    if greedy and temperature != 1.0:
        raise Refused(f"`temperature` is {temperature}, but --greedy sets it to 0: give one")
    sampling = Sampling(
        temperature=0.0 if greedy else temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        max_tokens=max_tokens, min_tokens=min_tokens,
    )  # fmt: skip
    asked = [*(prompt or []), *(read(prompts) if prompts else [])]
    lines = written(model, asked, sampling, samples=samples, seed=seed)
    print("\n".join(map(json.dumps, lines)) if as_json else shown(lines))


@objectives.command("list")
def list_objectives() -> None:
    """Name every objective and say what it is."""
    from logratio.lab.describe import summaries

    print(summaries())


@objectives.command("show")
def show_objective(name: Name) -> None:
    """Show the settings, parts, presets and needs of an objective."""
    from logratio.lab.describe import described

    print(described(name))


@bench.command("step")
def bench_step(
    *,
    model: Model = "tiny",
    prompts: Prompts = 4,
    group: Group = 8,
    prompt_tokens: PromptTokens = 64,
    completion_tokens: CompletionTokens = 64,
    precision: Precision = "fp32",
    steps: Steps = 3,
    ragged: Ragged = False,
    beta: Annotated[float, typer.Option(help="Above 0 a reference scores too.")] = 0.0,
    epochs: Annotated[int, typer.Option(help="Updates on each batch.")] = 1,
    as_json: Json = False,
) -> None:
    """Time whole steps: sample, reward, collate, update.

    logratio bench step --model tiny --prompts 2 --group 4 --precision bf16
    """
    from logratio.lab import speed, tables

    sizes, tokens = (prompts, group), (prompt_tokens, completion_tokens)
    record = speed.timed(speed.setting_of(
        model, sizes, tokens, uneven=ragged, beta=beta, epochs=epochs, precision=precision,
        steps=steps,
    ))  # fmt: skip
    print(json.dumps(record) if as_json else tables.step(record))


@bench.command("decode")
def bench_decode(
    *,
    model: Model = "tiny",
    rows: Annotated[str, typer.Option(help="Numbers of completions, with commas.")] = "1,8,32,64",
    prompt_tokens: PromptTokens = 64,
    completion_tokens: CompletionTokens = 64,
    precision: Precision = "fp32",
    steps: Steps = 3,
    as_json: Json = False,
) -> None:
    """Time decoding alone, completions of one prompt, at several numbers of rows.

    logratio bench decode --model tiny --rows 1,8,32 --completion-tokens 32
    """
    from logratio.lab import sweeps, tables

    tokens = (prompt_tokens, completion_tokens)
    counts = sweeps.counts(rows)
    record = sweeps.decode(model, counts, tokens, precision=precision, steps=steps)
    print(json.dumps(record) if as_json else tables.sweep(record, sweeps.DECODE))


@bench.command("train")
def bench_train(
    *,
    model: Model = "tiny",
    prompts: Prompts = 4,
    group: Group = 8,
    prompt_tokens: PromptTokens = 64,
    completion_tokens: CompletionTokens = 64,
    precision: Precision = "fp32",
    steps: Steps = 3,
    ragged: Ragged = False,
    as_json: Json = False,
) -> None:
    """Time updates alone, on made-up completions.

    logratio bench train --model tiny --prompts 2 --group 4
    """
    from logratio.lab import speed, sweeps, tables

    sizes, tokens = (prompts, group), (prompt_tokens, completion_tokens)
    setting = speed.setting_of(
        model, sizes, tokens, uneven=ragged, precision=precision, steps=steps
    )
    record = sweeps.train(setting)
    print(json.dumps(record) if as_json else tables.sweep(record, sweeps.TRAIN))


@bench.command("ceilings")
def bench_ceilings(*, model: Model = "tiny", as_json: Json = False) -> None:
    """Measure matrix products and memory, at this model's sizes too.

    logratio bench ceilings --model tiny
    """
    from logratio.lab import ceilings, tables
    from logratio.model.load import load

    record = ceilings.measured(load(model).model).record()
    print(json.dumps(record) if as_json else tables.ceilings(record))


@bench.command("model")
def bench_model(
    shape: Annotated[str, typer.Argument(help="gpt2, qwen2-4.5m, w0, qwen2.5-0.5b, -1.5b.")],
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
) -> None:
    """Write a model of a known shape with random weights: speed does not depend on them.

    logratio bench model gpt2 models/gpt2
    """
    from logratio.lab import shapes

    print(f"{shape}: {shapes.write(shapes.made(shape), folder):,} weights in {folder}")
