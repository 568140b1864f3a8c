"""Rows of the table that `logratio verify` prints: what was measured, and what was allowed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that was verified: each number in it must stay below the limit of its name."""

    part: str  # slopes, fixed points, kl
    subject: str
    case: str
    measured: Mapping[str, float]
    limits: Mapping[str, float]
    worst: str = ""  # where the largest number was found, if the row covers several cases
    counted: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def passed(self) -> bool:
        """Whether every number is below its limit; one that is not a number is not."""
        return bool(self.measured) and all(
            value <= self.limits[name] for name, value in self.measured.items()
        )

    def record(self) -> dict[str, Any]:
        """Returns the row for JSON, which has no word for nan and infinity: they become null."""
        finite = {k: v if isfinite(v) else None for k, v in self.measured.items()}
        return {**asdict(self), "measured": finite, "passed": self.passed}


def attempted(
    part: str, subject: str, case: str, measure: Callable[[], Row]
) -> Row:  # the only place where an error becomes a result
    """Returns the row that a measurement makes, or a failed one that says what it raised."""
    try:
        return measure()
    except Exception as error:  # noqa: BLE001 (whatever broke, the other rows still count)
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return Row(part=part, subject=subject, case=case, measured={}, limits={}, worst=said)


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text, part by part, with the limits above each column."""
    lines: list[str] = []
    for part in dict.fromkeys(row.part for row in rows):
        own = [row for row in rows if row.part == part]
        lines += [*heading(part, own), *(line(row, columns(own)) for row in own), ""]
    failed = sum(not row.passed for row in rows)
    return "\n".join([*lines, f"{len(rows)} rows, {failed} failed"])


WIDTHS = {"subject": 16, "case": 58, "number": 12}


def columns(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the names of the numbers in these rows, with the limit that most of them have."""
    found: dict[str, float] = {}
    for row in rows:
        found = {**row.limits, **found}
    return found


def heading(part: str, rows: Sequence[Row]) -> list[str]:
    """Returns the name of a part of the table, and what its numbers are."""
    names = columns(rows)
    limits = ", ".join(f"{name} <= {limit:.0e}" for name, limit in names.items())
    title = f"{part:<{WIDTHS['subject'] + WIDTHS['case'] + 2}}"
    cells = "".join(f"{name[: WIDTHS['number']]:>{WIDTHS['number'] + 2}}" for name in names)
    return [
        f"{part}: {limits}" if names else part,
        "-" * 8,
        title.replace(part, " " * len(part)) + cells,
    ]


def line(row: Row, names: Mapping[str, float]) -> str:
    """Returns one row as text; a failed one says where."""
    cells = "".join(cell(row.measured.get(name)) for name in names)
    said = "ok" if row.passed else f"FAILED {row.worst}".rstrip()
    case = row.case if len(row.case) <= WIDTHS["case"] else row.case[: WIDTHS["case"] - 1] + "…"
    return f"{row.subject:<{WIDTHS['subject']}}  {case:<{WIDTHS['case']}}{cells}  {said}"


def cell(value: float | None) -> str:
    """Returns a number in the width of its column."""
    return f"{'' if value is None else f'{value:.1e}':>{WIDTHS['number'] + 2}}"
