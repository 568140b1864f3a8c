"""Tree attention equals one dense masked softmax, forward and backward."""

import pytest
import torch
from torch.testing import assert_close

from logratio.model.attention import TreeAttention, TreePlan, attend
from logratio.model.pack import Tree
from logratio.model.segment import backward, forward, plain_backward, plain_forward
from logratio.settings import Refused

TREES = (
    Tree(start=0, prompt=5, lengths=(3, 6, 1)),
    Tree(start=15, prompt=4, lengths=(2, 2)),
    Tree(start=23, prompt=3, lengths=()),
    Tree(start=26, prompt=1, lengths=(1,)),
)
TOKENS = 28
SCALE = 0.3


def visible(window):
    """Returns which token sees which, written out token by token."""
    seen = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    position = torch.zeros(TOKENS, dtype=torch.long)
    for tree in TREES:
        prompt = range(tree.start, tree.suffix)
        for place in prompt:
            position[place] = place - tree.start
            seen[place, tree.start : place + 1] = True
        start = tree.suffix
        for length in tree.lengths:
            for token in range(length):
                position[start + token] = tree.prompt + token
                seen[start + token, tree.start : tree.suffix] = True
                seen[start + token, start : start + token + 1] = True
            start += length
    near = position[:, None] - position[None, :] < (window or TOKENS)
    return seen & near


def dense(query, key, value, window):
    """Returns plain attention under the whole mask."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.transpose(-1, -2) * SCALE).masked_fill(~visible(window), -torch.inf)
    return scores.softmax(-1) @ value


def states(heads, keys, dtype=torch.float64):
    generator = torch.Generator().manual_seed(heads * 10 + keys)
    shapes = [(1, count, TOKENS, 8) for count in (heads, keys, keys)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [one.to(dtype).requires_grad_() for one in made]


@pytest.mark.parametrize("window", [None, 100, 6, 3, 1])
@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (4, 2), (4, 1)])
def test_tree_attention_is_dense_attention(heads, keys, window):
    inputs = states(heads, keys)
    ours = TreeAttention.apply(*inputs, (TreePlan(TREES), SCALE, window))
    truth = dense(*inputs, window)
    assert_close(ours, truth, rtol=1e-12, atol=1e-14)
    down = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=ours.dtype)
    found, wanted = (torch.autograd.grad(out, inputs, down) for out in (ours, truth))
    assert_close(found, wanted, rtol=1e-12, atol=1e-13)


def test_float32_is_as_good_as_float32_is():
    inputs = states(4, 2, torch.float32)
    ours = TreeAttention.apply(*inputs, (TreePlan(TREES), SCALE, None))
    assert ours.dtype == torch.float32
    assert_close(ours, dense(*[one.double() for one in inputs], None).float())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_plain_block_is_the_kernel(causal, masked):
    """What other devices run is held to what this one's kernel gives."""
    if causal and masked:
        return
    generator = torch.Generator().manual_seed(0)
    query, down = (torch.randn(2, 4, 6, 8, generator=generator) for _ in range(2))
    key, value = (torch.randn(2, 2, 6, 8, generator=generator) for _ in range(2))
    mask = torch.where(torch.rand(6, 6, generator=generator) < 0.5, 0.0, -torch.inf)
    mask[2] = -torch.inf  # a query that sees nothing
    how = {"causal": causal, "mask": mask if masked else None, "scale": SCALE}
    ours, theirs = plain_forward(query, key, value, **how), forward(query, key, value, **how)
    assert_close(ours, theirs)
    merged = ours[0] * 0.5, ours[1].masked_fill(ours[1] == -torch.inf, 0.0) + 0.3
    assert_close(
        plain_backward(down, (query, key, value), merged, **how),
        backward(down, (query, key, value), merged, **how),
    )


def test_outside_its_plan_the_attention_refuses():
    with pytest.raises(Refused, match="outside its plan"):
        attend(torch.nn.Identity(), *states(4, 4), None)
