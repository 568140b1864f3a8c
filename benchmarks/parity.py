"""`make parity`: TRL's losses and ours on the same random inputs in fp32, and where they differ.

Prints both tables, writes them to docs/parity.md, exits 1 if a row fails, if a fault planted in a
row goes unseen, or if a difference that the page claims is not there any more.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import our_losses
import torch
import trl_losses
from parity_differences import DIFFERENCES, Difference
from parity_inputs import Groups, Pairs, Result, draw
from parity_rows import ROWS, Row

SEEDS = (0, 1, 2, 3, 4)
LOSS_TOLERANCE = 1e-5  # relative
COSINE_TOLERANCE = 0.99999
GRADIENT_TOLERANCE = 1e-5  # largest difference, relative to the largest entry
REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "parity.md"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far two results are apart."""

    loss: float  # |theirs - ours| / |theirs|
    cosine: float  # of the two gradients
    gradient: float  # the largest difference of an entry
    relative: float  # the same, over the largest entry of theirs

    def passes(self, *, gradient_only: bool = False) -> bool:
        """Says whether all tolerances hold; a NaN fails."""
        gradient = self.cosine > COSINE_TOLERANCE and self.relative <= GRADIENT_TOLERANCE
        return gradient and (gradient_only or self.loss <= LOSS_TOLERANCE)

    def cells(self) -> list[str]:
        """Returns the figures as they are printed."""
        cosine = f"1 - {1 - self.cosine:.0e}" if self.cosine > 0.999 else f"{self.cosine:.4f}"
        return [f"{self.loss:.1e}", cosine, f"{self.gradient:.1e}"]


def gap(theirs: Result, ours: Result) -> Gap:
    """Returns how far the results are apart; the cosine with a zero gradient is 0."""
    left, right = theirs.gradient.double().flatten(), ours.gradient.double().flatten()
    apart = (left - right).abs().max().item()
    norms = (left.norm() * right.norm()).item()
    return Gap(
        loss=abs(theirs.loss - ours.loss) / max(abs(theirs.loss), 1e-30),
        cosine=min(1.0, (left @ right).item() / norms) if norms else 0.0,
        gradient=apart,
        relative=apart / max(left.abs().max().item(), 1e-30),
    )


def worst(gaps: Sequence[Gap]) -> Gap:
    """Returns the worst of each figure."""
    return Gap(
        loss=max(one.loss for one in gaps),
        cosine=min(one.cosine for one in gaps),
        gradient=max(one.gradient for one in gaps),
        relative=max(one.relative for one in gaps),
    )


def resolved(settings: Mapping[str, Any], inputs: Groups | Pairs) -> dict[str, Any]:
    """Returns settings as values: a function among them is one of the inputs."""
    return {key: value(inputs) if callable(value) else value for key, value in settings.items()}


def compared(row: Row | Difference, ours: Mapping[str, Any]) -> Gap:
    """Returns the worst gap over the seeds, with these settings on our side."""
    gaps: list[Gap] = []
    for seed in SEEDS:
        inputs = draw(row.inputs, seed)
        theirs = trl_losses.LOSSES[row.objective](inputs, **(row.theirs or {}))
        mine = our_losses.LOSSES[row.objective](inputs, resolved(ours, inputs))
        gaps.append(gap(theirs, mine))
    return worst(gaps)


def spelled(settings: Mapping[str, Any] | None) -> str:
    """Returns settings as a user writes them."""
    pairs = (settings or {}).items()
    words = [f"{k}={v.__name__ if callable(v) else v}" for k, v in pairs]
    return " ".join(words) or "defaults"


def row_lines() -> tuple[list[list[str]], list[str]]:
    """Returns the table of rows and what failed in it."""
    lines: list[list[str]] = []
    failures: list[str] = []
    for row in ROWS:
        found = compared(row, row.ours)
        broken = compared(row, {**row.ours, **row.fault})
        passes = found.passes(gradient_only=row.gradient_only)
        seen = not broken.passes(gradient_only=row.gradient_only)
        if not passes:
            failures.append(f"{row.name}: outside the tolerances")
        if not seen:
            failures.append(f"{row.name}: the fault {spelled(row.fault)} goes unseen")
        cells = found.cells()
        if row.gradient_only:
            cells[0] = "not compared"
        ours = f"`dapo` {spelled(row.ours)}" if row.objective == "dapo" else spelled(row.ours)
        fault = f"{spelled(row.fault)}: {'seen' if seen else 'UNSEEN'}"
        verdict = "pass" if passes else "FAIL"
        lines.append([row.name, spelled(row.theirs), ours, *cells, verdict, fault])
    return lines, failures


def difference_lines() -> tuple[list[str], list[str]]:
    """Returns the list of differences, and those that were not found."""
    lines: list[str] = []
    failures: list[str] = []
    for one in DIFFERENCES:
        figures = "Read in its source."
        if one.theirs is not None:
            found = compared(one, one.ours)
            loss, cosine, _ = found.cells()
            figures = (
                f"Measured: TRL `{spelled(one.theirs)}`, ours `{spelled(one.ours)}`: "
                f"loss {loss}, cosine {cosine}, gradient {found.relative:.1e} of its largest entry."
            )
            if found.passes():
                failures.append(f"{one.name}: the page claims a difference that is not there")
        lines.append(f"- **{one.name}.** {one.reason} {figures}")
    return lines, failures


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with aligned columns."""
    rows = [list(heads), *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    padded = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {padded[0]} |", f"|{rule}|", *(f"| {line} |" for line in padded[1:])])


def git(*words: str) -> str:
    """Returns what git says, or nothing."""
    done = subprocess.run(
        ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def stamp() -> str:
    """Returns the commit, the versions and the seeds of this run."""
    commit = git("rev-parse", "--short=12", "HEAD") or "none yet"
    if git("status", "--porcelain", "--", ".", ":!docs/parity.md"):
        commit += " with uncommitted changes"
    versions = ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "torch"))
    seeds = ", ".join(map(str, SEEDS))
    return f"Commit {commit}; {versions}; fp32 on CPU; seeds {seeds}."


def page(rows: Sequence[Sequence[str]], differences: str) -> str:
    """Returns docs/parity.md."""
    heads = ["row", "TRL", "ours", "loss", "cosine", "largest gradient difference"]
    return f"""# Parity with TRL

Made by `make parity`; do not edit. {stamp()}

TRL's own methods (`_generate_and_score_completions` and `_compute_loss` of `GRPOTrainer` and
`RLOOTrainer`, `DPOTrainer._compute_loss`, `RewardTrainer.compute_loss`) run on trainers that were
never constructed, with log-probs (or scores) as leaf tensors; ours gets the same leaves. Rollouts
are ragged and off policy, in four groups of seven, one of them with equal rewards. Figures are the
worst over the seeds: relative difference of the loss (at most {LOSS_TOLERANCE:.0e}), cosine of the
gradients (above {COSINE_TOLERANCE}), largest difference of a gradient's entry (at most
{GRADIENT_TOLERANCE:.0e} of the largest entry). Each row also runs with a fault planted on our side,
which must make it fail.

{table([*heads, "", "fault"], rows)}

## Known differences

A measured one is a row that must not agree: if it comes to agree, this page is out of date and
`make parity` fails.

{differences}
"""


def main() -> int:
    """Runs everything; returns 1 if anything is not as it should be."""
    torch.set_num_threads(1)
    started = time.monotonic()
    rows, failures = row_lines()
    differences, stale = difference_lines()
    text = page(rows, "\n".join(differences))
    PAGE.write_text(text, encoding="utf-8")
    print(text)
    problems = [*failures, *stale]
    for line in problems:
        print(f"FAIL {line}")
    print(f"{len(rows)} rows, {len(differences)} differences, {len(problems)} failures; "
          f"{time.monotonic() - started:.1f} s; written to docs/{PAGE.name}")  # fmt: skip
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
