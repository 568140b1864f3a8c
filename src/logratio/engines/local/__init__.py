"""The local engine: the trainer's own weights, prompts read once a group, finished rows leave."""

from logratio.engines.local.engine import Local

__all__ = ["Local"]
