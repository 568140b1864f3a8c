"""LoRA: small trainable matrices beside frozen ones, put into an unmodified model by peft.

    W x   becomes   W x + (alpha / rank) B A x,   B = 0 at first

The model with its adapter off is the model as it was: that is the reference, and no copy of it.
"""

import importlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from jaxtyping import Float
from safetensors import torch as safetensors
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from logratio.batch import Policy
from logratio.model.backbone import evaluating
from logratio.model.head import Readout
from logratio.model.network import Network, Reference
from logratio.model.pack import Pack
from logratio.part import Needs
from logratio.settings import AtLeastOne, Interval, Positive, Refused, check_settings

NAME = "default"  # peft's own name for the one adapter that a model has
PREFIX = "base_model.model."  # of every weight in peft's files
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """How large an adapter is and where it goes."""

    rank: AtLeastOne = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Interval("[0, 1)")] = 0.0  # in training mode only
    modules: tuple[str, ...] | None = None  # ends of names; None: every linear layer but the head

    def __post_init__(self) -> None:
        """Refuses a setting that its annotation excludes."""
        check_settings(type(self), {k: v for k, v in asdict(self).items() if k != "modules"})


def add(model: PreTrainedModel, how: Adapter, *, seed: int = 0) -> None:
    """Puts a fresh adapter into the model, in place, and freezes everything else.

    The seed decides A, and the global random state is left alone. Beside 16-bit weights the
    adapter is float32: it is what the optimiser moves.
    """
    chosen = targets(model, how.modules)
    # GPT-2 keeps its matrices transposed, in layers of its own
    turned = any(isinstance(model.get_submodule(name), Conv1D) for name in chosen)
    config = peft().LoraConfig(
        r=how.rank,
        lora_alpha=how.alpha,
        lora_dropout=how.dropout,
        target_modules=endings(model, chosen),
        fan_in_fan_out=turned,
        base_model_name_or_path=model.name_or_path or None,
        task_type="CAUSAL_LM",
    )
    before = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    inject(model, config)
    torch.random.set_rng_state(before)


def inject(model: PreTrainedModel, config: Any) -> None:
    """Puts an adapter into the model by its config; refuses a second one, and what is no LoRA."""
    if adapted(model):
        raise Refused("`model` has an adapter, but it can have one only: merge that first")
    try:
        peft().inject_adapter_in_model(config, model, NAME)
    except ValueError as error:
        raise Refused(f"`modules` can not be adapted, says peft: {error}") from error
    functional = importlib.import_module("peft.functional")
    functional.cast_adapter_dtype(model, NAME, autocast_adapter_dtype=True)
    model.train(model.training)  # what was put in starts in training mode
    for name, layer in layers(model).items():
        plain = type(layer).__name__ == "Linear" and not layer.lora_variant
        if not plain or layer is model.get_output_embeddings() or any(layer.lora_bias.values()):
            raise Refused(f"`{name}` is adapted as {type(layer).__name__}, but logratio has plain "
                          "LoRA on linear layers other than the head")  # fmt: skip


def targets(model: PreTrainedModel, modules: tuple[str, ...] | None) -> list[str]:
    """Returns the names of the layers to adapt; one that names none is refused."""
    linear = [
        name
        for name, layer in named(model)
        if isinstance(layer, nn.Linear | Conv1D) and layer is not model.get_output_embeddings()
    ]
    if modules is None:
        return linear
    for end in modules:
        if not any(ends(name, end) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise Refused(f"`modules` names `{end}`, but the linear layers other than the head end "
                          f"in {', '.join(known)}")  # fmt: skip
    return [name for name in linear if any(ends(name, end) for end in modules)]


def ends(name: str, end: str) -> bool:
    """Says whether a layer's name ends in these words, as peft reads it."""
    return f".{name}".endswith(f".{end}")


def endings(model: PreTrainedModel, chosen: list[str]) -> list[str]:
    """Returns the last words of the names where those say the same layers, else whole names."""
    words = {name.rpartition(".")[2] for name in chosen}
    found = [name for name, _ in named(model) if name.rpartition(".")[2] in words]
    return sorted(words) if sorted(found) == sorted(chosen) else chosen


def adapted(model: nn.Module) -> bool:
    """Says whether the model has an adapter."""
    return hasattr(model, "peft_config")


def layers(model: nn.Module) -> dict[str, Any]:
    """Returns the layers that have an adapter, by name."""
    if not adapted(model):
        return {}
    kind = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    return {name: layer for name, layer in named(model) if isinstance(layer, kind)}


def named(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns every part of the model with its name."""
    return list(cast(Any, model).named_modules())


@contextmanager
def off(model: nn.Module) -> Generator[None]:
    """Makes the model what it was without its adapter, for as long as the context lasts."""
    found = list(layers(model).values())
    # peft takes the adapter off by freezing it, and would thaw a frozen one when it comes back
    flags = [(p, p.requires_grad) for layer in found for p in layer.parameters()]
    for layer in found:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in found:
            layer.enable_adapters(True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class Unadapted:
    """A network read with its adapter off: the reference of a LoRA run, in the same weights."""

    def __init__(self, network: Network, needs: Needs | None = None) -> None:
        """Keeps the network; `needs` are what to read of the reference, log-probs if None."""
        if not adapted(network.model):
            raise Refused("`model` has no adapter, so that it can not be its own reference")
        self.network, self.needs = network, needs or Needs()

    @property
    def model(self) -> PreTrainedModel:
        """The model, whose output layer has no adapter."""
        return self.network.model

    @property
    def readout(self) -> Readout:
        """How hidden states become logits."""
        return self.network.readout

    def hidden(self, pack: Pack) -> Float[Tensor, "N D"]:
        """Returns the last hidden state of every token of a pack."""
        with evaluating(self.network), off(self.model):
            return self.network.hidden(pack)

    def __call__(
        self, pack: Pack, reference: Reference | None = None, needs: Needs | None = None
    ) -> Policy:
        """Returns what the model without its adapter says of the pack's rows."""
        with evaluating(self.network), off(self.model):
            return cast(Policy, self.network(pack, reference, needs or self.needs))


def weights_of(
    model: PreTrainedModel, state: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Returns the adapter's weights under the names that they have in peft's files."""
    found = peft().get_peft_model_state_dict(model, state, NAME, save_embedding_layers=False)
    return {PREFIX + name: weight for name, weight in found.items()}


def save(model: PreTrainedModel, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes the adapter alone in peft's layout; `state` are full weights of a sharded model."""
    if not adapted(model):
        raise Refused("`model` has no adapter to be saved")
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: weight.contiguous() for name, weight in weights_of(model, state).items()}
    cast(Any, safetensors).save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
    config = copy(cast(Any, model).peft_config[NAME])
    config.inference_mode = True  # as peft writes it: whoever loads it to train says so
    config.save_pretrained(str(folder))


def load(model: PreTrainedModel, folder: Path) -> None:
    """Puts a saved adapter into the model, in place, ready to be trained further."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise Refused(f"`adapter` is `{folder}`, which has no {name}: weights are read from "
                          "safetensors only")  # fmt: skip
    config = peft().PeftConfig.from_pretrained(str(folder))
    if config.peft_type != "LORA" or config.modules_to_save:
        kind, more = config.peft_type, config.modules_to_save
        raise Refused(f"`adapter` is `{folder}`, which is more than plain LoRA: `peft_type` is "
                      f"{kind}, `modules_to_save` {more}")  # fmt: skip
    config.inference_mode = False
    inject(model, config)
    own = weights_of(model)
    given = cast(dict[str, Tensor], cast(Any, safetensors).load_file(folder / WEIGHTS))
    for name in sorted(given.keys() | own.keys()):
        shapes = [list(one[name].shape) if name in one else None for one in (given, own)]
        if shapes[0] != shapes[1]:
            raise Refused(f"`adapter` is `{folder}`, made for another model: its `{name}` has "
                          f"shape {shapes[0]}, but here it is {shapes[1]}")  # fmt: skip
    peft().set_peft_model_state_dict(model, given, NAME)


def merged(model: PreTrainedModel, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Returns the weights of the model without an adapter that says what this one says.

    The model is left as it is. The sum is made in the wider type and rounded once.
    """
    found = layers(model)
    state = model.state_dict() if state is None else state
    made: dict[str, Tensor] = {}
    for name, weight in state.items():
        place, inside, last = name.partition(".base_layer.")
        if not inside:
            if not any(part.startswith("lora_") for part in name.split(".")):
                made[name] = weight
            continue
        if last == "weight":
            down, up = (state[f"{place}.lora_{side}.{NAME}.weight"] for side in "AB")
            product = (up @ down) * found[place].scaling[NAME]
            product = product.T if found[place].fan_in_fan_out else product
            weight = (weight.to(product.dtype) + product).to(weight.dtype)  # noqa: PLW2901
        made[f"{place}.{last}"] = weight
    return made


def peft() -> Any:
    """Returns the package peft, an extra that is slow to import; without it, says how to get it."""
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        raise Refused("`adapter` needs the package peft: pip install 'logratio[lora]'") from error
