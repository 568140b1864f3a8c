import dataclasses

import pytest

from logratio.part import COUPLINGS, SHAPES, Needs, Part, Statistic, needs
from logratio.settings import Refused


def scaled(value, *, times: int = 2, shift: float, kind: str = "plain"):
    """Multiplies and shifts."""
    return value * times + shift + len(kind)


def reading(*, times, shift, kind):
    """Needs what its settings say."""
    return needs("reward", columns={f"{kind}{times}": "row"}, heads=[str(shift)])


# needs


def test_nothing_is_needed_unless_said():
    nothing = Needs()
    assert nothing == needs()
    for name in ("streams", "policy", "heads", "makes"):
        assert getattr(nothing, name) == frozenset()
    for name in ("columns", "scalars", "statistics"):
        assert getattr(nothing, name) == {}
    assert nothing.couples == "row"
    assert nothing.prompt_trained is False


def test_needs_are_said_by_name():
    statistic = Statistic(function=max)
    found = needs(
        "old", "ref", columns={"mine": "state"}, policy=["kl"], heads=["value"],
        scalars={"A": 0.5}, statistics={"best": statistic}, couples="pair", makes=["advantage"],
    )  # fmt: skip
    assert found.streams == {"old", "ref", "mine"}
    assert found.columns == {"mine": "state"}
    assert found.policy == {"kl"}
    assert found.heads == {"value"}
    assert found.scalars == {"A": 0.5}
    assert found.statistics == {"best": statistic}
    assert found.couples == "pair"
    assert found.makes == {"advantage"}
    assert found.prompt_trained is False


def test_a_statistic_reads_neither_reference_nor_head_unless_it_says_so():
    plain = Statistic(function=max)
    assert (plain.function, plain.reference, plain.state) == (max, False, None)


def test_a_stream_that_nobody_knows_must_give_its_shape():
    with pytest.raises(Refused) as refused:
        needs("old", "mine")
    assert str(refused.value) == (
        "`mine` is no stream that logratio knows: give its shape as columns={'mine': 'row'}, "
        "'token' or 'state'"
    )
    assert needs(columns={"mine": "row"}).streams == {"mine"}


@pytest.mark.parametrize(
    ("name", "shape"),
    [("reward", "row"), ("old", "token"), ("value", "state"), ("mine", "state"), ("ref", "row")],
)
def test_the_shape_of_a_stream_is_known_or_given(name, shape):
    assert needs(columns={"mine": "state", "ref": "row"}).shape(name) == shape


KNOWN = {
    "row": "pair reward split mean variance shift truncated drawn margin q0 q0_samples",
    "token": "advantage weight old old_kl behaviour entropy ref ref_logit step_end step_reward "
    "token_reward returns",
    "state": "value next_value importance",
}


@pytest.mark.parametrize("shape", ["row", "token", "state"])
def test_every_stream_known_by_name_has_its_shape(shape):
    found = {name for name, known in SHAPES.items() if known == shape}
    assert found == set(KNOWN[shape].split())
    assert needs(*sorted(found)).streams == found


def test_together_two_parts_need_everything_that_either_does():
    first, second = Statistic(function=max), Statistic(function=min)
    left = Needs(
        streams=frozenset({"old"}), columns={"mine": "row"}, policy=frozenset({"kl"}),
        heads=frozenset({"value"}), scalars={"A": 1.0, "c": 2.0}, statistics={"best": first},
        makes=frozenset({"advantage"}), prompt_trained=True,
    )  # fmt: skip
    right = Needs(
        streams=frozenset({"ref"}), columns={"yours": "token"}, policy=frozenset({"entropy"}),
        heads=frozenset({"score"}), scalars={"c": 3.0}, statistics={"worst": second},
        couples="pair", makes=frozenset({"returns"}),
    )  # fmt: skip
    both = left | right
    assert both.streams == {"old", "ref"}
    assert both.columns == {"mine": "row", "yours": "token"}
    assert both.policy == {"kl", "entropy"}
    assert both.heads == {"value", "score"}
    assert both.scalars == {"A": 1.0, "c": 3.0}
    assert both.statistics == {"best": first, "worst": second}
    assert both.makes == {"advantage", "returns"}
    assert both.couples == "pair"
    assert both.prompt_trained is True
    assert (right | left).prompt_trained is True
    assert (right | right).prompt_trained is False


def test_the_wider_coupling_wins_from_either_side():
    assert COUPLINGS == ["row", "pair", "group"]
    for wide, left in enumerate(COUPLINGS):
        for narrow, right in enumerate(COUPLINGS):
            expected = COUPLINGS[max(wide, narrow)]
            assert (needs(couples=left) | needs(couples=right)).couples == expected


# parts


def test_a_part_is_its_function_under_its_settings():
    part = Part(scaled).using(shift=0.5)
    assert part.name == "scaled"
    assert part(10) == 10 * 2 + 0.5 + 5
    assert part.using(times=3, kind="x")(10) == 10 * 3 + 0.5 + 1


def test_settings_add_up_and_the_last_one_counts():
    part = Part(scaled).using(times=3, shift=0.0)
    later = part.using(times=4)
    assert later.settings == {"times": 4, "shift": 0.0}
    assert part.settings == {"times": 3, "shift": 0.0}
    assert Part(scaled).settings == {}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"time": 3},
            "`scaled` has no setting `time`: did you mean `times`? it has kind, shift, times",
        ),
        ({"times": 2.5}, "`times` is 2.5, but it must be a whole number"),
    ],
)
def test_a_wrong_setting_is_refused_where_it_is_bound(settings, says):
    with pytest.raises(Refused) as refused:
        Part(scaled).using(**settings)
    assert str(refused.value) == says


def test_resolved_gives_every_setting_and_refuses_one_without_value():
    assert Part(scaled).using(shift=1).resolved() == {"times": 2, "shift": 1, "kind": "plain"}
    with pytest.raises(Refused) as refused:
        Part(scaled).using(times=3).resolved()
    assert str(refused.value) == "`shift` of `scaled` has no default: give it a value"


def test_what_a_part_needs_is_fixed_or_follows_its_settings():
    assert Part(scaled).declared() == Needs()
    assert Part(scaled, needs("old")).declared() == needs("old")
    declared = Part(scaled, reading).using(shift=7, kind="x").declared()
    assert declared.streams == {"reward", "x2"}
    assert declared.heads == {"7"}


def test_parts_and_needs_are_values():
    for value in (Part(scaled), Needs(), Statistic(function=max)):
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)
        assert not hasattr(value, "__dict__")
    assert Part(scaled).using(times=3) == Part(scaled, settings={"times": 3})
    for record in (Needs, Statistic):
        with pytest.raises(TypeError):
            record(max)
