"""The gate before any number: one stored rollout through both trainers in fp32 comes to the same.

Prompts are equally long (TRL gives left-padded prompts no positions, which moves those of a model
that learned them), completions are ragged, log-probs are off policy, the reference is another
model. TRL takes the batch in two parts. Compared are the loss, the gradient, and every weight after
one AdamW step.
"""

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from speed_ours import pairs_of
from speed_rows import Row
from speed_trl import grpo, preferences
from torch import Tensor, nn
from transformers import TrainerCallback

from logratio.batch import Batch
from logratio.collate import collate
from logratio.lab.workload import problems_of, verdict_of
from logratio.learner import Learner, Update
from logratio.model.load import Loaded, load, save
from logratio.model.network import Network
from logratio.model.scorer import score
from logratio.objective import Objective
from logratio.objectives import find
from logratio.records import Graded, Rollout

LOSS, COSINE, STEP = 1e-5, 0.99999, 1e-3
LOUD = 1e-6  # of the largest gradient: below it the sign of a gradient is rounding
RATE = 1e-3  # so large that a step is far above the rounding of a weight
SPREAD = 0.2  # of the log-ratios to the old and the reference log-probs
SCALE = 1e3  # of the rewards: gradients far above the 1e-8 that Adam adds to their deviation
GAIN = 2.0  # of a matrix: its entries have this size over the root of its columns
LENGTHS = ((7, 16, 12, 16), (16, 3, 9, 14))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one side came to: the loss, the gradient, and how far each weight moved."""

    loss: float
    gradient: Mapping[str, Tensor]
    moved: Mapping[str, Tensor]


def gate(row: Row, model: str) -> dict[str, Any]:
    """Returns how far both trainers are apart on a small batch of a row's kind and model."""
    with tempfile.TemporaryDirectory() as folder:
        save(loud(load(model)), Path(folder))
        return passage(row, folder)


def loud(loaded: Loaded) -> Loaded:
    """Returns a model whose every token matters: at its first weights a shifted one goes unseen."""
    generator = torch.Generator().manual_seed(2)
    for parameter in loaded.model.parameters():
        if parameter.dim() > 1:
            size = GAIN * parameter.shape[-1] ** -0.5
            parameter.data.normal_(0, size, generator=generator)
    return loaded


def passage(row: Row, model: str) -> dict[str, Any]:
    """Returns the same for the model of a folder."""
    if row.kind == "dpo":
        small = replace(row, prompts=2, prompt_tokens=24, completion_tokens=16, beta=3 * row.beta)
        ours, theirs = ours_on_pairs(small, model), theirs_on_pairs(small, model)
    else:
        small = replace(row, prompts=2, group=4, prompt_tokens=24, completion_tokens=16,
                        ragged=False, epochs=1)  # fmt: skip
        stored = rollouts_of(small, model)
        ours, theirs = ours_on_rollouts(small, model, stored), theirs_on(small, model, stored)
    return compared(ours, theirs)


def compared(ours: Outcome, theirs: Outcome) -> dict[str, Any]:
    """Returns the three figures and whether each is within its bound; a NaN is not."""
    assert ours.gradient.keys() == theirs.gradient.keys()
    left, right = (flat(side.gradient) for side in (ours, theirs))
    loss = abs(ours.loss - theirs.loss) / abs(theirs.loss)
    cosine = float(left @ right / (left.norm() * right.norm()))
    loud = right.abs() > LOUD * right.abs().max()
    apart = (flat(ours.moved) - flat(theirs.moved)).abs()[loud]
    step = float(apart.max()) / RATE
    moved = float(flat(theirs.moved).abs().max()) / RATE
    return {
        "loss": loss,
        "cosine": cosine,
        "step": step,
        "moved": moved,
        "compared_weights": int(loud.sum()) / len(loud),
        "passed": loss <= LOSS and cosine > COSINE and step <= STEP and moved > 0.5,
    }


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns all entries as one row of doubles."""
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of every weight that trains."""
    named = model.named_parameters()
    return {name: one.detach().clone() for name, one in named if one.requires_grad}


def apart_from(before: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns how far each weight moved."""
    after = weights_of(model)
    return {name: after[name].double() - before[name].double() for name in before}


def noisy(values: Tensor) -> Tensor:
    """Returns log-probs of a policy that is a little other."""
    generator = torch.Generator().manual_seed(5)
    return values + SPREAD * torch.randn(values.shape, generator=generator)


def rollouts_of(row: Row, model: str) -> list[Rollout]:
    """Returns ragged rollouts with the log-probs of a policy that is a little other."""
    loaded = load(model).model
    vocabulary = loaded.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(1)
    bare = [
        Rollout(
            problem=problem.key,
            group=group,
            index=index,
            prompt_ids=problem.prompt_ids,
            ids=tuple(torch.randint(3, vocabulary, (length,), generator=generator).tolist()),
        )
        for group, problem in enumerate(problems_of(row.workload, vocabulary))
        for index, length in enumerate(LENGTHS[group])
    ]
    logp = noisy(score(Network(loaded, find("sft").declared()), bare)["logp"])
    return [
        replace(one, old=tuple(logp[place, : len(one.ids)].tolist()))
        for place, one in enumerate(bare)
    ]


def reference_of(stored: list[Rollout]) -> list[list[float]]:
    """Returns log-probs of a reference that is a little other than the old policy."""
    return [noisy(torch.tensor(one.old)).tolist() for one in stored]


def updated(model: nn.Module, learner: Learner, batch: Batch, rollouts: list[Rollout]) -> Outcome:
    """Returns what one of our updates came to."""
    gradient: dict[str, Tensor] = {}

    def read(*_: Any) -> None:
        named = model.named_parameters()
        gradient.update({k: p.grad.detach().clone() for k, p in named if p.grad is not None})

    learner.optimizer.register_step_pre_hook(read)
    before = weights_of(model)
    loss = learner.update(batch, rollouts).loss
    return Outcome(loss=loss, gradient=gradient, moved=apart_from(before, model))


def learner_of(model: Any, objective: Objective) -> Learner:
    """Returns a learner in fp32 that does not clip."""
    network = Network(model, objective.declared())
    return Learner(network, objective, Update(lr=RATE, clip_norm=None, precision="fp32"))


def ours_on_rollouts(row: Row, model: str, stored: list[Rollout]) -> Outcome:
    """Returns what our update on stored rollouts came to."""
    objective = find("grpo").using(**{"credit.spread": "none", "beta": row.beta})
    loaded = load(model).model
    batch = collate([Graded(rollout=one, verdict=verdict_of(one)) for one in stored], objective)
    batch = replace(batch, reward=SCALE * batch.stream("reward"))
    if row.beta:
        batch = replace(batch, ref=padded(reference_of(stored)))
    return updated(loaded, learner_of(loaded, objective), batch, stored)


def padded(rows: list[list[float]]) -> Tensor:
    """Returns rows as one tensor with 0 after their ends."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def theirs_on(row: Row, model: str, stored: list[Rollout]) -> Outcome:
    """Returns what TRL's update on stored rollouts came to."""
    trainer = grpo(row, model, column="fp32", batch=row.workload.rows // 2, steps=1,
                   learning_rate=RATE, max_grad_norm=0.0, scale_rewards="none")  # fmt: skip
    ids = [list(one.ids) for one in stored]
    trainer._generate_single_turn = lambda *_: (ids, None)
    reward = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *words: SCALE * reward(*words)
    prepare = trainer._generate_and_score_completions

    def prepared(inputs: Any) -> Any:
        found = prepare(inputs)
        found["old_per_token_logps"] = padded([list(one.old or ()) for one in stored])
        if row.beta:
            found["ref_per_token_logps"] = padded(reference_of(stored))
        return found

    trainer._generate_and_score_completions = prepared
    return trained(trainer, "_compute_loss")


def trained(trainer: Any, loss: str, *, share: float = 1.0) -> Outcome:
    """Returns what a TRL trainer's one step came to, read by a callback before the step."""
    losses: list[float] = []
    gradient: dict[str, Tensor] = {}
    compute = getattr(trainer, loss)

    def computed(*words: Any, **settings: Any) -> Any:
        found = compute(*words, **settings)
        one = found[0] if isinstance(found, tuple) else found
        losses.append(share * float(one.detach()))
        return found

    class Reader(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            named = trainer.model.named_parameters()
            gradient.update({k: p.grad.detach().clone() for k, p in named if p.grad is not None})

    setattr(trainer, loss, computed)
    trainer.add_callback(Reader())
    before = weights_of(trainer.model)
    trainer.train()
    moved = apart_from(before, trainer.model)
    return Outcome(loss=sum(losses), gradient=gradient, moved=moved)


def other_reference(model: str) -> Any:
    """Returns a reference that is another model than the policy."""
    loaded = load(model).model
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in loaded.parameters():
            scale = 0.1 * parameter.std() if parameter.numel() > 1 else 0.1
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return loaded.requires_grad_(requires_grad=False)


def ours_on_pairs(row: Row, model: str) -> Outcome:
    """Returns what our DPO update came to."""
    objective = find("dpo").using(beta=row.beta)
    loaded = load(model).model
    graded = pairs_of(row.workload, loaded.config.get_text_config().vocab_size)
    rollouts = [one.rollout for one in graded]
    frozen = Network(other_reference(model), find("sft").declared())
    batch = replace(collate(graded, objective), ref=score(frozen, rollouts)["logp"])
    return updated(loaded, learner_of(loaded, objective), batch, rollouts)


def theirs_on_pairs(row: Row, model: str) -> Outcome:
    """Returns what TRL's DPO update came to; the Trainer divides its losses by their number."""
    reference = copy.deepcopy(other_reference(model))
    trainer = preferences(row, model, column="fp32", batch=row.prompts // 2, steps=1,
                          learning_rate=RATE, max_grad_norm=0.0, reference=reference)  # fmt: skip
    return trained(trainer, "_compute_loss", share=0.5)
