"""GRU4Rec (Hidasi et al. 2016): a session GRU. Shapes: B sequences, L positions, D width of a view.

Item vectors go through gated recurrent units and one feed-forward layer (Figure 1 there). The state after every
position predicts, not the last one's alone. Items are tied: what is read is what is scored against, as in the
"constrained embedding" of the authors' later code (Hidasi and Karatzoglou 2018).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from dmesr_trainer.config import BackboneConfig
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.dropout import ByteDropout


class Gru4Rec(Backbone):
    """Causal by its recurrence: padding at the end comes after all that counts."""

    causal = True

    def __init__(self, config: BackboneConfig, *, dim: int) -> None:
        """Builds it.

        Args:
            config: Layers, dropout, L; heads play no part.
            dim: D, also of the hidden state.
        """
        super().__init__()
        self.max_history = config.max_history
        self.dropout = ByteDropout(config.dropout)
        self.layers = nn.ModuleList(nn.GRU(dim, dim, batch_first=True) for _ in range(config.layers))
        # A state lies within (-1, 1), so that its length, and with it every score, would be bounded.
        self.feed = nn.Linear(dim, dim)
        self.scale = math.sqrt(dim)

    def forward(self, inputs_BLD: Tensor, lengths_B: Tensor) -> Tensor:  # noqa: D102
        states_BLD = inputs_BLD * self.scale
        for layer in self.layers:
            states_BLD = _run(cast(nn.GRU, layer), self.dropout(states_BLD))
        fed_BLD: Tensor = self.feed(self.dropout(states_BLD))
        return fed_BLD


def _run(layer: nn.GRU, inputs_BLD: Tensor) -> Tensor:
    if not torch.compiler.is_exporting():
        states_BLD: Tensor = layer(inputs_BLD)[0]
        return states_BLD
    # Traced, nn.GRU becomes a loop over as many steps as the example has; ONNX has the recurrence as one operator.
    inputs_LBD = inputs_BLD.transpose(0, 1)
    length, batch, dim = inputs_LBD.shape
    weights = [_update_gate_first(layer, name)[None] for name in ("weight_ih_l0", "weight_hh_l0")]
    biases = torch.cat([_update_gate_first(layer, name) for name in ("bias_ih_l0", "bias_hh_l0")])[None]
    states_L1BD = torch.onnx.ops.symbolic(
        "GRU",
        [inputs_LBD, *weights, biases],
        {"hidden_size": dim, "linear_before_reset": 1},
        dtype=inputs_LBD.dtype,
        shape=(length, 1, batch, dim),
    )
    return states_L1BD.squeeze(1).transpose(0, 1)


def _update_gate_first(layer: nn.GRU, name: str) -> Tensor:
    """ONNX wants the gates as update, reset, new; PyTorch keeps reset, update, new."""
    gates = getattr(layer, name)
    dim = len(gates) // 3
    return torch.cat([gates[dim : 2 * dim], gates[:dim], gates[2 * dim :]])
