"""The words in which `integer.py` writes the integer-only forward pass: each appends steps to the table.

Names in quotes are rows of the scratch (`integer_state.py`): int8 ones that products read, int32 ones that they write.
"""

import numpy as np

from kernels.integer_attention import integer_attention
from kernels.integer_gate import integer_silu_gate
from kernels.integer_logits import integer_logits
from kernels.integer_matmul import BLOCK, GROUP, integer_matmul
from kernels.integer_norm import integer_rms_norm
from kernels.integer_residual import integer_add, integer_embed
from kernels.integer_rope import integer_rope_store, q_limit
from kernels.rope import rope_pairs
from kernels.run import ROWS
from models.config import ModelConfig
from models.integer_weights import Fixed, IntegerLayer, IntegerMatrix, IntegerWeights
from models.state import State
from models.steps import Steps
from models.weights import padded


def fixed(ratio: Fixed, prefix: str = "") -> dict[str, np.ndarray]:
    """The two operands of a ratio."""
    return {f"{prefix}multipliers": ratio.multipliers, f"{prefix}shifts": ratio.shifts}


class IntegerForward:
    """An integer-only forward pass being written as a table of steps, `steps`; cos, sin: (context, pairs) int32."""

    def __init__(
        self, config: ModelConfig, weights: IntegerWeights, state: State, cos: np.ndarray, sin: np.ndarray
    ) -> None:
        self.config, self.weights = config, weights
        self.steps = Steps()
        self._scratch, self._cache = state.scratch, state.cache
        self._slot_blocks = state.limits.blocks
        self._cos, self._sin = cos, sin
        self._blocks = padded(config.hidden_size) // BLOCK

    def embed(self) -> None:
        """`x` = the rows that the tokens name."""
        w = self.weights
        codes = w.embedding.reshape(-1)
        self.steps.add(
            integer_embed, out=self._scratch["x"], codes=codes, blocks=self._blocks, **fixed(w.embedding_rows)
        )

    def rms_norm(self, ratio: Fixed, count: int) -> None:
        """`h` = RMSNorm of `x`; with count LOGIT_ROWS, of those rows that want logits."""
        self.steps.add(
            integer_rms_norm,
            out=self._scratch["h"],
            x=self._scratch["x"],
            n=self.config.hidden_size,
            blocks=self._blocks,
            eps=self.weights.eps,
            count=count,
            **fixed(ratio),
        )

    def linear(self, x: str, weight: IntegerMatrix, out: str, count: int = ROWS) -> None:
        """The sums of x @ weight + bias."""
        values = self._scratch[out]
        self.steps.add(
            integer_matmul,
            out=values,
            x=self._scratch[x],
            codes=weight.codes,
            bias=weight.bias,
            groups=-(-weight.rows // GROUP),
            blocks=padded(weight.columns) // BLOCK,
            stride=values.shape[1],
            count=count,
        )

    def add(self, sums: str, ratio: Fixed) -> None:
        """`x` += sums."""
        self.steps.add(integer_add, x=self._scratch["x"], sums=self._scratch[sums], blocks=self._blocks, **fixed(ratio))

    def rope_and_store(self, layer: IntegerLayer, i: int) -> None:
        """Turn `q` and `k` into codes by their positions; put `k` and `v` into the cache of layer i."""
        c = self.config
        pairs, spacing, distance = rope_pairs(c.rope_style, c.rope_dims)
        q, k = self._scratch["q"], self._scratch["k"]
        self.steps.add(
            integer_rope_store,
            q=q,
            k=k,
            v=self._scratch["v"],
            keys=self._cache["keys"][i],
            values=self._cache["values"][i],
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
            q_stride=q.shape[1],
            kv_stride=k.shape[1],
            q_limit=q_limit(c.head_size),
            **fixed(layer.rope),
        )

    def attention(self, layer: IntegerLayer, i: int, out: str) -> None:
        """Causal grouped-query attention of `q` over the cache of layer i."""
        c = self.config
        q, codes, scores = self._scratch["q"], self._scratch[out], self._scratch["scores"]
        self.steps.add(
            integer_attention,
            out=codes,
            q=q,
            keys=self._cache["keys"][i],
            values=self._cache["values"][i],
            scores=scores,
            slots=self._cache["slots"],
            slot_blocks=self._slot_blocks,
            heads=c.heads,
            kv_heads=c.kv_heads,
            head_size=c.head_size,
            q_stride=q.shape[1],
            stride=codes.shape[1],
            score_stride=scores.shape[1],
            **fixed(layer.heads, "head_"),
            **fixed(layer.attn_out),
        )

    def silu_gate(self, layer: IntegerLayer, out: str) -> None:
        """silu(`gate`) * `up`."""
        gate = self._scratch["gate"]
        self.steps.add(
            integer_silu_gate,
            out=self._scratch[out],
            gate=gate,
            up=self._scratch["up"],
            product_shifts=layer.product_shifts,
            blocks=gate.shape[1] // BLOCK,
            **fixed(layer.gate, "gate_"),
            **fixed(layer.up, "up_"),
            **fixed(layer.product),
        )

    def logits(self) -> None:
        """Turn the sums in `logits` into logits."""
        logits, vocab = self._scratch["logits"], self.config.vocab_size
        self.steps.add(integer_logits, logits=logits, vocab=vocab, stride=logits.shape[1], **fixed(self.weights.logits))
