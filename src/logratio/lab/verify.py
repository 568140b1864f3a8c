"""`logratio verify`: closed-form gradients, exact fixed points, identities and KL in one table."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from logratio.lab import claims, formulas, identities, kl, slopes
from logratio.lab.bench import PART, Claim
from logratio.lab.rows import Row, attempted, attempted_all, table


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All rows, and how long they took."""

    rows: Sequence[Row]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every row passed."""
        return all(row.passed for row in self.rows)

    def record(self) -> dict[str, Any]:
        """Returns the report for JSON."""
        rows = [row.record() for row in self.rows]
        return {"passed": self.passed, "seconds": round(self.seconds, 1), "rows": rows}

    def text(self) -> str:
        """Returns the report as a table."""
        return f"{table(self.rows)}, {self.seconds:.0f} s"


def verify() -> Report:
    """Returns what every check measured."""
    start = time.perf_counter()
    rows = list(every_row())
    return Report(rows=rows, seconds=time.perf_counter() - start)


def every_row() -> Iterator[Row]:
    """Yields the rows of the table, in order."""
    yield from slopes.rows()
    yield from attempted_all(formulas.rows(), part=formulas.PART, subject="all")
    yield from attempted_all(claimed(claims.every_claim()), part=PART, subject="all")
    yield from attempted_all(identities.rows(), part=identities.PART, subject="all")
    yield from attempted_all(kl.rows(), part=kl.PART, subject="grpo, ppo")
    yield from attempted_all(claimed(kl.bandits()), part=kl.PART, subject="grpo")


def claimed(claims: Iterator[Claim]) -> Iterator[Row]:
    """Yields a row for every claim."""
    for claim in claims:
        subject = claim.experiment.objective.name
        yield attempted(claim.row, part=claim.part, subject=subject, case=claim.case)
