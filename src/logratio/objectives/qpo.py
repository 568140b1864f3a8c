"""QPO: the policy's logits as a Q-function, a classifier of success at every token.

`gain` is the document's beta. It is a gain and no KL penalty: a larger one is greedier.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from logratio.average import AVERAGES
from logratio.batch import Batch, Policy, Term, Terms
from logratio.numerics import at_next_state, backward_scan, last_token, masked_sum, nucleus
from logratio.objective import Objective, Slopes
from logratio.part import Needs, Part, Refused, Statistic, defaults

Target = Literal["monte_carlo", "bootstrap", "q_learning", "td"]
Reading = Literal["logprob", "logit"]
Offset = Literal["none", "log_sum_exp", "head"]
Learned = float | Literal["learned"]


def readings(policy: Policy, batch: Batch, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns what is compared, u - u_ref (with the offset's part), and what A multiplies."""
    ref = batch.stream("ref")
    if not reads_raw(options):
        return policy.logp - ref, ref
    raw = batch.stream("ref_logit")
    centred = options["reading"] == "logprob" or options["centred"]
    return policy.stream("logit") - raw, ref if centred else raw


def classifier(policy: Policy, batch: Batch, options: Mapping[str, Any]) -> Float[Tensor, "B T"]:
    """Returns the logit of success given the token that was taken.

    l_Q = (u - u_ref) / gain + A u_ref + c + v(state)
    """
    apart, prior = readings(policy, batch, options)
    a, c = (learned(options[name], name, policy) for name in ("A", "c"))
    logit = apart / options["gain"] + a * prior + c
    return logit + policy.heads["offset"][:, :-1] if options["offset"] == "head" else logit


def learned(value: Learned, name: str, policy: Policy) -> float | Tensor:
    """Returns a fixed number, or the learned scalar of that name."""
    return policy.scalars[name] if isinstance(value, str) else value


def next_value(
    row: Tensor, reference: Tensor, state: Tensor | None, scalars: dict[str, Tensor],
    *, options: Mapping[str, Any],
) -> Float[Tensor, " N"]:  # fmt: skip
    """Returns the success that the classifier expects at a state: the policy's mean, or the best.

    The mean and the maximum are of probabilities. The maximum is over the tokens that the
    reference's `top_p` or `top_k` leaves: l_Q of a token never tried is only its prior.
    """
    logp, ref = row.log_softmax(-1), reference.log_softmax(-1)
    apart = row - reference if reads_raw(options) else logp - ref
    uncentred = options["reading"] == "logit" and not options["centred"]
    a, c = (scalars.get(name, options[name]) for name in ("A", "c"))
    logit = apart / options["gain"] + a * (reference if uncentred else ref) + c
    success = torch.sigmoid(logit if state is None else logit + state[:, None])
    if options["target"] != "q_learning":
        return (logp.exp() * success).sum(-1)
    tried = nucleus(ref, top_p=options["top_p"], top_k=options["top_k"])
    return success.masked_fill(~tried, 0.0).amax(-1)


def labels(batch: Batch, options: Mapping[str, Any]) -> Float[Tensor, " B"]:
    """Returns each row's success in [0, 1]; a reward outside is refused."""
    reward, threshold = batch.stream("reward"), options["label_threshold"]
    if threshold is not None:
        return (reward > threshold).to(reward.dtype)
    low, high = options["reward_low"], options["reward_high"]
    label = (reward - low) / (high - low)
    outside = (label < 0) | (label > 1)
    if outside.any():
        raise Refused(f"`reward` holds {reward[outside][0].item():g}, but a label must lie in "
                      f"[{low:g}, {high:g}]: set `label_threshold`, or `reward_low` and "
                      "`reward_high`")  # fmt: skip
    return label


def targets(policy: Policy, batch: Batch, options: Mapping[str, Any]) -> Float[Tensor, "B T"]:
    """Returns what each token's success is regressed on; the last token's is the label.

    bootstrap, q_learning: value of the next state      td: (1 - trace) value + trace next target
    """
    mask, label = batch.mask, labels(batch, options)
    trace = {"monte_carlo": 1.0, "td": options["trace"]}.get(options["target"], 0.0)
    if trace == 1.0:
        return torch.where(mask, label[:, None], 0.0)
    lagged = options["lagged"]
    values = batch.stream("next_value") if lagged else policy.statistics["next_value"]
    last = last_token(mask)
    if options["truncated"] == "bootstrap":
        beyond = masked_sum(values[:, 1:], last)
        label = torch.where(batch.stream("truncated").bool(), beyond, label)
    ahead = at_next_state(values, mask, label)
    own = torch.where(last, ahead, (1 - trace) * ahead)
    factor = torch.where(mask, trace * ~last, 1.0).to(own.dtype)
    return backward_scan(torch.where(mask, own, 0.0), factor)


def loss(
    policy: Policy,
    batch: Batch,
    *,
    target: Target = "monte_carlo",
    reading: Reading = "logprob",
    gain: float = 1.0,
    A: Learned = 0.0,
    c: Learned = "learned",
    offset: Offset = "log_sum_exp",
    centred: bool = True,
    trace: float = 0.9,
    lagged: bool = False,
    top_p: float = 1.0,
    top_k: int | None = None,
    truncated: Literal["reward", "bootstrap"] = "reward",
    label_threshold: float | None = None,
    reward_low: float = 0.0,
    reward_high: float = 1.0,
) -> Terms:
    """Returns the binary cross-entropy of every token's classifier.

    loss_t = softplus(l_Q) - target l_Q
    """
    options = dict(locals())  # every setting by its name, and the two arguments
    logit, target_ = classifier(policy, batch, options), targets(policy, batch, options)
    return Terms(
        terms={"success": Term(loss=softplus(logit) - target_ * logit)},
        watch={"q": torch.sigmoid(logit), "target": target_, "label": labels(batch, options)},
    )


def coefficient(policy: Policy, batch: Batch, **options: Any) -> Slopes:
    """Returns (sigmoid(l_Q) - target) / gain on what was read, and the error itself on the rest."""
    error = torch.sigmoid(classifier(policy, batch, options)) - targets(policy, batch, options)
    slopes = {"logit" if reads_raw(options) else "logp": error / options["gain"]}
    if options["A"] == "learned":
        slopes["A"] = error * readings(policy, batch, options)[1]
    if options["c"] == "learned":
        slopes["c"] = error
    if options["offset"] == "head":
        slopes["offset"] = error
    return {"success": slopes}


def reads_raw(options: Mapping[str, Any]) -> bool:
    """Says whether raw logits are read: by choice, or for the log-sum-exp offset they hold."""
    return options["reading"] == "logit" or options["offset"] == "log_sum_exp"


def reads(**options: Any) -> Needs:
    """Returns the logits, scalars, head and next-state statistic that the settings call for."""
    raw, target = reads_raw(options), options["target"]
    head = ["offset"] if options["offset"] == "head" else []
    computed = target != "monte_carlo" and not options["lagged"]
    statistic = Statistic(
        function=partial(next_value, options=options), reference=True, state=(head or [None])[0]
    )
    return Needs(
        streams=frozenset(
            ["reward", "ref"]
            + ["ref_logit"] * raw
            + ["next_value"] * options["lagged"]
            + ["truncated"] * (options["truncated"] == "bootstrap")
        ),
        policy=frozenset(["logit"] * raw),
        heads=frozenset(head),
        scalars={name: STARTS[name] for name in STARTS if options[name] == "learned"},
        statistics={"next_value": statistic} if computed else {},
    )


STARTS = {"A": 0.0, "c": 0.0}
ONLY = {  # settings that act under some targets only
    "trace": ["td"],
    "top_p": ["q_learning"],
    "top_k": ["q_learning"],
    "lagged": ["bootstrap", "q_learning", "td"],
    "truncated": ["bootstrap", "q_learning", "td"],
}


def check(objective: Objective) -> None:
    """Refuses settings that nothing reads or that contradict; warns of a reference that counts."""
    options = objective.loss.resolved()
    for name, targets_ in ONLY.items():
        if options[name] != defaults(loss)[name] and options["target"] not in targets_:
            raise Refused(f"`{name}` is {options[name]!r}, but `target` is {options['target']!r}: "
                          f"only {', '.join(targets_)} read it")  # fmt: skip
    if options["gain"] <= 0 or not 0 <= options["trace"] <= 1 or not 0 < options["top_p"] <= 1:
        raise Refused(f"`gain` is {options['gain']}, `trace` {options['trace']}, `top_p` "
                      f"{options['top_p']}: gain > 0, trace in [0, 1], top_p in (0, 1]")  # fmt: skip
    if options["reading"] == "logit" and options["offset"] == "log_sum_exp":
        raise Refused("`offset` is 'log_sum_exp', but `reading` is 'logit', which holds it already")
    if options["A"] != 0:
        warnings.warn("`A` is not 0: a reward that says nothing then still moves the policy, to "
                      "ref ** (1 - gain A)", stacklevel=3)  # fmt: skip


qpo = Objective(
    name="qpo",
    loss=Part(loss, reads),
    coefficient=coefficient,
    average=AVERAGES["per_token"],
    presets={
        "as_written": {
            "reading": "logit", "A": 1.0, "c": 0.0, "offset": "none", "centred": False
        },
        "log_probs": {"offset": "none", "c": 0.0},
        "bootstrap": {"target": "bootstrap"},
        "q_learning": {"target": "q_learning"},
        "td": {"target": "td"},
    },
    check=check,
)  # fmt: skip
