"""Position embeddings, and the attention biases computed from them (facts 4.6).

OFA adds no position embedding to its inputs. Positions enter attention as an additive bias per head, the sum of two parts:
absolute  the position embeddings of query and key, projected and multiplied; the same for all layers of a stack
relative  a table per layer over bucketed distances, between two text tokens or between two patches; none between text and patch
T sequence, S text tokens, h x w grid of N = h w patches, H heads, Dh head width, d width, K largest grid side.
Every bias is H T T: the same for all examples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LONGEST = 1024  # the distance at which the logarithmic text buckets end, whatever the size of the position tables
RESULTS_KEPT = 2  # the texts of a split mostly have one or two lengths in steps of 16


@lru_cache(maxsize=64)
def token_buckets(length: int, buckets: int, device: torch.device) -> Tensor:
    """Bucket of the distance between each query and key, S S: exact up to buckets/2, then logarithmic. In 0 .. 2 buckets - 2."""
    middle = buckets // 2
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    far = distance.abs().clamp(min=middle).double() / middle
    far = torch.ceil(far.log() / torch.tensor((LONGEST - 1) / middle).double().log() * (middle - 1)) + middle
    bucket = torch.where(distance.abs() <= middle, distance, distance.sign() * far.long())
    return (bucket + buckets - 1).to(device)  # S S


@lru_cache(maxsize=64)
def image_buckets(h: int, w: int, side: int, device: torch.device) -> Tensor:
    """Bucket of each pair of patches, N N: one for each pair of row distance and column distance, both exact."""
    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    row, column = row.flatten(), column.flatten()
    rows, columns = row[:, None] - row[None, :], column[:, None] - column[None, :]
    return ((rows + side - 1) * (2 * side - 1) + columns + side - 1).to(device)  # N N


def image_bucket_count(side: int) -> int:
    """Number of image buckets. Three more than there are distances: the official tables have them for position 0, which no patch
    has."""
    return (2 * side - 1) ** 2 + 3


class TokenPositions(nn.Module):
    """Normalised position embeddings of text. Text starts at position 0; padding has positions too."""

    def __init__(self, max_positions: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_positions + 2, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, length: int) -> Tensor:
        if length > self.table.num_embeddings:
            raise ValueError(f"{length} tokens do not fit {self.table.num_embeddings} positions (model.max_positions)")
        places: Tensor = self.norm(self.table.weight[:length])
        return places  # S d


class ImagePositions(nn.Module):
    """Normalised position embeddings of patches. The patch in row r, column c has position K r + c + 1, at every resolution."""

    def __init__(self, side: int, interpolate_from: int | None, dim: int) -> None:
        super().__init__()
        self.side, self.interpolate_from = side, interpolate_from
        self.table = nn.Embedding(side * side + 1, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, h: int, w: int) -> Tensor:
        if max(h, w) > self.side:
            raise ValueError(f"a grid of {h} x {w} patches does not fit model.image_buckets={self.side}")
        grid = self.table.weight[1:].view(self.side, self.side, -1)  # K K d
        if self.interpolate_from is None:
            grid = grid[:h, :w]
        else:
            small = grid[: self.interpolate_from, : self.interpolate_from].permute(2, 0, 1)[None]  # 1 d side side
            grid = F.interpolate(small, size=(h, w), mode="bilinear")[0].permute(1, 2, 0)
        places: Tensor = self.norm(grid.flatten(0, 1))
        return places  # N d


class AbsoluteBias(nn.Module):
    """The absolute bias: scaled dot product of projected position embeddings, per head."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (2 * dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:  # Tq d, Tk d
        q = self.query(queries).view(len(queries), self.heads, -1).transpose(0, 1)  # H Tq Dh
        k = self.key(keys).view(len(keys), self.heads, -1).permute(1, 2, 0)  # H Dh Tk
        bias: Tensor = (q * self.scale) @ k
        return bias  # H Tq Tk


class TokenRelativeBias(nn.Module):
    """The relative bias between text tokens."""

    def __init__(self, buckets: int, heads: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.table = nn.Embedding(2 * buckets - 1, heads)

    def forward(self, length: int) -> Tensor:
        bias: Tensor = self.table(token_buckets(length, self.buckets, self.table.weight.device))
        return bias.permute(2, 0, 1)  # H S S


class ImageRelativeBias(nn.Module):
    """The relative bias between patches."""

    def __init__(self, side: int, heads: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Embedding(image_bucket_count(side), heads)

    def forward(self, h: int, w: int) -> Tensor:
        bias: Tensor = self.table(image_buckets(h, w, self.side, self.table.weight.device))
        return bias.permute(2, 0, 1)  # H N N


class RecentResults:
    """A cache of results that depend on frozen tensors. A result is computed again when one of its tensors is written to, moved or
    replaced; a write through `.data` is not noticed.

    While one of the tensors trains, nothing is cached. A copy of the module that holds this starts with an empty cache.
    """

    def __init__(self) -> None:
        self.results: dict[Hashable, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> RecentResults:
        return RecentResults()

    def __call__(self, key: Hashable, tensors: Iterable[Tensor], make: Callable[[], Any]) -> Any:
        """The result of make(), which must depend on `key` and `tensors` alone."""
        tensors = [*tensors]
        if any(tensor.requires_grad for tensor in tensors):
            return make()
        name = (key, *((tensor.data_ptr(), tensor._version) for tensor in tensors))
        if name not in self.results:
            while len(self.results) >= RESULTS_KEPT:
                del self.results[next(iter(self.results))]
            # Stored with the tensors, so that no other tensor gets their addresses while the result is cached.
            self.results[name] = [tensor.detach() for tensor in tensors], make()
        return self.results[name][1]
