"""TRL's side of a timed row, in a process of its own: its released trainers, run by `train()`.

Replaced are only the tokenizer (prompts are ids already), the reward (a hash of the ids) and, where
lengths are ragged, the end of each row, by a logits processor.
"""

import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from speed_ours import pairs_of
from speed_rows import Row
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    TrainerCallback,
)

from logratio.lab import memory
from logratio.lab.speed import GIGA, RATE, medians
from logratio.lab.workload import problems_of, reward_of

COLUMNS = {
    # fp32 weights under bf16 autocast, nothing made again in the backward pass
    "headline": {"weights": "float32", "bf16": True, "gradient_checkpointing": False},
    "bf16": {"weights": "bfloat16", "bf16": True, "gradient_checkpointing": False},
    "default": {"weights": "float32", "bf16": True, "gradient_checkpointing": True},
    "fp32": {"weights": "float32", "bf16": False, "gradient_checkpointing": False},
}


def run(row: Row, model: str, *, column: str, batch: int, steps: tuple[int, int]) -> dict[str, Any]:
    """Returns the record of TRL's steps of one row: some to warm up, and those that count."""
    from trl import DPOTrainer, GRPOTrainer  # trl itself imports nothing before it is asked

    before = memory.held()
    make = {"grpo": grpo, "dpo": preferences}[row.kind]
    trainer = make(row, model, column=column, batch=batch, steps=sum(steps))
    assert isinstance(trainer, GRPOTrainer | DPOTrainer)
    trainer.train()
    taken = trainer.watch.steps[steps[0] :]
    seconds = [whole for whole, _ in taken]
    return {
        "column": column,
        "batch": batch,
        "warmup": [whole for whole, _ in trainer.watch.steps[: steps[0]]],
        "steps": seconds,
        "step_seconds": statistics.median(seconds),
        "phases": medians([phases for _, phases in taken]),
        "tokens": trainer.watch.tokens,
        "peak_memory_gb": memory.most() / GIGA,
        "imports_memory_gb": before / GIGA,
        "threads": torch.get_num_threads(),
    }


def best_batch(row: Row, model: str) -> dict[str, Any]:
    """Returns the seconds of a row in one micro-batch of each size, nothing sampled, and the best.

    The last step counts; only the first size has one before it. Groups of two leave every size
    possible.
    """
    found: dict[int, float] = {}
    for batch in row.batches():
        steps = 1 if found else 2
        if row.kind == "dpo":
            trainer = preferences(
                replace(row, prompts=batch), model, column="headline", batch=batch, steps=steps
            )
        else:
            part = replace(row, prompts=batch // 2, group=2, ragged=False, epochs=1)
            trainer = grpo(part, model, column="headline", batch=batch, steps=steps)
            stored = completions(part, trainer)
            trainer._generate_single_turn = lambda *_, stored=stored: (stored, None)
        trainer.train()
        found[batch] = trainer.watch.steps[-1][1]["forward and backward"] / batch
        del trainer
    return {"seconds": found, "best": min(found, key=lambda batch: found[batch])}


def completions(row: Row, trainer: Any) -> list[list[int]]:
    """Returns completions of the right lengths that hold no end."""
    vocabulary = trainer.model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    lengths = row.workload.lengths
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]


class Watch:
    """Seconds of each step between two calls of the trainer's callbacks, and what they held."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.count = epochs, 0
        self.steps: list[tuple[float, dict[str, float]]] = []
        self.phases: defaultdict[str, float] = defaultdict(float)
        self.tokens: dict[str, int] = {}
        self.start = 0.0

    def begin(self) -> None:
        """Starts a step."""
        self.start, self.count = time.perf_counter(), 0
        self.phases = defaultdict(float)

    def end(self) -> None:
        """Ends an optimiser step; as many as there are inner epochs make one step."""
        self.count += 1
        if self.count == self.epochs:
            whole = time.perf_counter() - self.start
            known = sum(self.phases.values())
            self.steps.append((whole, {**self.phases, "optimizer and other": whole - known}))
            self.begin()

    def timing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, with its seconds added to a phase and taken from the one around."""

        def timed(*words: Any, **settings: Any) -> Any:
            inside, start = sum(self.phases.values()), time.perf_counter()
            found = function(*words, **settings)
            inside = sum(self.phases.values()) - inside
            self.phases[name] += time.perf_counter() - start - inside
            return found

        return timed


def callback(watch: Watch) -> Any:
    """Returns what tells the watch of the trainer's steps."""

    class Steps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.end()

    return Steps()


def settings(row: Row, *, column: str, batch: int, steps: int, rows: int) -> dict[str, Any]:
    """Returns what both of TRL's trainers are told: the same optimiser as ours, and no logging."""
    chosen = {key: value for key, value in COLUMNS[column].items() if key != "weights"}
    return {
        "output_dir": tempfile.mkdtemp(), "use_cpu": True, "report_to": [], "disable_tqdm": True,
        "save_strategy": "no", "logging_steps": 10**6, "dataloader_pin_memory": False,
        "max_steps": steps * row.epochs, "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": rows // batch, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0,
        "disable_dropout": True, "beta": row.beta, "seed": 0,
        "model_init_kwargs": {"dtype": COLUMNS[column]["weights"]}, **chosen,
    }  # fmt: skip


def grpo(row: Row, model: str, *, column: str, batch: int, steps: int, **more: Any) -> Any:
    """Returns a GRPOTrainer that samples exactly the row's lengths."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    load, watch = row.workload, Watch(row.epochs)
    vocabulary = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    problems = problems_of(load, vocabulary)

    class Timed(GRPOTrainer):
        def _tokenize_prompts(self, prompts: list[str]) -> tuple[Any, None, dict[str, Any]]:
            return [list(problems[int(key)].prompt_ids) for key in prompts], None, {}

    def reward(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [reward_of(ids) for ids in completion_ids]

    exact = {} if row.ragged else {"generation_kwargs": {"min_new_tokens": max(load.lengths)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        arguments = GRPOConfig(**{
            **settings(row, column=column, batch=batch, steps=steps, rows=load.rows),
            "num_generations": row.group, "max_completion_length": max(load.lengths),
            "num_iterations": row.epochs, "temperature": 1.0, "top_p": 1.0, "loss_type": "grpo",
            "use_bias_correction_kl": False, "shuffle_dataset": False, **exact, **more,
        })  # fmt: skip
    prompts = [{"prompt": str(place)} for _ in range(steps) for place in range(row.prompts)]
    trainer = Timed(
        model=model, reward_funcs=reward, args=arguments, train_dataset=Dataset.from_list(prompts),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        callbacks=[callback(watch)],
    )  # fmt: skip
    if row.ragged:
        ended(trainer, load.lengths)
    return watched(trainer, watch, load.rows)


def watched(trainer: Any, watch: Watch, rows: int) -> Any:
    """Returns the trainer with its phases timed and its tokens counted."""
    trainer.watch = watch
    trainer._generate_single_turn = watch.timing("sample", trainer._generate_single_turn)
    trainer._calculate_rewards = watch.timing("reward", trainer._calculate_rewards)
    scored = watch.timing("old and reference", trainer._get_per_token_logps_and_entropies)
    plain = trainer._get_per_token_logps_and_entropies

    def log_probs(*words: Any, **settings: Any) -> Any:
        return (plain if torch.is_grad_enabled() else scored)(*words, **settings)

    prepared = watch.timing("prepare", trainer._generate_and_score_completions)

    def counted(inputs: Any) -> Any:
        found = prepared(inputs)
        prompt, completion = found["prompt_mask"], found["completion_mask"]
        watch.tokens = {
            "prompt": int(prompt.sum()),
            "prefilled": prompt.numel(),
            "completion": int(completion.sum()),
            "decoded": completion.numel(),
            "trained": rows * (prompt.shape[1] + completion.shape[1]),
        }
        return found

    trainer._get_per_token_logps_and_entropies = log_probs
    trainer._generate_and_score_completions = counted
    trainer.training_step = watch.timing("forward and backward", trainer.training_step)
    return trainer


def ended(trainer: Any, lengths: Sequence[int]) -> None:
    """Makes each row end with its own length: no end before it, and nothing else at it."""
    ends = torch.tensor(trainer.eos_token_ids)
    last = torch.tensor(lengths) - 1

    class Lengths(LogitsProcessor):
        start: int | None = None

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.start = ids.shape[1] if self.start is None else self.start
            scores[:, ends] = -torch.inf
            over = (last <= ids.shape[1] - self.start).nonzero()[:, 0]
            scores[over] = -torch.inf
            scores[over, ends[0]] = 0.0
            return scores

    generate = trainer.model.generate

    def forced(**words: Any) -> Any:
        return generate(**words, logits_processor=LogitsProcessorList([Lengths()]))

    trainer.model.generate = forced


def preferences(row: Row, model: str, *, column: str, batch: int, steps: int, **more: Any) -> Any:
    """Returns a DPOTrainer on the row's pairs."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    watch = Watch(row.epochs)
    vocabulary = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    graded = pairs_of(row.workload, vocabulary)
    pairs = [
        {
            "prompt_ids": list(one.rollout.prompt_ids),
            "chosen_ids": list(one.rollout.ids),
            "rejected_ids": list(other.rollout.ids),
        }
        for one, other in zip(graded[::2], graded[1::2], strict=True)
    ]

    class Timed(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    reference = more.pop("reference", None)
    arguments = DPOConfig(**{
        **settings(row, column=column, batch=batch, steps=steps, rows=row.prompts), **more,
    })  # fmt: skip
    trainer = Timed(
        model=model, ref_model=reference, args=arguments, train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(model), callbacks=[callback(watch)],
    )  # fmt: skip
    watch.tokens = {"trained": sum(sum(map(len, pair.values())) + len(pair["prompt_ids"])
                                   for pair in pairs)}  # fmt: skip
    trainer.watch = watch
    trainer.training_step = watch.timing("forward and backward", trainer.training_step)
    return trainer
