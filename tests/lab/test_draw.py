import pytest
import torch

from logratio.lab.draw import GROUPS, TOKENS, draw
from logratio.objectives import find, names


@pytest.mark.parametrize("name", names())
def test_a_draw_holds_what_is_declared_and_the_reward(name):
    objective = find(name)
    batch = draw(objective, 0).batch
    made = {"advantage", "weight"} | objective.credit.declared().makes
    fields = {key for key in ("pair", "reward", "old", "ref") if getattr(batch, key) is not None}
    assert fields | set(batch.columns) - made == objective.declared().streams | {"reward"}


def test_rows_are_ragged_with_a_hole_in_one_and_padding_before_one():
    mask = draw(find("dpo"), 0).batch.mask
    assert mask.shape == (len(GROUPS), TOKENS)
    assert mask[0].tolist() == [True, True, False, True, True]
    assert mask[1].tolist() == [False, True, True, True, True]
    assert len(set(mask.sum(1).tolist())) > 2


def test_pairs_share_a_group_and_one_row_has_no_partner():
    batch = draw(find("importance"), 0).batch
    first, second = batch.sides()
    assert len(first) == 4
    assert (batch.stream("pair") == -1).sum() == 1
    assert torch.equal(batch.group[first], batch.group[second])
    shorter = torch.minimum(batch.mask[first].sum(1), batch.mask[second].sum(1))
    assert (batch.stream("split")[first] < shorter).all()


def test_a_seed_is_a_draw():
    one, again, other = (draw(find("grpo"), seed) for seed in (3, 3, 4))
    assert torch.equal(one.leaves["logits"], again.leaves["logits"])
    assert not torch.equal(one.leaves["logits"], other.leaves["logits"])
    assert torch.equal(one.batch.mask, again.batch.mask)
