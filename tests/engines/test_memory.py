"""What decoding will hold is known beforehand, and what does not fit is refused in a sentence."""

import pytest
import torch
from model.models import MAKERS, TREE, rollouts

from logratio.engine import requests_of
from logratio.engines.local import memory
from logratio.engines.local.decoding import Decoding
from logratio.engines.local.forward import Forward
from logratio.engines.local.memory import Demand, free_bytes, kept_here, room, token_bytes
from logratio.model.attention import planned
from logratio.model.memory import keep_freed
from logratio.model.network import Network
from logratio.part import Needs
from logratio.records import Problem
from logratio.sampler import Sampling
from logratio.settings import Refused

GIGA = 10**9


@pytest.mark.parametrize("name", MAKERS)
def test_keys_and_values_take_what_was_worked_out(name):
    """Against the buffers of a call in which every row runs to its end."""
    network = Network(MAKERS[name]().float(), Needs(), route=TREE)
    prompts = {one.prompt_ids for one in rollouts((0, 5, 1), (1, 3, 1))}
    problems = [Problem(key=str(one), prompt="", prompt_ids=one) for one in prompts]
    sampling = Sampling(max_tokens=20)
    decoding = Decoding(
        requests_of(problems, samples=3), sampling, slots=6, ends=frozenset(),
        device=torch.device("cpu"),
    )  # fmt: skip
    with torch.no_grad(), planned(network.model, decoding.slots):
        decoding.run(Forward(network), 0)
    held = decoding.slots.prefix.bytes() + decoding.slots.suffix.bytes()
    demand = Demand(rows=6, prompts=2, prompt_tokens=5, max_tokens=20)
    assert demand.bytes(token=token_bytes(network.model.config, 4), words=0) == held


def test_what_fits_is_let_through_to_the_last_byte():
    demand = Demand(rows=10, prompts=2, prompt_tokens=64, max_tokens=128)
    token, words, beside = 1000, 500, 7
    needed = (2 * 64 + 10 * 128) * token + 10 * 500 * 4 * memory.LIVE + beside
    room(demand, token=token, words=words, beside=beside, free=needed)
    with pytest.raises(Refused, match="`slots` is 10, but 10 rows of 64"):
        room(demand, token=token, words=words, beside=beside, free=needed - 1)


def test_more_samples_than_memory_is_one_sentence():
    """Llama-3.1-8B in bf16: 131 kB a token."""
    demand = Demand(rows=4096, prompts=64, prompt_tokens=512, max_tokens=2048)
    with pytest.raises(Refused) as refusal:
        room(demand, token=131_072, words=128_256, beside=0, free=80 * GIGA)
    assert str(refusal.value) == (
        "`slots` is 4096, but 4096 rows of 512 + 2048 tokens need 1112.2 GB and 80.0 GB are free: "
        "about 294 fit, or give fewer `max_tokens`"
    )


def test_a_known_model_takes_what_it_is_known_to_take():
    config = MAKERS["qwen2"]().config
    config.update({"num_hidden_layers": 28, "hidden_size": 1536, "num_attention_heads": 12,
                   "num_key_value_heads": 2, "head_dim": 128})  # fmt: skip
    assert token_bytes(config, 2) == 28_672  # Qwen2.5-1.5B


def test_free_memory_is_a_number_of_this_machine():
    free = free_bytes(torch.device("cpu"))
    assert 10**7 < free < 10**14


@pytest.mark.skipif(not keep_freed(), reason="only glibc keeps what was freed")
def test_what_was_freed_and_kept_counts_as_free():
    held = torch.ones(2**26)  # 268 MB
    while_held = kept_here()
    del held
    assert kept_here() - while_held == pytest.approx(2**28, rel=1e-3)


def test_a_container_with_less_is_believed(monkeypatch, tmp_path):
    limit, use = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "GROUPS", [(str(limit), str(use))])
    use.write_text("400\n")
    limit.write_text("max\n")
    assert memory.free_here() > 10**7
    limit.write_text("1000\n")
    assert memory.free_here() == 600
