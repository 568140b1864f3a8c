import torch
from torch.testing import assert_close

from logratio.lab import dense
from logratio.lab.tree import Tree, paths, random_world, tokens


def test_states_are_numbered_level_by_level():
    tree = Tree(vocabulary=2, length=2)
    assert tree.states == 7
    assert tokens(tree).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert paths(tree).tolist() == [[0, 1, 3], [0, 1, 4], [0, 2, 5], [0, 2, 6]]


def test_the_law_of_a_table_is_the_product_along_each_path():
    world = random_world()
    tree = world.tree
    for problem, table in enumerate(world.reference):
        rows = table[paths(tree)].log_softmax(-1)
        slow = dense.taken(rows, tokens(tree)).sum(1)
        assert_close(tree.law(world.reference)[problem], slow)


def test_a_table_and_its_law_say_the_same():
    world = random_world()
    law = world.tree.law(world.behaviour)
    assert_close(law.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    assert_close(world.tree.table(law + 5.0), world.behaviour)
