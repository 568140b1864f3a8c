import pytest

from logratio.lab.options import borrowed, options, typed
from logratio.objective import TABLES
from logratio.objectives import find, names
from logratio.settings import defaults

OWN = [name for name in names() if not borrowed(find(name))]


@pytest.mark.parametrize("name", OWN)
def test_no_setting_is_left_at_its_default(name):
    objective = find(name)
    changed = {setting for found in options(objective) for one in found.changes for setting in one}
    assert set(defaults(objective.loss.function)) <= changed
    for slot, table in TABLES.items():
        for part in {
            one[slot] for found in options(objective) for one in found.changes if slot in one
        }:
            own = {f"{slot}.{setting}" for setting in defaults(table[part].function)}
            assert own <= changed


@pytest.mark.parametrize("name", names())
def test_every_option_is_accepted(name):
    for found in options(find(name)):
        assert len(found.variants()) == len(found.changes)


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
    assert set(names()) - set(OWN) == {"dapo", "rft", "variance_grpo"}
    assert [one.setting for one in options(find("dapo"))] == ["default", "preset"]
