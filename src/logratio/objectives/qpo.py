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
from logratio.credit import refuse_outside
from logratio.numerics import last_token, masked_sum, nucleus, trace_return
from logratio.objective import Objective, Slopes, only
from logratio.part import Needs, Part, Statistic, needs
from logratio.settings import AtLeastOne, Fraction, Positive, Refused, Share

Learned = float | Literal["learned"]
Options = Mapping[str, Any]


def success_logit(
    u: Tensor, reference: Tensor, prior: Tensor, state: Tensor | float, *,
    scalars: Mapping[str, Tensor], options: Options,
) -> Tensor:  # fmt: skip
    """Returns the logit of success, given a state and a token.

    l_Q = (u - u_ref) / gain + A prior + c + v(state)
    """
    a, c = (scalars[n] if options[n] == "learned" else options[n] for n in ("A", "c"))
    return (u - reference) / options["gain"] + a * prior + c + state


def classifier(policy: Policy, batch: Batch, options: Options) -> Float[Tensor, "B T"]:
    """Returns the logit of success given the token that was taken."""
    if reads_raw(options):
        u, reference = policy.stream("logit"), batch.stream("ref_logit")
    else:
        u, reference = policy.logp, batch.stream("ref")
    state = policy.heads["offset"][:, :-1] if options["offset"] == "head" else 0.0
    prior = batch.stream(prior_name(options)) if options["A"] != 0 else torch.zeros_like(u)
    return success_logit(u, reference, prior, state, scalars=policy.scalars, options=options)


def next_value(
    row: Tensor, reference: Tensor, state: Tensor | None, scalars: Mapping[str, Tensor], *,
    options: Options,
) -> Float[Tensor, " N"]:  # fmt: skip
    """Returns the success that the classifier expects at a state: the policy's mean, or the best.

    The mean and the maximum are of probabilities. The maximum is over the tokens that the
    reference's `top_p` or `top_k` leaves: l_Q of a token never tried is only its prior.
    """
    logp, ref = row.log_softmax(1), reference.log_softmax(1)
    u, other = (row, reference) if reads_raw(options) else (logp, ref)
    prior = {"ref": ref, "ref_logit": reference}[prior_name(options)]
    offset = 0.0 if state is None else state[:, None]
    success = success_logit(u, other, prior, offset, scalars=scalars, options=options).sigmoid()
    if options["target"] != "q_learning":
        return (logp.exp() * success).sum(1)
    tried = nucleus(ref, top_p=options["top_p"], top_k=options["top_k"])
    return success.masked_fill(~tried, 0.0).amax(1)


def reads_raw(options: Options) -> bool:
    """Says whether raw logits are read: by choice, or for the log-sum-exp offset they hold."""
    return options["reading"] == "logit" or options["offset"] == "log_sum_exp"


def prior_name(options: Options) -> Literal["ref", "ref_logit"]:
    """Returns the stream that A multiplies: centred, for a raw logit has no level of its own."""
    return "ref_logit" if options["reading"] == "logit" and not options["centred"] else "ref"


def labels(batch: Batch, options: Options) -> Float[Tensor, " B"]:
    """Returns each row's success in [0, 1]; a reward outside is refused."""
    reward, threshold = batch.stream("reward"), options["label_threshold"]
    if threshold is not None:
        return (reward > threshold).to(reward.dtype)
    low, high = options["reward_low"], options["reward_high"]
    label = (reward - low) / (high - low)
    advice = "set `label_threshold`, or `reward_low` and `reward_high`"
    said = f"outside [{low:g}, {high:g}]: {advice}"
    refuse_outside(reward, (label >= 0) & (label <= 1), said=said)
    return label


def targets(policy: Policy, batch: Batch, options: Options) -> Float[Tensor, "B T"]:
    """Returns what each token's success is regressed on; the last token's is the label."""
    label = labels(batch, options)
    if options["target"] == "monte_carlo":
        return torch.where(batch.mask, label[:, None], 0.0)
    statistics = batch.columns if options["lagged"] else policy.statistics
    values = statistics["next_value"]
    if options["truncated"] == "bootstrap":
        beyond = masked_sum(values[:, 1:], last_token(batch.mask))
        label = torch.where(batch.stream("truncated").bool(), beyond, label)
    trace = options["trace"] if options["target"] == "td" else 0.0
    return trace_return(values, batch.mask, label, trace=trace)


def loss(
    policy: Policy,
    batch: Batch,
    *,
    target: Literal["monte_carlo", "bootstrap", "q_learning", "td"] = "monte_carlo",
    reading: Literal["logprob", "logit"] = "logprob",
    gain: Positive = 1.0,
    A: Learned = 0.0,
    c: Learned = 0.0,
    offset: Literal["none", "log_sum_exp", "head"] = "log_sum_exp",
    centred: bool = True,
    trace: Fraction = 0.9,
    lagged: bool = False,
    top_p: Share = 1.0,
    top_k: AtLeastOne | None = None,
    truncated: Literal["reward", "bootstrap"] = "reward",
    label_threshold: float | None = None,
    reward_low: float = 0.0,
    reward_high: float = 1.0,
) -> Terms:
    """Returns the binary cross-entropy of every token's classifier, softplus(l_Q) - target l_Q.

    target_t   monte_carlo: R      bootstrap, q_learning: value of the next state
               td: (1 - trace) value of the next state + trace target_{t+1}
    """
    options = dict(locals())  # every setting by its name, and the two arguments
    logit, wanted = classifier(policy, batch, options), targets(policy, batch, options)
    watch = {"q": torch.sigmoid(logit), "target": wanted, "label": labels(batch, options)}
    return Terms(terms={"success": Term(loss=softplus(logit) - wanted * logit)}, watch=watch)


def coefficient(policy: Policy, batch: Batch, **options: Any) -> Slopes:
    """Returns (sigmoid(l_Q) - target) / gain on what was read, and the error itself on the rest."""
    error = torch.sigmoid(classifier(policy, batch, options)) - targets(policy, batch, options)
    slopes = {"logit" if reads_raw(options) else "logp": error / options["gain"]}
    if options["A"] == "learned":
        slopes["A"] = error * batch.stream(prior_name(options))
    if options["c"] == "learned":
        slopes["c"] = error
    if options["offset"] == "head":
        slopes["offset"] = error
    return {"success": slopes}


def reads(**options: Any) -> Needs:
    """Returns the logits, scalars, head and next-state statistic that the settings call for."""
    raw, state = reads_raw(options), "offset" if options["offset"] == "head" else None
    columns = ["ref_logit"] * raw + ["next_value"] * options["lagged"]
    columns += ["ref"] * (not raw or (options["A"] != 0 and prior_name(options) == "ref"))
    columns += ["truncated"] * (options["truncated"] == "bootstrap")
    value = Statistic(function=partial(next_value, options=options), reference=True, state=state)
    computed = {"next_value": value} if options["target"] != "monte_carlo" else {}
    return needs(
        *("reward", *columns),
        policy=["logit"] * raw,
        heads=[state] if state else [],
        scalars={name: 0.0 for name in ("A", "c") if options[name] == "learned"},
        statistics={} if options["lagged"] else computed,
        lagged=computed if options["lagged"] else {},
    )


def check(objective: Objective) -> None:
    """Refuses settings that nothing reads or that contradict; warns of a reference that counts."""
    options = objective.loss.resolved()
    target, low, high = options["target"], options["reward_low"], options["reward_high"]
    only(objective, "trace", when=target == "td", reads="`target` 'td'")
    for name in ("top_p", "top_k"):
        only(objective, name, when=target == "q_learning", reads="`target` 'q_learning'")
    for name in ("lagged", "truncated"):
        only(objective, name, when=target != "monte_carlo", reads="another `target`")
    only(objective, "centred", when=options["reading"] == "logit", reads="`reading` 'logit'")
    if options["reading"] == "logit" and options["offset"] == "log_sum_exp":
        raise Refused("`offset` is 'log_sum_exp', but `reading` 'logit' holds it already: it must "
                      "be 'none' or 'head'")  # fmt: skip
    if low >= high:
        raise Refused(f"`reward_low` is {low} and `reward_high` {high}, but low must be below high")
    if options["A"] != 0:
        warnings.warn("`A` is not 0: a reward that says nothing then still moves the policy, to "
                      "ref ** (1 - gain A)", stacklevel=3)  # fmt: skip


qpo = Objective(
    name="qpo",
    loss=Part(loss, reads),
    coefficient=coefficient,
    average=AVERAGES["per_token"],
    presets={
        "as_written": {"reading": "logit", "A": 1.0, "c": 0.0, "offset": "none", "centred": False},
        "log_probs": {"offset": "none", "c": 0.0},
    },
    check=check,
)
