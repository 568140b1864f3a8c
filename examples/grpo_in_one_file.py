"""GRPO in one file: a tiny transformer learns to write the largest of three digits, then stop.

Read it from top to bottom; it needs torch and nothing else. Weights start random, and the reward
is the only teacher: 0.5 for the right digit, 1 if the response then stops.

    python examples/grpo_in_one_file.py --steps 300 --seed 0
"""

import argparse
import copy
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

# ---------------------------------------------------------------------------------- the task

STOP = 10  # tokens 0 to 9 are the digits
VOCABULARY = 11
PROMPT_LENGTH = 3
MAX_TOKENS = 4  # of a response


def draw_prompts(count: int, generator: torch.Generator) -> Tensor:
    """Returns prompts of three random digits, [count, 3]."""
    return torch.randint(10, (count, PROMPT_LENGTH), generator=generator)


def rewards(prompts: Tensor, responses: Tensor) -> Tensor:
    """Returns 0.5 for the right first token, and 0.5 more if the second one is the stop."""
    right = responses[:, 0] == prompts.amax(1)
    stopped = responses[:, 1] == STOP
    return 0.5 * right + 0.5 * (right & stopped)


# --------------------------------------------------------------------------------- the model


class Block(nn.Module):
    """Attention to what came before, then a small network at each place."""

    def __init__(self, width: int, heads: int) -> None:
        """Makes the four matrices."""
        super().__init__()
        self.heads = heads
        self.mix = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the next hidden states, [B, S, width]."""
        normal = layer_norm(hidden, hidden.shape[-1:])
        split = self.mix(normal).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, heads, S, width / heads]
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.join(seen.transpose(1, 2).flatten(2))
        normal = layer_norm(hidden, hidden.shape[-1:])
        return hidden + self.narrow(gelu(self.widen(normal)))


class Transformer(nn.Module):
    """A causal language model over eleven tokens: 104 thousand parameters."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        """Makes embeddings, blocks and the output matrix."""
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.place = nn.Embedding(PROMPT_LENGTH + MAX_TOKENS, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.output = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Returns logits [B, S, vocabulary]; those at column t predict the token at t + 1."""
        places = torch.arange(ids.shape[1])
        hidden = self.blocks(self.token(ids) + self.place(places))
        return self.output(layer_norm(hidden, hidden.shape[-1:]))


# -------------------------------------------------------------------------------- the rollout


@torch.no_grad()
def sample(
    model: Transformer, prompts: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns responses, the log-prob of each token as it was drawn, and the mask; all [B, T].

    The mask is True up to and including the first stop; what a finished row writes after it is
    padding. There is no temperature and no top-p, so the log-probs are those of the full softmax.
    """
    ids, drawn = prompts, []
    for _ in range(MAX_TOKENS):
        logp = model(ids)[:, -1].log_softmax(-1)
        token = torch.multinomial(logp.exp(), 1, generator=generator)
        ids = torch.cat([ids, token], 1)
        drawn.append(logp.gather(1, token))
    responses = ids[:, PROMPT_LENGTH:]
    stops = (responses == STOP).long()
    mask = stops.cumsum(1) - stops == 0  # no stop before this token
    return responses, torch.cat(drawn, 1), mask


def log_probs(model: Transformer, prompts: Tensor, responses: Tensor) -> Tensor:
    """Returns the log-prob of every response token, [B, T]: the shift by one happens here."""
    ids = torch.cat([prompts, responses], 1)
    logits = model(ids)[:, PROMPT_LENGTH - 1 : -1]  # the last prompt token predicts the first one
    return logits.log_softmax(-1).gather(2, responses[:, :, None])[:, :, 0]


# ----------------------------------------------------------------------------------- the loss


def advantages(reward: Tensor, group_size: int) -> Tensor:
    """Returns each reward as deviations above the mean of its group, [B]; neighbours are a group.

    A group of equal rewards teaches nothing. It is found by its range, not by adding an epsilon
    to the deviation: rounding alone makes a small deviation, and would pass for a lesson.
    """
    groups = reward.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    equal = groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True) < 1e-6
    return torch.where(equal, 0.0, centred / torch.where(equal, 1.0, deviation)).flatten()


def grpo_loss(
    logp: Tensor,
    old: Tensor,
    ref: Tensor,
    mask: Tensor,
    *,
    advantage: Tensor,
    clip: float = 0.2,
    beta: float = 0.04,
) -> Tensor:
    """Returns the GRPO loss of a batch: `advantage` is [B], the other tensors are [B, T].

        -1/B sum_i 1/T_i sum_t [ min(r A, clip(r, 1 - clip, 1 + clip) A) - beta k3 ]

    where r = policy / old, and k3 = x - log x - 1 at x = ref / policy. Only `logp` has a gradient.
    """
    ratio = (logp - old).exp()
    advantage = advantage[:, None]
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    log_x = ref - logp
    penalty = log_x.exp() - log_x - 1
    each = torch.where(mask, beta * penalty - surrogate, 0.0)
    return (each.sum(1) / mask.sum(1)).mean()


# ----------------------------------------------------------------------------------- the loop


def train(
    *,
    steps: int = 300,
    seed: int = 0,
    prompts_per_step: int = 32,
    group_size: int = 8,
    updates: int = 2,
    learning_rate: float = 1e-3,
) -> list[float]:
    """Returns the mean reward of every step; prints one line in 25 steps."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    policy = Transformer()
    reference = copy.deepcopy(policy).requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)
    curve, start = [], time.perf_counter()
    for step in range(steps):
        prompts = draw_prompts(prompts_per_step, generator).repeat_interleave(group_size, 0)
        responses, old, mask = sample(policy, prompts, generator)
        reward = rewards(prompts, responses)
        advantage = advantages(reward, group_size)
        ref = log_probs(reference, prompts, responses)
        for _ in range(updates):  # at the first one the ratio is 1; after it the clip can act
            logp = log_probs(policy, prompts, responses)
            loss = grpo_loss(logp, old, ref, mask, advantage=advantage)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        curve.append(reward.mean().item())
        if step % 25 == 0 or step == steps - 1:
            seconds, tokens = time.perf_counter() - start, mask.sum(1).float().mean()
            print(f"step {step}: reward {curve[-1]:.3f}, {tokens:.1f} tokens, {seconds:.0f} s")
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(steps=options.steps, seed=options.seed)
