"""TRL's own losses on tensors: its methods, called on trainers that were never constructed.

TRL has no loss that takes log-probs. What is replaced here is what stands around the arithmetic
(the accelerator, generation, the model); `_generate_and_score_completions`, `_compute_loss` and
`compute_loss` run as released, under TRL's own configuration classes and their defaults.
"""

import os
import tempfile
import warnings
from collections import defaultdict
from dataclasses import fields
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from parity_inputs import EOS, LONGEST, PAD, Groups, Pairs, Result
from torch import Tensor, nn

os.environ["HF_HUB_OFFLINE"] = "1"  # before trl is imported, which every function below does


class Accelerator:
    """One process, or `processes` equal ones as far as TRL's normalisers can see."""

    device = torch.device("cpu")
    process_index = 0
    sync_gradients = True

    def __init__(self, processes: int = 1) -> None:
        self.num_processes = processes

    def gather(self, value: Tensor) -> Tensor:
        """Returns what was given."""
        return value

    gather_for_metrics = gather

    def pad_across_processes(self, value: Tensor, **_: Any) -> Tensor:
        """Returns what was given."""
        return value

    def reduce(self, value: Tensor, **_: Any) -> Tensor:
        """Returns what was given."""
        return value


class Model(nn.Module):
    """A model in train mode whose forward returns what it was built with."""

    is_gradient_checkpointing = False

    def __init__(self, answer: Any = None) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, **inputs: Any) -> Any:
        """Returns the prepared output for these inputs."""
        return self.answer(**inputs)


def config(kind: type, **settings: Any) -> Any:
    """Returns one of TRL's configurations: its defaults, these settings, and a CPU in fp32."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return kind(output_dir=folder, use_cpu=True, bf16=False, report_to=[], **settings)


def bare(trainer: type, arguments: Any, **attributes: Any) -> Any:
    """Returns a trainer that has its configuration's fields and these attributes, nothing else."""
    made = object.__new__(trainer)
    for field in fields(arguments):
        if not isinstance(getattr(trainer, field.name, None), property):
            made.__dict__[field.name] = getattr(arguments, field.name)
    made.__dict__.update(
        args=arguments,
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **attributes,
    )
    return made


def result(loss: Tensor, leaf: Tensor) -> Result:
    """Returns the loss and its gradient with respect to the leaf."""
    (gradient,) = torch.autograd.grad(loss, leaf)
    return Result(loss=loss.item(), gradient=gradient)


def reward_model(pairs: Pairs, *, margin: bool = False, centre: float | None = None) -> Result:
    """Returns `RewardTrainer.compute_loss` and its gradient with respect to the scores."""
    from trl import RewardConfig, RewardTrainer

    leaf = pairs.score.clone().requires_grad_()
    model = Model(lambda **_: SimpleNamespace(logits=leaf[:, None]))
    arguments = config(RewardConfig, center_rewards_coefficient=centre)
    trainer = bare(RewardTrainer, arguments, model=model)
    inputs = {"input_ids": pairs.mask.long(), "attention_mask": pairs.mask.long()}
    if margin:
        inputs["margin"] = pairs.margin
    return result(trainer.compute_loss(model, inputs), leaf)


def dpo(pairs: Pairs, **settings: Any) -> Result:
    """Returns `DPOTrainer._compute_loss` and its gradient with respect to the log-probs."""
    from trl import DPOConfig, DPOTrainer

    leaf = pairs.logp.clone().requires_grad_()

    def scored(stream: Tensor) -> Model:
        kept = torch.where(pairs.mask, stream, 0.0)  # the fused head gives 0 outside the labels
        unused = torch.zeros_like(kept)
        output = SimpleNamespace(
            log_probs=kept, entropy=unused, mean_logits=unused, is_top1=unused.bool()
        )
        return Model(lambda **_: output)

    arguments = config(DPOConfig, **settings)
    weights = arguments.loss_weights or [1.0] * len(arguments.loss_type)
    trainer = bare(
        DPOTrainer, arguments, model=scored(leaf), ref_model=scored(pairs.ref),
        loss_types=arguments.loss_type, precompute_ref_logps=False,
    )  # fmt: skip
    trainer.loss_weights = weights
    prompt = torch.ones(len(pairs.mask), 1, dtype=torch.long)
    inputs = {
        "input_ids": torch.cat([prompt, prompt.expand_as(pairs.mask)], 1),
        "attention_mask": torch.cat([prompt, pairs.mask.long()], 1),
        "completion_mask": torch.cat([0 * prompt, pairs.mask.long()], 1),
    }
    return result(trainer._compute_loss(trainer.model, inputs, return_outputs=False), leaf)


def grpo(groups: Groups, *, micro_batches: int = 1, **settings: Any) -> Result:
    """Returns `GRPOTrainer._compute_loss` and its gradient with respect to the log-probs.

    Advantages, masks and `num_items_in_batch` are TRL's own too. The losses of the micro-batches
    of one optimiser step are added, as its training loop does.
    """
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import split_tensor_dict

    leaf = groups.logp.clone().requires_grad_()
    arguments = config(
        GRPOConfig,
        per_device_train_batch_size=len(groups.mask) // micro_batches,
        gradient_accumulation_steps=micro_batches,
        num_generations=int((groups.group == 0).sum()),
        # with one iteration TRL takes the ratio to be 1, without looking at the old log-probs
        **{"max_completion_length": LONGEST, "num_iterations": 2, **settings},
    )
    trainer = sampler(bare(GRPOTrainer, arguments), groups, leaf)
    trainer._generate = lambda _prompts: generated(groups)
    inputs = trainer._generate_and_score_completions([{"prompt": "x"}] * len(groups.mask))
    parts = split_tensor_dict(inputs, micro_batches)
    losses = [trainer._compute_loss(trainer.model, part) for part in parts]
    return result(torch.stack(losses).sum(), leaf)


def rloo(groups: Groups, **settings: Any) -> Result:
    """Returns `RLOOTrainer._compute_loss` and its gradient with respect to the log-probs."""
    from trl import RLOOConfig, RLOOTrainer

    leaf = groups.logp.clone().requires_grad_()
    size = int((groups.group == 0).sum())
    rows = len(groups.mask)
    arguments = config(
        RLOOConfig, per_device_train_batch_size=rows, num_generations=size, **settings
    )
    trainer = sampler(bare(RLOOTrainer, arguments), groups, leaf)
    trainer._generate = lambda _prompts: [generated(groups)[place] for place in (0, 1, 3)]
    inputs = trainer._generate_and_score_completions([{"prompt": "x"}] * rows)
    return result(trainer._compute_loss(trainer.model, inputs), leaf)


def sampler(trainer: Any, groups: Groups, leaf: Tensor) -> Any:
    """Returns the trainer with the rewards and log-probs of the groups for its own."""
    arguments = trainer.args
    high = arguments.epsilon if arguments.epsilon_high is None else arguments.epsilon_high
    trainer.__dict__.update(
        model=Model(), ref_model=Model(), epsilon_low=arguments.epsilon, epsilon_high=high,
        current_gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        environment_factories=None, environments=None, tools=None, _is_vlm=False,
        _tokenizer=SimpleNamespace(pad_token_id=PAD), eos_token_ids=[EOS],
        reward_func_names=["reward"], _entropy_bonus_enabled=False,
        _logs=defaultdict(list, rewards=defaultdict(list)),
        _pending_extra_logs={}, _pending_metrics={}, reward_weights=torch.ones(1),
    )  # fmt: skip
    trainer._calculate_rewards = lambda *_: groups.reward[:, None].clone()
    trainer._get_per_token_logps_and_entropies = MethodType(log_probs(groups, leaf), trainer)
    return trainer


def generated(groups: Groups) -> tuple[Any, ...]:
    """Returns what `_generate` returns; the one token of a prompt is the number of its row."""
    lengths = groups.lengths.tolist()
    prompts = [[row] for row in range(len(lengths))]
    last = [EOS + 1 if cut else EOS for cut in groups.truncated.tolist()]
    ids = [[EOS + 1] * (n - 1) + [end] for n, end in zip(lengths, last, strict=True)]
    chosen = [row[:n].int().tolist() for row, n in zip(groups.mask, lengths, strict=True)]
    return prompts, ids, chosen, [""] * len(ids), None, {}, None, None


def log_probs(groups: Groups, leaf: Tensor) -> Any:
    """Returns what stands in for the model: the leaf, or the old or reference log-probs."""

    def function(self: Any, model: Any, input_ids: Tensor, mask: Tensor, kept: int, *_, **__: Any):
        rows = input_ids[:, 0]
        stream = leaf if torch.is_grad_enabled() else groups.old
        stream = groups.ref if model is self.ref_model else stream
        attended = mask[:, -kept:].bool()  # the fused head gives 0 where there is no label
        logp = torch.where(attended, stream[rows, :kept], 0.0)
        return logp, torch.where(attended, groups.entropy[rows, :kept], 0.0), None

    return function


LOSSES = {"grpo": grpo, "rloo": rloo, "dapo": grpo, "dpo": dpo, "reward_model": reward_model}
