"""Fake quantisation: values as the engine will see them, with the gradient passed straight through.

    matrix (Q4_0)       blocks of 32 along k; scale = float16(v / -8), v the value of largest magnitude with its sign;
                        code = clamp(floor(w / scale + 8.5), 0, 15); value = scale * (code - 8)
    embedding (Q8_0)    blocks of 32 along k; scale = float16(max|w| / 127); code = clamp(rint(w / scale), -127, 127)
    activation          blocks of 32 along k; scale = max|x| / 127 in float32, 0 if below 2^-126; code as for Q8_0
    key, value          rounded to float16, as the cache stores them

Codes are taken against the float16 scale that the file holds. The training forward multiplies float32 values
scale * code, the engine sums code * code in integers first: they differ by float32 rounding only. Weights are rounded once a
step (models/training/loop.py) and the gradient of the rounded ones is used as that of the exact ones.
Formats: ggml-quants.c of llama.cpp. Straight-through gradient: Bengio et al. 2013, section 4.
"""

from __future__ import annotations

import torch

BLOCK = 32
SMALLEST_SCALE = 2.0**-126


def _reciprocal(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)


def quantize_q4_0(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Q4_0 codes and scales of `weight` (N, K) float32: codes (N, K/32, 32) uint8 in 0..15, scales (N, K/32, 1) float16."""
    blocks = weight.unflatten(-1, (-1, BLOCK))
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scales = (largest / -8).half()
    codes = torch.floor(blocks * _reciprocal(scales.float()) + 8.5).clamp(0, 15)
    return codes.to(torch.uint8), scales


def dequantize_q4_0(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 values (N, K) that Q4_0 codes and scales stand for."""
    return (scales.float() * (codes.float() - 8)).flatten(-2)


def quantize_q8_0(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Q8_0 codes and scales of `weight` (N, K) float32: codes (N, K/32, 32) int8, scales (N, K/32, 1) float16."""
    blocks = weight.unflatten(-1, (-1, BLOCK))
    scales = (blocks.abs().amax(-1, keepdim=True) / 127).half()
    codes = torch.round(blocks * _reciprocal(scales.float())).clamp(-127, 127)
    return codes.to(torch.int8), scales


def dequantize_q8_0(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 values (N, K) that Q8_0 codes and scales stand for."""
    return (scales.float() * codes.float()).flatten(-2)


def quantize_activation(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """INT8 codes (..., K/32, 32) and scales (..., K/32, 1) of activations `x` (..., K), all float32."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    zero = scales < SMALLEST_SCALE
    codes = (blocks / scales.masked_fill(zero, float("inf"))).round_().clamp_(-127, 127)
    return codes, scales.masked_fill_(zero, 0.0)


def round_activation(x: torch.Tensor) -> torch.Tensor:
    """Float32 values (..., K) that the int8 codes of activations `x` (..., K) float32 stand for."""
    codes, scales = quantize_activation(x)
    return codes.mul_(scales).flatten(-2)


def _straight_through(value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded` forward, the gradient of `value` backward."""
    return StraightThrough.apply(value, rounded)


class StraightThrough(torch.autograd.Function):
    """Returns its second argument; hands the gradient to its first. (value + (rounded - value) would round twice.)"""

    @staticmethod
    def forward(ctx: object, value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        """value, rounded: tensors of one shape."""
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient unchanged, and none for the rounded values."""
        return gradient, None


def fake_activation(x: torch.Tensor) -> torch.Tensor:
    """`x` (..., K) float32 as int8 activations hold it, gradient straight through."""
    with torch.no_grad():
        rounded = round_activation(x)
    return _straight_through(x, rounded)


def fake_half(x: torch.Tensor) -> torch.Tensor:
    """`x` rounded to float16 and back, gradient straight through: keys and values in the cache."""
    with torch.no_grad():
        rounded = x.half().float()
    return _straight_through(x, rounded)
