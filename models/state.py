"""The run state: all that changes while a model runs. KV cache and scratch, each allocated once.

Cache of one layer: keys and values, each (slots, G, blocks of 8 positions, D, 8 positions) float16, or float32 where no
weight is quantised (`kernels/rope.py`). A sequence lies in a slot; all slots hold `context` positions.

Scratch: one row for each token of a run. Rows are padded to whole blocks of 32 floats; what a step writes there is read by
the steps behind it, and the next layer writes over it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kernels.attention import score_floats
from kernels.quantize import BLOCK, quantized_shapes
from models.config import ModelConfig, expected_tensors
from models.formats import FORMS
from models.memory import Arena, aligned
from models.weights import padded

CHUNK = 256  # tokens of a prompt in one run
LOGIT_BYTES = 16 << 20
Shapes = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a state is made for.

    Attributes:
        rows: Tokens in one run, at most: longer prompts run in chunks.
        logit_rows: Rows of a run that can want logits.
        slots: Sequences.
        context: Positions of each.
        workers: Threads.
        float_cache: Whether the cache is float32.
    """

    rows: int
    logit_rows: int
    slots: int
    context: int
    workers: int
    float_cache: bool

    @property
    def blocks(self) -> int:
        """Blocks of 8 positions in one slot."""
        return -(-self.context // 8)


ShapesOf = Callable[[ModelConfig, Limits], Shapes]


def plan(
    config: ModelConfig, types: Mapping[str, str], context: int, workers: int, chunk: int = CHUNK, slots: int = 1
) -> Limits:
    """The limits of an engine; `types`: the type of each tensor by its name. Logits of one run take at most LOGIT_BYTES."""
    rows = min(chunk, context)
    logit_rows = max(slots, min(rows, max(1, LOGIT_BYTES // (4 * config.vocab_size))))
    matrices = [name for name, shape in expected_tensors(config).items() if len(shape) == 2]
    quantised = any(FORMS[types[name]].quantised for name in matrices)
    return Limits(rows, logit_rows, slots, context, workers, float_cache=not quantised)


def cache_shapes(config: ModelConfig, limits: Limits) -> Shapes:
    """The arrays of the cache: `keys` and `values` of all layers, and `slots`."""
    dtype = "float32" if limits.float_cache else "uint16"
    shape = (config.layers, limits.slots, config.kv_heads, limits.blocks, config.head_size, 8)
    return {"keys": (dtype, shape), "values": (dtype, shape), "slots": ("int64", (limits.slots,))}


def scratch_shapes(config: ModelConfig, limits: Limits) -> Shapes:
    """The arrays of the scratch: rows of floats, and quantised rows (`name_codes`, `name_scales`, `name_sums`)."""
    hidden, query, kv, ff = config.hidden_size, config.query_size, config.kv_size, config.feed_forward_size
    shapes: Shapes = {}
    for name, width in {
        "x": hidden,
        "h": hidden,
        "q": query,
        "k": kv,
        "v": kv,
        "a": query,
        "gate": ff,
        "up": ff,
    }.items():
        shapes[name] = ("float32", (limits.rows, padded(width)))
    shapes["logits"] = ("float32", (limits.logit_rows, padded(config.vocab_size)))
    for name, width in {"h": hidden, "a": query, "gate": ff}.items():
        for part, (dtype, length) in quantized_shapes(limits.rows, padded(width) // BLOCK).items():
            shapes[f"{name}_{part}"] = (dtype, (length,))
    widest = max(padded(config.vocab_size), padded(query), padded(hidden), padded(ff))
    shapes["no_bias"] = ("float32", (widest,))
    scores = score_floats(config.heads, config.kv_heads, config.head_size, limits.blocks)
    shapes["scores"] = ("float32", (limits.workers, scores))
    return shapes


def shapes_bytes(shapes: Shapes) -> int:
    """What arrays of these shapes take in an arena."""
    return sum(
        aligned(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize) for dtype, shape in shapes.values()
    )


class State:
    """The cache and the scratch of one engine; which arrays they hold is said by `cache` and `scratch`."""

    def __init__(
        self, config: ModelConfig, limits: Limits, cache: ShapesOf = cache_shapes, scratch: ShapesOf = scratch_shapes
    ) -> None:
        self.limits = limits
        self.cache = _allocate(cache(config, limits))
        self.scratch = _allocate(scratch(config, limits))
        self.cache["slots"][:] = np.arange(limits.slots) * limits.blocks


def _allocate(shapes: Shapes) -> dict[str, np.ndarray]:
    arena = Arena(shapes_bytes(shapes))
    return {name: arena.take(dtype, shape) for name, (dtype, shape) in shapes.items()}
