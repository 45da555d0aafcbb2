"""From static scales to multipliers and shifts: what a step of the integer-only forward pass needs of a static INT8 model.

A step turns integers of one scale into integers of another, so all it needs is the ratio of the two. Those of the embedding,
the norms and the products end in `models/quantizers/static.py`'s scales; between them are fixed points: the residual stream
and the logits have powers of two, the gate 2^-20, attention's means 2^-16 of a value's step.

Keys have one scale for each rotary pair, which is folded into the queries. Only +, -, *, / and sqrt are used here, so that
the same model gives the same integers on every machine.
"""

import math
from typing import Any

import numpy as np

from kernels.integer_attention import QUOTIENT_BITS
from kernels.integer_exp import ARGUMENT_BITS
from kernels.integer_gate import GATE_BITS
from kernels.integer_norm import MOST_CHANNELS, UNIT_BITS
from kernels.integer_rope import EXTRA_BITS
from models.integer_weights import Fixed, IntegerLayer, IntegerMatrix, IntegerWeights, integer_matrix
from models.quantizers.static import (
    LARGEST,
    MOST_LOGIT_BITS,
    ROWS_AT_ONCE,
    Arrays,
    Static,
    for_queries,
    largest_of_pairs,
    row_codes,
)
from models.weights import padded

LOG2E = 1.4426950408889634
PRODUCT_BITS = 26
LEAST_LOGIT_BITS = 0
MOST_RESIDUAL_BITS = 100


def integer_weights(static: Static) -> IntegerWeights:
    """The integer weights of a static model, made a layer at a time.

    Raises:
        ValueError: something of it does not fit into its integers.
    """
    config = static.config
    if config.hidden_size > MOST_CHANNELS:
        raise ValueError(f"hidden_size is {config.hidden_size}, expected at most {MOST_CHANNELS}")
    return _Integers(static).weights()


def power_of_two(scale: np.ndarray, name: str, low: int, high: int) -> int:
    """n of a scale 2^-n; raises ValueError for another scale, or an n outside of low .. high."""
    mantissa, exponent = math.frexp(float(scale[0]))
    if mantissa != 0.5 or not low <= 1 - exponent <= high:
        raise ValueError(f"{name}.scale is {scale[0]}, expected a power of two from 2^-{high} to 2^{-low}")
    return 1 - exponent


class _Integers:
    """Makes the integer weights of one model."""

    def __init__(self, static: Static) -> None:
        self.config, self.static = static.config, static
        self.residual_bits = power_of_two(static.outer["x.scale"], "x", -MOST_RESIDUAL_BITS, MOST_RESIDUAL_BITS)

    def weights(self) -> IntegerWeights:
        """All of them."""
        c, t = self.config, self.static.outer
        embedding = np.zeros((c.vocab_size, padded(c.hidden_size)), np.int8)
        embedding[:, : c.hidden_size] = t["token_embd.weight"]
        logit_bits = power_of_two(t["logits.scale"], "logits", LEAST_LOGIT_BITS, MOST_LOGIT_BITS)
        eps = round(c.hidden_size * c.rms_eps * 4.0**self.residual_bits)
        if eps >= 2**61:
            raise ValueError(f"the norms' epsilon, {c.rms_eps}, is too large beside the activations")
        head = tied_output(t) if c.tied_embeddings else t
        return IntegerWeights(
            embedding,
            self._residual(t["token_embd.weight_scale"]),
            tuple(IntegerLayer(**self._attention(part), **self._feed_forward(part)) for part in self._layers()),
            self._norm(t["output_norm.weight"], t["output_in.scale"]),
            _matrix(head, "output"),
            Fixed.of(_wide(head["output.weight_scale"]) * 2.0**logit_bits),
            eps,
            logit_bits,
        )

    def _layers(self) -> Any:
        return (self.static.layer(i) for i in range(self.config.layers))

    def _residual(self, scales: np.ndarray) -> Fixed:
        """From a scale to the residual stream's."""
        return Fixed.of(_wide(scales) * 2.0**self.residual_bits)

    def _norm(self, weight: np.ndarray, scales: np.ndarray) -> Fixed:
        """From `kernels/integer_norm.py`'s unit to the codes of a norm."""
        return Fixed.of(_wide(weight) * math.sqrt(self.config.hidden_size) / _wide(scales) * 2.0**-UNIT_BITS)

    def _attention(self, t: Arrays) -> dict[str, Any]:
        c = self.config
        k_scales, v_scales, o_scales = (_wide(t[f"{name}.scale"]) for name in ("k", "v", "attn_out"))
        if not np.array_equal(largest_of_pairs(c, k_scales), k_scales):
            raise ValueError("k.scale: differs inside of a rotary pair, expected one scale for both of its elements")
        q_sums, k_sums, v_sums = (_wide(t[f"attn_{name}.weight_scale"]) for name in "qkv")
        scores = _wide(t["scores.scale"])
        q_scales = (scores[:, None] / for_queries(c, k_scales)).reshape(-1)
        rope = [q_sums / q_scales * 2.0**EXTRA_BITS, k_sums / k_scales * 2.0**EXTRA_BITS, v_sums / v_scales]
        means = for_queries(c, v_scales).reshape(-1)
        return {
            "attn_norm": self._norm(t["attn_norm.weight"], t["attn_in.scale"]),
            "q": _matrix(t, "attn_q"),
            "k": _matrix(t, "attn_k"),
            "v": _matrix(t, "attn_v"),
            "rope": Fixed.of(np.concatenate(rope)),
            "heads": Fixed.of(scores / math.sqrt(c.head_size) * LOG2E * 2.0**ARGUMENT_BITS),
            "attn_out": Fixed.of(means / o_scales * 2.0**-QUOTIENT_BITS),
            "attn_output": _matrix(t, "attn_output"),
            "attn_add": self._residual(t["attn_output.weight_scale"]),
        }

    def _feed_forward(self, t: Arrays) -> dict[str, Any]:
        up, product = _wide(t["up.scale"]), _wide(t["product.scale"])
        # the product's fixed point: its largest code has PRODUCT_BITS bits
        above = np.frexp(LARGEST * product / up)[1]
        lost = np.clip(above + GATE_BITS - PRODUCT_BITS, 1, 40)
        shifts = np.ones(padded(len(lost)), np.int32)
        shifts[: len(lost)] = lost
        return {
            "ffn_norm": self._norm(t["ffn_norm.weight"], t["ffn_in.scale"]),
            "ffn_gate": _matrix(t, "ffn_gate"),
            "ffn_up": _matrix(t, "ffn_up"),
            "gate": Fixed.of(_wide(t["ffn_gate.weight_scale"]) * 2.0**GATE_BITS),
            "up": Fixed.of(_wide(t["ffn_up.weight_scale"]) / up),
            "product_shifts": shifts,
            "product": Fixed.of(up / product * 2.0 ** (lost - GATE_BITS)),
            "ffn_down": _matrix(t, "ffn_down"),
            "ffn_add": self._residual(t["ffn_down.weight_scale"]),
        }


def _wide(scales: np.ndarray) -> np.ndarray:
    return scales.astype(np.float64)


def _matrix(t: Arrays, name: str) -> IntegerMatrix:
    return integer_matrix(t[f"{name}.weight"], t[f"{name}.weight_scale"], t.get(f"{name}.bias"))


def tied_output(t: Arrays) -> dict[str, np.ndarray]:
    """The output matrix that the embedding serves as: its rows coded again, with `output_in`'s scales in the columns."""
    table, rows = t["token_embd.weight"], t["token_embd.weight_scale"]
    codes, scales = np.empty(table.shape, np.int8), np.empty(len(table), np.float32)
    for start in range(0, len(table), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        codes[part], scales[part] = row_codes(table[part] * rows[part, None], t["output_in.scale"])
    return {"output.weight": codes, "output.weight_scale": scales}
