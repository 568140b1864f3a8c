"""Rows of the table that `logratio verify` prints: what was measured, and what was allowed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that was verified: each number in it must stay within the limit of its name."""

    part: str
    subject: str
    case: str
    measured: Mapping[str, float]
    limits: Mapping[str, float]
    worst: str = ""  # the option that was furthest off, where a row covers several; or an error
    counted: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def passed(self) -> bool:
        """Whether every number is within its limit; a number that is none is not."""
        within = [value <= self.limits[name] for name, value in self.measured.items()]
        return bool(within) and all(within)

    def record(self) -> dict[str, Any]:
        """Returns the row for JSON, which has no word for nan and infinity: they become null."""
        finite = {k: v if isfinite(v) else None for k, v in self.measured.items()}
        return {**asdict(self), "measured": finite, "passed": self.passed}


def attempted(measure: Callable[[], Row], *, part: str, subject: str, case: str) -> Row:
    """Returns the row that a measurement makes, or a failed one that says what it raised."""
    made = (make() for make in [measure])
    return next(attempted_all(made, part=part, subject=subject, case=case))


def attempted_all(
    rows: Iterator[Row], *, part: str, subject: str, case: str = "all"
) -> Iterator[Row]:
    """Yields rows as they are made; an error between them becomes a last one, that failed.

    A check that breaks is a check that fails: its row says what was raised, the command exits 1,
    and the rows of the other checks are still shown. So any exception ends here.
    """
    try:
        yield from rows
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        yield Row(part=part, subject=subject, case=case, measured={}, limits={}, worst=said)


WIDEST = 72  # characters of a case; the rest of a longer one is in the JSON


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text, part by part, with the limits beside each part's name."""
    lines: list[str] = []
    for part in dict.fromkeys(row.part for row in rows):
        own = [row for row in rows if row.part == part]
        limits: dict[str, float] = {}
        for row in own:
            limits |= {
                name: max(limit, limits.get(name, 0.0)) for name, limit in row.limits.items()
            }
        width = min(WIDEST, max(len(row.case) for row in own))
        allowed = ", ".join(f"{name} at most {limit:.0e}" for name, limit in limits.items())
        names = "".join(f"{name:>13}" for name in limits)
        lines += ["", f"{part}: {allowed}", f"{'':{width + 18}}{names}"]
        lines += [line(row, limits, width) for row in own]
    failed = sum(not row.passed for row in rows)
    return "\n".join([*lines[1:], "", f"{len(rows)} rows, {failed} failed"])


def line(row: Row, names: Mapping[str, float], width: int) -> str:
    """Returns one row as text; a failed one says where."""
    values = [row.measured.get(name) for name in names]
    cells = "".join(f"{'' if value is None else f'{value:.1e}':>13}" for value in values)
    case = row.case if len(row.case) <= width else f"{row.case[: width - 1]}…"
    said = "ok" if row.passed else f"FAILED {row.worst}".rstrip()
    return f"  {row.subject:<14}  {case:<{width}}{cells}  {said}"
