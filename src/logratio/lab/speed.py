"""The timed step: sample, reward, collate, update, with what each took and what it had to take."""

import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from logratio.batch import Batch
from logratio.collate import collate
from logratio.engine import Request
from logratio.engines.local import Local
from logratio.lab import ceilings, floor, memory
from logratio.lab.ceilings import Ceilings, settled
from logratio.lab.floor import DTYPES, Precision, Shape
from logratio.lab.workload import Workload, check_counts, equal, problems_of, ragged, verdict_of
from logratio.learner import Learned, Learner, Update
from logratio.model.load import load
from logratio.model.network import Network
from logratio.model.scorer import score
from logratio.objectives import find
from logratio.records import Graded, Problem, Rollout
from logratio.sampler import Sampling

GIGA = 1e9
RATE = 1e-6  # small enough that random weights stay what they are


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is timed: a model, its precision and a workload."""

    model: str
    load: Workload
    precision: Precision = "fp32"
    beta: float = 0.0
    steps: int = 3
    warmup: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses counts that time nothing."""
        check_counts(steps=self.steps, epochs=self.load.epochs)


class Clock:
    """Adds up seconds by name."""

    def __init__(self, device: torch.device) -> None:
        """Starts with nothing."""
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, name: str) -> Generator[None]:
        """Adds what happens inside to a name."""
        settled(self.device)
        start = time.perf_counter()
        yield
        settled(self.device)
        self.seconds[name] += time.perf_counter() - start

    def split(self, whole: str, parts: Mapping[Any, float], rest: str) -> None:
        """Puts parts in the place of a whole, and what they leave of it under another name."""
        total = self.seconds.pop(whole)
        for name, seconds in parts.items():
            self.seconds[name] += seconds
        self.seconds[rest] += total - sum(parts.values())


class Step:
    """A network, its engine and learner, and the requests that every step starts from."""

    def __init__(self, setting: Setting) -> None:
        """Loads the model; bf16 keeps fp32 masters in the learner."""
        self.setting = setting
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.objective = find("grpo").using(beta=setting.beta)
        declared = self.objective.declared()
        model = placed(load(setting.model, seed=setting.seed).model, self.device)
        self.shape: Shape = floor.shape_of(model)
        self.network = Network(model, declared)
        self.reference = frozen(setting, self.device) if setting.beta else None
        update = Update(lr=RATE, precision=setting.precision)
        self.learner = Learner(self.network, self.objective, update)
        self.engine = Local(self.network, ())  # without an end every row runs to its limit
        self.problems = problems_of(setting.load, model.config.get_text_config().vocab_size)
        self.learned: Learned | None = None

    def take(self, number: int) -> tuple[float, dict[str, float]]:
        """Returns the seconds of one whole step and of its phases."""
        clock = Clock(self.device)
        start = time.perf_counter()
        with clock.on("generate"):
            rollouts = self.engine.generate(*asked(self.setting.load, self.problems, number))
        clock.split("generate", self.engine.seconds, "other")
        with clock.on("reward"):
            graded = [Graded(rollout=one, verdict=verdict_of(one)) for one in rollouts]
        self.train(graded, rollouts, clock)
        whole = time.perf_counter() - start
        clock.seconds["other"] += whole - sum(clock.seconds.values())
        return whole, dict(clock.seconds)

    def train(self, graded: Sequence[Graded], rollouts: Sequence[Rollout], clock: Clock) -> None:
        """Updates on graded rollouts as often as the workload says."""
        batch = self.batch(graded, rollouts, clock)
        for _ in range(self.setting.load.epochs):
            with clock.on("update"):
                self.learned = self.learner.update(batch, rollouts)
            clock.split("update", self.learner.seconds, "other")

    def batch(self, graded: Sequence[Graded], rollouts: Sequence[Rollout], clock: Clock) -> Batch:
        """Returns the rollouts as a batch, with the reference's log-probs where they are read."""
        with clock.on("collate"):
            batch = moved(collate(graded, self.objective), self.device)
        if self.reference is not None:
            with clock.on("reference"):
                batch = replace(batch, ref=score(self.reference, rollouts)["logp"])
        return batch


def asked(load: Workload, problems: Sequence[Problem], step: int) -> tuple[list[Request], Sampling]:
    """Returns a request for every row of a workload, with its own limit where lengths differ."""
    requests: list[Request] = []
    longest = max(load.lengths)
    for group, (problem, lengths) in enumerate(zip(problems, load.completions, strict=True)):
        for index, length in enumerate(lengths):
            own: dict[str, Any] = {} if length == longest else {"limit": length}
            requests.append(Request(problem=problem, group=group, index=index, step=step, **own))
    return requests, Sampling(max_tokens=longest)


def frozen(setting: Setting, device: torch.device) -> Network:
    """Returns a reference: the same weights, in the type that the model works in."""
    loaded = load(setting.model, seed=setting.seed, dtype=DTYPES[setting.precision])
    network = Network(placed(loaded.model, device), find("sft").declared())
    return network.requires_grad_(requires_grad=False)


def placed(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Returns a model on a device."""
    return cast(Any, model).to(device)


def moved(batch: Batch, device: torch.device) -> Batch:
    """Returns a batch on a device."""
    names = ("mask", "group", "pair", "reward", "advantage", "weight", "old", "ref")
    present = {name: getattr(batch, name) for name in names}
    there = {name: value.to(device) for name, value in present.items() if value is not None}
    columns = {name: column.to(device) for name, column in batch.columns.items()}
    return replace(batch, **there, columns=columns)


def timed(setting: Setting) -> dict[str, Any]:
    """Returns the record of a timed step: seconds, phases, tokens, memory, floor."""
    before = memory.held()
    step = Step(setting)
    warmup = [step.take(number)[0] for number in range(setting.warmup)]
    taken = [step.take(setting.warmup + number) for number in range(setting.steps)]
    peak = memory.most_on(step.device)  # before the ceilings, whose buffers are large
    limits = ceilings.measured(step.network.model)
    seconds = [whole for whole, _ in taken]
    learned = step.learned
    return {
        **described(setting, step),
        "warmup": warmup,
        "steps": seconds,
        "step_seconds": statistics.median(seconds),
        "phases": medians([phases for _, phases in taken]),
        "tokens": setting.load.tokens(),
        "ratio": None if learned is None else learned.watch["ratio"],
        "peak_memory_gb": peak / GIGA,
        "imports_memory_gb": before / GIGA if step.device.type == "cpu" else 0.0,
        **bounds(step.shape, setting, limits, statistics.median(seconds)),
    }


def described(setting: Setting, step: Step) -> dict[str, Any]:
    """Returns what was timed, and on what."""
    load = setting.load
    return {
        "model": setting.model,
        "parameters": step.shape.parameters,
        "prompts": len(load.prompts),
        "rows": load.rows,
        "prompt_tokens": max(load.prompts),
        "completion_tokens": max(load.lengths),
        "precision": setting.precision,
        "beta": setting.beta,
        "epochs": load.epochs,
        "device": str(step.device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **packages("logratio", "torch")},
    }


def packages(*names: str) -> dict[str, str]:
    """Returns the versions of some packages."""
    return {name: version(name) for name in names}


def bounds(shape: Shape, setting: Setting, limits: Ceilings, seconds: float) -> dict[str, Any]:
    """Returns the serial floor of a step and of its phases, and which part of a step it is."""
    phases = floor.phases(shape, setting.load, setting.precision, limits.peak(setting.precision))
    least = sum(phases.values())
    return {
        "floor_phases": phases,
        "floor_seconds": least,
        "floor_fraction": least / seconds,
        "ceilings": limits.record(),
    }


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the median of each name over the rows."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def setting_of(
    model: str,
    sizes: tuple[int, int],
    tokens: tuple[int, int],
    *,
    uneven: bool = False,
    precision: str = "fp32",
    beta: float = 0.0,
    epochs: int = 1,
    **rest: Any,
) -> Setting:
    """Returns a setting from what is typed: (prompts, group) and (prompt, completion) tokens."""
    names = ("prompts", "group", "prompt-tokens", "completion-tokens")
    check_counts(**dict(zip(names, (*sizes, *tokens), strict=True)))
    made = (ragged if uneven else equal)(*sizes, tokens)
    whole = replace(made, reference=beta > 0, epochs=epochs)
    return Setting(
        model=model, load=whole, precision=floor.precision_of(precision), beta=beta, **rest
    )
