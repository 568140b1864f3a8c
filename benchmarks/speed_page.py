"""docs/performance.md and its pictures, from the raw records beside it: no number is typed."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity import table
from speed_rows import CURVES, SETS, Row
from speed_svg import bars, lines

COLUMNS = {"headline": "TRL", "bf16": "TRL, bf16-loaded", "default": "TRL, default"}
DRIFT = 0.05  # of the ceilings of one row's processes: above it a row is marked
Found = Mapping[str, Any]


class Side:
    """All timed steps of one side of a row, over its processes."""

    def __init__(self, found: Found, side: str, column: str | None = None) -> None:
        self.runs = [
            run for run in found["runs"] if run["side"] == side and run["column"] == column
        ]
        self.records = [run["record"] for run in self.runs]
        self.steps = [step for record in self.records for step in record["steps"]]

    @property
    def seconds(self) -> float:
        """The median step."""
        return statistics.median(self.steps)

    @property
    def memory(self) -> float:
        """The most memory of any process, in GB."""
        return max(record["peak_memory_gb"] for record in self.records)

    @property
    def above(self) -> float:
        """The same above what the imports take."""
        return max(r["peak_memory_gb"] - r["imports_memory_gb"] for r in self.records)

    def phases(self) -> dict[str, float]:
        """Returns the median of each phase over the processes."""
        names = list(self.records[0]["phases"])
        return {n: statistics.median(r["phases"][n] for r in self.records) for n in names}

    def cell(self) -> str:
        """Returns the median with the least and the most."""
        if not self.steps:
            return ""
        ends = f"{digits(min(self.steps))} to {digits(max(self.steps))}"
        return f"{digits(self.seconds)} s ({ends}; {len(self.steps)})"


def digits(value: float) -> str:
    """Returns a number with three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def measured(found: Sequence[Found]) -> list[Found]:
    """Returns the rows whose gate was open."""
    return [one for one in found if one["runs"]]


def row_of(one: Found) -> Row:
    """Returns a record's row."""
    return Row(**one["row"])


def headline(found: Sequence[Found]) -> str:
    """Returns seconds of a step on both sides, and how many times as fast ours is."""
    heads = ["row", "model, workload", "ours", "TRL", "times", "wanted"]
    more = [name for name in COLUMNS if name != "headline"]
    rows: list[list[str]] = []
    for one in measured(found):
        row, ours = row_of(one), Side(one, "ours")
        cells = [row.name + drifted(one), f"{row.model}, {row.size}", ours.cell()]
        theirs = Side(one, "trl", "headline")
        wanted = "" if row.wanted is None else f"{row.wanted:g}"
        cells += [theirs.cell(), f"**{theirs.seconds / ours.seconds:.2f}**", wanted]
        for name in more:
            other = Side(one, "trl", name)
            ratio = f"{other.seconds / ours.seconds:.2f}" if other.steps else ""
            cells += [other.cell(), ratio]
        rows.append(cells)
    return table([*heads, *(word for name in more for word in (COLUMNS[name], "times"))], rows)


def drifted(one: Found) -> str:
    """Returns a mark where the ceilings of a row's processes differ: the machine was not calm."""
    return " (!)" if drift(one) > DRIFT else ""


def drift(one: Found) -> float:
    """Returns by how much the best bf16 product differed between a row's processes."""
    routes = [record["ceilings"]["matmul_gflops"] for record in Side(one, "ours").records]
    rates = [max(max(of.values()) for of in one.values()) for one in routes]
    return 1 - min(rates) / max(rates)


def memory(found: Sequence[Found]) -> str:
    """Returns the peak memory of both sides."""
    rows: list[list[str]] = []
    for one in measured(found):
        ours, theirs = Side(one, "ours"), Side(one, "trl", "headline")
        rows.append([
            row_of(one).name, f"{ours.memory:.2f}", f"{theirs.memory:.2f}",
            f"{ours.memory / theirs.memory:.2f}", f"{ours.above:.2f}", f"{theirs.above:.2f}",
            f"{ours.above / theirs.above:.2f}",
        ])  # fmt: skip
    above = "above imports"
    return table(["row", "ours, GB", "TRL, GB", "share", f"ours {above}", f"TRL {above}", "share"],
                 rows)  # fmt: skip


def floors(found: Sequence[Found]) -> str:
    """Returns our phases beside their floors, and which part of the step the floor is."""
    rows: list[list[str]] = []
    for one in measured(found):
        ours = Side(one, "ours")
        phases, least = ours.phases(), medians([r["floor_phases"] for r in ours.records])
        phases["train"] = phases.pop("forward", 0.0) + phases.pop("backward", 0.0)
        rest = sum(v for k, v in phases.items() if k not in least and k != "sample")
        both = [
            f"{phases[name]:.3f} / {least[name]:.3f}" if name in least else ""
            for name in ("prefill", "decode", "train", "optimizer", "reference")
        ]
        cells = [row_of(one).name, *both, f"{phases.get('sample', 0.0):.3f}", f"{rest:.3f}"]
        whole = statistics.median(record["floor_seconds"] for record in ours.records)
        rows.append([*cells, f"{ours.seconds:.3f} / {whole:.3f}", f"{whole / ours.seconds:.2f}"])
    return table(["row", "prefill", "decode", "train", "optimizer", "reference", "sampler", "rest",
                  "step", "fraction"], rows)  # fmt: skip


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the median of each name."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def theirs(found: Sequence[Found]) -> str:
    """Returns where TRL's step goes, which batch was best, and the tokens of both sides."""
    rows: list[list[str]] = []
    for one in measured(found):
        side, ours = Side(one, "trl", "headline"), Side(one, "ours")
        phases = ", ".join(f"{name} {digits(s)}" for name, s in side.phases().items())
        tried = ", ".join(f"{batch}: {digits(s)} s" for batch, s in one["sweep"]["seconds"].items())
        counts = ", ".join(f"{name} {count}" for name, count in side.records[0]["tokens"].items())
        own = ", ".join(f"{name} {count}" for name, count in ours.records[0]["tokens"].items())
        rows.append([row_of(one).name, phases, tried, str(one["sweep"]["best"]), counts, own])
    heads = [
        "row",
        "seconds",
        "training of one row by batch",
        "taken",
        "tokens of TRL",
        "tokens of ours",
    ]
    return table(heads, rows)


def gates(found: Sequence[Found]) -> str:
    """Returns how far both trainers were apart on the stored rollout."""
    rows = [
        [row_of(one).name, f"{one['gate']['loss']:.1e}", f"1 - {1 - one['gate']['cosine']:.0e}",
         f"{one['gate']['step']:.1e}", f"{100 * one['gate']['compared_weights']:.1f} %",
         "open" if one["gate"]["passed"] else "SHUT"]
        for one in found
    ]  # fmt: skip
    return table(["row", "loss", "cosine", "step, in learning rates", "of the weights", "gate"],
                 rows)  # fmt: skip


def calm(found: Sequence[Found]) -> str:
    """Returns what else the machine did while a row was measured."""
    rows = [
        [row_of(one).name, f"{100 * drift(one):.1f} %",
         f"{100 * max(run['elsewhere'] for run in one['runs']):.1f} %",
         f"{100 * max(run['stolen'] for run in one['runs']):.1f} %",
         first(Side(one, "ours")), first(Side(one, "trl", "headline")),
         f"{sum(run['wall'] for run in one['runs']) / 60:.1f} min"]
        for one in measured(found)
    ]  # fmt: skip
    heads = ["row", "ceilings apart", "other processes", "stolen by the host"]
    return table([*heads, "our first step", "TRL's first step", "took"], rows)


def first(side: Side) -> str:
    """Returns how much longer the steps took that were left out as warm-up."""
    warm = statistics.median(step for record in side.records for step in record["warmup"])
    return f"{100 * (warm / side.seconds - 1):+.0f} %"


def printed(found: Sequence[Found]) -> str:
    """Returns what is worth a terminal."""
    return "\n\n".join([gates(found), headline(found), memory(found), floors(found)])


def write(folder: Path) -> None:
    """Writes docs/performance.md and its pictures from the records in a folder."""
    kept = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    names = [row.name for row in SETS["full"]]
    in_curves = {row.name for points in CURVES.values() for _, row in points}
    found = [kept[name] for name in names if name in kept and name not in in_curves]
    if not found:
        return
    times = {
        row_of(one).name: {
            title: Side(one, "trl", name).seconds / Side(one, "ours").seconds
            for name, title in COLUMNS.items()
            if Side(one, "trl", name).steps
        }
        for one in measured(found)
    }
    title = "How many times as long TRL's step takes as ours"
    (folder / "times.svg").write_text(bars(title, times), encoding="utf-8")
    grown = "".join(growth(axis, points, kept, folder) for axis, points in CURVES.items())
    folder.with_suffix(".md").write_text(page(found, grown), encoding="utf-8")


def growth(
    axis: str, points: Sequence[tuple[int, Row]], kept: Mapping[str, Found], folder: Path
) -> str:
    """Returns a chapter about one axis with its picture; nothing until two points are measured."""
    found = [(float(at), kept[row.name]) for at, row in points if row.name in kept]
    found = [(at, one) for at, one in found if one["runs"]]
    if len(found) < 2:
        return ""
    floor = [
        (at, statistics.median(r["floor_seconds"] for r in Side(one, "ours").records))
        for at, one in found
    ]
    series = {
        "ours": [(at, Side(one, "ours").seconds) for at, one in found],
        "TRL": [(at, Side(one, "trl", "headline").seconds) for at, one in found],
        "serial floor": floor,
    }
    title = f"Seconds of a step by {axis}"
    picture = lines(title, (axis, "seconds"), series)
    (folder / f"growth-{axis}.svg").write_text(picture, encoding="utf-8")
    rows = [
        [f"{at:g}", *(digits(dict(line)[at]) for line in series.values()),
         f"{Side(one, 'ours').memory:.2f}", f"{Side(one, 'trl', 'headline').memory:.2f}"]
        for at, one in found
    ]  # fmt: skip
    heads = [axis, *series, "ours, GB", "TRL, GB"]
    return f"\n### By {axis}\n\n![{title}](performance/growth-{axis}.svg)\n\n{table(heads, rows)}\n"


def page(found: Sequence[Found], grown: str) -> str:
    """Returns docs/performance.md."""
    stamps = [one["stamp"] for one in found]
    versions = ", ".join(f"{name} {value}" for name, value in stamps[0]["versions"].items())
    commits = ", ".join(sorted({stamp["commit"] for stamp in stamps}))
    words = {"machine": stamps[0]["machine"], "threads": stamps[0]["threads"]}
    text = (Path(__file__).parent / "speed_page.md").read_text(encoding="utf-8")
    chapters = {
        "headline": headline(found), "memory": memory(found), "floors": floors(found),
        "theirs": theirs(found), "gates": gates(found), "calm": calm(found),
        "growth": f"\n## Growth\n{grown}" if grown else "",
    }  # fmt: skip
    for name, value in {**chapters, **words, "versions": versions, "commits": commits}.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text
