"""`logratio generate`: prompts from where they come, text that can not steer a terminal."""

import json

import pytest

from logratio.generate import harmless, ids_of, read, shown, written
from logratio.model.load import load
from logratio.sampler import Sampling
from logratio.settings import Refused


def test_completions_have_text_ids_and_log_probs():
    lines = written("tiny", ["Once", "b"], Sampling(max_tokens=5), samples=2)
    assert [(one["prompt"], one["sample"]) for one in lines] == [
        ("Once", 0), ("Once", 1), ("b", 0), ("b", 1),
    ]  # fmt: skip
    assert all(len(one["ids"]) == len(one["logprobs"]) <= 5 for one in lines)
    assert all(number < 0 for one in lines for number in one["logprobs"])
    tokenizer = load("tiny").tokenizer
    assert [one["text"] for one in lines] == [
        tokenizer.decode(one["ids"], skip_special_tokens=True) for one in lines
    ]


def test_a_seed_repeats_and_another_does_not():
    ways = [written("tiny", ["a"], Sampling(max_tokens=8), samples=1, seed=s) for s in (0, 0, 1)]
    assert ways[0] == ways[1] != ways[2]


def test_prompts_come_from_lines_or_from_objects(tmp_path):
    lines, objects = tmp_path / "a.txt", tmp_path / "a.jsonl"
    lines.write_text("one\n\ntwo\n")
    objects.write_text('{"prompt": "x\\ny"}\n{"prompt": [{"role": "user", "content": "z"}]}\n')
    assert read(lines) == ["one", "two"]
    assert read(objects) == ["x\ny", [{"role": "user", "content": "z"}]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"line 1 of `.*a.jsonl` is no JSON"),
        ("[1]", "line 1 of .* has no `prompt` that is text or a list of messages"),
        ('{"prompt": 3}', "line 1 of .* has no `prompt`"),
        ('{"prompt": []}', "line 1 of .* has no `prompt`"),
    ],
)
def test_a_line_that_is_no_prompt_is_refused(tmp_path, text, message):
    file = tmp_path / "a.jsonl"
    file.write_text(text)
    with pytest.raises(Refused, match=message):
        read(file)


def test_what_can_not_be_completed_is_refused(tmp_path):
    sampling = Sampling(max_tokens=2)
    with pytest.raises(Refused, match="there is no such file"):
        read(tmp_path / "nothing")
    with pytest.raises(Refused, match="`samples` is 0"):
        written("tiny", ["a"], sampling, samples=0)
    with pytest.raises(Refused, match="`prompts` is empty"):
        written("tiny", [], sampling, samples=1)
    with pytest.raises(Refused, match="the prompt '' has no tokens"):
        written("tiny", [""], sampling, samples=1)
    with pytest.raises(Refused, match="has no chat template"):
        written("tiny", [[{"role": "user", "content": "z"}]], sampling, samples=1)


def test_messages_go_through_the_models_own_template():
    loaded = load("tiny")
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}!{% endfor %}"
    assert ids_of(loaded, [{"role": "user", "content": "hi"}]) == ids_of(loaded, "hi!")


@pytest.mark.parametrize(
    ("text", "shown_as"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("\x7f\b\r", "\\x7f\\x08\\x0d"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066a\u2069\u200f", "\\u2066a\\u2069\\u200f"),
        ("tab\tnew\nα 语 🎉", "tab\tnew\nα 语 🎉"),
    ],
)
def test_text_can_not_steer_a_terminal(text, shown_as):
    assert harmless(text) == shown_as


def test_a_reader_sees_each_prompt_once_and_nothing_raw():
    lines = [
        {"prompt": "p\x1b[2J", "sample": 0, "text": "a\x1b[31m"},
        {"prompt": "p\x1b[2J", "sample": 1, "text": "b"},
    ]
    assert shown(lines) == "> p\\x1b[2J\n[0] a\\x1b[31m\n[1] b"
    assert "\x1b" not in json.dumps(lines)
