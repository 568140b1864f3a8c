"""Credits that differ from token to token, `process` and `gae`, and the statistics of pairs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import batch, marks, ragged, same

from logratio import credit

seeds = st.integers(0, 2**31 - 1)
ROWS, TOKENS = 4, 6


def drawn(seed):
    """Returns random rows with holes, step ends and truncations; one row has no token at all."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    mask = normal(ROWS, TOKENS) > -0.5
    mask[0] = False
    return batch(
        mask,
        group=[0, 0, 1, 1],
        reward=normal(ROWS),
        value=normal(ROWS, TOKENS + 1),
        old=normal(ROWS, TOKENS),
        ref=normal(ROWS, TOKENS),
        step_end=normal(ROWS, TOKENS) > 0.3,
        step_reward=normal(ROWS, TOKENS),
        truncated=(normal(ROWS) > 0).double(),
    )


def chosen(rows, row):
    return rows.mask[row].nonzero().flatten().tolist()


# process supervision


def test_two_steps_each_as_the_algorithms_report_has_them():
    rows = batch(
        ragged(4, 3),
        reward=[0.0, 0.0],
        step_end=marks(".x.x", "x.x."),
        step_reward=[[0.0, 1.0, 0.0, 0.0], [0.0] * 4],
    )
    good, bad = 1.7320508076, -0.5773502692  # pool 1, 0, 0, 0: mean 1/4, deviation sqrt(3) / 4
    found = credit.process(rows)["advantage"]
    same(found, [[good + bad] * 2 + [bad] * 2, [2 * bad, bad, bad, 0.0]])


@pytest.mark.parametrize(
    ("spread", "scale"),
    [("population", 3**0.5 / 4), ("sample", 0.5), ("none", 1.0), ("batch", 3**0.5 / 4)],
)
def test_a_step_counts_up_to_and_with_its_last_token(spread, scale):
    rows = batch(
        ragged(4, 2),
        reward=[0.0, 0.0],
        step_end=marks("xx.x", ".x.."),
        step_reward=[[0.0, 1.0, 0.0, 0.0], [0.0] * 4],
    )
    expected = torch.tensor([[0.25, 0.5, -0.25, -0.25], [-0.25, -0.25, 0.0, 0.0]])
    same(credit.process(rows, spread=spread)["advantage"], expected / scale)


def test_step_ends_may_be_numbers():
    streams = {"reward": [0.0, 0.0], "step_reward": [[1.0, 0.0], [0.0, 0.0]]}
    ends = marks("xx", ".x")
    found = credit.process(batch(ragged(2, 2), step_end=ends.float(), **streams))
    same(
        found["advantage"],
        credit.process(batch(ragged(2, 2), step_end=ends, **streams))["advantage"],
    )


def test_steps_are_pooled_within_a_prompt_and_apart_between_prompts():
    mask = ragged(2, 2, 2, 2)
    steps = {"step_end": [[True, True]] * 4, "reward": [0.0] * 4, "group": [0, 0, 1, 1]}
    numbers = [[1.0, 0.0], [0.0, 3.0], [7.0, 7.0], [7.0, 7.0]]
    found = credit.process(batch(mask, step_reward=numbers, **steps), spread="none")
    same(found["advantage"], [[-1.0, -1.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])


def test_the_last_step_is_drawn_out_to_the_last_token():
    ends, last = credit.whole_steps(
        batch(
            marks("xxx.", "xx..", "xxxx", "...."),
            reward=[9.0, 5.0, 6.0, 7.0],
            step_end=marks("x...", "....", ".x.x", "xxxx"),
            step_reward=[[1.0] * 4, [2.0] * 4, [3.0, 4.0, 5.0, 6.0], [8.0] * 4],
        )
    )
    assert ends.equal(marks("..x.", ".x..", ".x.x", "...."))
    same(last, [[0.0, 0.0, 1.0, 0.0], [0.0, 5.0, 0.0, 0.0], [0.0, 4.0, 0.0, 6.0], [0.0] * 4])


def test_one_step_each_is_outcome_supervision():
    rows = drawn(5)
    whole = batch(
        rows.mask, group=rows.group, reward=rows.reward,
        step_end=torch.zeros_like(rows.mask), step_reward=torch.zeros(ROWS, TOKENS).double(),
    )  # fmt: skip
    for spread in ("none", "population", "sample"):
        found = credit.process(whole, spread=spread)["advantage"]
        expected = credit.group(whole, spread=spread)["advantage"]
        alone = rows.group == 0  # its other row has no token, so no step
        same(found[~alone], expected[~alone])


@given(seed=seeds, spread=st.sampled_from(["population", "sample", "none"]))
def test_process_is_the_loop(seed, spread):
    rows = drawn(seed)
    ends, numbers = rows.columns["step_end"], rows.columns["step_reward"]
    steps = {row: [] for row in range(ROWS)}
    for row in range(ROWS):
        places = chosen(rows, row)
        found = [[place, numbers[row, place].item()] for place in places if ends[row, place]]
        found = found or [[None, rows.reward[row].item()]]
        found[-1][0] = places[-1] if places else None
        steps[row] = found if places else []
    expected = torch.zeros(ROWS, TOKENS, dtype=torch.float64)
    for pair in ([0, 1], [2, 3]):
        pool = torch.tensor([step[1] for row in pair for step in steps[row]], dtype=torch.float64)
        varied = len(pool) > 1
        correction = int(spread == "sample")
        deviation = pool.std(correction=correction) if varied and spread != "none" else 1.0
        for row in pair:
            for here in chosen(rows, row):
                late = [number for end, number in steps[row] if end >= here]
                expected[row, here] = sum((n - pool.mean()) / deviation for n in late)
    same(credit.process(rows, spread=spread)["advantage"], expected)


# generalised advantage estimation


THREE = {"reward": [1.0], "value": [[0.2, 0.5, 0.7, 9.0]]}


@pytest.mark.parametrize(
    ("settings", "advantage"),
    [
        ({"trace": 0.95}, [0.76075, 0.485, 0.3]),
        ({"trace": 1.0}, [0.8, 0.5, 0.3]),  # the return less the value
        ({"trace": 0.0}, [0.3, 0.2, 0.3]),  # one step
        ({"trace": 0.0, "discount": 0.5}, [0.05, -0.15, 0.3]),
        ({"trace": 0.5, "discount": 0.5}, [0.03125, -0.075, 0.3]),
        ({}, [0.76075, 0.485, 0.3]),
    ],
)
def test_gae_of_three_tokens(settings, advantage):
    found = credit.gae(batch(ragged(3), **THREE), kl=0.0, whiten=False, **settings)
    assert set(found) == {"advantage", "returns"}
    same(found["advantage"], [advantage])
    same(found["returns"], torch.tensor([advantage]) + torch.tensor([[0.2, 0.5, 0.7]]))


def test_without_a_value_the_reward_reaches_every_token():
    rows = batch(marks("xxx", "x.."), reward=[2.0, -1.0], value=[[0.0] * 4] * 2)
    found = credit.gae(rows, trace=1.0, kl=0.0, whiten=False)
    same(found["advantage"], [[2.0, 2.0, 2.0], [-1.0, 0.0, 0.0]])
    same(found["returns"], found["advantage"])


@pytest.mark.parametrize(
    ("truncated", "setting", "last"),
    [(1.0, "bootstrap", 9.3), (0.0, "bootstrap", 0.3), (1.0, "end", 0.3)],
)
def test_only_a_truncated_row_reads_the_value_after_its_last_token(truncated, setting, last):
    rows = batch(
        marks("xxx."), reward=[1.0], value=[[0.2, 0.5, 0.7, 9.0, 50.0]], truncated=[truncated]
    )
    found = credit.gae(rows, kl=0.0, whiten=False, truncated=setting, trace=0.0)
    same(found["advantage"], [[0.3, 0.2, last, 0.0]])


def test_the_kl_in_the_reward_is_that_of_the_policy_that_sampled():
    streams = {
        "old": [[-1.0, -1.0, -1.0]],
        "ref": [[-1.5, -0.5, -3.0]],
        "old_kl": [[4.0, 2.0, 1.0]],
    }
    rows = batch(ragged(3), reward=[1.0], value=[[0.0] * 4], **streams)
    found = credit.gae(rows, trace=0.0, whiten=False)
    same(found["advantage"], [[-0.025, 0.025, 0.9]])  # 0.05 of 0.5, -0.5 and 2
    found = credit.gae(rows, trace=0.0, whiten=False, kl=0.1, estimator="k2")
    same(found["advantage"], [[-0.0125, -0.0125, 0.8]])
    found = credit.gae(rows, trace=0.0, whiten=False, kl=0.1, estimator="exact")
    same(found["advantage"], [[-0.4, -0.2, 0.9]])


def test_step_rewards_arrive_where_the_steps_end():
    rows = batch(ragged(3), step_reward=[[0.5, 0.0, 2.0]], value=[[0.0] * 4])
    found = credit.gae(rows, rewards="steps", kl=0.0, whiten=False, trace=0.0)
    same(found["advantage"], [[0.5, 0.0, 2.0]])


@given(
    seed=seeds,
    discount=st.sampled_from([0.0, 0.9, 1.0]),
    trace=st.sampled_from([0.0, 0.95, 1.0]),
    truncated=st.sampled_from(["end", "bootstrap"]),
    rewards=st.sampled_from(["outcome", "steps"]),
)
def test_gae_is_the_loop(seed, discount, trace, truncated, rewards):
    rows = drawn(seed)
    value, step = rows.columns["value"], rows.columns["step_reward"]
    advantage = torch.zeros(ROWS, TOKENS, dtype=torch.float64)
    returns = torch.zeros_like(advantage)
    for row in range(ROWS):
        later = ahead = torch.zeros((), dtype=torch.float64)
        places = chosen(rows, row)
        if places and truncated == "bootstrap" and rows.columns["truncated"][row]:
            ahead = value[row, places[-1] + 1]
        for here in reversed(places):
            received = step[row, here] if rewards == "steps" else 0.0
            if rewards == "outcome" and here == places[-1]:
                received = rows.reward[row]
            received = received - 0.3 * (rows.old[row, here] - rows.ref[row, here])
            delta = received + discount * ahead - value[row, here]
            later = delta + discount * trace * later
            advantage[row, here], returns[row, here] = later, later + value[row, here]
            ahead = value[row, here]
    settings = {"discount": discount, "trace": trace, "truncated": truncated, "rewards": rewards}
    found = credit.gae(rows, kl=0.3, whiten=False, **settings)
    same(found["advantage"], advantage)
    same(found["returns"], returns)


def test_gae_keeps_its_precision():
    for dtype in (torch.float32, torch.float64):
        rows = batch(ragged(3), dtype=dtype, **THREE)
        found = credit.gae(rows, kl=0.0, whiten=False)
        assert {stream.dtype for stream in found.values()} == {dtype}
    assert found["advantage"][0, 0].item() == pytest.approx(0.76075, rel=1e-15)


def test_gae_never_reads_a_pad():
    rows = batch(
        ragged(3, longest=5), reward=[1.0], value=[[0.2, 0.5, 0.7, 9.0, torch.nan, torch.nan]]
    )
    found = credit.gae(rows, kl=0.0, whiten=False)
    same(found["advantage"], [[0.76075, 0.485, 0.3, 0.0, 0.0]])


# whitening


def test_whitened_tokens_have_mean_0_and_deviation_1():
    mask = marks("xx.", "x.x")
    values = torch.tensor([[1.0, 2.0, 99.0], [4.0, -99.0, 5.0]])
    found = credit.whitened(values, mask, enabled=True)
    scale = 2.5**0.5  # mean 3: (4 + 1 + 1 + 4) / 4
    same(found, torch.tensor([[-2.0, -1.0, 0.0], [1.0, 0.0, 2.0]]) / scale)
    same(credit.whitened(values, mask, enabled=False), [[1.0, 2.0, 0.0], [4.0, 0.0, 5.0]])


def test_gae_whitens_advantages_by_default_and_never_returns():
    rows = batch(ragged(3), **THREE)
    plain, found = credit.gae(rows, kl=0.0, whiten=False), credit.gae(rows, kl=0.0)
    same(found["advantage"], credit.whitened(plain["advantage"], rows.mask, enabled=True))
    same(found["advantage"].mean(), 0.0)
    same(found["advantage"].square().mean(), 1.0)
    same(found["returns"], plain["returns"])


@pytest.mark.parametrize("value", [0.7, 700.3, 1234.567, 7e5])
@pytest.mark.parametrize("count", [2, 7, 10])
def test_equal_advantages_are_whitened_to_exactly_zero(value, count):
    found = credit.whitened(torch.full((1, count), value), ragged(count), enabled=True)
    assert (found == 0).all()


def test_a_lone_token_keeps_its_advantage_and_no_token_is_no_error():
    same(credit.whitened(torch.tensor([[3.0, 4.0]]), marks("x."), enabled=True), [[3.0, 0.0]])
    same(credit.whitened(torch.tensor([[3.0, 4.0]]), marks(".."), enabled=True), [[0.0, 0.0]])


# pairs that share a stub


PAIRED = {"group": [0] * 4, "pair": [0, 1, 2, 3]}


def test_pairs_gives_the_statistics_of_each_group():
    rows = batch(ragged(1, 1, 1, 1), reward=[2.0, 0.0, 2.0, 2.0], **PAIRED)
    plain = credit.pairs(rows, corrected=False)
    assert set(plain) == {"mean", "variance", "shift"}
    same(plain["mean"], [1.5] * 4)
    same(plain["variance"], [0.75] * 4)
    same(plain["shift"], [0.0] * 4)
    found = credit.pairs(rows)
    shift = (0.75 + (-0.75 + 0.25) / 2) / 2  # products of the two pairs: .5 x -1.5 and .5 x .5
    same(found["mean"], [1.5] * 4)
    same(found["shift"], [shift] * 4)
    same(found["variance"], [0.75 + shift] * 4)


def test_pairs_of_equal_rewards_have_exactly_no_variance():
    group = [3] * 4 + [1] * 4
    rows = batch(
        ragged(*[1] * 8), group=group, pair=[0, 1, 2, 3, 4, 5, 6, 7], dtype=torch.float32,
        reward=[0.7] * 4 + [1.0, 0.0, 1.0, 0.0],
    )  # fmt: skip
    for corrected in (True, False):
        found = credit.pairs(rows, corrected=corrected)
        assert found["variance"].tolist()[:4] == [0.0] * 4
        assert found["shift"].tolist()[:4] == [0.0] * 4
        assert (found["variance"][4:] > 0).all()


def test_rows_without_a_pair_count_in_the_group_but_in_no_product():
    rows = batch(ragged(*[1] * 5), reward=[2.0, 0.0, 1.0, 1.0, 1.0], pair=[1, 0, -1, -1, -1])
    found = credit.pairs(rows)
    same(found["variance"], [0.4] * 5)  # variance 2/5 and product -1: their sum is below 0
    same(found["shift"], [0.0] * 5)
    rows = batch(ragged(*[1] * 5), reward=[2.0, 2.0, 1.0, 0.0, 0.0], pair=[1, 0, -1, 2, 3])
    same(credit.pairs(rows)["shift"], [(0.8 + 1.0) / 3] * 5)
    rows = batch(ragged(*[1] * 5), reward=[2.0, 2.0, 1.0, 0.0, 0.0], pair=[1, 0, -1, -1, -1])
    same(credit.pairs(rows)["shift"], [(0.8 + 1.0) / 3] * 5)
    rows = batch(ragged(*[1] * 5), reward=[2.0, 2.0, 1.0, 0.0, 0.0], pair=[-1] * 5)
    same(credit.pairs(rows)["shift"], [0.8 / 3] * 5)


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_the_finite_group_correction_is_unbiased(size, alike):
    """A variance is quadratic, so its expectation is its sum over a root of the covariance."""
    pair = torch.arange(size)
    covariance = torch.eye(size).double()
    covariance[pair, pair ^ 1] = alike
    root = torch.linalg.cholesky(covariance)
    variance = product = raw_variance = raw_product = 0.0
    for column in root.T:
        rows = batch(ragged(*[1] * size), reward=column, pair=pair)
        off = (column - column.mean())[::2] * (column - column.mean())[1::2]
        found, raw = credit.pairs(rows), credit.pairs(rows, corrected=False)
        variance, raw_variance = variance + found["variance"], raw_variance + raw["variance"]
        product, raw_product = (
            product + (off + found["shift"][::2]).mean(),
            raw_product + off.mean(),
        )
    same(raw_variance, [1 - (1 + alike) / size] * size)
    same(raw_product, alike - (1 + alike) / size)
    same(variance, [1.0] * size)
    same(product, alike)
