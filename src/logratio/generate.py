"""Prompts in, text out: what a model says, with its token ids and their log-probabilities."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from logratio.engine import Engine, find, requests_of
from logratio.model.load import Loaded, end_tokens, load
from logratio.model.network import Network
from logratio.part import needs
from logratio.records import Problem, Rollout
from logratio.sampler import Sampling
from logratio.settings import Refused

Prompt = str | list[dict[str, Any]]
SHOWN = "\n\t"  # control characters that only move text
FORMATS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F}  # they reorder text


def written(
    model: str, prompts: Sequence[Prompt], sampling: Sampling, *, samples: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns `samples` completions of each prompt: text, ids, log-probs and how each ended."""
    if samples < 1:
        raise Refused(f"`samples` is {samples}, but it must be at least 1")
    if not prompts:
        raise Refused("`prompts` is empty, but there must be at least one")
    loaded = load(model)
    problems = [
        Problem(key=str(place), prompt=prompt, prompt_ids=ids_of(loaded, prompt))
        for place, prompt in enumerate(prompts)
    ]
    network = Network(loaded.model, needs())
    engine: Engine = find(network.route.engine)(network, end_tokens(loaded))
    rollouts = engine.generate(requests_of(problems, samples=samples, seed=seed), sampling)
    return [line(loaded, prompts[one.group], one) for one in rollouts]


def line(loaded: Loaded, prompt: Prompt, rollout: Rollout) -> dict[str, Any]:
    """Returns one completion as it is printed; a log-prob of -inf has no number in JSON."""
    decoded = cast(Any, loaded.tokenizer).decode(rollout.ids, skip_special_tokens=True)
    return {
        "prompt": prompt,
        "sample": rollout.index,
        "text": str(decoded),
        "ids": list(rollout.ids),
        "logprobs": [one if math.isfinite(one) else None for one in rollout.old or ()],
        "finish": rollout.finish,
    }


def ids_of(loaded: Loaded, prompt: Prompt) -> tuple[int, ...]:
    """Returns the ids of a text, or of messages under the model's own chat template."""
    tokenizer = cast(Any, loaded.tokenizer)
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        if tokenizer.chat_template is None:
            raise Refused("a prompt is a list of messages, but this tokenizer has no chat "
                          "template: give it as text")  # fmt: skip
        told = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        ids = told["input_ids"]
    if not ids:
        raise Refused(f"the prompt {prompt!r} has no tokens, but a completion follows at least one")
    return tuple(int(one) for one in ids)


def read(file: Path) -> list[Prompt]:
    """Returns the prompts of a file: a line each, or the `prompt` of each object of a .jsonl."""
    if not file.is_file():
        raise Refused(f"`prompts` is `{file}`, but there is no such file")
    lines = [text for text in file.read_text(encoding="utf-8").splitlines() if text.strip()]
    if file.suffix != ".jsonl":
        return list(lines)
    return [prompt_of(text, f"line {place} of `{file}`") for place, text in enumerate(lines, 1)]


def prompt_of(text: str, where: str) -> Prompt:
    """Returns the prompt of one line of JSON."""
    try:
        found: Any = json.loads(text)
    except json.JSONDecodeError as mistake:
        raise Refused(f"{where} is no JSON: {mistake}") from None
    prompt: Any = cast(dict[str, Any], found).get("prompt") if isinstance(found, dict) else None
    if isinstance(prompt, str):
        return prompt
    messages = cast(list[Any], prompt) if isinstance(prompt, list) else []
    if messages and all(isinstance(one, dict) for one in messages):
        return cast(list[dict[str, Any]], messages)
    raise Refused(f"{where} has no `prompt` that is text or a list of messages")


def harmless(text: str) -> str:
    r"""Returns text that can not steer a terminal: control characters are spelled.

    >>> print(harmless("red \x1b[31m"))
    red \x1b[31m
    """
    return "".join(letter if calm(letter) else spelled(letter) for letter in text)


def calm(letter: str) -> bool:
    """Says whether a character only shows itself."""
    code = ord(letter)
    control = code < 0x20 or 0x7F <= code <= 0x9F
    return letter in SHOWN or not (control or code in FORMATS)


def spelled(letter: str) -> str:
    r"""Returns a character by its number, as `\x1b` or `\u202e`."""
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shown(lines: Sequence[dict[str, Any]]) -> str:
    """Returns completions for a reader: each prompt once, then what was written."""
    parts: list[str] = []
    for one in lines:
        if one["sample"] == 0:
            parts.append(f"> {harmless(str(one['prompt']))}")
        parts.append(f"[{one['sample']}] {harmless(one['text'])}")
    return "\n".join(parts)
