"""Rollouts from the trainer's own weights, one token of every live row at a time."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from logratio.engine import Request, check_prompts
from logratio.engines.local.decoding import Decoding
from logratio.engines.local.forward import Forward
from logratio.model.attention import planned
from logratio.model.backbone import evaluating, room_of
from logratio.model.matmul import laid_out
from logratio.model.memory import keep_freed
from logratio.model.network import Network
from logratio.records import Rollout
from logratio.sampler import Sampling
from logratio.settings import Refused


class Local:
    """Decodes with the network that the learner trains: weights are shared, never copied."""

    promises = frozenset(["seed per position", "exact weights", "split", "fork"])

    def __init__(self, network: Network, ends: Sequence[int], *, slots: int = 64) -> None:
        """Keeps the network; `ends` are the ids that end a rollout."""
        if network.route.engine != "local":
            raise Refused(f"`engine` is local, but this model needs {network.route.engine}: "
                          f"{network.route.why}")  # fmt: skip
        self.network, self.ends, self.slots = network, frozenset(ends), slots
        keep_freed()
        self.version = 0
        self.seconds = {"prefill": 0.0, "decode": 0.0, "sample": 0.0}  # of the last call
        self.kept: Any = None  # on a GPU: memory and captured steps

    def load(self, version: int, weights: Mapping[str, Any] | None) -> None:
        """Takes note of a version; the weights are the network's own."""
        if weights is not None:
            raise Refused("`weights` were given, but the local engine shares the learner's own")
        self.version = version

    def decoding(self, model: Forward, requests: Sequence[Request], sampling: Sampling) -> Decoding:
        """Returns the rows of a call; on a GPU they take steps that nothing looks into."""
        slots, ends = self.slots, self.ends
        if model.device.type != "cuda":
            return Decoding(requests, sampling, slots=slots, ends=ends, device=model.device)
        gpu = importlib.import_module("logratio.engines.local.cuda.strides")
        self.kept = self.kept or gpu.Kept.on_gpu(model)
        return gpu.Strides(requests, sampling, slots=slots, ends=ends, model=model, kept=self.kept)

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """Returns a rollout for each request, in order, each followed by its sister if any."""
        check_prompts(requests, sampling, room=room_of(self.network.model))
        model = Forward(self.network)
        decoding = self.decoding(model, requests, sampling)
        # a rollout is sampled in evaluation mode: dropout would make the policy that samples
        # another one than the policy that is scored
        with (
            evaluating(self.network),
            laid_out(self.network.model),
            planned(self.network.model, decoding.slots),
        ):
            made = decoding.run(model, self.version)
        self.seconds = decoding.seconds
        return made
