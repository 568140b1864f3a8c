"""The command line: verbs only. What a verb needs is imported inside it, so that help is quick."""

# ruff: noqa: PLC0415

import json
import sys
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

FAILED, REFUSED = 1, 2  # exit codes; 0 is done

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Name = Annotated[str, typer.Argument(help="A name from the list, or my_file.py:my_objective.")]


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
