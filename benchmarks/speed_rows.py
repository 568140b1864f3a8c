"""What is timed against TRL: models of known shapes, workloads, and how often each is run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from logratio.lab.workload import Workload, equal, ragged

Kind = Literal["grpo", "dpo"]
Sizes = Mapping[str, int]

SMALL = {
    "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 1024,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32000,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One workload, and how many processes and steps time it."""

    name: str
    model: str  # a shape's name, or a name for `sizes`
    prompts: int
    group: int  # of dpo: 2
    prompt_tokens: int
    completion_tokens: int
    sizes: Sizes | None = None  # of a Qwen2 shape
    ragged: bool = False
    beta: float = 0.0
    epochs: int = 1
    kind: Kind = "grpo"
    processes: int = 2  # of ours and of TRL's headline column, one after the other
    ours: int = 5  # timed steps of each process
    theirs: int = 2
    others: int = 1  # timed steps of TRL's further columns
    columns: tuple[str, ...] = ("bf16", "default")
    cold: bool = False  # the further columns have no warm-up: their steps are minutes
    wanted: float | None = None  # how many times as fast

    @property
    def workload(self) -> Workload:
        """The lengths of every prompt and completion."""
        make = ragged if self.ragged else equal
        made = make(self.prompts, self.group, (self.prompt_tokens, self.completion_tokens))
        reference = self.kind == "dpo" or self.beta > 0
        return replace(made, reference=reference, epochs=self.epochs)

    @property
    def size(self) -> str:
        """The workload in words."""
        words = f"{self.prompts} x {self.group} x ({self.prompt_tokens} + {self.completion_tokens})"
        more = [
            "DPO" if self.kind == "dpo" else "",
            "ragged" if self.ragged else "",
            f"beta {self.beta}" if self.beta and self.kind == "grpo" else "",
            f"{self.epochs} inner epochs" if self.epochs > 1 else "",
        ]
        return ", ".join([words, *filter(None, more)])

    def batches(self) -> list[int]:
        """Returns the per-device batches that TRL is tried with; of DPO they count pairs."""
        rows = self.prompts if self.kind == "dpo" else self.workload.rows
        found = [size for size in (4, 8, 16, 32) if size <= rows and rows % size == 0]
        return found or [rows]

    def record(self) -> dict[str, Any]:
        """Returns everything that decides what is measured."""
        return asdict(self)


GPT2 = [
    Row(name="gpt2", model="gpt2", prompts=2, group=8, prompt_tokens=256, completion_tokens=128,
        cold=True, wanted=6.0),
    Row(name="w1a", model="gpt2", prompts=4, group=8, prompt_tokens=64, completion_tokens=64,
        cold=True, wanted=4.0),
    Row(name="w1b", model="gpt2", prompts=4, group=8, prompt_tokens=128, completion_tokens=32,
        theirs=1, cold=True),
    Row(name="w2", model="gpt2", prompts=1, group=16, prompt_tokens=512, completion_tokens=128,
        ours=3, theirs=1, cold=True, wanted=8.0),
]  # fmt: skip
TINY = [
    Row(name="4.5m", model="qwen2-4.5m", prompts=4, group=8, prompt_tokens=64,
        completion_tokens=64, processes=3, ours=10, theirs=5, others=3, wanted=4.0),
    Row(name="w0", model="w0", prompts=4, group=8, prompt_tokens=128, completion_tokens=64,
        cold=True),
    Row(name="w6", model="w0", prompts=4, group=8, prompt_tokens=128, completion_tokens=64,
        ragged=True, processes=3, cold=True, wanted=5.0),
    Row(name="w7", model="w0", prompts=4, group=8, prompt_tokens=128, completion_tokens=64,
        beta=0.04, epochs=2, theirs=1, cold=True),
    Row(name="d1", model="qwen2-4.5m", kind="dpo", prompts=32, group=2, prompt_tokens=512,
        completion_tokens=128, beta=0.1, ours=3),
]  # fmt: skip
ALL = [*GPT2, *TINY]
LARGE = [
    Row(name="w3a", model="qwen2.5-0.5b", prompts=1, group=8, prompt_tokens=256,
        completion_tokens=64, processes=1, ours=3, theirs=1, columns=("bf16",)),
    Row(name="w3b", model="qwen2.5-0.5b", prompts=1, group=16, prompt_tokens=1024,
        completion_tokens=64, processes=1, ours=2, theirs=1, columns=("bf16",)),
]  # fmt: skip
QUICK = [
    replace(TINY[0], processes=1, ours=5, theirs=3, columns=()),
    replace(TINY[2], processes=1, ours=3, theirs=2, columns=()),
    replace(TINY[4], name="d1-quick", prompts=8, processes=1, ours=2, theirs=1, columns=()),
    Row(name="gpt2-quick", model="gpt2", prompts=1, group=8, prompt_tokens=64,
        completion_tokens=32, processes=1, ours=3, theirs=1, columns=()),
]  # fmt: skip


def curve(axis: str, point: int, **changes: Any) -> Row:
    """Returns one point of a growth curve around W0: few steps, TRL's headline only."""
    start = Row(
        name=f"{axis}-{point}", model="w0", prompts=4, group=8, prompt_tokens=128,
        completion_tokens=64, processes=1, ours=3, theirs=1, columns=(),
    )  # fmt: skip
    return replace(start, **changes)


def wide(width: int) -> dict[str, int]:
    """Returns the sizes of W0 at another width: heads of 64, the same shares elsewhere."""
    heads = width // 64
    return {
        **SMALL,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
    }


CURVES: Mapping[str, list[tuple[int, Row]]] = {
    "group": [(g, curve("group", g, prompts=32 // g, group=g)) for g in (2, 4, 8, 16, 32)],
    "prompt": [(p, curve("prompt", p, prompt_tokens=p)) for p in (32, 128, 256, 512, 1024)],
    "completion": [(c, curve("completion", c, completion_tokens=c)) for c in (16, 64, 128, 256)],
    "vocabulary": [
        (v, curve("vocabulary", v, model=f"v{v}", sizes={**SMALL, "vocab_size": v}))
        for v in (1024, 8192, 32000, 151936)
    ],
    "width": [(h, curve("width", h, model=f"h{h}", sizes=wide(h))) for h in (128, 256, 512, 1024)],
}
SETS: Mapping[str, list[Row]] = {
    "quick": QUICK,
    "all": ALL,
    "full": [*ALL, *LARGE, *(row for points in CURVES.values() for _, row in points)],
}
