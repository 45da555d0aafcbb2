"""From the ranges of a model's activations to static scales, and from its tensors to integers.

Every activation that a product reads has one scale for each channel, which costs nothing: the step that writes the codes
has a ratio for each channel anyway, and the matrix that reads them has the scale in its column. What the weights of a column
pay for a small range of its activation is balanced (SmoothQuant: Xiao et al., 2023, equation 4, alpha = 1/2):

    scale[c] ~ sqrt(largest activation of c / largest weight of column c), so that the largest code of any channel is 127

Keys have one scale for each rotary pair, which is folded into the queries. Only +, -, *, / and sqrt are used here, so that a
file and a text give the same integers on every machine.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.integer_attention import QUOTIENT_BITS
from kernels.integer_exp import ARGUMENT_BITS
from kernels.integer_gate import GATE_BITS, UP_BITS
from kernels.integer_logits import LOGIT_BITS
from kernels.integer_norm import MOST_CHANNELS, UNIT_BITS
from kernels.integer_residual import CALIBRATED_BITS
from kernels.integer_rope import EXTRA_BITS, q_limit
from kernels.rope import rope_pairs
from models.calibration import Ranges
from models.config import ModelConfig
from models.integer_weights import Fixed, IntegerLayer, IntegerWeights, integer_matrix, row_codes
from models.weights import padded

LARGEST = 127
HEADROOM = 1.1  # times what a short text shows; measured: costs nothing, and a text of 250 tokens loses a third less
LOG2E = 1.4426950408889634
Q_HEADROOM = 4.0  # times what calibration saw; 16 bits can spare it
SMALLEST = 1e-5  # of the largest range: what counts as the range of a channel that was never seen to move
PRODUCT_BITS = 26
Tensors = Callable[[str], np.ndarray]


def bits_above(x: float) -> int:
    """The least n for which x < 2^n; x is positive."""
    return math.frexp(x)[1]


def seen(largest: np.ndarray) -> np.ndarray:
    """Ranges in float64, none of them 0."""
    wide = largest.astype(np.float64)
    return np.maximum(wide, max(SMALLEST * wide.max(initial=0.0), 1e-30))


def balanced_scales(largest: np.ndarray, readers: list[np.ndarray]) -> np.ndarray:
    """What one step of each channel's INT8 code is worth, (K,) float64; readers: matrices (N, K) that read the channels."""
    columns = np.abs(readers[0]).max(0)
    for weight in readers[1:]:
        columns = np.maximum(columns, np.abs(weight).max(0))
    range_ = seen(largest)
    unit = np.sqrt(range_ / seen(columns))
    return unit * ((range_ / unit).max() / LARGEST)


class Integers:
    """Makes the integer weights of one model, a layer at a time; `tensor(name)` gives a tensor in float32.

    Raises:
        ValueError: from any method, when something does not fit into its integers.
    """

    def __init__(self, config: ModelConfig, tensor: Tensors, ranges: Ranges) -> None:
        if config.hidden_size > MOST_CHANNELS:
            raise ValueError(f"hidden_size is {config.hidden_size}, expected at most {MOST_CHANNELS}")
        self.config, self.tensor = config, tensor
        self.ranges = {name: largest * np.float32(HEADROOM) for name, largest in ranges.items()}
        self.residual_bits = CALIBRATED_BITS - bits_above(float(seen(self.ranges["x"]).max()))

    def _residual(self, scales: np.ndarray) -> Fixed:
        """From a scale to the residual stream's."""
        return Fixed.of(scales * 2.0**self.residual_bits)

    def _norm(self, name: str, scales: np.ndarray) -> Fixed:
        """From `kernels/integer_norm.py`'s unit to the codes of a norm."""
        ratios = self.tensor(name).astype(np.float64) * math.sqrt(self.config.hidden_size) / scales
        return Fixed.of(ratios * 2.0**-UNIT_BITS)

    def weights(self) -> IntegerWeights:
        """All of them."""
        c = self.config
        table = self.tensor("token_embd.weight")
        codes, rows = row_codes(table, np.ones(c.hidden_size))
        embedding = np.zeros((c.vocab_size, padded(c.hidden_size)), np.int8)
        embedding[:, : c.hidden_size] = codes
        layers = tuple(self.layer(i) for i in range(c.layers))
        head = table if c.tied_embeddings else self.tensor("output.weight")
        scales = balanced_scales(self.ranges["output_in"], [head])
        output, sums = integer_matrix(head, scales)
        logit_bits = min(24, LOGIT_BITS - bits_above(float(seen(self.ranges["logits"]).max())))
        eps = round(c.hidden_size * c.rms_eps * 4.0**self.residual_bits)
        if eps >= 2**61:
            raise ValueError(f"the norms' epsilon, {c.rms_eps}, is too large beside the activations")
        return IntegerWeights(
            embedding,
            self._residual(rows),
            layers,
            self._norm("output_norm.weight", scales),
            output,
            Fixed.of(sums * 2.0**logit_bits),
            eps,
            logit_bits,
        )

    def layer(self, i: int) -> IntegerLayer:
        """Layer i."""
        return IntegerLayer(**self._attention(i), **self._feed_forward(i))

    def _attention(self, i: int) -> dict[str, Any]:
        c, block = self.config, f"blk.{i}."
        q, k, v, o = (self.tensor(f"{block}attn_{name}.weight") for name in ("q", "k", "v", "output"))
        biases = [self.tensor(f"{block}attn_{n}.bias") if c.attention_bias else None for n in "qkv"]
        h_scales = balanced_scales(self.ranges[f"{i}.attn_in"], [q, k, v])
        (q_codes, q_sums), (k_codes, k_sums), (v_codes, v_sums) = (
            integer_matrix(weight, h_scales, bias) for weight, bias in zip((q, k, v), biases)
        )
        k_scales = self._key_scales(seen(self.ranges[f"{i}.k"]))
        of_query = np.repeat(k_scales.reshape(c.kv_heads, c.head_size), c.heads // c.kv_heads, 0)
        q_range = seen(self.ranges[f"{i}.q"]).reshape(c.heads, c.head_size) * of_query
        scores = q_range.max(1) * (Q_HEADROOM / q_limit(c.head_size))  # what a step of q . k is worth, for each head
        q_scales = (scores[:, None] / of_query).reshape(-1)
        v_scales = seen(self.ranges[f"{i}.v"]) / LARGEST
        rope = [q_sums / q_scales * 2.0**EXTRA_BITS, k_sums / k_scales * 2.0**EXTRA_BITS, v_sums / v_scales]
        octaves = scores / math.sqrt(c.head_size) * LOG2E * 2.0**ARGUMENT_BITS
        o_scales = balanced_scales(self.ranges[f"{i}.attn_out"], [o])
        o_codes, o_sums = integer_matrix(o, o_scales)
        means = np.repeat(v_scales.reshape(c.kv_heads, c.head_size), c.heads // c.kv_heads, 0).reshape(-1)
        return {
            "attn_norm": self._norm(f"{block}attn_norm.weight", h_scales),
            "q": q_codes,
            "k": k_codes,
            "v": v_codes,
            "rope": Fixed.of(np.concatenate(rope)),
            "heads": Fixed.of(octaves),
            "attn_out": Fixed.of(means / o_scales * 2.0**-QUOTIENT_BITS),
            "attn_output": o_codes,
            "attn_add": self._residual(o_sums),
        }

    def _key_scales(self, largest: np.ndarray) -> np.ndarray:
        """One scale for both elements of each rotary pair, (G * D,)."""
        c = self.config
        pairs, spacing, distance = rope_pairs(c.rope_style, c.rope_dims)
        heads = largest.reshape(c.kv_heads, c.head_size).copy()
        first = spacing * np.arange(pairs)
        both = np.maximum(heads[:, first], heads[:, first + distance])
        heads[:, first], heads[:, first + distance] = both, both
        return heads.reshape(-1) / LARGEST

    def _feed_forward(self, i: int) -> dict[str, Any]:
        block = f"blk.{i}.ffn_"
        gate, up, down = (self.tensor(f"{block}{name}.weight") for name in ("gate", "up", "down"))
        h_scales = balanced_scales(self.ranges[f"{i}.ffn_in"], [gate, up])
        gate_codes, gate_sums = integer_matrix(gate, h_scales)
        up_codes, up_sums = integer_matrix(up, h_scales)
        scales = balanced_scales(self.ranges[f"{i}.product"], [down])
        down_codes, down_sums = integer_matrix(down, scales)
        up_range, product = seen(self.ranges[f"{i}.up"]), seen(self.ranges[f"{i}.product"])
        above = np.frexp(product / up_range)[1]
        lost = np.clip(above + GATE_BITS + UP_BITS - PRODUCT_BITS, 1, 40)
        shifts = np.ones(padded(len(lost)), np.int32)
        shifts[: len(lost)] = lost
        ratios = up_range / scales * 2.0 ** (lost - GATE_BITS - UP_BITS)
        return {
            "ffn_norm": self._norm(f"{block}norm.weight", h_scales),
            "ffn_gate": gate_codes,
            "ffn_up": up_codes,
            "gate": Fixed.of(gate_sums * 2.0**GATE_BITS),
            "up": Fixed.of(up_sums / up_range * 2.0**UP_BITS),
            "product_shifts": shifts,
            "product": Fixed.of(ratios),
            "ffn_down": down_codes,
            "ffn_add": self._residual(down_sums),
        }
