"""QPO's classifier: (sigmoid(l_Q) - target) over the gain, on what each setting reads.

What it is regressed on is in test_qpo_targets.py.
"""

import math
import warnings

import pytest
from objectives.rows import (
    batch_of,
    check_losses,
    check_numbers,
    check_runs,
    check_slopes,
    check_watch,
    gradients,
    loss_of,
    needed,
    needs_of,
    numbers,
    policy_of,
    refusal,
)
from torch.testing import assert_close

from logratio.objectives.qpo import qpo


def quiet(**settings):
    """Gives QPO under settings that it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return qpo.using(**settings)


PLAIN = {"offset": "none", "c": 0.0}
HEAD = {"offset": "head", "c": 0.0}
RAW = {"reading": "logit", **PLAIN}
SCALARS = {"A": 0.2, "c": 0.3}


def token(objective, reward):
    """One token: log p = -1, log ref = -1.5, logits 2 and 1.2, A = .2, c = .3, an offset of .25."""
    declared = objective.declared()
    policy = policy_of(
        [[-1.0]],
        logit=[[2.0]],
        heads={"offset": [[0.25, 9.0]]} if declared.heads else {},
        scalars={name: SCALARS[name] for name in declared.scalars},
    )
    return policy, batch_of([[1]], ref=[[-1.5]], ref_logit=[[1.2]], reward=[reward])


# l_Q, then log(1 + e^-l_Q) and sigma(l_Q) - 1, which are the loss and the error of a success
CLASSIFIERS = [
    (PLAIN, 0.5, 0.4740769841801067, -0.37754066879814546),
    ({"gain": 2.0, **PLAIN}, 0.25, 0.5759394198788436, -0.4378234991142019),
    ({"offset": "none", "c": 0.3}, 0.8, 0.37110066594777773, -0.31002551887238756),
    ({"offset": "none", "c": "learned"}, 0.8, 0.37110066594777773, -0.31002551887238756),
    ({"A": 2.0, **PLAIN}, -2.5, 2.5788897342925496, -0.92414181997875645),
    ({"A": "learned", **PLAIN}, 0.2, 0.5981388693815918, -0.45016600268752209),
    (HEAD, 0.75, 0.3868710061148999, -0.32082130082460703),
    ({"c": 0.0}, 0.8, 0.37110066594777773, -0.31002551887238756),  # logits, through log_sum_exp
    ({"c": 0.0, "gain": 0.5}, 1.6, 0.18390074088833883, -0.16798161486607552),
    ({"c": 0.0, "A": 2.0}, -2.2, 2.3050833197686959, -0.90024951088031485),
    (RAW, 0.8, 0.37110066594777773, -0.31002551887238756),
    ({"A": 1.0, **RAW}, -0.7, 1.1031860488854579, -0.66818777216816611),
    ({"A": 1.0, "centred": False, **RAW}, 2.0, 0.1269280110429725, -0.11920292202211756),
    ({"preset": "as_written"}, 2.0, 0.1269280110429725, -0.11920292202211756),
    ({"preset": "log_probs"}, 0.5, 0.4740769841801067, -0.37754066879814546),
    ({"reading": "logit", **HEAD}, 1.05, 0.3000584796176432, -0.25922510081784601),
    (
        {"A": "learned", "c": "learned", "offset": "head"},
        0.75,
        0.3868710061148999,
        -0.32082130082460703,
    ),
]


@pytest.mark.parametrize(("settings", "logit", "loss", "error"), CLASSIFIERS)
@pytest.mark.parametrize("success", [True, False])
def test_slope_under_each_reading(settings, logit, loss, error, success):
    """Of a failure the loss is log(1 + e^l) = log(1 + e^-l) + l, the error 1 more."""
    objective = quiet(**settings)
    policy, batch = token(objective, float(success))
    error = error if success else error + 1
    check_losses(objective, policy, batch, success=[[loss if success else loss + logit]])
    options = objective.loss.resolved()
    raw = options["reading"] == "logit" or options["offset"] == "log_sum_exp"
    slopes = {"logit" if raw else "logp": [[error / options["gain"]]]}
    if options["A"] == "learned":
        slopes["A"] = error * -1.5
    if options["c"] == "learned":
        slopes["c"] = error
    if options["offset"] == "head":
        slopes["offset"] = [[error, 0]]
    check_slopes(objective, policy, batch, **slopes)
    chance = 1 / (1 + math.exp(-logit))
    label = float(success)
    check_watch(objective, policy, batch, q=[[chance]], target=[[label]], label=[label])


def test_a_learned_slope_multiplies_the_raw_reference_where_it_is_not_centred():
    objective = quiet(reading="logit", offset="none", A="learned", c=0.0, centred=False)
    policy, batch = token(objective, 0.0)
    # l = .8 + .2 * 1.2 = 1.04; sigma(1.04) = .738850
    error = 0.7388500060520028
    check_slopes(objective, policy, batch, logit=[[error]], A=error * 1.2)


def test_a_fixed_number_does_not_give_way_to_a_scalar_of_the_model():
    objective = qpo.using(**PLAIN)
    policy = policy_of([[-1.0]], scalars={"A": 5.0, "c": 5.0})
    batch = batch_of([[1]], ref=[[-1.5]], reward=[1.0])
    check_slopes(objective, policy, batch, logp=[[-0.37754066879814546]])


def test_every_token_counts_the_same():
    objective = qpo.using(**PLAIN)
    flat = [[-1.0] * 3] * 2
    batch = batch_of([[1, 0, 0], [1, 1, 1]], ref=flat, reward=[1.0, 0.0])
    # l = 0 and q = 1/2 on all: errors -1/2 and +1/2 over 4 tokens
    check_slopes(objective, policy_of(flat), batch, logp=[[-0.125, 0, 0], [0.125] * 3])


@pytest.mark.parametrize(
    ("settings", "reward", "label"),
    [
        ({}, 0.0, 0.0),
        ({}, 1.0, 1.0),
        ({}, 0.25, 0.25),  # soft labels stay
        ({"label_threshold": 0.5}, 0.5, 0.0),  # not above it
        ({"label_threshold": 0.5}, 0.51, 1.0),
        ({"label_threshold": 0.0}, 7.0, 1.0),
        ({"reward_low": -1.0}, -1.0, 0.0),
        ({"reward_low": -1.0}, 0.0, 0.5),
        ({"reward_low": -1.0, "reward_high": 3.0}, 0.0, 0.25),
        ({"reward_high": 2.0}, 2.0, 1.0),
    ],
)
def test_the_label_of_a_reward(settings, reward, label):
    """At l = 0 the loss is log 2 and the slope 1/2 less the label."""
    objective = qpo.using(**PLAIN, **settings)
    policy, batch = policy_of([[-1.0]]), batch_of([[1]], ref=[[-1.0]], reward=[reward])
    check_slopes(objective, policy, batch, logp=[[0.5 - label]])
    watch = objective(policy, batch).watch
    check_numbers({name: watch[name] for name in ("target", "label")}, {
        "target": [[label]], "label": [label]
    })  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "reward", "sentence"),
    [
        ({}, 1.5, "`reward` holds 1.5, outside [0, 1]"),
        ({}, -0.1, "`reward` holds -0.1, outside [0, 1]"),
        ({}, math.nan, "`reward` holds nan, outside [0, 1]"),
        ({"reward_low": -2.0, "reward_high": 0.5}, 0.6, "`reward` holds 0.6, outside [-2, 0.5]"),
    ],
)
def test_a_label_outside_is_refused(settings, reward, sentence):
    objective = qpo.using(**PLAIN, **settings)
    batch = batch_of([[1], [1]], ref=[[-1.0]] * 2, reward=[0.0, reward])
    assert refusal(objective, policy_of([[-1.0]] * 2), batch) == (
        f"{sentence}: set `label_threshold`, or `reward_low` and `reward_high`"
    )


def test_the_log_prob_reading_does_not_see_the_level_of_the_logits():
    """Property 6 of the notes: adding to a row of logits moves the raw reading only."""
    raw, plain = qpo.using(**RAW), qpo.using(**PLAIN)
    batch = batch_of([[1]], ref=[[-1.5]], ref_logit=[[1.2]], reward=[1.0])
    low, high = (policy_of([[-1.0]], logit=[[2.0 + k]]) for k in (0.0, 3.0))
    assert loss_of(plain, low, batch) == loss_of(plain, high, batch)
    assert loss_of(raw, low, batch) != loss_of(raw, high, batch)


def test_a_log_prob_cannot_hold_the_value_of_a_state_and_an_offset_can():
    """Reference (.5, .5), success (.3, .1): with the offset -1.310 the fit is exact.

    It is log(.5 * 3/7 + .5 * 1/9) = log(17/63), and the policy .5 odds / e^offset = (.794, .206).
    """
    mask, success = [[1], [1]], [0.3, 0.1]
    batch = batch_of(mask, ref=[[math.log(0.5)]] * 2, reward=success)
    fitted = [[math.log(27 / 34)], [math.log(7 / 34)]]
    objective = qpo.using(offset="head", c=0.0)
    policy = policy_of(fitted, heads={"offset": [[math.log(17 / 63), 0.0]] * 2})
    watch = objective(policy, batch).watch
    assert_close(watch["q"].detach(), numbers([[0.3], [0.1]]))
    assert all(slope.abs().max() < 1e-12 for slope in gradients(objective, policy, batch).values())
    without = qpo.using(**PLAIN)
    assert gradients(without, policy_of(fitted), batch)["logp"].abs().max() > 0.1


@pytest.mark.parametrize(("a", "moves"), [(0.0, False), (1.0, True)])
def test_a_reward_that_says_nothing_leaves_the_reference_alone_only_at_a_zero(a, moves):
    """Reference (.8, .2), success 1/4 whatever is said: with A = 0 and c = logit(1/4) no slope."""
    objective = quiet(offset="none", A=a, c=math.log(1 / 3))
    reference = [[math.log(0.8)], [math.log(0.2)]]
    batch = batch_of([[1], [1]], ref=reference, reward=[0.25, 0.25])
    slope = gradients(objective, policy_of(reference), batch)["logp"]
    assert (slope.abs().max() > 1e-3) == moves


def test_at_the_reference_c_is_settled_at_the_base_rate():
    """Rewards 1, 0, 0, 0: at c = logit(1/4) the mean error is 0."""
    objective = qpo.using(offset="none", c="learned")
    policy = policy_of([[-1.0]] * 4, scalars={"c": math.log(1 / 3)})
    batch = batch_of([[1]] * 4, ref=[[-1.0]] * 4, reward=[1.0, 0.0, 0.0, 0.0])
    assert_close(gradients(objective, policy, batch)["c"], numbers(0.0))


def test_what_qpo_is_made_of():
    assert qpo.name == "qpo"
    assert qpo.loss.resolved() == {
        "target": "monte_carlo", "reading": "logprob", "gain": 1.0, "A": 0.0, "c": 0.0,
        "offset": "log_sum_exp", "centred": True, "trace": 0.9, "lagged": False, "top_p": 1.0,
        "top_k": None, "truncated": "reward", "label_threshold": None, "reward_low": 0.0,
        "reward_high": 1.0,
    }  # fmt: skip
    assert (qpo.keep.name, qpo.credit.name) == ("everything", "none")
    assert (qpo.weight.name, qpo.average.name) == ("uniform", "per_token")
    assert dict(qpo.presets) == {
        "as_written": {"reading": "logit", "A": 1.0, "c": 0.0, "offset": "none", "centred": False},
        "log_probs": {"offset": "none", "c": 0.0},
    }


C, AC = {"c": 0.0}, {"A": 0.0, "c": 0.0}
LOGIT = {"policy": {"logit"}}


@pytest.mark.parametrize(
    ("settings", "streams", "others"),
    [
        ({}, ["ref_logit"], LOGIT),
        ({"c": "learned"}, ["ref_logit"], {"scalars": C, **LOGIT}),
        ({"A": 1.0}, ["ref", "ref_logit"], LOGIT),
        ({"A": "learned"}, ["ref", "ref_logit"], {"scalars": {"A": 0.0}, **LOGIT}),
        ({"A": "learned", "c": "learned"}, ["ref", "ref_logit"], {"scalars": AC, **LOGIT}),
        ({"preset": "as_written"}, ["ref_logit"], LOGIT),
        ({"preset": "log_probs"}, ["ref"], {}),
        ({"A": 0.5, **PLAIN}, ["ref"], {}),
        (HEAD, ["ref"], {"heads": {"offset"}}),
        ({"reading": "logit", **HEAD}, ["ref_logit"], {"heads": {"offset"}, **LOGIT}),
        ({"A": 1.0, **RAW}, ["ref", "ref_logit"], LOGIT),
        ({"label_threshold": 0.5, "gain": 3.0}, ["ref_logit"], LOGIT),
    ],
)
def test_each_setting_runs_on_what_it_asks_for(settings, streams, others):
    objective = quiet(**settings)
    assert needed(objective) == needs_of("reward", *streams, **others)
    check_runs(objective)


WARNING = (
    "`A` is not 0: a reward that says nothing then still moves the policy, to ref ** (1 - gain A)"
)


@pytest.mark.parametrize(
    "settings", [{"A": 1.0}, {"A": -0.1}, {"A": "learned"}, {"preset": "as_written"}]
)
def test_an_a_that_is_not_zero_comes_with_a_warning(settings):
    with pytest.warns(UserWarning, match="is") as seen:
        qpo.using(**settings)
    assert [str(one.message) for one in seen] == [WARNING]


def test_the_warning_points_at_whoever_called_using(monkeypatch):
    """Two frames lie between; test_find.py sees the line itself."""
    seen = []
    monkeypatch.setattr(warnings, "warn", lambda *_, **options: seen.append(options))
    qpo.using(A=1.0)
    assert seen == [{"stacklevel": 3}]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"gain": 0.0}, "`gain` is 0.0, but it must be a number in (0, inf)"),
        (
            {"target": "mc"},
            "`target` is 'mc', but it must be one of 'monte_carlo', 'bootstrap', 'q_learning', "
            "'td'",
        ),
        ({"reading": "raw"}, "`reading` is 'raw', but it must be one of 'logprob', 'logit'"),
        (
            {"offset": "lse"},
            "`offset` is 'lse', but it must be one of 'none', 'log_sum_exp', 'head'",
        ),
        ({"A": "fixed"}, "`A` is 'fixed', but it must be a number or 'learned'"),
        ({"target": "td", "trace": 1.1}, "`trace` is 1.1, but it must be a number in [0, 1]"),
        ({"top_p": 0.0}, "`top_p` is 0.0, but it must be a number in (0, 1]"),
        ({"top_k": 0}, "`top_k` is 0, but it must be a whole number in [1, inf) or None"),
        (
            {"reading": "logit"},
            "`offset` is 'log_sum_exp', but `reading` 'logit' holds it already: it must be 'none' "
            "or 'head'",
        ),
        (
            {"reward_low": 1.0},
            "`reward_low` is 1.0 and `reward_high` 1.0, but low must be below high",
        ),
        (
            {"reward_low": 2.0},
            "`reward_low` is 2.0 and `reward_high` 1.0, but low must be below high",
        ),
        ({"trace": 0.5}, "`trace` is 0.5, but only `target` 'td' reads it"),
        (
            {"target": "bootstrap", "trace": 0.5},
            "`trace` is 0.5, but only `target` 'td' reads it",
        ),
        ({"target": "td", "top_p": 0.9}, "`top_p` is 0.9, but only `target` 'q_learning' reads it"),
        (
            {"target": "bootstrap", "top_k": 5},
            "`top_k` is 5, but only `target` 'q_learning' reads it",
        ),
        ({"lagged": True}, "`lagged` is True, but only another `target` reads it"),
        (
            {"truncated": "bootstrap"},
            "`truncated` is 'bootstrap', but only another `target` reads it",
        ),
        ({"centred": False}, "`centred` is False, but only `reading` 'logit' reads it"),
    ],
)
def test_what_is_refused(settings, sentence):
    assert refusal(qpo.using, **settings) == sentence
