"""The network leaves the model as it found it; tests/model/test_packed.py says what it computes."""

import pytest
from model.models import MAKERS, TREE, rollouts

from logratio.model.network import Network
from logratio.model.pack import packs
from logratio.part import Needs


@pytest.mark.parametrize("name", MAKERS)
def test_the_model_is_left_as_it_was(name):
    model, pack = MAKERS[name](), packs(rollouts((0, 5, 4), (0, 5, 2)), budget=100)[0]
    before = model.config._attn_implementation
    Network(model, Needs(), route=TREE)(pack)
    assert model.config._attn_implementation == before
    assert not any(one.requires_grad is False for one in model.parameters())
