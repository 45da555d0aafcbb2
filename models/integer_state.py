"""The run state of an integer-only forward pass: INT8 cache, int32 residual stream and sums, INT8 rows between them."""

from kernels.quantize import BLOCK
from models.config import ModelConfig, expected_tensors
from models.state import CHUNK, Limits, Shapes, State, plan
from models.weights import padded


def integer_plan(config: ModelConfig, context: int, workers: int, chunk: int = CHUNK) -> Limits:
    """The limits of an integer-only engine, as in `models/state.py`; its cache is never float32."""
    return plan(config, dict.fromkeys(expected_tensors(config), "Q8_0"), context, workers, chunk)


def cache_shapes(config: ModelConfig, limits: Limits) -> Shapes:
    """The arrays of the cache, as in `models/state.py`, but INT8."""
    shape = (config.layers, limits.slots, config.kv_heads, limits.blocks, config.head_size, 8)
    return {"keys": ("int8", shape), "values": ("int8", shape), "slots": ("int64", (limits.slots,))}


def scratch_shapes(config: ModelConfig, limits: Limits) -> Shapes:
    """The arrays of the scratch.

    int32: `x` the residual stream, `q`, `k`, `v`, `gate`, `up`, `sums`, `logits` the sums of products, `scores`.
    int8: `h`, `a`, `product`, what the products read. Rows are padded to whole blocks of 32.
    """
    hidden, query, kv, ff = config.hidden_size, config.query_size, config.kv_size, config.feed_forward_size
    shapes: Shapes = {}
    for name, width in {"x": hidden, "sums": hidden, "q": query, "k": kv, "v": kv, "gate": ff, "up": ff}.items():
        shapes[name] = ("int32", (limits.rows, padded(width)))
    for name, width in {"h": hidden, "a": query, "product": ff}.items():
        shapes[name] = ("int8", (limits.rows, padded(width)))
    shapes["logits"] = ("int32", (limits.logit_rows, padded(config.vocab_size)))
    shapes["scores"] = ("int32", (limits.workers, -(-8 * limits.blocks // BLOCK) * BLOCK))
    return shapes


def integer_state(config: ModelConfig, limits: Limits) -> State:
    """The cache and the scratch of one integer-only engine."""
    return State(config, limits, cache_shapes, scratch_shapes)
