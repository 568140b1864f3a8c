"""Every registered objective, and the settings of each that lead down another path."""

import warnings

from logratio.objective import Objective
from logratio.objectives import find, names

LENGTH = {"average.length": 8}

VARIANTS: dict[str, list[dict[str, object]]] = {
    "reward_model": [{"margin": "column", "centering": 0.01}],
    "dpo": [
        {"kind": kind, "normalise": normalise, "smoothing": 0.1 if smoothed else 0.0}
        for kind, smoothed in (
            ("sigmoid", True),
            ("ipo", False),
            ("hinge", False),
            ("robust", True),
        )
        for normalise in ("sum", "length")
    ],
    "ppo": [
        {"dual": 2.0, "entropy": 0.01, "value_clip": None},
        {"credit.truncated": "bootstrap", "credit.rewards": "steps", "credit.kl": 0.0},
        {"clip_high": 0.3, "credit.estimator": "k3", "credit.discount": 0.9},
    ],
    "grpo": [
        *({"beta": 0.1, "estimator": estimator} for estimator in ("k1", "k2", "k3", "exact")),
        *({"beta": 0.1, "estimator": e, "corrected": True} for e in ("k1", "k2", "k3")),
        *({"credit.kl": 0.1, "credit.estimator": e} for e in ("k1", "k3", "exact")),
        {"dual": 1.5, "clip_high": 0.4, "behaviour_cap": 1.2},
        {"ratio": "sequence", "surrogate": "cispo"},
        {"weight": "random", "average": "summed"},
        {"credit": "process", "credit.spread": "sample", "ratio": "sequence"},
        {"average.truncated": "leave_out", "credit.spread": "batch"},
        {"credit": "plain", "average": "per_group_token"},
    ],
    "qpo": [
        *(
            {"target": target, "offset": offset, "A": "learned"}
            for target in ("monte_carlo", "bootstrap", "q_learning", "td")
            for offset in ("none", "log_sum_exp", "head")
        ),
        {"target": "td", "reading": "logit", "offset": "head", "A": 0.5, "lagged": True},
        {"target": "q_learning", "top_p": 0.8, "top_k": 3, "truncated": "bootstrap"},
        {"reading": "logit", "offset": "none", "centred": False, "A": "learned", "gain": 2.0},
        {"label_threshold": 0.5, "gain": 0.5, "c": 0.3},
    ],
    "spo": [
        *({"q0": q0} for q0 in ("reference", "learned", "mean", "policy_weighted", "policy", 0.3)),
        {"kind": "pair", "average": "per_pair", "q0": "learned"},
        {"rewards": "tokens", "anchor": "old"},
    ],
    "importance": [
        {"kind": kind, "link": link, "credit.corrected": corrected}
        for kind in ("normal", "product", "bernoulli")
        for link, corrected in (("sigmoid", True), ("tanh", False))
    ],
    "variance_grpo": [{"weight.over": "batch", "weight.strength": 1.0}],
}


def objectives() -> dict[str, Objective]:
    """Returns all of them under a name that says which."""
    found: dict[str, Objective] = {}
    for name in names():
        plain = find(name)
        found[name] = plain
        settings = [{"preset": preset} for preset in plain.presets] + VARIANTS.get(name, [])
        for chosen in settings:
            needed = LENGTH if chosen == {"preset": "dr_grpo"} else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                label = " ".join(f"{key}={value}" for key, value in chosen.items())
                found[f"{name} {label}"] = plain.using(**chosen, **needed)
    return found
