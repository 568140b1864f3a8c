"""What tests/test_ranks.py runs on one rank and, under torchrun, on two: the same cases on both."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from model.models import models

from logratio.collate import collate
from logratio.learner import Learner, Stopped, Update
from logratio.model.adapter import Adapter, Unadapted, add
from logratio.model.network import Network
from logratio.model.scorer import score
from logratio.model.shard import fill, shard, whole
from logratio.objective import Objective
from logratio.objectives.dpo import dpo
from logratio.objectives.grpo import grpo
from logratio.objectives.ppo import ppo
from logratio.objectives.qpo import qpo
from logratio.objectives.sft import sft
from logratio.part import Needs
from logratio.ranks import ALONE, joined
from logratio.records import Graded, Rollout, Verdict
from logratio.settings import Refused

STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained on what: `prompts` with ragged answers, micro-batches of `budget` tokens."""

    objective: Objective
    model: str
    prompts: int = 4
    budget: int = 40
    lora: bool = False
    dtype: torch.dtype = torch.float32


q_function = qpo.using(target="bootstrap", offset="head", c="learned")
TRAINED = {
    "tied": Case(objective=grpo.using(beta=0.1), model="gpt2"),
    "untied": Case(objective=sft, model="gpt_neox"),
    "value head": Case(objective=ppo, model="qwen2"),
    "lora": Case(objective=grpo, model="qwen2", lora=True),
    "scalar, head and reference": Case(objective=q_function, model="gpt2"),
    "lora, its own reference": Case(objective=q_function, model="qwen2", lora=True),
    "two micro-batches and one": Case(objective=dpo, model="qwen2", prompts=3, budget=14),
    "one micro-batch and none": Case(objective=dpo, model="gpt2", prompts=1),
    "tied, float64": Case(objective=grpo, model="gpt2", dtype=torch.float64),
    "untied, float64": Case(objective=ppo, model="gpt_neox", dtype=torch.float64),
}


def graded(prompts, *, pairs=False, seed=0):
    """Returns ragged answers to some prompts, five each, or a pair each, of random ids."""
    generator = torch.Generator().manual_seed(seed)

    def ids(longest):
        count = int(torch.randint(1, longest, (), generator=generator))
        return tuple(torch.randint(1, 50, (count,), generator=generator).tolist())

    made = []
    for group, prompt in enumerate([ids(9) for _ in range(prompts)]):
        for index in range(2 if pairs else 5):
            answer = ids(12)
            row = Rollout(problem=str(group), group=group, index=index,
                          prompt_ids=prompt, ids=answer, old=(-3.0,) * len(answer))  # fmt: skip
            reward = 1.0 - index if pairs else float(torch.rand((), generator=generator))
            sides = {"pair": group, "side": index} if pairs else {}
            made.append(Graded(rollout=row, verdict=Verdict(reward=reward), **sides))
    return made


def network_of(case):
    """Returns a network on one of the small models, always the same; nothing in it is 0."""
    model = models()[case.model].to(case.dtype)
    if case.lora:
        add(model, Adapter(rank=4))
    network = Network(model, case.objective.declared()).to(case.dtype)
    generator = torch.Generator().manual_seed(0)
    for weight in (*network.heads.parameters(), *network.scalars.parameters()):
        weight.data.normal_(0, 0.1, generator=generator)
    return network


def reference_of(case, network, ranks):
    """Returns what is read beside the policy, if anything: a frozen network, or no adapter."""
    if not any(one.reference for one in case.objective.declared().statistics.values()):
        return None
    if case.lora:
        return Unadapted(network)
    frozen = network_of(case).requires_grad_(False)
    if ranks.size > 1:
        shard(frozen, ranks)
    return frozen


def stored(case, network, *, seed=0):
    """Returns rollouts and their batch, with log-probs a little off the network's own."""
    rows = graded(case.prompts, pairs=case.objective.declared().couples == "pair", seed=seed)
    rollouts = [one.rollout for one in rows]
    batch = collate(rows, case.objective)
    said = score(network, rollouts, Needs())
    read = case.objective.declared().streams
    columns = {name: said[name] for name in network.heads if name in read}
    old, ref = said["logp"] - 0.05 * batch.mask, said["logp"] + 0.1 * batch.mask
    return replace(batch, old=old, ref=ref, columns={**batch.columns, **columns}), rollouts


def setting(case, ranks, **how):
    """Returns a learner with its batch and rollouts."""
    network = network_of(case)
    batch, rollouts = stored(case, network)
    update = Update(**{"lr": 1e-3, "budget": case.budget, **how})
    return Learner(network, case.objective, update, ranks=ranks), batch, rollouts


def trained(name, ranks, folder):
    """Returns what twenty steps came to; leaves the weights in the folder."""
    case = TRAINED[name]
    learner, batch, rollouts = setting(case, ranks)
    reference = reference_of(case, learner.network, ranks)
    steps = [learner.update(batch, rollouts, reference=reference) for _ in range(STEPS)]
    weights = whole(learner.network)
    if ranks.rank == 0:
        torch.save(weights, folder / f"{name}.pt")
    return {
        "micro-batches": len(learner.cut(batch, rollouts)),
        "loss": [step.loss for step in steps],
        "norm": [step.grad_norm for step in steps],
        "watch": [dict(step.watch) for step in steps],
    }


def narrow(ranks):
    """Returns the losses of bf16, one row a cut, and the types of what is stepped on."""
    found = {}
    for name in ("untied", "scalar, head and reference"):
        case, rows, types = TRAINED[name], [], set()
        for budget in (40, 60, 4000) if ranks.size == 1 else (40,):
            how = {"precision": "bf16", "lr": 1e-4, "budget": budget}
            learner, batch, rollouts = setting(case, ranks, **how)
            other = reference_of(case, learner.network, ranks)
            steps = [learner.update(batch, rollouts, reference=other) for _ in range(STEPS)]
            rows.append([step.loss for step in steps])
            types |= {str(weight.dtype) for weight in learner.parameters}
        found[name] = {"losses": rows, "types": sorted(types)}
    return found


def kept(ranks):
    """Returns the types in which a bf16 LoRA keeps what is not trained, and its first step."""
    learner, batch, rollouts = setting(TRAINED["lora"], ranks, precision="bf16")
    types = {str(w.dtype) for w in learner.network.parameters() if not w.requires_grad}
    step = learner.update(batch, rollouts)
    return {"types": sorted(types), "loss": step.loss, "norm": step.grad_norm}


def poisoned(ranks):
    """Returns what three steps came to, of which the last rank spoils the second; then two more."""
    learner, batch, rollouts = setting(TRAINED["tied"], ranks, patience=2)

    def spoil(_module, _inputs, loss):
        if spoilt and ranks.rank == ranks.size - 1:
            loss.register_hook(lambda slope: slope * float("nan"))

    spoilt = False
    learner.network.register_forward_hook(spoil)
    steps, weights = [], []
    for spoilt in (False, True, False):  # noqa: B007 (the hook reads it)
        steps.append(learner.update(batch, rollouts))
        weights.append({n: w.clone() for n, w in whole(learner.network).items()})
    spoilt = True
    steps.append(learner.update(batch, rollouts))
    said = ""
    try:
        learner.update(batch, rollouts)
    except Stopped as error:
        said = str(error)
    return {
        "skipped": [step.skipped for step in steps],
        "loss": [step.loss for step in steps],
        "moved": [not same(*weights[:2]), not same(*weights[1:])],
        "said": said,
    }


def gathered(ranks):
    """Returns whether whole weights come out, and go in, bit for bit, and are the ones that count.

    The network has been scored before they go in: what it gathered for that is out of date.
    """
    case = TRAINED["value head"]
    plain = network_of(case)
    learner, batch, rollouts = setting(case, ranks)
    network = learner.network
    out = whole(network)
    tied = [out[f"model.{name}.weight"] for name in ("lm_head", "model.embed_tokens")]
    before = score(network, rollouts, budget=40, ranks=ranks)
    found = {
        "out": same(out, plain.state_dict()),
        "tied": tied[0] is tied[1],
        "score": same(before, score(plain, rollouts, budget=40)),
    }
    for weight in plain.parameters():
        weight.data.mul_(1.1)
    fill(network, plain.state_dict())
    found["in"] = same(whole(network), plain.state_dict())
    found["used"] = same(score(network, rollouts, ranks=ranks), score(plain, rollouts))
    learner.update(batch, rollouts)
    plain.load_state_dict(whole(network))
    found["after a step"] = same(score(network, rollouts, ranks=ranks), score(plain, rollouts))
    case = TRAINED["lora"]
    plain, (learner, _, rollouts) = network_of(case), setting(case, ranks)
    learner.update(*setting(case, ALONE)[1:])  # its adapter is now other than none
    bare = score(Unadapted(learner.network), rollouts, Needs(), ranks=ranks)
    found["adapter off"] = same(bare, score(Unadapted(plain), rollouts, Needs()))
    return found


def same(ours, theirs):
    """Says whether two sets of named tensors are the same, to the bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def distance(ours, theirs):
    """Returns the length of the difference of two sets of named tensors."""
    return sum(float((ours[name] - theirs[name]).square().sum()) for name in ours) ** 0.5


def differing(ranks):
    """Returns what is said when the ranks do not have the same rollouts, or the same model."""
    case, said = TRAINED["tied"], []
    if ranks.size == 1:
        return said
    learner, batch, rollouts = setting(case, ranks)
    mine = [*rollouts[: ranks.rank], rollouts[-1], *rollouts[ranks.rank + 1 :]]
    network = network_of(case)
    next(network.parameters()).data.add_(ranks.rank)
    for action in (
        lambda: learner.backward(batch, mine, reference=None),
        lambda: Learner(network, case.objective, Update(), ranks=ranks),
    ):
        try:
            action()
        except Refused as error:
            said.append(str(error))
    return said


def everything(ranks, folder):
    """Returns what each case came to on this rank."""
    found = {name: trained(name, ranks, folder) for name in TRAINED}
    others = (narrow, kept, poisoned, gathered, differing)
    return found | {case.__name__: case(ranks) for case in others}


def main():
    """Writes what each case came to on this rank."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with joined(cuda=False, timeout=240) as ranks:
        found = everything(ranks, folder)
        (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
