"""The words in which `llama.py` and its like write a forward pass: each appends steps to the table.

    rows that want logits, and how many: see `kernels/run.py`

`Rows` are what flows between them: rows of floats in the scratch, or quantised ones where every matrix that reads them takes
those. Whether a norm or a gate ends in floats, in INT8 blocks or in both is decided here, from its readers.
"""

from dataclasses import dataclass, replace

import numpy as np

from kernels.attention import attention_f16, attention_f32
from kernels.gate import silu_gate, silu_gate_quantize
from kernels.norm import rms_norm, rms_norm_quantize
from kernels.quantize import BLOCK, quantize
from kernels.rope import rope_pairs, rope_store_f16, rope_store_f32
from kernels.run import LOGIT_ROWS, ROWS
from models.config import ModelConfig
from models.state import State
from models.steps import Steps
from models.weights import Matrix, Weights, padded


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of activations: `values` (rows, padded width) float32, or None; `codes`, `scales`, `sums`, or None.

    `count` is the word of the run block that says how many rows there are.
    """

    width: int
    count: int
    values: np.ndarray | None = None
    codes: np.ndarray | None = None
    scales: np.ndarray | None = None
    sums: np.ndarray | None = None


class Forward:
    """A forward pass being written as a table of steps, `steps`, over a state's scratch and cache."""

    def __init__(self, config: ModelConfig, weights: Weights, state: State, cos: np.ndarray, sin: np.ndarray) -> None:
        self.config = config
        self.weights = weights
        self.steps = Steps()
        self._scratch = state.scratch
        self._cache = state.cache
        self._float_cache = state.limits.float_cache
        self._slot_blocks = state.limits.blocks
        self._cos, self._sin = cos, sin

    def embed(self, table: Matrix, out: str) -> Rows:
        """The rows of `table` that the tokens name."""
        values = self._scratch[out]
        form = table.form
        self.steps.add(form.embed, out=values, stride=values.shape[1], **table.arrays, **form.columns(table.columns))
        return Rows(table.columns, ROWS, values)

    def rms_norm(self, x: Rows, weight: np.ndarray, readers: list[Matrix], out: str, count: int = ROWS) -> Rows:
        """RMSNorm of x; with count LOGIT_ROWS, of those rows that want logits."""
        assert x.values is not None
        made = self._rows(out, x.width, count, readers)
        blocks, stride = padded(x.width) // BLOCK, x.values.shape[1]
        common = {"x": x.values, "weight": weight, "n": x.width, "blocks": blocks, "stride": stride}
        common |= {"eps": self.config.rms_eps, "count": count}
        with self.steps.together():
            if made.values is not None:
                self.steps.add(rms_norm, out=made.values, **common)
            if made.codes is not None:
                self.steps.add(rms_norm_quantize, codes=made.codes, scales=made.scales, sums=made.sums, **common)
        return made

    def linear(
        self, x: Rows, weight: Matrix, out: str, bias: np.ndarray | None = None, add_to: Rows | None = None
    ) -> Rows:
        """x @ weight + bias, as new rows, or added to the rows `add_to`."""
        values = self._scratch[out] if add_to is None else add_to.values
        assert values is not None
        form = weight.form
        operands = {
            "out": values,
            "bias": self._scratch["no_bias"] if bias is None else bias,
            "groups": -(-weight.rows // 8),
            "stride": values.shape[1],
            "add": int(add_to is not None),
            "count": x.count,
        }
        operands |= dict(weight.arrays) | form.columns(weight.columns)
        if form.quantised:
            operands |= {"x": x.codes, "x_scales": x.scales, "x_sums": x.sums}
        else:
            assert x.values is not None
            operands |= {"x": x.values, "x_stride": x.values.shape[1]}
        self.steps.add(form.matmul, **operands)
        return Rows(weight.rows, x.count, values)

    def rope_and_store(self, q: Rows, k: Rows, v: Rows, layer: int) -> None:
        """Turn q and k by their positions; put k and v into the layer's cache."""
        assert q.values is not None and k.values is not None and v.values is not None
        c = self.config
        pairs, spacing, distance = rope_pairs(c.rope_style, c.rope_dims)
        self.steps.add(
            rope_store_f32 if self._float_cache else rope_store_f16,
            q=q.values,
            k=k.values,
            v=v.values,
            keys=self._cache["keys"][layer],
            values=self._cache["values"][layer],
            cos=self._cos,
            sin=self._sin,
            slots=self._cache["slots"],
            slot_blocks=self._slot_blocks,
            heads=c.heads,
            kv_heads=c.kv_heads,
            head_size=c.head_size,
            pairs=pairs,
            spacing=spacing,
            distance=distance,
            q_stride=q.values.shape[1],
            kv_stride=k.values.shape[1],
        )

    def attention(self, q: Rows, layer: int, readers: list[Matrix], out: str) -> Rows:
        """Causal grouped-query attention of q over the layer's cache, scores scaled by 1 / sqrt(head_size)."""
        assert q.values is not None
        c = self.config
        values, scores = self._scratch[out], self._scratch["scores"]
        self.steps.add(
            attention_f32 if self._float_cache else attention_f16,
            out=values,
            q=q.values,
            keys=self._cache["keys"][layer],
            values=self._cache["values"][layer],
            scores=scores,
            slots=self._cache["slots"],
            slot_blocks=self._slot_blocks,
            heads=c.heads,
            kv_heads=c.kv_heads,
            head_size=c.head_size,
            q_stride=q.values.shape[1],
            stride=values.shape[1],
            score_stride=scores.shape[1],
            scale=1 / np.sqrt(c.head_size),
        )
        return self._readable(Rows(c.query_size, ROWS, values), readers, out)

    def silu_gate(self, gate: Rows, up: Rows, readers: list[Matrix], out: str) -> Rows:
        """silu(gate) * up."""
        assert gate.values is not None and up.values is not None
        made = self._rows(out, gate.width, ROWS, readers)
        stride = gate.values.shape[1]
        common = {"gate": gate.values, "up": up.values, "blocks": padded(gate.width) // BLOCK, "stride": stride}
        with self.steps.together():
            if made.values is not None and (made.codes is None or made.values is not gate.values):
                self.steps.add(silu_gate, out=made.values, count=ROWS, **common)
            if made.codes is not None:  # leaves the product in `gate`, too
                self.steps.add(
                    silu_gate_quantize, codes=made.codes, scales=made.scales, sums=made.sums, count=ROWS, **common
                )
        return made

    def _rows(self, name: str, width: int, count: int, readers: list[Matrix]) -> Rows:
        """Rows in the scratch, in the forms that their readers take."""
        made = Rows(width, count)
        if not all(reader.form.quantised for reader in readers):
            made = replace(made, values=self._scratch[name])
        if any(reader.form.quantised for reader in readers):
            s = self._scratch
            made = replace(made, codes=s[f"{name}_codes"], scales=s[f"{name}_scales"], sums=s[f"{name}_sums"])
        return made

    def _readable(self, x: Rows, readers: list[Matrix], name: str) -> Rows:
        """x, quantised as well where a reader takes that."""
        made = self._rows(name, x.width, x.count, readers)
        if made.codes is not None:
            assert x.values is not None
            self.steps.add(
                quantize,
                codes=made.codes,
                scales=made.scales,
                sums=made.sums,
                x=x.values,
                blocks=padded(x.width) // BLOCK,
                stride=x.values.shape[1],
                count=x.count,
            )
        return replace(made, values=x.values)


__all__ = ["LOGIT_ROWS", "ROWS", "Forward", "Rows"]
