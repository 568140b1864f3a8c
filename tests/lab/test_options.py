import pytest

from logratio.lab import options as module
from logratio.lab.options import accepted, asked, borrowed, options, typed
from logratio.objective import TABLES, Objective
from logratio.objectives import find
from logratio.part import Part
from logratio.settings import Fraction, Refused, defaults

BORROWED = ["dapo", "rft", "variance_grpo"]
NAMES = [*BORROWED, "dpo", "grpo", "importance", "ppo", "qpo", "reward_model", "sft", "spo"]
OWN = [name for name in NAMES if not borrowed(find(name))]


@pytest.mark.parametrize("name", OWN)
def test_no_setting_is_left_at_its_default(name):
    objective = find(name)
    changes = [change for found in asked(objective).values() for change in found]
    changed = {setting for change in changes for setting in change}
    assert set(defaults(objective.loss.function)) <= changed
    for slot, table in TABLES.items():
        for part in {change[slot] for change in changes if slot in change}:
            assert {f"{slot}.{name}" for name in defaults(table[part].function)} <= changed


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_accepted(name):
    objective = find(name)
    for changes in asked(objective).values():
        assert all(accepted(objective, change) for change in changes)


def test_every_value_of_a_choice_is_an_option():
    found = {one.setting: [typed(change) for change in one.changes] for one in options(find("dpo"))}
    assert found["kind"] == ["kind=ipo", "kind=hinge", "kind=robust smoothing=0.1"]
    assert found["default"] == ["default"]


def test_parts_that_a_loss_does_not_feel_are_no_options():
    assert "credit" not in {one.setting for one in options(find("sft"))}
    found = {
        change["credit"]
        for one in options(find("ppo"))
        for change in one.changes
        if "credit" in change
    }
    assert found == {"gae"}


def test_what_borrows_a_loss_shows_only_what_it_adds():
    assert set(NAMES) - set(OWN) == set(BORROWED)
    assert [one.setting for one in options(find("dapo"))] == ["default", "preset"]


def test_an_objective_that_nobody_foresaw_is_varied_all_the_same():
    def loss(policy, batch, *, pull: Fraction = 0.5, count: int = 1, loud: bool = False):
        del policy, batch, pull, count, loud

    def check(objective):
        if objective.loss.resolved()["loud"]:
            raise Refused("`loud` needs another setting")

    mine = Objective(name="mine", loss=Part(loss), check=check)
    found = module.alternatives("mine", loss)
    assert found == {"pull": [0.37], "count": [3], "loud": [True]}
    assert not accepted(mine, {"loud": True})
    assert accepted(mine, {"pull": 0.37})
