"""OFA: images and text in, text out. One code for every size (facts 4; the sizes are conf/model/).

B batch, S source tokens, h x w grid of N = h w patches, U = N + S encoder sequence (patches first), T decoder sequence,
P prompt length, H heads, Dh head width, d width, C = 16 x resnet_width feature channels, V vocabulary.

    features = model.features(images)                                      # B C h w
    encoded = model.encode(tokens, features, image_mask, encoder_prefixes)
    logits = model.decode(targets, encoded, decoder_prefixes)              # B T V

Generation of images is left out: no code tokens in the decoder (mmprompt.official names the tensors that belong to it).
Initialisation, dropout and drop-path draw from torch's global stream, which is seeded in one place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprompt.attention import Prefixes, attention_mask
from mmprompt.config import Model
from mmprompt.layers import DecoderLayer, EncoderLayer
from mmprompt.positions import AbsoluteBias, ImagePositions, ImageRelativeBias, TokenPositions, TokenRelativeBias
from mmprompt.resnet import ResNet

BOS, PAD, EOS = 0, 1, 2  # the same ids in every size (facts 4.2)
TEXT, IMAGE = 0, 1  # rows of the type embedding


@dataclass(frozen=True)
class Encoded:
    """What the decoder reads."""

    states: Tensor  # B U d, after the final norm
    padding: Tensor | None  # B U, True where there is nothing; None: no padding in the batch
    positions: Tensor  # U d, normalised position embeddings: the key side of cross-attention's bias

    def repeat(self, times: int) -> Encoded:
        """Each example `times` times in a row."""
        padding = None if self.padding is None else self.padding.repeat_interleave(times, 0)
        return Encoded(self.states.repeat_interleave(times, 0), padding, self.positions)


def only_if_any(padding: Tensor) -> Tensor | None:
    """A batch without padding needs no mask per example; its biases then stay one per batch."""
    return padding if bool(padding.any()) else None


def drop_paths(rate: float, layers: int) -> list[float]:
    """From 0 in the first layer linearly to `rate` in the last."""
    return [rate * layer / max(layers - 1, 1) for layer in range(layers)]


class Encoder(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.resnet = ResNet(model.resnet_width, model.resnet_blocks)
        self.image_proj = nn.Linear(self.resnet.channels, model.dim)
        self.types = nn.Embedding(2, model.dim)
        self.image_norm = nn.LayerNorm(model.dim)
        self.token_norm = nn.LayerNorm(model.dim)
        self.dropout = nn.Dropout(model.dropout)
        self.token_positions = TokenPositions(model.max_positions, model.dim)
        self.image_positions = ImagePositions(model.image_buckets, model.interpolate_from, model.dim)
        self.position_bias = AbsoluteBias(model.dim, model.heads)
        rates = drop_paths(model.encoder_drop_path, model.encoder_layers)
        self.token_biases = nn.ModuleList(TokenRelativeBias(model.token_buckets, model.heads) for _ in rates)
        self.image_biases = nn.ModuleList(ImageRelativeBias(model.image_buckets, model.heads) for _ in rates)
        self.layers = nn.ModuleList(EncoderLayer(model, rate) for rate in rates)
        self.norm = nn.LayerNorm(model.dim)

    def embed_text(self, embedded: Tensor) -> Tensor:
        text: Tensor = self.dropout(self.token_norm(embedded + self.types.weight[TEXT]))
        return text  # B S d

    def embed_image(self, features: Tensor) -> Tensor:  # B C h w
        patches = self.image_proj(features.flatten(2).transpose(1, 2))
        image: Tensor = self.dropout(self.image_norm(patches + self.types.weight[IMAGE]))
        return image  # B N d, row by row

    def positions(self, grid: tuple[int, int] | None, length: int) -> Tensor:
        text = self.token_positions(length)
        return text if grid is None else torch.cat([self.image_positions(*grid), text])  # U d

    def biases(self, grid: tuple[int, int] | None, length: int, positions: Tensor) -> list[Tensor]:
        """Position bias of each layer, H U U. Depends on the grid and the text length, not on the examples."""
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

    def forward(
        self,
        embedded: Tensor,
        padding: Tensor,
        features: Tensor | None,
        image_mask: Tensor | None,
        prefixes: Prefixes | None,
    ) -> Encoded:
        """embedded B S d; padding B S; features B C h w; image_mask B, False where an example has no image."""
        x, grid = self.embed_text(embedded), None
        if features is not None:
            image, grid = self.embed_image(features), (features.shape[2], features.shape[3])
            x = torch.cat([image, x], dim=1)  # B U d
            absent = torch.zeros_like(padding[:, 0]) if image_mask is None else ~image_mask
            padding = torch.cat([absent[:, None].expand(-1, image.shape[1]), padding], dim=1)  # B U
        padded = only_if_any(padding)
        if padded is not None:
            x = x.masked_fill(padded[:, :, None], 0)
        positions = self.positions(grid, embedded.shape[1])
        biases = self.biases(grid, embedded.shape[1], positions)
        for layer, bias, prefix in zip(self.layers, biases, prefixes or [None] * len(biases), strict=True):
            x = layer(x, bias, padded, prefix)
        return Encoded(self.norm(x), padded, positions)


class Decoder(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(model.dim)
        self.dropout = nn.Dropout(model.dropout)
        self.token_positions = TokenPositions(model.max_positions, model.dim)
        self.self_bias = AbsoluteBias(model.dim, model.heads)
        self.cross_bias = AbsoluteBias(model.dim, model.heads)
        rates = drop_paths(model.decoder_drop_path, model.decoder_layers)
        self.token_biases = nn.ModuleList(TokenRelativeBias(model.token_buckets, model.heads) for _ in rates)
        self.layers = nn.ModuleList(DecoderLayer(model, rate) for rate in rates)
        self.norm = nn.LayerNorm(model.dim)

    def biases(self, positions: Tensor) -> list[Tensor]:
        """Position bias of each layer's self-attention, -inf on the future, H T T."""
        length = len(positions)
        future = positions.new_full((length, length), float("-inf")).triu(1)
        absolute = self.self_bias(positions, positions) + future
        return [absolute + token_bias(length) for token_bias in self.token_biases]

    def forward(self, embedded: Tensor, padding: Tensor, encoded: Encoded, prefixes: Prefixes | None) -> Tensor:
        """embedded B T d; padding B T."""
        x, padded = self.dropout(self.token_norm(embedded)), only_if_any(padding)
        positions = self.token_positions(embedded.shape[1])
        biases = self.biases(positions)
        memory_mask = attention_mask(self.cross_bias(positions, encoded.positions), encoded.padding, None)
        for layer, bias, prefix in zip(self.layers, biases, prefixes or [None] * len(biases), strict=True):
            x = layer(x, bias, padded, prefix, encoded.states, memory_mask)
        states: Tensor = self.norm(x)
        return states  # B T d


class OFA(nn.Module):
    """The token embedding serves encoder, decoder and output."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embed = nn.Embedding(model.vocab_size, model.dim, padding_idx=PAD)
        self.encoder = Encoder(model)
        self.decoder = Decoder(model)
        self.initialise(model.init_std)

    @torch.no_grad()
    def initialise(self, std: float) -> None:
        """As before pretraining (facts 4.7). Norms and head scales already stand at 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.embed.weight[PAD] = 0

    def features(self, images: Tensor) -> Tensor:  # B 3 16h 16w
        features: Tensor = self.encoder.resnet(images)
        return features  # B C h w

    def encode(
        self, tokens: Tensor, features: Tensor | None, image_mask: Tensor | None, prefixes: Prefixes | None
    ) -> Encoded:
        """tokens B S, padded on the right; features None: no images; image_mask None: every example has one."""
        encoded: Encoded = self.encoder(self.embed(tokens), tokens == PAD, features, image_mask, prefixes)
        return encoded

    def decode_states(self, tokens: Tensor, encoded: Encoded, prefixes: Prefixes | None) -> Tensor:
        """tokens B T, padded on the right."""
        states: Tensor = self.decoder(self.embed(tokens), tokens == PAD, encoded, prefixes)
        return states  # B T d

    def logits(self, states: Tensor) -> Tensor:
        return F.linear(states, self.embed.weight)  # ... V

    def decode(self, tokens: Tensor, encoded: Encoded, prefixes: Prefixes | None) -> Tensor:
        """The logits of each position's next token. States first and `logits` on some of them costs less."""
        return self.logits(self.decode_states(tokens, encoded, prefixes))  # B T V
