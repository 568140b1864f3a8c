import json

from logratio.lab.rows import Row, attempted, attempted_all, table

GOOD = Row(part="kl", subject="grpo", case="k2", measured={"value": 0.5}, limits={"value": 1.0})


def row(value, worst="beta=2"):
    return Row(
        part="kl",
        subject="grpo",
        case="k1",
        measured={"value": value},
        limits={"value": 1.0},
        worst=worst,
    )


def test_a_number_beyond_its_limit_fails_the_row_and_so_does_none():
    assert GOOD.passed
    assert not row(1.5).passed
    assert not row(float("nan")).passed
    assert not row(float("inf")).passed
    assert not Row(part="kl", subject="grpo", case="k1", measured={}, limits={}).passed


def test_json_has_null_where_there_is_no_number():
    record = json.loads(json.dumps(row(float("nan")).record(), allow_nan=False))
    assert record["measured"] == {"value": None}
    assert record["passed"] is False


def test_an_error_is_a_failed_row_that_says_so():
    def breaks():
        raise ValueError("no such thing\nat all")

    found = attempted(breaks, part="kl", subject="grpo", case="k1")
    assert not found.passed
    assert found.worst == "ValueError: no such thing"


def test_an_error_between_rows_keeps_those_before_it():
    def some():
        yield GOOD
        raise KeyError("gone")

    first, last = attempted_all(some(), part="kl", subject="grpo")
    assert first is GOOD
    assert not last.passed
    assert "gone" in last.worst


def test_the_table_says_where_a_row_failed():
    lines = table([GOOD, row(2.0)]).splitlines()
    assert lines[0] == "kl: value at most 1e+00"
    assert lines[2].endswith("5.0e-01  ok")
    assert lines[3].endswith("2.0e+00  FAILED beta=2")
    assert lines[-1] == "2 rows, 1 failed"
