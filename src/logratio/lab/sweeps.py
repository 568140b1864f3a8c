"""Decoding alone at several batch sizes, and updates alone, beside their floors."""

import statistics
from collections.abc import Sequence
from random import Random
from typing import Any

from logratio.lab import ceilings, floor
from logratio.lab.floor import BYTES
from logratio.lab.speed import GIGA, Clock, Setting, Step, asked, setting_of
from logratio.lab.workload import Workload, verdict_of
from logratio.records import Graded, Rollout
from logratio.settings import Refused

DECODE = ("rows", "seconds", "step_ms", "floor_ms", "floor_fraction", "tokens_per_second")
TRAIN = ("tokens", "seconds", "floor_seconds", "floor_fraction", "tokens_per_second", "tflops")


def decode(model: str, rows: Sequence[int], tokens: tuple[int, int], **rest: Any) -> dict[str, Any]:
    """Returns, for each number of rows of one prompt, the median time of a decoding step."""
    settings = [setting_of(model, (1, count), tokens, **rest) for count in rows]
    step = Step(settings[0])
    peak = ceilings.measured(step.network.model).peak(settings[0].precision)
    found: list[dict[str, Any]] = []
    for setting in settings:
        load, count = setting.load, setting.load.rows
        seconds = statistics.median(decoding_seconds(step, setting))
        steps = max(1, max(load.lengths) - 1)  # the first token comes with the prompt
        size = BYTES[setting.precision]
        works = [floor.decoding(step.shape, load, number, size) for number in range(1, steps + 1)]
        least = sum(work.serial(peak) for work in works)
        found.append({
            "rows": count,
            "seconds": seconds,
            "step_ms": 1e3 * seconds / steps,
            "floor_ms": 1e3 * least / steps,
            "floor_fraction": least / seconds,
            "tokens_per_second": count * steps / seconds,
        })  # fmt: skip
    return {"model": model, "precision": settings[0].precision, "sweep": found}


def counts(text: str) -> list[int]:
    """Returns whole numbers from a text with commas.

    >>> counts("1, 8")
    [1, 8]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise Refused(f"`rows` is `{text}`, but it must be whole numbers above 0, as 1,8,32")
    return [int(part) for part in parts]


def decoding_seconds(step: Step, setting: Setting) -> list[float]:
    """Returns the seconds of decoding and drawing, prompts left out, of each timed call."""
    taken: list[float] = []
    for number in range(setting.warmup + setting.steps):
        step.engine.generate(*asked(setting.load, step.problems, number))
        taken.append(step.engine.seconds["decode"] + step.engine.seconds["sample"])
    return taken[setting.warmup :]


def train(setting: Setting) -> dict[str, Any]:
    """Returns the median time of an update on made-up rollouts, nothing sampled."""
    step = Step(setting)
    vocabulary = int(step.network.model.config.get_text_config().vocab_size)
    rollouts = made_up(step, setting.load, vocabulary)
    graded = [Graded(rollout=one, verdict=verdict_of(one)) for one in rollouts]
    taken: list[float] = []
    for _ in range(setting.warmup + setting.steps):
        clock = Clock(step.device)
        step.train(graded, rollouts, clock)
        taken.append(sum(clock.seconds[name] for name in ("forward", "backward", "optimizer")))
    seconds = statistics.median(taken[setting.warmup :])
    peak = ceilings.measured(step.network.model).peak(setting.precision)
    floors = floor.phases(step.shape, setting.load, setting.precision, peak)
    least = floors["train"] + floors["optimizer"]
    work = floor.training(step.shape, setting.load)
    tokens = setting.load.tokens()["trained"]
    line = {
        "tokens": tokens,
        "seconds": seconds,
        "floor_seconds": least,
        "floor_fraction": least / seconds,
        "tokens_per_second": tokens / seconds,
        "tflops": (work.linear + work.attention) / seconds / (1e3 * GIGA),
    }
    return {"model": setting.model, "precision": setting.precision, "sweep": [line]}


def made_up(step: Step, load: Workload, vocabulary: int) -> list[Rollout]:
    """Returns rollouts of random ids, as long as a workload says."""
    draw = Random(1)
    return [
        Rollout(
            problem=problem.key,
            group=group,
            index=index,
            prompt_ids=problem.prompt_ids,
            ids=tuple(draw.randrange(vocabulary) for _ in range(length)),
            old=(-1.0,) * length,
        )
        for group, (problem, lengths) in enumerate(
            zip(step.problems, load.completions, strict=True)
        )
        for index, length in enumerate(lengths)
    ]
