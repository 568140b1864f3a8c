"""A tree of all sequences of a fixed length, and numbers that stand on its states.

A *table* `[S, M, V]` holds a row of numbers for each state of the tree, for S problems at once.
States are numbered level by level, so the children of a level are the next level in order; the
last level holds the whole sequences, whose rows say nothing.
"""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

Table = Float[Tensor, "S M V"]
Law = Float[Tensor, "S N"]  # one number for each whole sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Every sequence of `length` tokens out of `vocabulary`."""

    vocabulary: int = 4
    length: int = 3

    @property
    def leaves(self) -> int:
        """The number of whole sequences."""
        return self.vocabulary**self.length

    @property
    def states(self) -> int:
        """The number of states, whole sequences among them."""
        return self.first(self.length) + self.leaves

    def first(self, depth: int) -> int:
        """Returns the number of the first state after `depth` tokens."""
        return sum(self.vocabulary**level for level in range(depth))

    def level(self, table: Tensor, depth: int) -> Tensor:
        """Returns the rows of the states after `depth` tokens."""
        start = self.first(depth)
        return table[:, start : start + self.vocabulary**depth]

    def stacked(self, levels: list[Tensor]) -> Table:
        """Returns a table from the rows of every level but the leaves', whose rows are 0."""
        rows = torch.cat(levels, 1)
        return torch.nn.functional.pad(rows, (0, 0, 0, self.leaves))

    def law(self, table: Table) -> Law:
        """Returns the log-probability of every sequence under a table of logits."""
        total = torch.zeros_like(table[:, :1, 0])
        for depth in range(self.length):
            step = self.level(table, depth).log_softmax(-1)
            total = (total[:, :, None] + step).flatten(1)
        return total

    def table(self, law: Law) -> Table:
        """Returns the log-probs, state by state, of a law over sequences, however it is scaled."""
        levels: list[Tensor] = []
        for depth in range(self.length):
            shape = (len(law), self.vocabulary**depth, self.vocabulary, -1)
            levels.append(law.reshape(shape).logsumexp(-1).log_softmax(-1))
        return self.stacked(levels)


@cache
def tokens(tree: Tree) -> Int[Tensor, "N T"]:
    """Returns the tokens of every sequence, in the order of the leaves."""
    each = [torch.arange(tree.vocabulary)] * tree.length
    return torch.cartesian_prod(*each).view(tree.leaves, tree.length)


@cache
def paths(tree: Tree) -> Int[Tensor, "N S"]:
    """Returns the states that every sequence passes, from the root to its leaf."""
    leaf = torch.arange(tree.leaves)
    depths = range(tree.length + 1)
    passed = [tree.first(d) + leaf // tree.vocabulary ** (tree.length - d) for d in depths]
    return torch.stack(passed, dim=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """Problems with random references, rewards and behaviours on the same tree."""

    tree: Tree
    reference: Table  # logits
    behaviour: Table  # log-probs of what data were drawn from
    reward: Law  # in [-1.5, -0.25]: below 0, so that exp(reward) is a probability


def random_world(seed: int = 0, *, problems: int = 3, length: int = 3) -> World:
    """Returns a world in float64 whose sequences are all possible under every law."""
    tree = Tree(length=length)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    reference = draw(problems, tree.states, tree.vocabulary)
    reference[:, tree.first(length) :] = 0
    uniform = torch.rand(problems, tree.leaves, generator=generator, dtype=torch.float64)
    return World(
        tree=tree,
        reference=reference,
        behaviour=tree.table(0.7 * draw(problems, tree.leaves)),
        reward=-1.5 + 1.25 * uniform,
    )
