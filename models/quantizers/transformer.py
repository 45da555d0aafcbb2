"""A plain float32 forward pass in NumPy, one layer at a time, for calibration: it shows every product's input.

    xs = embedding rows                          one (T, hidden) array for each text of the calibration
    for each layer:
        steps = run_layer(config, layer, xs, angles)
        for group, inputs in steps: ...          before each group of products, with what they multiply
        xs = steps.result

The layer's matrices may be replaced at each stop: what is computed after it, the inputs of the next products included, uses
the new ones. No more than one layer's weights need to be in memory, and of activations no more than `keep` leaves there: of
the widest rows, those inside of the feed-forward part, only one text's.
"""

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, MutableMapping, Sequence

import numpy as np

from models.config import ModelConfig

Layer = MutableMapping[str, np.ndarray]  # short name ("attn_q", "attn_norm", "attn_q.bias") -> float32
Inputs = Callable[[], Iterable[np.ndarray]]
Texts = Sequence[np.ndarray]  # one array for each text
Keep = Callable[[Iterable[np.ndarray]], Texts]
Stop = tuple[tuple[str, ...], Inputs]
Angles = tuple[np.ndarray, np.ndarray]
GROUPS = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
MATRICES = tuple(name for group in GROUPS for name in group)


class Steps:
    """A layer being run: an iterator over its stops, and after the last its `result`."""

    def __init__(self, steps: Generator[Stop, None, Texts]) -> None:
        self._steps = steps
        self.result: Texts = []

    def __iter__(self) -> Iterator[Stop]:
        return self

    def __next__(self) -> Stop:
        try:
            return next(self._steps)
        except StopIteration as end:
            if end.value is not None:
                self.result = end.value
            raise

    def finish(self) -> Texts:
        """Run on to the end."""
        for _ in self:
            pass
        return self.result


def run_layer(config: ModelConfig, layer: Layer, xs: Texts, angles: Angles, keep: Keep | None = None) -> Steps:
    """One transformer block over several texts, stop by stop.

    Args:
        layer: Its tensors; a matrix is (N, K).
        xs: The residual stream of each text, (T, hidden) float32.
        angles: Cosines and sines of `kernels.rope_table.rope_tables`.
        keep: Puts arrays somewhere, and gives what is there to be iterated over again and again (None: in memory, but for
            the widest, which are computed again).
    """
    return Steps(_stops(config, layer, xs, angles, keep))


def _stops(
    config: ModelConfig, layer: Layer, xs: Texts, angles: Angles, keep: Keep | None
) -> Generator[Stop, None, Texts]:
    def linear(x: np.ndarray, name: str) -> np.ndarray:
        out: np.ndarray = x @ layer[name].T
        return out + layer[name + ".bias"] if name + ".bias" in layer else out

    def normed(xs: Texts, name: str) -> Inputs:
        return lambda: (rms_norm(x, layer[name], config.rms_eps) for x in xs)

    def attended() -> Iterable[np.ndarray]:
        for h in first():
            q, k, v = (linear(h, name) for name in GROUPS[0])
            yield attention(config, q, k, v, angles)

    def gated() -> Iterable[np.ndarray]:
        for h in second():
            yield silu(linear(h, "ffn_gate")) * linear(h, "ffn_up")

    kept = keep or list
    first = normed(xs, "attn_norm")
    yield GROUPS[0], first
    heads = kept(attended())
    yield GROUPS[1], functools.partial(iter, heads)
    xs = kept(x + linear(a, "attn_output") for x, a in zip(xs, heads))
    heads = []
    second = normed(xs, "ffn_norm")
    yield GROUPS[2], second
    inner: Inputs = gated if keep is None else functools.partial(iter, keep(gated()))
    yield GROUPS[3], inner
    return kept(x + linear(a, "ffn_down") for x, a in zip(xs, inner()))


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Root mean square norm of (T, K) float32."""
    scale = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=np.float32) + np.float32(eps))
    return x * scale * weight


def silu(x: np.ndarray) -> np.ndarray:
    """x / (1 + e^-x), without overflow."""
    return x * (np.float32(0.5) * (1 + np.tanh(x * np.float32(0.5))))


def rope(x: np.ndarray, config: ModelConfig, angles: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Turns the pairs of x (T, H, D) by their positions."""
    dims = config.rope_dims
    if config.rope_style == "interleaved":
        first, second = slice(0, dims, 2), slice(1, dims, 2)
    else:
        first, second = slice(0, dims // 2), slice(dims // 2, dims)
    cos, sin = (a[: len(x), None] for a in angles)
    turned = x.copy()
    turned[..., first] = x[..., first] * cos - x[..., second] * sin
    turned[..., second] = x[..., first] * sin + x[..., second] * cos
    return turned


def attention(
    config: ModelConfig, q: np.ndarray, k: np.ndarray, v: np.ndarray, angles: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Causal grouped-query attention of one text: q (T, H * D), k and v (T, G * D) -> (T, H * D)."""
    T, D, G = len(q), config.head_size, config.kv_heads
    share = config.heads // G
    q, k = rope(q.reshape(T, -1, D), config, angles), rope(k.reshape(T, G, D), config, angles)
    v = v.reshape(T, G, D)
    hidden = ~np.tri(T, dtype=bool)
    out = np.empty((T, config.heads, D), np.float32)
    for head in range(config.heads):
        scores = (q[:, head] @ k[:, head // share].T) * np.float32(1 / np.sqrt(D))
        scores[hidden] = -np.inf
        scores -= scores.max(1, keepdims=True)
        np.exp(scores, out=scores)
        out[:, head] = (scores / scores.sum(1, keepdims=True)) @ v[:, head // share]
    return out.reshape(T, -1)
