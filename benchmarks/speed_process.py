"""One measurement in a fresh process: `speed_process.py JOB FILE` writes its record into FILE."""

# ruff: noqa: PLC0415 - a library reads these variables when it is first imported

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Runs what the job asks for."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])  # before torch counts the cores
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    from speed_rows import Row

    row = Row(**job["row"])
    Path(sys.argv[2]).write_text(json.dumps(done(job, row)), encoding="utf-8")


def done(job: dict[str, Any], row: Any) -> Any:
    """Returns the record of a job: each side imports only what is its own."""
    if job["side"] == "ours":
        from speed_ours import run

        return run(row, job["model"])
    if job["side"] == "gate":
        from speed_gate import gate

        return gate(row, job["model"])
    from speed_trl import best_batch
    from speed_trl import run as theirs

    if job["side"] == "sweep":
        return best_batch(row, job["model"])
    steps = (job["warmup"], job["steps"])
    return theirs(row, job["model"], column=job["column"], batch=job["batch"], steps=steps)


if __name__ == "__main__":
    main()
