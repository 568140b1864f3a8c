"""The network as decoding calls it: hidden states under a plan, then logits."""

from dataclasses import replace

from torch import Tensor

from logratio.model.attention import Plan, planned
from logratio.model.matmul import linear_of
from logratio.model.network import Network, output_layer


class Forward:
    """The network's backbone and output layer, as decoding calls them."""

    def __init__(self, network: Network) -> None:
        """Lays out the output layer for few rows."""
        weight, bias = output_layer(network.model)
        self.model, self.device = network.model, weight.device
        self.readout = replace(network.readout, temperature=1.0)
        self.head = linear_of(weight, bias)

    def hidden(self, ids: Tensor, positions: Tensor, plan: Plan) -> Tensor:
        """Returns the last hidden states."""
        with planned(self.model, plan):
            found = self.model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
        return found.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits after the model's own cap and scale, before the temperature."""
        return self.readout.finished(self.head(hidden))
