from collections.abc import Mapping
from math import inf, nan
from typing import Annotated, Any, Literal

import pytest

from logratio.settings import (
    AboveOne,
    AtLeastOne,
    AtLeastZero,
    Fraction,
    Interval,
    Positive,
    Refused,
    Share,
    allowed,
    check_settings,
    defaults,
    spelled,
    unknown,
)

JUST = 1e-9


def play(
    first: int,
    second: int = 2,
    *others: int,
    clip: Share = 0.2,
    kind: Literal["a", "b"] = "a",
    length: int,
    **rest: object,
) -> None:
    """Has settings of each sort."""
    del first, second, others, clip, kind, length, rest


# intervals


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("(0, 1)", [JUST, 0.5, 1 - JUST], [0, 1, -1, 2]),
        ("[0, 1)", [0, 0.5, 1 - JUST], [-JUST, 1, 2]),
        ("(0, 1]", [JUST, 0.5, 1], [0, -1, 1 + JUST]),
        ("[0, 1]", [0, 0.5, 1], [-JUST, 1 + JUST]),
        ("[-2.5, inf)", [-2.5, 0, 1e300], [-2.6, inf, nan]),
        ("(-inf, 3]", [-1e300, 3], [-inf, 3.5]),
    ],
)
def test_an_interval_holds_what_its_brackets_say(text, inside, outside):
    assert [Interval(text).holds(value) for value in inside] == [True] * len(inside)
    assert [Interval(text).holds(value) for value in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    ("hint", "inside", "outside"),
    [
        (Positive, [JUST, 1, 1e9], [0, -1.0, inf, nan]),
        (AtLeastZero, [0, 0.0, 1e9], [-JUST, inf]),
        (Fraction, [0, 0.5, 1], [-JUST, 1 + JUST]),
        (Share, [JUST, 0.5, 1], [0.0, 1 + JUST]),
        (AboveOne, [1 + JUST, 3], [1, 1.0, 0, inf]),
        (AtLeastOne, [1, 2, 10**9], [0, -1, 1.0, 1.5, True]),
    ],
)
def test_named_ranges(hint, inside, outside):
    assert [allowed(value, hint) for value in inside] == [True] * len(inside)
    assert [allowed(value, hint) for value in outside] == [False] * len(outside)
    assert not allowed("1", hint)
    assert not allowed(None, hint)
    assert allowed(None, hint | None)


# what a value may be


@pytest.mark.parametrize(
    ("hint", "fits", "misfits"),
    [
        (float, [0.5, 1, -inf], [True, False, nan, "1", None]),
        (int, [1, -3], [1.0, True, "1", None]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["", "a"], [1, None, True]),
        (type(None), [None], [0, False, ""]),
        (Literal["a", 2, None], ["a", 2, None], ["b", 2.0, 1, 0, False]),
        (Literal[0, 1], [0, 1], [True, False, 1.0]),
        (Literal[True], [True], [1, False]),
        (int | None, [None, 3], [3.0, "3", True]),
        (float | Literal["learned"], [0.5, 2, "learned"], ["other", nan, None]),
        (dict, [{}], [[], 1]),
        (Any, [1, True, None, "a"], []),
        (Mapping[str, int], [{}, 3], []),
        (Annotated[int, Interval("[0, 9]"), Interval("[3, 12]")], [3, 9], [2, 10, 12, 3.0]),
    ],
)
def test_allowed(hint, fits, misfits):
    assert [allowed(value, hint) for value in fits] == [True] * len(fits)
    assert [allowed(value, hint) for value in misfits] == [False] * len(misfits)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (float, "a number"),
        (int, "a whole number"),
        (bool, "true or false"),
        (str, "text"),
        (type(None), "None"),
        (dict, "<class 'dict'>"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (Literal["a"], "'a'"),
        (Literal[0, 1], "one of 0, 1"),
        (float | None, "a number or None"),
        (float | Literal["learned"], "a number or 'learned'"),
        (Share, "a number in (0, 1]"),
        (AtLeastOne, "a whole number in [1, inf)"),
        (Positive | None, "a number in (0, inf) or None"),
    ],
)
def test_spelled(hint, words):
    assert spelled(hint) == words


# names


def test_defaults_are_the_keyword_only_arguments():
    found = defaults(play)
    assert list(found) == ["clip", "kind", "length"]
    assert (found["clip"], found["kind"]) == (0.2, "a")
    assert found["length"] is not None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"clipp": 0.3},
            "`play` has no setting `clipp`: did you mean `clip`? it has clip, kind, length",
        ),
        ({"second": 3}, "`play` has no setting `second`: it has clip, kind, length"),
        ({"clip": 0}, "`clip` is 0, but it must be a number in (0, 1]"),
        ({"clip": True}, "`clip` is True, but it must be a number in (0, 1]"),
        ({"kind": "c"}, "`kind` is 'c', but it must be one of 'a', 'b'"),
        ({"length": 1.0}, "`length` is 1.0, but it must be a whole number"),
        ({"clip": 0.5, "kind": None}, "`kind` is None, but it must be one of 'a', 'b'"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(settings, says):
    with pytest.raises(Refused) as refused:
        check_settings(play, settings)
    assert str(refused.value) == says


def test_right_settings_pass():
    check_settings(play, {"clip": 1, "kind": "b", "length": 3})
    check_settings(play, {})


def test_unknown_names_the_nearest_and_all_that_there_are():
    assert unknown("part", "kepe", {"keep": 1, "credit": 2}, owner="grpo") == (
        "`grpo` has no part `kepe`: did you mean `keep`? it has credit, keep"
    )
    assert unknown("part", "xyz", ["keep", "credit"], owner="grpo") == (
        "`grpo` has no part `xyz`: it has credit, keep"
    )
    assert unknown("preset", "x", [], owner="sft") == "`sft` has no preset `x`: it has none"


def test_what_is_refused_is_a_wrong_value_and_an_interval_is_a_value():
    assert issubclass(Refused, ValueError)
    assert Interval("(0, 1)") == Interval("(0, 1)")
    assert not hasattr(Interval("(0, 1)"), "__dict__")
