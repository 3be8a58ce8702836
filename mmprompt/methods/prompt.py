"""Deep prefix prompts: the vectors that prompt tuning learns (paper 3.2; facts 1.2, 1.3).

B batch, P prompt length, L prompted layers of a stack, H heads, Dh head width, d = H Dh width.

A stack's prompt is one table, P x (2 L d). A row holds, for each prompted layer in order, a key and then a value, each H x Dh.
Self-attention has them before its own keys and values; they pass through no projection.
With reparameterization `mlp`, a small network computes this table from a table of P x d during training; a finished run keeps only
the computed table (paper 3.2).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprompt.models.attention import KeyValue, Prefixes
from mmprompt.models.ofa import OFA
from mmprompt.settings.model import Model
from mmprompt.settings.prompt import Prompt


def install(settings: Prompt, backbone: OFA, std: float, generator: torch.Generator) -> None:
    """Does nothing to the backbone, which stays frozen: `Tuned` has the prompts as a module of its own."""


class Prefix(nn.Module):
    """The prompt of one stack."""

    def __init__(self, model: Model, prompt: Prompt, length: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dropout = model.heads, model.dim // model.heads, prompt.dropout
        self.prompted = [layer for layer in range(layers) if prompt.layers is None or layer in prompt.layers]
        self.layers = layers
        width = 2 * len(self.prompted) * model.dim
        self.mlp: nn.Sequential | None = None
        if prompt.reparameterization == "mlp":
            hidden = prompt.mlp_dim or 2 * model.dim
            self.mlp = nn.Sequential(nn.Linear(model.dim, hidden), nn.ReLU(), nn.Linear(hidden, width))
            width = model.dim
        self.table = nn.Parameter(torch.empty(length, width))
        self.initialise(prompt.init_std, model.init_std, generator)

    def initialise(self, table_std: float, mlp_std: float, generator: torch.Generator) -> None:
        """Draws the weights. The MLP is initialised like every linear layer of the model, which is what the published code does in
        effect."""
        nn.init.normal_(self.table, std=table_std, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=mlp_std, generator=generator)
                nn.init.zeros_(module.bias)

    def values(self) -> Tensor:
        """The table of keys and values, P 2Ld; computed by the MLP if there is one."""
        values: Tensor = self.table if self.mlp is None else self.mlp(self.table)
        return values  # P 2Ld

    def forward(self, batch: int, dtype: torch.dtype = torch.float32) -> Prefixes:
        """Keys and values of each layer for `batch` examples, B H P Dh each, in this precision. Dropout draws anew for each
        example, from torch's global random stream."""
        values = self.values().to(dtype)  # P 2Ld
        table = values.view(len(self.table), 2 * len(self.prompted), self.heads, self.head_dim)  # P 2L H Dh
        # Split once, and before it is repeated: the gradient is then summed over the batch part by part.
        parts = [
            F.dropout(part.expand(batch, -1, -1, -1), self.dropout, self.training)  # B H P Dh
            for part in table.permute(1, 2, 0, 3).unbind(0)
        ]
        prefixes: list[KeyValue | None] = [None] * self.layers
        for layer, key, value in zip(self.prompted, parts[::2], parts[1::2], strict=True):
            prefixes[layer] = (key, value)
        return prefixes

    @torch.no_grad()
    def collapse(self) -> None:
        """Replaces the MLP by the table that it computes. The model's answers stay the same to the last bit."""
        self.table = nn.Parameter(self.values())
        self.mlp = None


class Prompts(nn.Module):
    """The prompts of both stacks: everything that prompt tuning trains.

    A stack without a prompt (because of the depth, or with P = 0) is None; with another method both are None.
    """

    def __init__(self, model: Model, prompt: Prompt | None, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder: Prefix | None = None
        self.decoder: Prefix | None = None
        if prompt is None:
            return
        length = {"encoder": prompt.length, "decoder": prompt.length}
        if prompt.decoder_length is not None:
            length["decoder"] = prompt.decoder_length
        layers = {"encoder": model.encoder_layers, "decoder": model.decoder_layers}
        stacks: dict[str, Prefix | None] = {
            stack: Prefix(model, prompt, length[stack], layers[stack], generator)
            if length[stack] > 0 and prompt.depth in (stack, "both")
            else None
            for stack in layers
        }
        self.encoder, self.decoder = stacks["encoder"], stacks["decoder"]

    def forward(self, batch: int, dtype: torch.dtype = torch.float32) -> tuple[Prefixes | None, Prefixes | None]:
        """The prefixes of encoder and decoder, for `model.encode` and `model.decode`, in this precision."""
        encoder = None if self.encoder is None else self.encoder(batch, dtype)
        decoder = None if self.decoder is None else self.decoder(batch, dtype)
        return encoder, decoder

    def collapsed(self) -> Prompts:
        """A copy with the computed tables, without the MLPs."""
        prompts = copy.deepcopy(self)
        for prefix in (prompts.encoder, prompts.decoder):
            if prefix is not None:
                prefix.collapse()
        return prompts
