"""The weights of an integer-only forward pass: static INT8 codes, and how each sum becomes the next step's integers.

    IntegerWeights ── embedding, output_norm, output, logits, eps, logit_bits
       └── layers: IntegerLayer ── attn_norm, q, k, v, rope, heads, attn_out, attn_output, attn_add,
                                   ffn_norm, ffn_gate, ffn_up, gate, up, product_shifts, product, ffn_down, ffn_add

`integer_scales.py` finds them from a model in static INT8 (`quantizers/static.py`).
"""

from dataclasses import dataclass

import numpy as np

from kernels.integer_matmul import pack_integer
from kernels.integer_rescale import multipliers_and_shifts
from models.weights import padded


@dataclass(frozen=True, slots=True)
class Fixed:
    """Ratios of scales as the kernels take them: multipliers and shifts, (N padded to 32,) int32."""

    multipliers: np.ndarray
    shifts: np.ndarray

    @classmethod
    def of(cls, ratios: np.ndarray) -> "Fixed":
        """From (N,) float64; what is padded becomes 0."""
        whole = np.zeros(padded(len(ratios)))
        whole[: len(ratios)] = ratios
        return cls(*multipliers_and_shifts(whole))


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """A matrix of N outputs and K inputs, INT8, one scale for each output.

    Attributes:
        codes: (N padded to 8) * (K padded to 32) int8, packed for `kernels/integer_matmul.py`.
        bias: (N padded to 8,) int32, with the correction that its kernel wants.
    """

    rows: int
    columns: int
    codes: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, slots=True)
class IntegerLayer:
    """One transformer block."""

    attn_norm: Fixed
    q: IntegerMatrix
    k: IntegerMatrix
    v: IntegerMatrix
    rope: Fixed
    heads: Fixed
    attn_out: Fixed
    attn_output: IntegerMatrix
    attn_add: Fixed
    ffn_norm: Fixed
    ffn_gate: IntegerMatrix
    ffn_up: IntegerMatrix
    gate: Fixed
    up: Fixed
    product_shifts: np.ndarray
    product: Fixed
    ffn_down: IntegerMatrix
    ffn_add: Fixed


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """All weights of a model.

    Attributes:
        embedding: (V, hidden padded to 32) int8; embedding_rows: the ratio of each row.
        eps: The epsilon of all norms, times the channels, in units of the residual stream's squares.
        logit_bits: One step of a logit is 2^-logit_bits.
    """

    embedding: np.ndarray
    embedding_rows: Fixed
    layers: tuple[IntegerLayer, ...]
    output_norm: Fixed
    output: IntegerMatrix
    logits: Fixed
    eps: int
    logit_bits: int


def integer_matrix(codes: np.ndarray, sums: np.ndarray, bias: np.ndarray | None = None) -> IntegerMatrix:
    """A matrix as its kernel takes it: codes (N, K) int8, the scales of its sums (N,), a bias (N,) in float32.

    Raises:
        ValueError: its sums may not fit into int32.
    """
    whole = np.zeros(len(codes), np.int64)
    if bias is not None:
        whole[:] = np.clip(np.rint(bias.astype(np.float64) / sums), -(2.0**40), 2.0**40)  # beyond is refused below
    packed, corrected = pack_integer(codes, whole)
    return IntegerMatrix(codes.shape[0], codes.shape[1], packed, corrected)
