"""What `logratio verify` is for: a fault anywhere in the mathematics makes a row fail."""

import json
from dataclasses import replace

import pytest
import torch

from logratio import numerics
from logratio.lab import claims, formulas, identities, kl, slopes, verify
from logratio.lab.options import Options
from logratio.lab.rows import Row
from logratio.lab.tree import random_world
from logratio.objectives import dpo, find, grpo, importance, names, ppo, qpo, reward_model, sft, spo


def failed(rows):
    return [row for row in rows if not row.passed]


def default_row(name):
    return slopes.row(Options(objective=find(name), setting="default", changes=[{}]), "default")


def negative(function):
    """Returns the function with its first result's sign turned."""

    def turned(*arguments, **settings):
        found = function(*arguments, **settings)
        return (-found[0], *found[1:]) if isinstance(found, tuple) else -found

    return turned


@pytest.mark.parametrize("name", names())
def test_gradients_agree(name):
    row = default_row(name)
    assert row.passed
    assert row.counted["draws"] == slopes.DRAWS


@pytest.mark.parametrize(
    ("module", "function", "name"),
    [
        (grpo, "clipped_surrogate", "grpo"),
        (grpo, "clipped_surrogate", "dapo"),
        (ppo, "clipped_surrogate", "ppo"),
        (ppo, "value_error", "ppo"),
        (dpo, "margin_loss", "dpo"),
        (reward_model, "logsigmoid", "reward_model"),
        (qpo, "softplus", "qpo"),
        (importance, "pair_loss", "importance"),
    ],
)
def test_a_wrong_sign_in_a_loss_fails_its_slopes(monkeypatch, module, function, name):
    monkeypatch.setattr(module, function, negative(getattr(module, function)))
    assert not default_row(name).passed


def test_a_wrong_coefficient_fails_even_where_the_loss_is_right(monkeypatch):
    objective = find("sft")
    monkeypatch.setitem(vars(objective), "coefficient", negative_slopes(sft.coefficient))
    assert not default_row("sft").passed


def negative_slopes(coefficient):
    def turned(policy, batch, **settings):
        slopes = coefficient(policy, batch, **settings)
        return {term: {k: -v for k, v in own.items()} for term, own in slopes.items()}

    return turned


def test_a_gradient_that_was_stopped_without_a_word_fails(monkeypatch):
    """Only the difference sees it: loss and coefficient agree, and both are wrong."""
    right = spo.masked_sum
    monkeypatch.setattr(spo, "masked_sum", lambda *given: right(*given) + right(*given).detach())
    row = default_row("spo")
    assert row.measured["closed form"] <= slopes.LIMITS["closed form"]
    assert row.measured["difference"] > slopes.LIMITS["difference"]


def test_a_clip_on_the_wrong_side_fails_its_coefficient(monkeypatch):
    """Loss and slope share one function here: where it is wrong, they are wrong together."""
    right = numerics.clipped_surrogate

    def reversed_clip(log_ratio, advantage, **settings):
        value, slope = right(log_ratio, -advantage, **settings)
        return -value, -slope

    monkeypatch.setattr(grpo, "clipped_surrogate", reversed_clip)
    assert default_row("grpo").passed
    found = [one.row() for one in formulas.surrogates()]
    assert {row.subject for row in failed(found)} == {"grpo", "dapo"}
    assert {row.subject for row in found if row.passed} >= {"ppo"}


def test_a_baseline_with_the_wrong_sign_fails_a_fixed_point(monkeypatch):
    monkeypatch.setattr(spo, "group_mean", negative(spo.group_mean))
    found = [claim for claim in claims.regressions(random_world()) if "vargrad" in claim.case]
    assert found
    for claim in found:
        gradient = claim.experiment.gradient(claim.optimum)["logits"]
        assert gradient.abs().max() > 1e-3


def test_a_wrong_estimator_fails_the_kl(monkeypatch):
    monkeypatch.setattr(grpo, "kl_estimate", negative(numerics.kl_estimate))
    assert len(failed(kl.rows())) == 9  # all in the loss but the exact one


def test_a_wrong_weight_fails_an_identity(monkeypatch):
    objective = find("variance_grpo")
    off = dict(objective.presets["off"])
    monkeypatch.setitem(vars(objective)["presets"], "off", {**off, "weight.strength": 0.5})
    assert [row.subject for row in failed(identities.rows())] == ["variance_grpo"]


def test_an_objective_that_breaks_fails_alone(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("torn")

    monkeypatch.setattr(slopes, "names", lambda: ["dpo", "rft"])
    monkeypatch.setattr(dpo, "margin_loss", broken)
    rows = list(slopes.rows())
    assert {row.subject for row in rows if not row.passed} == {"dpo"}
    assert {row.subject for row in rows if row.passed} == {"rft"}
    assert "torn" in failed(rows)[0].worst


def test_draws_that_are_all_skipped_verify_nothing(monkeypatch):
    monkeypatch.setattr(slopes, "smooth", lambda *_: False)
    row = default_row("sft")
    assert not row.passed
    assert row.counted["skipped"] == slopes.ATTEMPTS


def test_gradients_that_are_all_zero_verify_nothing(monkeypatch):
    objective = find("grpo").using(credit="plain")
    nothing = torch.zeros(9, dtype=torch.float64)
    monkeypatch.setattr("logratio.lab.draw.reward", lambda *_: nothing)
    assert slopes.errors(objective).closed == torch.inf


def test_a_report_is_one_object_and_fails_with_any_row():
    good = Row(part="kl", subject="grpo", case="k2", measured={"value": 0.0}, limits={"value": 1.0})
    bad = Row(part="kl", subject="grpo", case="k2", measured={"value": 2.0}, limits={"value": 1.0})
    report = verify.Report(rows=[good, bad], seconds=1.25)
    record = json.loads(json.dumps(report.record(), allow_nan=False))
    assert record["passed"] is False
    assert [row["passed"] for row in record["rows"]] == [True, False]
    assert report.text().endswith("2 rows, 1 failed, 1 s")
    assert verify.Report(rows=[good], seconds=0.0).passed


def test_every_coefficient_is_what_the_report_says():
    rows = list(formulas.rows())
    assert not failed(rows)
    losses = {"dapo", "dpo", "grpo", "importance", "ppo", "qpo", "reward_model", "sft", "spo"}
    assert {row.subject for row in rows} == losses


def test_a_loss_that_is_no_number_fails():
    right = find("sft")

    def undefined(policy, batch, *, train_on="completion"):
        terms = sft.loss(policy, batch, train_on=train_on)
        (name, term), *_ = terms.terms.items()
        return replace(terms, terms={name: replace(term, loss=term.loss * torch.nan)})

    found = slopes.errors(replace(right, loss=replace(right.loss, function=undefined)))
    assert found.closed == found.difference == torch.inf
