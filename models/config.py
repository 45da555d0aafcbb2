"""What defines a model beside its weights: `ModelConfig`, and which tensors of which shapes belong to it.

Nothing here has a default: whatever changes a logit has to be said by the file that the model comes from. Tensors are
named as in GGUF, whatever file they come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

ROPE_STYLES = {"llama": "interleaved", "qwen2": "halves"}  # architecture -> which elements of a head turn together
LIMITS = {  # field -> smallest and largest value; generous, but small enough that no product of them is a surprise
    "layers": (1, 512),
    "hidden_size": (1, 1 << 17),
    "heads": (1, 1 << 12),
    "kv_heads": (1, 1 << 12),
    "head_size": (2, 1 << 13),
    "feed_forward_size": (1, 1 << 20),
    "vocab_size": (1, 1 << 22),
    "context_length": (1, 1 << 24),
    "rope_dims": (2, 1 << 13),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A model's sizes and constants; checks itself, and raises ValueError, one line, for what can't be.

    architecture: 'llama' or 'qwen2'.
    layers, heads, kv_heads: L, H, G; every H / G query heads share one key/value head.
    hidden_size: width of the residual stream.  head_size: D.  feed_forward_size: width of gate and up.
    vocab_size: V, the rows of the embedding.  context_length: positions that the model was trained for.
    rms_eps: added to the mean square in RMSNorm.
    rope_base: position p turns pair i by p * rope_base^(-2 i / rope_dims), divided by `rope_freqs.weight`[i] if
        rope_divisors.  rope_dims: elements of each head that turn; the rest stay as they are.
    rope_style: which pairs turn: 'interleaved' (2 i, 2 i + 1) or 'halves' (i, i + rope_dims / 2).
    attention_bias: query, key and value have one.  tied_embeddings: the output matrix is the embedding.
    """

    architecture: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward_size: int
    vocab_size: int
    context_length: int
    rms_eps: float
    rope_base: float
    rope_dims: int
    rope_style: str
    rope_divisors: bool
    attention_bias: bool
    tied_embeddings: bool

    def __post_init__(self) -> None:
        kinds = {"int": int, "float": float, "bool": bool, "str": str}
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not kinds[str(field.type)]:
                raise ValueError(f"{field.name} is {value!r}, expected {field.type}")
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, expected {low} to {high}")
        if self.architecture not in ROPE_STYLES:
            known = ", ".join(ROPE_STYLES)
            raise ValueError(f"architecture {self.architecture!r} is not supported; supported: {known}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads is {self.kv_heads}, expected a divisor of heads, {self.heads}")
        if self.rope_dims % 2 or self.rope_dims > self.head_size:
            raise ValueError(f"rope_dims is {self.rope_dims}, expected even, at most head_size, {self.head_size}")
        if self.rope_style not in ("interleaved", "halves"):
            raise ValueError(f"rope_style is {self.rope_style!r}, expected 'interleaved' or 'halves'")
        if not 0 < self.rms_eps < 1:
            raise ValueError(f"rms_eps is {self.rms_eps}, expected a small positive number")
        if not (math.isfinite(self.rope_base) and self.rope_base > 1):
            raise ValueError(f"rope_base is {self.rope_base}, expected a finite number above 1")

    @property
    def query_size(self) -> int:
        """H * D, the outputs of the query matrix."""
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        """G * D, the outputs of the key matrix, and of the value matrix."""
        return self.kv_heads * self.head_size


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns all tensors of a model, no more and no less: GGUF name -> shape in NumPy order, (outputs, inputs).

    Those of one axis are norms, biases and rope divisors, kept in float32; those of two are matrices.
    """
    hidden, query, kv, ff = config.hidden_size, config.query_size, config.kv_size, config.feed_forward_size
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab_size, hidden)}
    if config.rope_divisors:
        shapes["rope_freqs.weight"] = (config.rope_dims // 2,)
    for i in range(config.layers):
        block = f"blk.{i}."
        shapes[block + "attn_norm.weight"] = (hidden,)
        shapes[block + "attn_q.weight"] = (query, hidden)
        shapes[block + "attn_k.weight"] = (kv, hidden)
        shapes[block + "attn_v.weight"] = (kv, hidden)
        if config.attention_bias:
            shapes[block + "attn_q.bias"] = (query,)
            shapes[block + "attn_k.bias"] = (kv,)
            shapes[block + "attn_v.bias"] = (kv,)
        shapes[block + "attn_output.weight"] = (hidden, query)
        shapes[block + "ffn_norm.weight"] = (hidden,)
        shapes[block + "ffn_gate.weight"] = (ff, hidden)
        shapes[block + "ffn_up.weight"] = (ff, hidden)
        shapes[block + "ffn_down.weight"] = (hidden, ff)
    shapes["output_norm.weight"] = (hidden,)
    if not config.tied_embeddings:
        shapes["output.weight"] = (config.vocab_size, hidden)
    return shapes
