"""OFA: images and text in, text out. One code for all sizes (facts 4; the sizes are in conf/model/).

B batch, S source tokens, h x w grid of N = h w patches, U = N + S encoder sequence (patches first), T decoder sequence,
P prompt length, H heads, Dh head width, d width, C = 16 x resnet_width feature channels, V vocabulary.

    features = model.features(images)                                      # B C h w
    encoded = model.encode(tokens, features, image_mask, encoder_prefixes)
    logits = model.decode(targets, encoded, decoder_prefixes)              # B T V

Embeddings, positions, the first norms and everything from the decoder's last norm on are float32. What lies between is computed
in `model.dtype`, float32 unless `compute_in` was called.

Image generation is left out: the decoder has no image codes (`ofa_checkpoint` names the tensors that belong to it).
Initialisation, dropout and drop-path draw from torch's global random stream, which is seeded in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmprompt.models.attention import KeyValue, Past, Prefixes, hiding
from mmprompt.models.layers import DecoderLayer, EncoderLayer, gather_places
from mmprompt.models.positions import (
    AbsoluteBias,
    ImagePositions,
    ImageRelativeBias,
    RecentResults,
    TokenPositions,
    TokenRelativeBias,
)
from mmprompt.models.precision import LayerNorm, Linear, hold_frozen
from mmprompt.models.resnet import ResNet
from mmprompt.settings.model import Model

BOS, PAD, EOS = 0, 1, 2  # the same ids in every size (facts 4.2)
TEXT, IMAGE = 0, 1  # rows of the type embedding
STEP = 16  # masks are made for text lengths that are multiples of this, and shared by the shorter texts


def stepped(length: int) -> int:
    """The smallest multiple of STEP that is not below this length."""
    return -(-length // STEP) * STEP


@dataclass(frozen=True)
class Encoded:
    """The encoder's output, which the decoder's cross-attention reads."""

    states: Tensor  # B U d, after the final norm
    padding: Tensor | None  # B U, True at padding; None: no padding in the batch
    positions: Tensor  # U d, normalised position embeddings: the key side of cross-attention's bias


@dataclass(frozen=True)
class KeyValueCache:
    """The keys and values of the R tokens that the decoder has read of each example, and everything else that it needs to read
    more. The tokens may be branches of a tree."""

    past: Sequence[Past | None]  # of each layer's self-attention: the prompt, then the tokens, P+R
    memory: Sequence[KeyValue]  # cross-attention's keys and values of each layer, B H U Dh
    memory_padding: Tensor | None  # B U
    places: Tensor  # (B or 1) R, the tokens' positions
    biases: Sequence[Tensor]  # position bias of each layer's self-attention, H L L, for sequences of up to L tokens
    memory_bias: Tensor  # position bias of cross-attention, H L U

    def with_room(self, tokens: int) -> KeyValueCache:
        """A copy with room for this many more tokens of each example, including all branches. Room only makes reading cheaper."""
        memory = [(key.contiguous(), value.contiguous()) for key, value in self.memory]
        return replace(self, past=[past and past.with_room(tokens) for past in self.past], memory=memory)

    def memory_mask(self, places: Tensor) -> Tensor:
        """The mask of cross-attention for queries at positions `places` ((B or 1) n): (B or 1) H n U."""
        mask = self.memory_bias[:, places].transpose(0, 1)
        if self.memory_padding is not None:
            mask = mask.masked_fill(self.memory_padding[:, None, None, :], float("-inf"))
        return mask


def mask_at(bias: Tensor, queries: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
    """The bias (H L L) at the positions of queries (b n) and keys (b m), and -inf where a key is not visible (b n m): b H n m."""
    mask = bias[:, queries[:, :, None], keys[:, None, :]].transpose(0, 1)
    return mask.masked_fill(~visible[:, None], float("-inf"))


def none_if_unpadded(padding: Tensor) -> Tensor | None:
    """`padding`, or None if the batch has none: it then needs no mask per example, and one bias serves the whole batch."""
    return padding if bool(padding.any()) else None


@dataclass(frozen=True)
class Wanted:
    """The places in a batch whose states are computed, as indices: a mask on a GPU would have to be read back to know how many."""

    columns: Tensor  # B A, the places of each row; a row with fewer than A is filled up
    chosen: Tensor  # n, which of these B A places are wanted, row by row
    places: Tensor  # n, the same places in the B T of the batch

    @classmethod
    def of(cls, mask: Tensor, width: Callable[[int], int] | None = None) -> Wanted:
        """The places where a mask on the CPU (B T) is True. `width`: from the number of places in the row that has most of them to
        the number of columns; None: the same."""
        most = int(mask.sum(1).max())
        most = most if width is None else min(width(most), mask.shape[1])
        columns = mask.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        chosen = mask.gather(1, columns).flatten().nonzero()[:, 0]
        return cls(columns, chosen, mask.flatten().nonzero()[:, 0])

    def to(self, device: torch.device) -> Wanted:
        return Wanted(*(x.to(device, non_blocking=True) for x in (self.columns, self.chosen, self.places)))

    def of_rows(self, values: Tensor) -> Tensor:
        """The values (B T) at the wanted places, n."""
        return values.flatten().index_select(0, self.places)


def drop_paths(rate: float, layers: int) -> list[float]:
    """The drop-path rate of each layer: it rises linearly from 0 in the first layer to `rate` in the last."""
    return [rate * layer / max(layers - 1, 1) for layer in range(layers)]


class Encoder(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.resnet = ResNet(model.resnet_width, model.resnet_blocks)
        self.image_proj = Linear(self.resnet.channels, model.dim)
        self.types = nn.Embedding(2, model.dim)
        self.image_norm = LayerNorm(model.dim)
        self.token_norm = LayerNorm(model.dim)
        self.dropout = nn.Dropout(model.dropout)
        self.token_positions = TokenPositions(model.max_positions, model.dim)
        self.image_positions = ImagePositions(model.image_buckets, model.interpolate_from, model.dim)
        self.position_bias = AbsoluteBias(model.dim, model.heads)
        rates = drop_paths(model.encoder_drop_path, model.encoder_layers)
        self.token_biases = nn.ModuleList(TokenRelativeBias(model.token_buckets, model.heads) for _ in rates)
        self.image_biases = nn.ModuleList(ImageRelativeBias(model.image_buckets, model.heads) for _ in rates)
        self.layers = nn.ModuleList(EncoderLayer(model, rate) for rate in rates)
        self.norm = LayerNorm(model.dim)
        self.remembered = RecentResults()
        self.dtype = torch.float32  # of the layers
        self.recompute = False  # whether the backward pass computes the layers again, for less memory
        self.run: Callable[..., Tensor] = EncoderLayer.__call__  # executes a layer

    def embed_text(self, embedded: Tensor) -> Tensor:
        text: Tensor = self.dropout(self.token_norm(embedded + self.types.weight[TEXT]))
        return text.to(self.dtype)  # B S d

    def patches(self, features: Tensor) -> Tensor:  # B C h w
        patches: Tensor = self.image_proj(features.flatten(2).transpose(1, 2).to(self.dtype)).float()
        return patches  # B N d, row by row

    def embed_image(self, patches: Tensor) -> Tensor:
        image: Tensor = self.dropout(self.image_norm(patches + self.types.weight[IMAGE]))
        return image.to(self.dtype)  # B N d

    def positions(self, grid: tuple[int, int] | None, length: int) -> Tensor:
        text = self.token_positions(length)
        return text if grid is None else torch.cat([self.image_positions(*grid), text])  # U d

    def biases(self, grid: tuple[int, int] | None, length: int, positions: Tensor) -> list[Tensor]:
        """Position bias of each layer, H U U. It depends on the grid and the text length, not on the examples."""
        absolute = self.position_bias(positions, positions)  # H U U
        patches = 0 if grid is None else grid[0] * grid[1]
        biases = []
        for token_bias, image_bias in zip(self.token_biases, self.image_biases, strict=True):
            bias = absolute.clone()
            bias[:, patches:, patches:] += token_bias(length)
            if grid is not None:
                bias[:, :patches, :patches] += image_bias(*grid)
            biases.append(bias)
        return biases

    def masks(self, grid: tuple[int, int] | None, length: int, prompts: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Returns the position embeddings U d, and the mask that each layer adds to its scores, 1 H U P+U: 0 for the layer's
        prompt, then its position bias.

        While none of their parameters trains, they are computed once for all texts of similar length, and cut to this length.
        """
        longest = max(length, min(stepped(length), self.token_positions.table.num_embeddings))

        def make() -> tuple[Tensor, list[Tensor]]:
            positions = self.positions(grid, longest)
            biases = self.biases(grid, longest, positions)
            return positions, [F.pad(b, (p, 0))[None].to(self.dtype) for b, p in zip(biases, prompts, strict=True)]

        parts = (self.token_positions, self.image_positions, self.position_bias, self.token_biases, self.image_biases)
        tensors = (parameter for part in parts for parameter in part.parameters())
        positions, masks = self.remembered((grid, longest, *prompts, self.dtype), tensors, make)
        end = len(positions) - longest + length
        return positions[:end], [mask[:, :, :end, : prompt + end] for mask, prompt in zip(masks, prompts, strict=True)]

    def forward(
        self,
        embedded: Tensor,
        padding: Tensor | None,
        patches: Tensor | None,
        grid: tuple[int, int] | None,
        image_mask: Tensor | None,
        prefixes: Prefixes | None,
    ) -> Encoded:
        """embedded B S d; padding B S, None: no text is padded; patches B N d, N = h w of `grid`; image_mask B, False
        where an example has no image."""
        x = self.embed_text(embedded)
        if patches is not None:
            x = torch.cat([self.embed_image(patches), x], dim=1)  # B U d
            if padding is not None or image_mask is not None:
                text = embedded.new_zeros(embedded.shape[:2], dtype=torch.bool) if padding is None else padding
                absent = torch.zeros_like(text[:, 0]) if image_mask is None else ~image_mask
                padding = torch.cat([absent[:, None].expand(-1, patches.shape[1]), text], dim=1)  # B U
                padding = padding if image_mask is None else none_if_unpadded(padding)
        prefixes = prefixes or [None] * len(self.layers)
        prompts = [0 if prefix is None else prefix[0].shape[2] for prefix in prefixes]
        positions, masks = self.masks(grid, embedded.shape[1], prompts)
        hidden: Tensor | None = None
        if padding is not None:
            x = x.masked_fill(padding[:, :, None], 0)
            zeros = masks[0].new_zeros(padding.shape)
            hidden = zeros.masked_fill(padding, float("-inf"))[:, None, None]  # B 1 1 U

        def recomputed(layer: nn.Module, x: Tensor, mask: Tensor, prefix: KeyValue | None) -> Tensor:
            return self.run(layer, x, mask if hidden is None else hiding(mask, hidden), None, prefix)  # B U d

        for layer, mask, prefix in zip(self.layers, masks, prefixes, strict=True):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(recomputed, layer, x, mask, prefix, use_reentrant=False)
            else:
                x = self.run(layer, x, mask, hidden, prefix)
        return Encoded(self.norm(x), padding, positions)


class Decoder(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.token_norm = LayerNorm(model.dim)
        self.dropout = nn.Dropout(model.dropout)
        self.token_positions = TokenPositions(model.max_positions, model.dim)
        self.self_bias = AbsoluteBias(model.dim, model.heads)
        self.cross_bias = AbsoluteBias(model.dim, model.heads)
        rates = drop_paths(model.decoder_drop_path, model.decoder_layers)
        self.token_biases = nn.ModuleList(TokenRelativeBias(model.token_buckets, model.heads) for _ in rates)
        self.layers = nn.ModuleList(DecoderLayer(model, rate) for rate in rates)
        self.norm = LayerNorm(model.dim)
        self.dtype = torch.float32  # of the layers
        self.run: Callable[..., tuple[Tensor, Past]] = DecoderLayer.__call__  # executes a layer

    def cache(self, encoded: Encoded, prefixes: Prefixes | None, length: int) -> KeyValueCache:
        """An empty cache, with biases for at most `length` tokens."""
        positions = self.token_positions(length)
        absolute = self.self_bias(positions, positions)
        memory_bias: Tensor = self.cross_bias(positions, encoded.positions)
        states = encoded.states.to(self.dtype)
        return KeyValueCache(
            past=[prefix and Past(prefix, prefix[0].shape[2]) for prefix in prefixes or [None] * len(self.layers)],
            memory=[cast(DecoderLayer, layer).cross_attention.key_value(states) for layer in self.layers],
            memory_padding=encoded.padding,
            places=torch.zeros(1, 0, dtype=torch.long, device=positions.device),
            biases=[(absolute + token_bias(length)).to(self.dtype) for token_bias in self.token_biases],
            memory_bias=memory_bias.to(self.dtype),
        )

    def forward(
        self, embedded: Tensor, places: Tensor, visible: Tensor, cache: KeyValueCache, wanted: Tensor | None
    ) -> tuple[Tensor, KeyValueCache]:
        """Reads n more tokens of each example.

        embedded B n d; places (B or 1) n, their positions; visible (B or 1) n R+n, which tokens each one attends to, among those
        read before and these; wanted B A, the indices in `embedded` of the tokens whose states are computed (None: all, A = n).
        Returns the states B A d, and the cache with these tokens.
        """
        batch = max(len(places), len(cache.places))
        keys = torch.cat([cache.places.expand(batch, -1), places.expand(batch, -1)], dim=1)  # B R+n
        x, pasts = self.dropout(self.token_norm(embedded)).to(self.dtype), []
        memory_mask = cache.memory_mask(places)
        for i, (layer, past, memory) in enumerate(zip(self.layers, cache.past, cache.memory, strict=True)):
            last = None
            if i == len(self.layers) - 1 and wanted is not None:
                last, places = wanted, places.expand(len(wanted), -1).gather(1, wanted)
                visible = gather_places(visible.expand(len(wanted), -1, -1), wanted)
                memory_mask = cache.memory_mask(places)
            mask = mask_at(cache.biases[i], places, keys, visible)
            x, extended = self.run(layer, x, mask, past, memory, memory_mask, last)
            pasts.append(extended)
        states: Tensor = self.norm(x.float())
        return states, replace(cache, past=pasts, places=keys)  # B A d


class OFA(nn.Module):
    """The whole model. Encoder, decoder and output share the token embedding."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embed = nn.Embedding(model.vocab_size, model.dim, padding_idx=PAD)
        self.encoder = Encoder(model)
        self.decoder = Decoder(model)
        self.initialise(model.init_std)

    @torch.no_grad()
    def initialise(self, std: float) -> None:
        """Draws the weights as OFA's are drawn before pretraining (facts 4.7). Norms and head scales are 1 already."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.embed.weight[PAD] = 0

    def compute_in(self, dtype: torch.dtype) -> OFA:
        """Computes in this precision from now on, and holds the frozen weights of all layers in it. Returns the model."""
        encoder, decoder = self.encoder, self.decoder
        encoder.dtype = decoder.dtype = dtype
        hold_frozen((encoder.resnet, encoder.image_proj, encoder.layers, encoder.norm, decoder.layers), dtype)
        return self

    def features(self, images: Tensor) -> Tensor:  # B 3 16h 16w
        features: Tensor = self.encoder.resnet(images.to(self.encoder.dtype))
        return features  # B C h w

    def encode(
        self,
        tokens: Tensor,
        features: Tensor | None,
        image_mask: Tensor | None,
        prefixes: Prefixes | None,
        padded: bool | None = None,
    ) -> Encoded:
        """Runs the encoder. tokens B S, padded on the right; features B C h w, None: no images; image_mask B, None: every example
        has an image; padded: whether any text is padded, None: it is looked up, for which a GPU is waited for."""
        patches, grid = None, None
        if features is not None:
            patches, grid = self.encoder.patches(features), (features.shape[2], features.shape[3])
        padding: Tensor | None = tokens == PAD if padded is not False else None
        if padding is not None and padded is None:
            padding = none_if_unpadded(padding)
        encoded: Encoded = self.encoder(self.embed(tokens), padding, patches, grid, image_mask, prefixes)
        return encoded

    def decode_states(
        self, tokens: Tensor, encoded: Encoded, prefixes: Prefixes | None, wanted: Wanted | None = None
    ) -> Tensor:
        """The decoder's states for `tokens` (B T, padded on the right): B T d. States at padding are meaningless.

        With `wanted` returns only the states of these n places, row by row: n d. The last layer then computes nothing else.
        """
        cache = self.decoder.cache(encoded, prefixes, tokens.shape[1])
        if wanted is None:
            return self.read(tokens, cache, None)[0]  # B T d
        return self.read(tokens, cache, wanted.columns)[0].flatten(0, 1).index_select(0, wanted.chosen)

    def read(self, tokens: Tensor, cache: KeyValueCache, wanted: Tensor | None) -> tuple[Tensor, KeyValueCache]:
        """Reads tokens (B T) from the first position on, each attending to itself and those before it. `wanted` (B A): as for the
        decoder."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        states, cache = self.decoder(self.embed(tokens), places[None], (places[:, None] >= places)[None], cache, wanted)
        return states, cache

    def prefill(
        self, start: Tensor, encoded: Encoded, prefixes: Prefixes | None, more: int
    ) -> tuple[Tensor, KeyValueCache]:
        """Reads `start` (B S, padded on the right). Returns the state after each row's last token (B 1 d), and a cache with
        positions for `more` further tokens. The cache holds the padding too; later tokens must not attend to it."""
        cache = self.decoder.cache(encoded, prefixes, start.shape[1] + more)
        return self.read(start, cache, (start != PAD).sum(1, keepdim=True) - 1)

    def extend(
        self, tokens: Tensor, places: Tensor, visible: Tensor, cache: KeyValueCache
    ) -> tuple[Tensor, KeyValueCache]:
        """Reads more tokens, B n, at positions `places` (B n); each attends to the tokens that are `visible` to it (B n R+n)."""
        states, cache = self.decoder(self.embed(tokens), places, visible, cache, None)
        return states, cache

    def logits(self, states: Tensor) -> Tensor:
        return F.linear(states, self.embed.weight)  # ... V

    def decode(self, tokens: Tensor, encoded: Encoded, prefixes: Prefixes | None) -> Tensor:
        """The logits of the token after each position. `decode_states`, and `logits` of some of the states, costs less."""
        return self.logits(self.decode_states(tokens, encoded, prefixes))  # B T V
