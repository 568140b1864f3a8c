"""What a benchmark measured, as small tables."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

FLOORS = {"forward": "train", "backward": "train"}  # phases that share one floor


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as text; every column but the first stands right."""
    made = Table(title=title, title_justify="left")
    for place, head in enumerate(heads):
        made.add_column(head, justify="right" if place else "left")
    for row in rows:
        made.add_row(*row)
    out = StringIO()
    Console(file=out, width=100).print(made)
    return out.getvalue().rstrip()


def step(record: Mapping[str, Any]) -> str:
    """Returns the phases of a timed step beside their floors."""
    floors: Mapping[str, float] = record["floor_phases"]
    rows = [
        [name, f"{seconds:.3f}", share(seconds, record["step_seconds"]), least(name, floors)]
        for name, seconds in record["phases"].items()
    ]
    if "train" in floors:
        both = sum(record["phases"].get(name, 0.0) for name in FLOORS)
        whole = record["step_seconds"]
        rows.append(
            ["forward + backward", f"{both:.3f}", share(both, whole), least("train", floors)]
        )
    fraction = f"{record['floor_seconds']:.3f}"
    rows.append(["step", f"{record['step_seconds']:.3f}", "100 %", fraction])
    tokens = record["tokens"]
    return table(title(record), ["phase", "seconds", "share", "floor"], rows) + (
        f"\nmedian of {len(record['steps'])} steps; {record['floor_fraction']:.2f} of the serial "
        f"floor; {tokens['completion'] / record['step_seconds']:.0f} completion tokens a second; "
        f"peak memory {record['peak_memory_gb']:.2f} GB"
    )


def title(record: Mapping[str, Any]) -> str:
    """Returns one line that says what was timed."""
    group = record["rows"] // record["prompts"]
    sizes = f"{record['prompt_tokens']} + {record['completion_tokens']}"
    return f"{record['model']}: {record['prompts']} x {group} x ({sizes}), {record['precision']}"


def share(part: float, whole: float) -> str:
    """Returns a part of a whole in percent."""
    return f"{100 * part / whole:.0f} %"


def least(name: str, floors: Mapping[str, float]) -> str:
    """Returns the floor of a phase, or nothing where it has none of its own."""
    return f"{floors[name]:.3f}" if name in floors else ""


def ceilings(record: Mapping[str, Any]) -> str:
    """Returns the rates that were measured: products by size and route, then memory."""
    routes: Mapping[str, Mapping[str, float]] = record["matmul_gflops"]
    sizes = list(next(iter(routes.values())))
    rows = [[size, *(f"{routes[route][size]:.0f}" for route in routes)] for size in sizes]
    errors = ", ".join(
        f"{name} {value:.1e}" for name, value in record["error_against_float64"].items()
    )
    memory = ", ".join(f"{name} {rate:.1f}" for name, rate in record["bandwidth_gb"].items())
    heads = ["rows x inner x columns", *routes]
    name = f"GFLOP/s on {record['device']}, {record['threads']} threads"
    return f"{table(name, heads, rows)}\nerror: {errors}\nGB/s: {memory}"


def sweep(record: Mapping[str, Any], heads: Sequence[str]) -> str:
    """Returns one line for each entry of a sweep."""
    rows = [[number(one[head]) for head in heads] for one in record["sweep"]]
    return table(f"{record['model']}, {record['precision']}", list(heads), rows)


def number(value: float) -> str:
    """Returns a number with as many digits as it can bear.

    >>> number(12), number(0.01234), number(1234.5)
    ('12', '0.0123', '1234')
    """
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
