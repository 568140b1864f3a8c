"""The scripted engine says what it was told, and ends where an end token stands."""

from logratio.engine import Engine, find, requests_of
from logratio.engines.scripted import Scripted
from logratio.records import Problem
from logratio.sampler import Sampling

END = 9
PROBLEM = Problem(key="p", prompt="", prompt_ids=(1, 2))


def test_it_gives_what_was_written_down():
    engine = Scripted(lambda request: [5] * request.index + [END, 6], [END])
    engine.load(2, None)
    made = engine.generate(requests_of([PROBLEM], samples=4), Sampling(max_tokens=3))
    assert [one.ids for one in made] == [(END,), (5, END), (5, 5, END), (5, 5, 5)]
    assert [one.finish for one in made] == ["stop", "stop", "stop", "length"]
    assert [one.index for one in made] == [0, 1, 2, 3]
    assert made[1].old == (0.0, 0.0)
    assert {(one.problem, one.prompt_ids, one.version) for one in made} == {("p", (1, 2), 2)}


def test_it_is_an_engine():
    assert isinstance(Scripted(lambda _: [END], [END]), Engine)
    assert find("scripted") is Scripted
