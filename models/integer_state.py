"""The run state of an integer-only forward pass: INT8 cache, int32 residual stream and sums, INT8 rows between them."""

import numpy as np

from kernels.quantize import BLOCK
from models.config import ModelConfig
from models.memory import Arena
from models.state import Limits, Shapes, State, shapes_bytes
from models.weights import padded


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


class IntegerState(State):
    """The cache and the scratch of one integer-only engine."""

    def __init__(self, config: ModelConfig, limits: Limits) -> None:
        self.limits = limits
        self.cache = _allocate(cache_shapes(config, limits))
        self.scratch = _allocate(scratch_shapes(config, limits))
        self.cache["slots"][:] = np.arange(limits.slots) * limits.blocks


def _allocate(shapes: Shapes) -> dict[str, np.ndarray]:
    arena = Arena(shapes_bytes(shapes))
    return {name: arena.take(dtype, shape) for name, (dtype, shape) in shapes.items()}
