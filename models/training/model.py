"""The Llama transformer in PyTorch, as it is trained: float32 state, bfloat16 products, or quantised as the engine computes.

One layer:  x += attention(norm(x));  x += down(silu(gate(norm(x))) * up(norm(x))).  Rotary positions turn neighbouring
pairs (2i, 2i + 1), as `llama` GGUF files have them. The embedding is also the output matrix. Sources: Touvron et al.
2023 (Llama), Zhang and Sennrich 2019 (RMSNorm), Su et al. 2021 (rotary), Shazeer 2020 (SwiGLU), Ainslie et al. 2023
(grouped heads).

Four ways of computing, chosen per call:
    "bfloat16"   products in bfloat16: fast float training
    "float32"    products in float32: measuring the float model
    "int8"       int8 activations, float16 keys and values; products of these values in float32 forward, bfloat16
                 backward. With weights from `round_weights` this is the engine's forward pass on a Q4_0 file, but for
                 the order in which float32 values are added: for training
    "engine"     the engine's forward pass on the file that the model becomes, to the bit, fifty times slower and without
                 a gradient (models/training/engine_arithmetic.py): for the last step, and for measuring
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from models.training import engine_arithmetic
from models.training.quantization import (
    dequantize_q4_0,
    dequantize_q8_0,
    fake_activation,
    fake_half,
    quantize_q4_0,
    quantize_q8_0,
)

TILE = 128
Predictions = Callable[[torch.Tensor], torch.Tensor]
"""Probabilities (B, T, V) float32 of what follows each of ids (B, T) int64."""
Loss = Callable[["Llama", str], torch.Tensor]
"""Of a model that computes in one of these ways: a mean in nats."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model. Hidden and feed-forward sizes are multiples of 256, so that every block type fits."""

    vocab: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5

    @property
    def head_size(self) -> int:
        """Values per attention head."""
        return self.hidden // self.heads


class Product(torch.autograd.Function):
    """x @ w.T with the forward in bfloat16 or float32 and the backward in bfloat16."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor, w: torch.Tensor, exact: bool) -> torch.Tensor:
        """x: (..., K); w: (N, K) float32; exact: multiply in float32. Returns (..., N)."""
        x_low, w_low = x.bfloat16(), w.bfloat16()
        ctx.save_for_backward(x_low, w_low)  # type: ignore[attr-defined]
        ctx.dtype = x.dtype  # type: ignore[attr-defined]
        return F.linear(x, w) if exact else F.linear(x_low, w_low)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Gradients of x (its type) and w (float32)."""
        x, w = ctx.saved_tensors  # type: ignore[attr-defined]
        low = gradient.bfloat16()
        x_gradient = (low @ w).to(ctx.dtype)  # type: ignore[attr-defined]
        return x_gradient, (low.flatten(0, -2).T @ x.flatten(0, -2)).float(), None


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention (B, H, T, D) of q, k, v (B, H, T, D), in their type.

    Queries go in tiles that see no later keys: on the processor twice as fast as the built-in attention, backward included.
    """
    T, D = q.shape[2:]
    q = q * D**-0.5
    future = torch.full((TILE, TILE), float("-inf"), dtype=q.dtype).triu(1)
    tiles = []
    for start in range(0, T, TILE):
        end = min(start + TILE, T)
        scores = q[:, :, start:end] @ k[:, :, :end].mT
        scores[..., start:] += future[: end - start, : end - start]
        tiles.append(scores.softmax(-1) @ v[:, :, :end])
    return torch.cat(tiles, dim=2)


class Layer(nn.Module):
    """One transformer layer; the parameters carry the names of GGUF tensors, without `.weight`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, narrow = shape.hidden, shape.kv_heads * shape.head_size

        def matrix(n: int, k: int, zero: bool = False) -> nn.Parameter:
            return nn.Parameter(torch.zeros(n, k) if zero else torch.randn(n, k) * k**-0.5)

        self.shape = shape
        self.attn_norm = nn.Parameter(torch.ones(hidden))
        self.attn_q = matrix(hidden, hidden)
        self.attn_k = matrix(narrow, hidden)
        self.attn_v = matrix(narrow, hidden)
        self.attn_output = matrix(hidden, hidden, zero=True)
        self.ffn_norm = nn.Parameter(torch.ones(hidden))
        self.ffn_gate = matrix(shape.feed_forward, hidden)
        self.ffn_up = matrix(shape.feed_forward, hidden)
        self.ffn_down = matrix(hidden, shape.feed_forward, zero=True)

    def forward(self, x: torch.Tensor, turns: torch.Tensor, mode: str) -> torch.Tensor:
        """x: (B, T, hidden) float32; turns: (T, D/2) complex64. Returns the new x."""
        shape, exact, int8 = self.shape, mode != "bfloat16", mode == "int8"
        G, D = shape.kv_heads, shape.head_size

        def product(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
            return Product.apply(fake_activation(x) if int8 else x, torch.cat(weights), exact)

        h = F.rms_norm(x, (shape.hidden,), self.attn_norm, shape.norm_epsilon)
        heads = product(h, self.attn_q, self.attn_k, self.attn_v).unflatten(-1, (-1, D)).transpose(1, 2)
        turned, v = heads.split((shape.heads + G, G), dim=1)
        turned = torch.view_as_complex(turned.float().unflatten(-1, (-1, 2))) * turns
        q, k = torch.view_as_real(turned).flatten(-2).to(v.dtype).split((shape.heads, G), dim=1)
        if int8:
            k, v = fake_half(k), fake_half(v)
        k, v = (t.repeat_interleave(shape.heads // G, dim=1) for t in (k, v))
        mixed = attention(q, k, v).transpose(1, 2).flatten(-2)
        x = x + product(mixed, self.attn_output)
        h = F.rms_norm(x, (shape.hidden,), self.ffn_norm, shape.norm_epsilon)
        gate, up = product(h, self.ffn_gate, self.ffn_up).chunk(2, dim=-1)
        return x + product(F.silu(gate) * up, self.ffn_down)


class Llama(nn.Module):
    """The whole model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Parameter(torch.randn(shape.vocab, shape.hidden) * 0.02)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = nn.Parameter(torch.ones(shape.hidden))
        frequencies = shape.rope_base ** (-torch.arange(0, shape.head_size, 2).double() / shape.head_size)
        angles = torch.arange(shape.context).double()[:, None] * frequencies
        self.register_buffer(
            "turns", torch.polar(torch.ones_like(angles), angles).to(torch.complex64), persistent=False
        )

    def forward(self, ids: torch.Tensor, mode: str) -> torch.Tensor:
        """Logits (B, T, V), bfloat16 or float32, of ids (B, T) int64, T up to the context."""
        if mode == "engine":
            return torch.stack([engine_arithmetic.logits(self, row) for row in ids])
        x = F.embedding(ids, self.token_embd)
        for layer in self.blk:
            x = layer(x, self.turns[: ids.shape[1]], mode)
        x = F.rms_norm(x, (self.shape.hidden,), self.output_norm, self.shape.norm_epsilon)
        return Product.apply(fake_activation(x) if mode == "int8" else x, self.token_embd, mode != "bfloat16")

    def loss(self, windows: torch.Tensor, mode: str, teacher: Predictions | None = None) -> torch.Tensor:
        """Mean cross-entropy in nats of predicting windows (B, T + 1) int64 from their first T tokens.

        With a teacher it is that to what the teacher makes of these tokens, probabilities (B, T, V), instead of the text.
        """
        logits = self(windows[:, :-1], mode).flatten(0, 1).float()
        if teacher is None:
            return F.cross_entropy(logits, windows[:, 1:].flatten())
        return F.cross_entropy(logits, teacher(windows[:, :-1]).flatten(0, 1))

    @torch.no_grad()
    def predictions(self, ids: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, T, V) float32 of what follows each of ids (B, T) int64: as a teacher's (Hinton et al. 2015)."""
        return self(ids, "bfloat16").float().softmax(-1)

    def count(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def round_weights(self, into: Llama) -> None:
        """Copy the weights into another model of this shape, as the INT4 file holds them: Q4_0, the embedding Q8_0."""
        for (name, weight), rounded in zip(self.named_parameters(), into.parameters()):
            if name == "token_embd":
                rounded.copy_(dequantize_q8_0(*quantize_q8_0(weight)))
            elif weight.ndim == 2:
                rounded.copy_(dequantize_q4_0(*quantize_q4_0(weight)))
            else:
                rounded.copy_(weight)
