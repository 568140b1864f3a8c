"""`make bench`, `make bench-quick`, `make bench-full`: ours against TRL's trainers, in turns.

Each measurement is a fresh process. A row's raw steps are kept in docs/performance/, and a row that
was measured with the same settings, code and versions is not measured again.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from speed_page import printed, write
from speed_rows import SETS, Row

from logratio.lab import shapes

REPOSITORY = Path(__file__).resolve().parent.parent
KEPT = REPOSITORY / "docs" / "performance"
BUILD = REPOSITORY / "build"
MODELS = BUILD / "bench-models"
PACKAGES = ("trl", "transformers", "torch", "accelerate", "datasets")
LIMIT = 3600  # seconds of one process
THREADS = 2


def main() -> int:
    """Measures what is not kept yet, writes the page; returns 1 where a gate is shut."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", choices=SETS, help="which rows")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some of them, by name")
    parser.add_argument("--threads", type=int, default=THREADS)
    asked = parser.parse_args()
    rows = [row for row in SETS[asked.rows] if not asked.only or row.name in asked.only]
    folder = BUILD / "bench-quick" if asked.rows == "quick" else KEPT
    folder.mkdir(parents=True, exist_ok=True)
    stamp = stamped(asked.threads)
    found = [one_row(row, folder, stamp) for row in rows]
    print(printed(found))
    if folder == KEPT:
        write(KEPT)
    return 1 if any(not one["gate"]["passed"] for one in found) else 0


def one_row(row: Row, folder: Path, stamp: dict[str, Any]) -> dict[str, Any]:
    """Returns a row's measurements: kept ones if nothing that decides them changed."""
    file = folder / f"{row.name}.json"
    key = hashed([row.record(), stamp["code"], stamp["versions"], stamp["threads"]])
    if file.exists() and (kept := json.loads(file.read_text()))["key"] == key:
        print(f"{row.name}: kept", flush=True)
        return kept
    found = {"key": key, "row": row.record(), "stamp": stamp, **measured(row, stamp)}
    file.write_text(json.dumps(rounded(found)) + "\n", encoding="utf-8")
    return found


def measured(row: Row, stamp: dict[str, Any]) -> dict[str, Any]:
    """Returns the gate of a row and, where it is open, its runs in turns: ours, TRL's, ours, ..."""
    job = {"row": row.record(), "model": model_of(row), "threads": stamp["threads"]}
    gate = run({**job, "side": "gate"})["record"]
    if not gate["passed"]:
        print(f"{row.name}: the gate is shut, so there is no number: {gate}", flush=True)
        return {"gate": gate, "runs": []}
    sweep = run({**job, "side": "sweep"})["record"]
    theirs = {**job, "side": "trl", "column": "headline", "batch": sweep["best"], "warmup": 1}
    runs: list[dict[str, Any]] = []
    for _ in range(row.processes):
        runs += [run({**job, "side": "ours"}), run({**theirs, "steps": row.theirs})]
    rows = row.prompts if row.kind == "dpo" else row.workload.rows
    default = 8 if rows % 8 == 0 else rows  # the Trainer's own batch, where it divides the rows
    for column in row.columns:
        batch = default if column == "default" else sweep["best"]
        runs.append(run({**theirs, "column": column, "batch": batch,
                         "steps": row.others, "warmup": 0 if row.cold else 1}))  # fmt: skip
    return {"gate": gate, "sweep": sweep, "runs": runs}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a job's own process, and who else used the machine meanwhile."""
    name = " ".join(str(job.get(word, "")) for word in ("side", "column", "batch"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        before, start = usage(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(Path(__file__).parent / "speed_process.py"), json.dumps(job), out],
            capture_output=True, text=True, check=False, timeout=LIMIT,
        )  # fmt: skip
        wall = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(
                f"{job['row']['name']} {name} ended with {done.returncode}:\n{done.stderr[-4000:]}"
            )
        record = json.loads(out.read_text())
    after = usage()
    cores = os.cpu_count() or 1
    others = (after["busy"] - before["busy"]) - (after["children"] - before["children"])
    seconds = record.get("step_seconds") if isinstance(record, dict) else None
    says = f", {seconds:.2f} s a step" if seconds else ""
    print(f"{job['row']['name']}: {name.strip()}: {wall:.0f} s{says}", flush=True)
    return {
        "side": job["side"],
        "column": job.get("column"),
        "wall": wall,
        "stolen": (after["steal"] - before["steal"]) / (cores * wall),
        "elsewhere": max(0.0, others / (cores * wall)),
        "record": record,
    }


def usage() -> dict[str, float]:
    """Returns seconds of all cores: busy, stolen by the host, and those of our own children."""
    stat = Path("/proc/stat")
    fields = stat.read_text().splitlines()[0].split()[1:9] if stat.exists() else ["0"] * 8
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, soft, steal = (float(field) / tick for field in fields)
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    children = own.ru_utime + own.ru_stime
    return {"busy": user + nice + system + irq + soft, "steal": steal, "children": children}


def model_of(row: Row) -> str:
    """Returns the folder of a row's model, made if it is not there: a shape, random weights."""
    folder = MODELS / (row.model if row.sizes is None else f"{row.model}-{hashed(row.sizes)}")
    if not folder.exists():
        plain = row.sizes is None
        shapes.write(
            shapes.made(row.model) if plain else shapes.grown(shapes.sized(**row.sizes)), folder
        )
    return str(folder)


def stamped(threads: int) -> dict[str, Any]:
    """Returns the code, the versions and the machine."""
    sources = [
        *sorted((REPOSITORY / "src").rglob("*.py")),
        *sorted(Path(__file__).parent.glob("speed*.py")),
    ]
    left_out = {"speed_page.py", "speed_svg.py"}  # they only draw
    code = [source.read_text() for source in sources if source.name not in left_out]
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return {
        "code": hashed(code),
        "commit": commit.stdout.strip(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "threads": threads,
    }


def processor() -> str:
    """Returns the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def hashed(value: Any) -> str:
    """Returns a short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def rounded(value: Any) -> Any:
    """Returns a record with six digits: more are noise, and the files stay small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
