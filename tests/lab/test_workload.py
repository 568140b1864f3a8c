"""What a timed step is made of: lengths as asked for, tokens the same in every process."""

import pytest

from logratio.lab.workload import check_counts, equal, problems_of, ragged, reward_of, tailed
from logratio.settings import Refused


def test_equal_lengths():
    load = equal(2, 3, (5, 7))
    assert load.prompts == (5, 5)
    assert load.completions == ((7, 7, 7), (7, 7, 7))
    assert load.rows == 6
    assert load.tokens() == {"prompt": 10, "completion": 42, "trained": 52}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [(4, 8), (2, 4), (16, 16)])
def test_ragged_lengths_have_the_tail_that_was_asked_for(sizes, seed):
    load = ragged(*sizes, (128, 64), seed=seed)
    assert all(32 <= length <= 128 for length in load.prompts)
    assert len(load.completions) == sizes[0]
    assert {len(group) for group in load.completions} == {sizes[1]}
    assert max(load.lengths) == 64
    assert min(load.lengths) >= 1
    # lengths are whole, so their mean is right to half a token over the rows
    assert 64 / (sum(load.lengths) / load.rows) == pytest.approx(2.5, rel=0.5 / sum(load.lengths))


def test_a_prompts_length_reaches_both_ends():
    lengths = [length for seed in range(40) for length in ragged(8, 1, (8, 4), seed=seed).prompts]
    assert set(lengths) == set(range(2, 9))


def test_one_row_is_as_long_as_it_may_be():
    assert ragged(1, 1, (4, 9)).lengths == (9,)
    assert tailed([1.0, 1.0], 2) == [2, 1]


def test_tokens_are_the_same_each_time_and_in_the_vocabulary():
    load = equal(3, 2, (50, 1))
    first, second = problems_of(load, 20), problems_of(load, 20)
    assert first == second
    assert first[0].prompt_ids != first[1].prompt_ids
    assert {token for one in first for token in one.prompt_ids} == set(range(3, 20))


def test_a_reward_is_spread_over_its_range():
    rewards = [reward_of([number, 7]) for number in range(400)]
    assert len(set(rewards)) == 400
    assert 0 <= min(rewards) < 0.05
    assert 0.95 < max(rewards) < 1


def test_a_count_below_one_is_refused():
    with pytest.raises(Refused, match="`prompts` is 0, but it must be at least 1"):
        check_counts(group=3, prompts=0)
