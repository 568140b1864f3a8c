"""logratio: every way to post-train a language model as one short pure function over one batch."""

__version__ = "0.1.0"
