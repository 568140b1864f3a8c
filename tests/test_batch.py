import dataclasses

import pytest
import torch
from samples import batch, marks, ragged, same

from logratio.batch import STREAMS, Batch, Policy, Term, Terms, Weights, described
from logratio.part import Part, needs
from logratio.settings import Refused


def refusal(function, *values, **named):
    with pytest.raises(Refused) as refused:
        function(*values, **named)
    return str(refused.value)


def unchecked(record, **streams):
    """Returns a record past the check of shapes that only tests have, not yet at its own door."""
    made = object.__new__(record)
    for field in dataclasses.fields(record):
        mapping = field.default_factory is not dataclasses.MISSING
        object.__setattr__(made, field.name, streams.get(field.name, {} if mapping else None))
    return made


FULL = {
    "group": [3, 3, 8],
    "pair": [0, 1, -1],
    "reward": [1.0, 0.0, 2.0],
    "advantage": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
    "weight": [[1.0, 1.0]] * 3,
    "old": [[-1.0, -2.0]] * 3,
    "ref": [[-3.0, -4.0]] * 3,
    "margin": [0.1, 0.2, 0.3],
    "value": [[1.0, 2.0, 3.0]] * 3,
    "step_end": [[True, True]] * 3,
}


# the door


@pytest.mark.parametrize(
    ("name", "shape", "allowed"),
    [
        ("group", (2,), "[3]"),
        ("pair", (3, 2), "[3]"),
        ("reward", (3, 2), "[3]"),
        ("advantage", (3,), "[3, 2]"),
        ("weight", (3, 3), "[3, 2]"),
        ("old", (2, 2), "[3, 2]"),
        ("ref", (3, 1), "[3, 2]"),
        ("margin", (2,), "[3] or [3, 2] or [3, 3]"),
        ("margin", (3, 4), "[3] or [3, 2] or [3, 3]"),
        ("margin", (), "[3] or [3, 2] or [3, 3]"),
    ],
)
def test_a_stream_whose_shape_disagrees_with_the_mask_is_refused(name, shape, allowed):
    stream = torch.zeros(shape, dtype=torch.long if name in ("group", "pair") else torch.float32)
    given = {name: stream} if name in STREAMS else {"columns": {name: stream}}
    made = unchecked(Batch, **{"mask": ragged(2, 2, 2), "group": torch.zeros(3).long(), **given})
    says = f"`{name}` has shape {list(shape)}, but it must be {allowed}"
    assert refusal(made.__post_init__) == says


@pytest.mark.parametrize(
    ("mask", "is_a"),
    [
        (torch.ones(2, 3), "float32 [2, 3]"),
        (torch.ones(2, 3, dtype=torch.long), "int64 [2, 3]"),
        (torch.ones(2, dtype=torch.bool), "bool [2]"),
        (torch.ones(2, 3, 1, dtype=torch.bool), "bool [2, 3, 1]"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask, is_a):
    made = unchecked(Batch, mask=mask, group=torch.zeros(2).long())
    assert refusal(made.__post_init__) == f"`mask` is {is_a}, but it must be a bool [B, T]"


def test_columns_may_be_rows_tokens_or_states():
    for shape in ((3,), (3, 2), (3, 3)):
        batch(ragged(2, 2, 2), margin=torch.zeros(shape))


@pytest.mark.parametrize(
    ("pair", "whole"),
    [
        ([0, 1, 2, 3], True),
        ([3, 0, 1, 2], True),
        ([-1, -1, -1, -1], True),
        ([5, 4, -1, -1], True),
        ([0, 1, 2, -1], False),  # a pair without its second side
        ([1, 2, -1, -1], False),  # halves of two pairs
        ([0, 0, -1, -1], False),
        ([0, 2, 4, 6], False),
        ([0, 1, 1, 2], False),
        ([0, 1, 2, 4], False),
    ],
)
def test_pairs_must_be_whole(pair, whole):
    if whole:
        batch(ragged(1, 1, 1, 1), pair=pair)
        return
    present = sorted(number for number in pair if number >= 0)
    assert refusal(batch, ragged(1, 1, 1, 1), pair=pair) == (
        f"`pair` holds {present}, but each pair k must have one row 2k (chosen or first) and one "
        "row 2k + 1 (rejected or second); -1 marks a row without a pair"
    )


def test_a_tensor_is_described_by_its_type_and_shape():
    assert described(torch.zeros(2, 3)) == "float32 [2, 3]"
    assert described(torch.zeros(4, dtype=torch.bool)) == "bool [4]"


# streams by name


def test_a_field_or_a_column_is_found_by_its_name():
    rows = batch(ragged(2, 1, 2), **FULL)
    for name in STREAMS:
        assert rows.stream(name) is getattr(rows, name)
    assert rows.stream("margin") is rows.columns["margin"]
    assert STREAMS == ("group", "pair", "reward", "advantage", "weight", "old", "ref")


def test_a_missing_stream_is_named_with_those_that_are_there():
    rows = batch(ragged(1), value=[[0.0, 0.0]], reward=[0.0])
    for name in ("old", "margin", "mask"):
        says = f"`{name}` is missing from the batch, which has group, reward, value"
        assert refusal(rows.stream, name) == says


def test_a_column_does_not_stand_in_for_a_field():
    rows = Batch(mask=ragged(1), group=torch.zeros(1).long(), columns={"old": torch.zeros(1, 1)})
    assert refusal(rows.stream, "old").startswith("`old` is missing from the batch")


def test_require_refuses_what_is_missing_and_what_has_another_shape():
    rows = batch(ragged(2, 1, 2), **FULL)
    rows.require(needs("reward", "old", "value", "margin", "pair"))
    says = refusal(rows.require, needs("reward", "drawn"))
    assert says.startswith("`drawn` is missing from the batch, which has advantage, ")
    wrong = batch(ragged(2, 2), value=[0.0, 0.0], margin=[[0.0] * 3] * 2, entropy=[[0.0] * 3] * 2)
    for name, has, wanted in (
        ("value", "[2]", "[2, 3]"),
        ("margin", "[2, 3]", "[2]"),
        ("entropy", "[2, 3]", "[2, 2]"),
    ):
        says = f"`{name}` has shape {has}, but it must be {wanted}"
        assert refusal(wrong.require, needs(name)) == says
    own = needs(columns={"mine": "token"})
    says = "`mine` has shape [1], but it must be [1, 1]"
    assert refusal(batch(ragged(1), mine=[1.0]).require, own) == says


@pytest.mark.parametrize("name", ["reward", "advantage", "old", "ref"])
def test_constants_are_as_precise_as_the_widest_stream(name):
    assert batch(ragged(1)).dtype == torch.float32
    stream = torch.zeros(1) if name == "reward" else torch.zeros(1, 1)
    assert batch(ragged(1), **{name: stream}).dtype == torch.float32
    assert batch(ragged(1), **{name: stream.half()}).dtype == torch.float32
    assert batch(ragged(1), **{name: stream.double()}).dtype == torch.float64


# rows


@pytest.mark.parametrize("index", [slice(0, 2), torch.tensor([0, 1])])
def test_rows_cuts_every_stream(index):
    rows = batch(ragged(2, 1, 2), **FULL)
    cut = rows.rows(index)
    assert cut.mask.equal(rows.mask[:2])
    for name in (*STREAMS, *rows.columns):
        assert cut.stream(name).equal(rows.stream(name)[:2])
    assert set(cut.columns) == set(rows.columns)


def test_rows_come_in_the_order_asked_for_and_what_is_absent_stays_absent():
    rows = batch(ragged(2, 1, 2), reward=[1.0, 2.0, 3.0])
    same(rows.rows(torch.tensor([2, 0, 0])).stream("reward"), [3.0, 1.0, 1.0])
    assert rows.rows(slice(1, 2)).old is None


def test_a_cut_through_a_pair_is_refused():
    rows = batch(ragged(1, 1), pair=[0, 1])
    assert refusal(rows.rows, slice(0, 1)).startswith("`pair` holds [0], but each pair k must")


def test_starts_marks_the_first_chosen_token():
    mask = marks("xx.", ".x.", ".xx", "x.x", "...")
    assert batch(mask).starts().equal(marks("x..", ".x.", ".x.", "x..", "..."))


def test_sides_are_the_first_and_the_second_row_of_each_pair():
    first, second = batch(ragged(*[1] * 6), pair=[5, -1, 0, 4, -1, 1]).sides()
    assert first.tolist() == [2, 3]
    assert second.tolist() == [5, 0]
    first, second = batch(ragged(1, 1), pair=[-1, -1]).sides()
    assert first.tolist() == second.tolist() == []
    assert refusal(batch(ragged(1)).sides).startswith("`pair` is missing from the batch")


# what is masked is zero


NAN = torch.nan


def test_clean_puts_0_wherever_nothing_was_chosen():
    mask = marks("x..", ".x.")
    action = torch.tensor([[1.0, NAN, -torch.inf], [NAN, 2.0, NAN]])
    fields = dict.fromkeys(("advantage", "weight", "old", "ref"), action)
    rows = batch(mask, reward=[1.0, 2.0], entropy=action, **fields).clean()
    for name in (*fields, "entropy"):
        assert rows.stream(name).tolist() == [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    same(rows.stream("reward"), [1.0, 2.0])
    assert rows.mask.equal(mask)


def test_a_state_counts_before_and_after_a_chosen_token():
    states = torch.tensor([[1.0, 2.0, NAN, NAN], [NAN, 3.0, 4.0, NAN], [NAN] * 4])
    rows = batch(marks("x..", ".x.", "..."), value=states).clean()
    assert rows.stream("value").tolist() == [[1.0, 2.0, 0, 0], [0, 3.0, 4.0, 0], [0.0] * 4]


@pytest.mark.parametrize("short", [torch.float16, torch.bfloat16])
def test_clean_raises_short_floats_to_32_bits(short):
    rows = batch(
        ragged(1), reward=torch.ones(1, dtype=short), old=torch.ones(1, 1, dtype=short),
        value=torch.ones(1, 2, dtype=short),
    ).clean()  # fmt: skip
    for name in ("reward", "old", "value"):
        assert rows.stream(name).dtype == torch.float32


def test_clean_leaves_other_types_and_the_batch_itself_alone():
    old = torch.tensor([[1.0, 9.0]], dtype=torch.float64)
    rows = batch(marks("x."), old=old, step_end=[[True, True]], split=[[7, 7]], margin=[1.0])
    found = rows.clean()
    assert found.stream("old").dtype == found.stream("margin").dtype == torch.float64
    assert found.stream("step_end").tolist() == [[True, False]]
    assert found.stream("split").tolist() == [[7, 0]]
    assert found.stream("split").dtype == torch.long
    assert old.tolist() == [[1.0, 9.0]]
    assert found.reward is None


def policy(**streams):
    return Policy(**{"logp": torch.zeros(1, 2), **streams})


def test_a_clean_policy_has_no_value_and_no_gradient_where_masked():
    leaf = torch.tensor([[1.0, -torch.inf]], requires_grad=True)
    state = torch.tensor([[1.0, 2.0, NAN]], requires_grad=True)
    found = policy(
        logp=leaf, logit=leaf, entropy=leaf, kl=leaf, heads={"score": state},
        statistics={"best": state}, scalars={"A": torch.tensor(3.0)},
    ).clean(marks("x."))  # fmt: skip
    total = found.heads["score"].sum() + found.statistics["best"].sum()
    for name in ("logp", "logit", "entropy", "kl"):
        assert found.stream(name).tolist() == [[1.0, 0.0]]
        total = total + found.stream(name).sum()
    assert found.heads["score"].tolist() == found.statistics["best"].tolist() == [[1.0, 2.0, 0.0]]
    assert found.scalars["A"] == 3.0
    total.backward()
    assert leaf.grad is not None
    assert state.grad is not None
    assert leaf.grad.tolist() == [[4.0, 0.0]]
    assert state.grad.tolist() == [[1.0, 1.0, 0.0]]  # a statistic passes none on


def test_a_clean_policy_is_at_least_float32():
    found = policy(logp=torch.zeros(1, 2).bfloat16(), heads={"score": torch.zeros(1, 3).half()})
    found = found.clean(marks("xx"))
    assert found.logp.dtype == found.heads["score"].dtype == torch.float32
    assert found.logit is None


@pytest.mark.parametrize(
    ("streams", "name", "has", "wanted"),
    [
        ({"logp": torch.zeros(1, 3)}, "logp", "[1, 3]", "[1, 2]"),
        ({"heads": {"score": torch.zeros(1, 2)}}, "score", "[1, 2]", "[1, 3]"),
        ({"statistics": {"best": torch.zeros(1, 2)}}, "best", "[1, 2]", "[1, 3]"),
    ],
)
def test_a_policy_of_another_shape_than_the_batch_is_refused(streams, name, has, wanted):
    made = unchecked(Policy, **{"logp": torch.zeros(1, 2), **streams})
    says = f"`{name}` has shape {has}, but it must be {wanted}"
    assert refusal(made.clean, marks("xx")) == says


@pytest.mark.parametrize("name", ["logit", "entropy", "kl"])
def test_a_stream_that_the_head_was_not_asked_for_is_refused(name):
    says = f"`{name}` is missing from the policy: the head was not asked for it"
    assert refusal(policy().stream, name) == says
    assert policy(**{name: torch.ones(1, 2)}).stream(name).tolist() == [[1.0, 1.0]]


# terms and weights


def test_a_term_is_about_tokens_unless_it_says_otherwise():
    term = Term(loss=torch.zeros(1, 2))
    assert (term.unit, term.coefficient, term.average) == ("token", 1.0, None)
    assert Terms(terms={"policy": term}).watch == {}
    assert Term(loss=torch.zeros(1), unit="pair", average=Part(max)).average == Part(max)


def test_weights_of_some_rows_keep_the_total_of_all():
    whole = Weights(each=torch.tensor([1.0, 2.0, 3.0]), total=torch.tensor(6.0))
    for index in (slice(1, 3), torch.tensor([1, 2])):
        cut = whole.rows(index)
        assert cut.each.tolist() == [2.0, 3.0]
        assert cut.total == 6.0


RECORDS = [
    Batch(mask=ragged(1), group=torch.zeros(1).long()),
    Policy(logp=torch.zeros(1, 1)),
    Term(loss=torch.zeros(1)),
    Terms(terms={}),
    Weights(each=torch.zeros(1), total=torch.tensor(1.0)),
]


@pytest.mark.parametrize("record", RECORDS, ids=[type(record).__name__ for record in RECORDS])
def test_records_take_names_never_change_and_equal_only_themselves(record):
    first, *_ = dataclasses.fields(record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, first.name, None)
    with pytest.raises(TypeError):
        type(record)(*(getattr(record, field.name) for field in dataclasses.fields(record)))
    assert record != dataclasses.replace(record)  # comparing tensors would give no one truth
    assert len({record, record}) == 1


def test_what_a_record_does_not_say_is_absent():
    rows, policy_ = RECORDS[:2]
    for record in (rows, policy_):
        for field in dataclasses.fields(record)[1:]:
            value = getattr(record, field.name)
            assert field.name == "group" or value is None or value == {}
