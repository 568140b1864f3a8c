"""The chunked head equals autograd through whole logits, whatever the chunk."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from logratio.model import head
from logratio.model.head import Asked, ChunkedHead, How, Readout, chunks

ROWS, WIDTH, VOCABULARY = 10, 6, 11
normal = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
REFERENCE = (normal(ROWS, WIDTH), normal(VOCABULARY, WIDTH), None)


def whole(hidden, weight, bias, *, ids, readout):
    """Returns the four vectors by plain operations on all logits at once."""
    logits = readout.logits(hidden, weight, bias)
    logp, other = logits.log_softmax(-1), readout.logits(*REFERENCE).log_softmax(-1)
    pick = ids[:, None]
    return (
        logp.gather(1, pick)[:, 0],
        logits.gather(1, pick)[:, 0],
        -(logp.exp() * logp).sum(-1),
        (logp.exp() * (logp - other)).sum(-1),
    )


@pytest.mark.parametrize("rows_a_chunk", [1, 3, 100])
@pytest.mark.parametrize("rows_a_block", [1, 2, 100])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("biased", [True, False])
def test_the_head_is_autograd(monkeypatch, rows_a_chunk, rows_a_block, cap, biased):
    monkeypatch.setattr(head, "CHUNK_BYTES", 8 * VOCABULARY * rows_a_chunk)
    monkeypatch.setattr(head, "BLOCK_BYTES", 4 * VOCABULARY * rows_a_block)
    readout = Readout(temperature=0.7, scale=1.3, cap=cap)
    leaves = [normal(ROWS, WIDTH), normal(VOCABULARY, WIDTH), normal(VOCABULARY)]
    leaves = [leaf.requires_grad_() for leaf in leaves[: 2 + biased]]
    hidden, weight, bias = leaves if biased else (*leaves, None)
    ids = torch.arange(ROWS) % VOCABULARY
    asked = Asked(entropy=True, kl=True, reference=REFERENCE)
    ours = ChunkedHead.apply(hidden, weight, bias, How(ids=ids, readout=readout, asked=asked))
    truth = whole(hidden, weight, bias, ids=ids, readout=readout)
    assert_close(tuple(ours), truth, rtol=1e-10, atol=1e-12)
    down = [normal(ROWS) for _ in range(4)]
    found, wanted = (torch.autograd.grad(out, leaves, down) for out in (ours, truth))
    assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_what_was_not_asked_for_is_not_computed():
    out = ChunkedHead.apply(
        normal(ROWS, WIDTH), normal(VOCABULARY, WIDTH), None,
        How(ids=torch.zeros(ROWS, dtype=torch.long), readout=Readout(), asked=Asked()),
    )  # fmt: skip
    assert not out[2].any()
    assert not out[3].any()


def test_chunks_cover_every_row_once():
    for rows in (0, 1, 7, 100):
        places = [place for part in chunks(rows, 10**6) for place in range(rows)[part]]
        assert places == list(range(rows))
