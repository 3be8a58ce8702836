"""Multi-head attention as in OFA, with an optional prefix of keys and values (facts 1.2, 4.7).

B batch, T queries, U keys, P prompt length, H heads, Dh head width, d width.
Per head, with c the learned head scale:
    scores = q k' / sqrt(2 Dh) + bias        over [prefix ; keys], bias 0 on the prefix
    output = c softmax(scores) [prefix values ; values]
Keys that are padding have -inf in `hidden`, B 1 1 U, which is added to the scores too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from mmprompt.models.precision import Linear

KeyValue = tuple[Tensor, Tensor]  # B H P Dh each
Prefixes = Sequence[KeyValue | None]  # one per layer of a stack; None: that layer has no prompt
View = tuple[torch.Size, tuple[int, ...], int | torch.SymInt]  # shape, strides and offset in a tensor's memory


def concatenated(first: KeyValue | None, second: KeyValue) -> KeyValue:
    """Joins keys and values along the sequence, `first` before `second`."""
    if first is None:
        return second
    return torch.cat([first[0], second[0]], dim=2), torch.cat([first[1], second[1]], dim=2)


def hiding(mask: Tensor, hidden: Tensor) -> Tensor:
    """The mask (1 H T P+U) with -inf at the keys that are hidden (B 1 1 U): B H T P+U."""
    return mask + F.pad(hidden, (mask.shape[3] - hidden.shape[3], 0))


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, hidden: Tensor | None, scale: float
) -> Tensor:  # B H T Dh
    """Attention of queries (B H T Dh) to keys and values (B H U Dh). `mask` and `hidden` are added to the scores.

    Their sum has a row for each example, and all layers together gigabytes of it. So autograd keeps how it is made, not the sum.
    """
    if hidden is None:
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    total = hiding(mask, hidden)
    if torch.compiler.is_compiling():  # the compiler decides itself what the backward pass makes again
        return F.scaled_dot_product_attention(query, key, value, total, scale=scale)
    memory = total.untyped_storage()._cdata

    def pack(kept: Tensor) -> Tensor | View:  # a kernel may keep a view of the sum
        ours = kept.untyped_storage()._cdata == memory
        return (kept.shape, kept.stride(), kept.storage_offset()) if ours else kept

    def unpack(kept: Tensor | View) -> Tensor:
        return kept if isinstance(kept, Tensor) else hiding(mask, hidden).as_strided(*kept)

    with saved_tensors_hooks(pack, unpack):
        return F.scaled_dot_product_attention(query, key, value, total, scale=scale)


@dataclass(frozen=True)
class Past:
    """Keys and values of the tokens so far, in memory that may have room for more.

    Appending fills this room in place and copies nothing else. So if one past is continued several times, only the latest
    continuation is valid.
    """

    memory: KeyValue  # B H . Dh each
    length: int

    @property
    def key_value(self) -> KeyValue:
        key, value = self.memory
        return key[:, :, : self.length], value[:, :, : self.length]

    def append(self, new: KeyValue) -> Past:
        length = self.length + new[0].shape[2]
        if length > self.memory[0].shape[2]:
            return Past(concatenated(self.key_value, new), length)
        for buffer, addition in zip(self.memory, new, strict=True):
            buffer[:, :, self.length : length] = addition
        return Past(self.memory, length)

    def with_room(self, tokens: int) -> Past:
        """A copy whose memory has room for this many more tokens."""
        key, value = self.key_value
        return Past((F.pad(key, (0, 0, 0, tokens)), F.pad(value, (0, 0, 0, tokens))), self.length)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (2 * dim // heads) ** -0.5
        self.query = Linear(dim, dim)
        self.key = Linear(dim, dim)
        self.value = Linear(dim, dim)
        self.out = Linear(dim, dim)
        self.head_scale = nn.Parameter(torch.ones(heads))

    def split(self, x: Tensor) -> Tensor:  # B T d
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # B H T Dh

    def key_value(self, memory: Tensor) -> KeyValue:
        return self.split(self.key(memory)), self.split(self.value(memory))  # B H U Dh each

    def attend(self, x: Tensor, key_value: KeyValue, mask: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Attention from `x` (B T d) to keys and values (B H U Dh); `mask` (B or 1, H T U) is added to the scores. B T d."""
        heads = attention(self.split(self.query(x)), *key_value, mask, hidden, self.scale)  # B H T Dh
        heads = heads * self.head_scale.to(heads.dtype)[:, None, None]
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out  # B T d

    def forward(
        self, x: Tensor, memory: Tensor, mask: Tensor, prefix: KeyValue | None, hidden: Tensor | None = None
    ) -> Tensor:
        """Attention from `x` (B T d) to `prefix` (B H P Dh) and `memory` (B U d); `mask` (B or 1, H T P+U) is added to the scores.

        Returns B T d.
        """
        return self.attend(x, concatenated(prefix, self.key_value(memory)), mask, hidden)
