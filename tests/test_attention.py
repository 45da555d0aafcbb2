"""Attention: both caches against their references; no trace of tiling, chunks, neighbours or stale memory in the bits."""

import numpy as np
import pytest
from kernel_runs import assert_same_bits, rows_block, run_both

from kernels.attention import attention_exact, attention_f16, attention_f32, attention_truth, score_floats
from kernels.registry import Kernel


def arguments(
    kernel: Kernel, rng: np.random.Generator, T: int, H: int, G: int, D: int, context_blocks: int, slots: list[int]
) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    """Operands with random content, and q (T, H, D), keys and values (slots, G, blocks, D, 8) to compute with."""
    dtype = np.float16 if kernel is attention_f16 else np.float32
    q_stride, out_stride = H * D + 3, H * D + 9
    q = rng.normal(0, 1, (T, q_stride)).astype(np.float32)
    caches = [rng.normal(0, 1, (max(slots) + 1, G, context_blocks, D, 8)).astype(dtype) for _ in range(2)]
    stride = score_floats(H, G, D, context_blocks)
    values = {
        "out": np.zeros(T * out_stride, np.float32),
        "q": q.ravel(),
        "keys": caches[0].ravel(),
        "values": caches[1].ravel(),
        "scores": np.full(5 * stride, np.nan, np.float32),
        "slots": np.array(slots, np.int64) * context_blocks,
        "slot_blocks": context_blocks,
        "heads": H,
        "kv_heads": G,
        "head_size": D,
        "q_stride": q_stride,
        "stride": out_stride,
        "score_stride": stride,
        "scale": float(D**-0.5),
    }
    return values, q[:, : H * D].reshape(T, H, D), *caches


def run(kernel: Kernel, values: dict, positions: list[int], row_slots: list[int]) -> np.ndarray:
    """(T, H, D) as both forms compute it; half floats are handed over as bits."""
    T, H, D = len(positions), values["heads"], values["head_size"]
    bits = {name: x.view(np.uint16) for name, x in values.items() if getattr(x, "dtype", None) == np.float16}
    (out,) = run_both(kernel, rows_block(T, positions, row_slots), ("out",), **(values | bits))
    return out.reshape(T, -1)[:, : H * D].reshape(T, H, D)


def history(cache: np.ndarray, slot: int, position: int) -> np.ndarray:
    """(positions, G, D) up to and with `position`."""
    _, G, _, D, _ = cache.shape
    return cache[slot].transpose(1, 3, 0, 2).reshape(-1, G, D)[: position + 1]


CASES = [  # kernel, H, G, D, positions, slots of the rows
    (attention_f16, 1, 1, 1, [0], [0]),
    (attention_f16, 7, 1, 10, [40], [1]),
    (attention_f16, 6, 2, 8, [6, 7, 8], [1, 1, 1]),
    (attention_f16, 6, 1, 3, [139], [0]),  # four heads and two, elements left over, more than one tile
    (attention_f32, 4, 4, 5, [0, 17, 31], [1, 0, 2]),
    (attention_f32, 3, 1, 16, [138], [0]),
    (attention_f16, 14, 2, 5, [137, 9], [0, 1]),  # eight heads, the last computed twice; elements left over
    (attention_f16, 14, 2, 8, [137, 9], [0, 1]),  # from here on in vectors of 64 bytes where there are any: seven heads
    (attention_f32, 11, 1, 8, [150], [2]),  # eight and three
    (attention_f32, 12, 2, 4, [20, 139], [1, 0]),  # four and two
    (attention_f16, 5, 1, 4, [66], [0]),  # four and one
    (attention_f16, 9, 3, 4, [71, 64], [2, 1]),  # three
    (attention_f16, 8, 1, 4, [511, 512, 519, 520], [0, 0, 0, 0]),  # where the second tile of 64 blocks begins
]


@pytest.mark.parametrize(("kernel", "H", "G", "D", "positions", "row_slots"), CASES)
def test_kernels(kernel: Kernel, H: int, G: int, D: int, positions: list[int], row_slots: list[int]) -> None:
    rng = np.random.default_rng(D)
    context_blocks = max(positions) // 8 + 2
    slots = [1, 0, 2]
    values, q, keys, cache_values = arguments(kernel, rng, len(positions), H, G, D, context_blocks, slots)
    out = run(kernel, values, positions, row_slots)
    for t, (position, slot) in enumerate(zip(positions, row_slots)):
        past = [history(cache, slots[slot], position) for cache in (keys, cache_values)]
        assert_same_bits(out[t], attention_exact(q[t], *past, values["scale"]))


@pytest.mark.parametrize("heads", [2, 8])
def test_what_lies_beyond_the_own_position_does_not_count(heads: int) -> None:
    rng = np.random.default_rng(5)
    values, _, keys, cache_values = arguments(attention_f16, rng, 1, heads, 1, 8, 3, [0])
    clean = run(attention_f16, values, [10], [0])
    for cache in (keys, cache_values):
        cache[0, :, 1, :, 3:], cache[0, :, 2] = np.nan, np.inf
    assert_same_bits(run(attention_f16, values, [10], [0]), clean)


def test_equal_keys_give_the_mean() -> None:
    rng = np.random.default_rng(6)
    values, _, keys, cache_values = arguments(attention_f32, rng, 1, 2, 1, 4, 2, [0])
    keys[:] = 1
    cache_values[:] = 3
    assert (run(attention_f32, values, [15], [0]) == 3).all()


@pytest.mark.parametrize(("H", "G", "D", "P"), [(2, 1, 3, 1), (14, 2, 64, 300)])
def test_near_the_truth(H: int, G: int, D: int, P: int) -> None:
    rng = np.random.default_rng(P)
    q = rng.normal(0, 1, (H, D)).astype(np.float32)
    keys, values = (rng.normal(0, 1, (P, G, D)).astype(np.float16) for _ in range(2))
    scale, half_unit = float(np.float32(D**-0.5)), 2.0**-24
    # a score's error: D roundings of at most the sum of |q k|, then the product; weights scale by exp of it, twice
    largest = np.abs(q).max() * np.abs(keys.astype(np.float64)).max() * D * scale
    relative = 2 * (D + 2) * half_unit * largest + (2 * (P / 8 + 4) + 4) * half_unit
    truth = attention_truth(q, keys, values, scale)
    assert np.abs(attention_exact(q, keys, values, scale) - truth).max() <= relative * np.abs(values).max()
