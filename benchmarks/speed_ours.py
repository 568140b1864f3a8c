"""Our side of a timed row, in a process of its own: `speed_process.py` runs it."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

import torch
from speed_rows import Row

from logratio.collate import collate
from logratio.lab import ceilings, floor, memory
from logratio.lab.speed import GIGA, RATE, Clock, Setting, bounds, medians, timed
from logratio.lab.workload import Workload, problems_of
from logratio.learner import Learner, Update
from logratio.model.load import load
from logratio.model.network import Network
from logratio.model.scorer import score
from logratio.objectives import find
from logratio.records import Graded, Rollout, Verdict


def run(row: Row, model: str, *, precision: floor.Precision = "bf16") -> dict[str, Any]:
    """Returns the record of our timed steps of one row."""
    setting = Setting(
        model=model,
        load=row.workload,
        precision=precision,
        beta=row.beta,
        steps=row.ours,
    )
    return preferences(setting) if row.kind == "dpo" else timed(setting)


def pairs_of(load: Workload, vocabulary: int) -> list[Graded]:
    """Returns pairs of random completions: side 0 of each is the chosen one."""
    draw = Random(1)
    first = min(3, vocabulary - 1)
    return [
        Graded(
            rollout=Rollout(
                problem=problem.key,
                group=group,
                index=side,
                prompt_ids=problem.prompt_ids,
                ids=tuple(draw.randrange(first, vocabulary) for _ in range(length)),
            ),
            verdict=Verdict(reward=1.0 - side),
            pair=group,
            side=side,
        )
        for group, problem in enumerate(problems_of(load, vocabulary))
        for side, length in enumerate(load.completions[group])
    ]  # fmt: skip


def preferences(setting: Setting) -> dict[str, Any]:
    """Returns the record of timed DPO steps: score by the reference, collate, update."""
    before = memory.held()
    objective = find("dpo").using(beta=setting.beta)
    model = load(setting.model).model
    shape = floor.shape_of(model)
    frozen = load(setting.model, dtype=floor.DTYPES[setting.precision]).model
    reference = Network(frozen, find("sft").declared()).requires_grad_(requires_grad=False)
    network = Network(model, objective.declared())
    learner = Learner(network, objective, Update(lr=RATE, precision=setting.precision))
    graded = pairs_of(setting.load, model.config.get_text_config().vocab_size)
    rollouts = [one.rollout for one in graded]

    def step() -> tuple[float, Mapping[str, float]]:
        clock, start = Clock(torch.device("cpu")), time.perf_counter()
        with clock.on("reference"):
            ref = score(reference, rollouts)["logp"]
        with clock.on("collate"):
            batch = replace(collate(graded, objective), ref=ref)
        with clock.on("update"):
            learner.update(batch, rollouts)
        clock.split("update", learner.seconds, "other")
        return time.perf_counter() - start, clock.seconds

    every = [step() for _ in range(setting.warmup + setting.steps)]
    taken = every[setting.warmup :]
    peak = memory.most()
    seconds = [whole for whole, _ in taken]
    found = bounds(shape, setting, ceilings.measured(model), statistics.median(seconds))
    floors = {k: v for k, v in found["floor_phases"].items() if k not in ("prefill", "decode")}
    least = sum(floors.values())
    return {
        **found,
        "floor_phases": floors,
        "floor_seconds": least,
        "floor_fraction": least / statistics.median(seconds),
        "warmup": [whole for whole, _ in every[: setting.warmup]],
        "steps": seconds,
        "step_seconds": statistics.median(seconds),
        "phases": medians([phases for _, phases in taken]),
        "tokens": setting.load.tokens(),
        "peak_memory_gb": peak / GIGA,
        "imports_memory_gb": before / GIGA,
        "threads": torch.get_num_threads(),
    }
