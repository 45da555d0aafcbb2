"""Choosing the next token: three steps over one row of logits x.

    y = x, where repeated: x / penalty (or x * penalty, if negative); where banned, or not a number: -infinity
    temperature 0:  the id of the largest y
    else:           weight = rint(2^36 exp((y - max y) / temperature))
                    of these `top_k` keeps the first k, then `top_p` the fewest first that have this part of their sum, then
                    `min_p` those of at least this part of 2^36; one is drawn: ids ascending, by a 60-bit random number

Equal values go to the lowest id. If no y is larger than -infinity, or all are NaN, the answer is id 0; if the largest is
+infinity, its id. The chosen token's log-probability is that under softmax(x), x as it was.

The vocabulary is cut into parts of PART ids (`kernels/log_probability.py`), whatever the number of workers; each part has
its own results, which whoever needs them combines in order. Sums of weights are integers, below 2^60 for 2^24 ids.

    1 sample_adjust    y into `weights`; each part's largest x and y
    2 sample_weigh     each part's sum of exp(x - max x); to draw, also exp((y - max y) / temperature) into `weights`, each
                       part's summed weight, the largest weight of each group of GROUP ids
    3 sample_choose    rank 0 alone: only groups that can hold a candidate are looked at (`kernels/candidates.py`)

`top_k`: k groups whose largest weight is at least f hold k candidates of at least f, so lighter ones need not be seen.
`top_p`: all weights below f = (total - wanted) / V together are less than total - wanted, so the rest is enough.
"""

import math
from collections.abc import Sequence

import numpy as np

from kernels.candidates import WEIGHT_BITS, drawn, keep, keep_first, measure, part_of
from kernels.exp import exp, exp_exact
from kernels.log_probability import (
    MINUS_INFINITY,
    PART,
    ZERO,
    exp_sum,
    largest_of,
    load_below,
    log_probability,
    part_end,
    parts_of,
)
from kernels.quantize import share
from kernels.registry import kernel, subroutine
from kernels.simd import (
    add_i32,
    div_f32,
    keep_below,
    load_f32x8,
    max_f32,
    max_lane,
    mul_f32,
    rint_f32,
    splat_f32,
    splat_i32,
    store_f32x8,
    sub_f32,
    sum_i32,
    to_i32,
)
from kernels.types import F32, I64, F32x8, Float, I32x8, Int

GROUP = 128
ONE_WEIGHT, ROUNDER = np.float64(1 << WEIGHT_BITS), np.float64(3 << 51)
HALF_BITS = WEIGHT_BITS // 2
HALF_WEIGHT = np.float32(1 << HALF_BITS)

# `options`: whole numbers. top_p and min_p are fractions of 2^60 and 2^36; 0 turns top_k, top_p and min_p off
RANDOM, TOP_K, TOP_P, MIN_P, RECENT, BANNED, CHOSEN = range(7)
OPTIONS = 8
# `factors`: floats
TEMPERATURE, PENALTY, LOG_PROBABILITY = range(3)
FACTORS = 4
# `floats` and `integers`: of each part
LARGEST_X, LARGEST_Y, TOTAL, FLOATS = range(4)
MASS, GROUPS = range(2)
INTEGERS = GROUPS + PART // GROUP


@subroutine
def largest_part(floats: F32, column: Int, parts: Int) -> Int:
    """The first part whose number in this column is the largest."""
    best = 0
    for part in range(1, parts):
        if floats[part * FLOATS + column] > floats[best * FLOATS + column]:
            best = part
    return best


@subroutine
def weight_of(e: Float) -> Int:
    """rint(2^36 e) for e in 0..1; adding and taking away 3 * 2^51 rounds a float64 to an integer."""
    return np.int64(np.float64(e) * ONE_WEIGHT + ROUNDER - ROUNDER)  # type: ignore[return-value]


@subroutine
def weight_halves(e: F32x8) -> tuple[I32x8, I32x8]:
    """high and low with rint(2^36 e) = 2^18 high + low; both steps are exact, and each |low| is at most 2^17."""
    scaled = mul_f32(e, splat_f32(HALF_WEIGHT))
    high = rint_f32(scaled)
    return to_i32(high), to_i32(rint_f32(mul_f32(sub_f32(scaled, high), splat_f32(HALF_WEIGHT))))


@kernel
def sample_adjust(
    rank: Int,
    size: Int,
    run: I64,
    weights: F32,
    floats: F32,
    logits: F32,
    recent: I64,
    banned: I64,
    options: I64,
    factors: F32,
    vocab: Int,
) -> None:
    """y of each part, the largest x and the largest y.

    logits: one row, readable up to a multiple of 8, as `weights` is.
    recent: options[RECENT] ids, which may repeat; banned: options[BANNED] ids.
    """
    start, end = share(parts_of(vocab), rank, size)
    penalty = factors[PENALTY]
    for part in range(start, end):
        low, high = part * PART, part_end(part, vocab)
        lanes = splat_f32(MINUS_INFINITY)
        for i in range(low, high, 8):
            v = load_below(logits, 0, i, high)
            lanes = max_f32(v, lanes)
            store_f32x8(weights, i, v)
        largest = max_lane(lanes)
        floats[part * FLOATS + LARGEST_X] = largest
        if options[RECENT] + options[BANNED] > 0:
            for n in range(options[RECENT]):
                i = recent[n]
                if low <= i < high:
                    x = logits[i]
                    y = np.float32(x / penalty) if x > ZERO else np.float32(x * penalty)
                    weights[i] = y if y > MINUS_INFINITY else MINUS_INFINITY
            for n in range(options[BANNED]):
                i = banned[n]
                if low <= i < high:
                    weights[i] = MINUS_INFINITY
            largest = largest_of(weights, 0, low, high)
        floats[part * FLOATS + LARGEST_Y] = largest


@subroutine
def drawn_at_random(temperature: Float, largest: Float) -> Int:
    """1 if an id is drawn; 0 if the largest y is taken: at temperature 0, or where it is infinite."""
    return 1 if temperature > ZERO and np.float32(largest - largest) == ZERO else 0


@kernel
def sample_weigh(
    rank: Int,
    size: Int,
    run: I64,
    weights: F32,
    floats: F32,
    integers: I64,
    logits: F32,
    factors: F32,
    vocab: Int,
) -> None:
    """Each part's sum of exp(x - max x); to draw, also exp((y - max y) / temperature) and its integer weights."""
    parts = parts_of(vocab)
    start, end = share(parts, rank, size)
    largest_x = floats[largest_part(floats, LARGEST_X, parts) * FLOATS + LARGEST_X]
    largest_y = floats[largest_part(floats, LARGEST_Y, parts) * FLOATS + LARGEST_Y]
    temperature = factors[TEMPERATURE]
    for part in range(start, end):
        low, high = part * PART, part_end(part, vocab)
        floats[part * FLOATS + TOTAL] = exp_sum(logits, 0, low, high, largest_x)
        if drawn_at_random(temperature, largest_y) != 0:
            high_sum, low_sum = splat_i32(np.int32(0)), splat_i32(np.int32(0))
            group = part * INTEGERS + GROUPS
            for first in range(low, high, GROUP):
                last = high if high < first + GROUP else first + GROUP
                heaviest = splat_f32(ZERO)
                for i in range(first, last, 8):
                    y = keep_below(load_f32x8(weights, i), np.int32(i), np.int32(last), splat_f32(MINUS_INFINITY))
                    e = exp(div_f32(sub_f32(y, splat_f32(largest_y)), splat_f32(temperature)))
                    store_f32x8(weights, i, e)
                    heaviest = max_f32(e, heaviest)
                    upper, lower = weight_halves(e)
                    high_sum, low_sum = add_i32(high_sum, upper), add_i32(low_sum, lower)
                integers[group] = weight_of(max_lane(heaviest))
                group += 1
            integers[part * INTEGERS + MASS] = (np.int64(sum_i32(high_sum)) << HALF_BITS) + np.int64(sum_i32(low_sum))


@subroutine
def lightest_of_top_k(integers: I64, vocab: Int, wanted: Int) -> Int:
    """A weight that at least `wanted` candidates reach: the largest that so many groups reach; 1 if there is none."""
    weight = 0
    groups = (vocab + GROUP - 1) // GROUP
    for n in range(WEIGHT_BITS + 1):
        higher = weight | (1 << (WEIGHT_BITS - n))
        found = 0
        for part in range(parts_of(vocab)):
            here = groups - part * (PART // GROUP)
            for g in range(here if here < PART // GROUP else PART // GROUP):
                found += 1 if integers[part * INTEGERS + GROUPS + g] >= higher else 0
        if found >= wanted:
            weight = higher
    return weight if weight > 0 else 1


@subroutine
def gather(candidates: I64, weights: F32, integers: I64, vocab: Int, floor: Int) -> Int:
    """List the ids of at least this weight, and their weights; how many there are."""
    count = 0
    for first in range(0, vocab, GROUP):
        if integers[first // PART * INTEGERS + GROUPS + first % PART // GROUP] >= floor:
            for i in range(first, vocab if vocab < first + GROUP else first + GROUP):
                w = weight_of(weights[i])
                if w >= floor:
                    candidates[2 * count] = i
                    candidates[2 * count + 1] = w
                    count += 1
    return count


@subroutine
def draw_filtered(candidates: I64, weights: F32, integers: I64, options: I64, vocab: Int, total: Int) -> Int:
    """The id drawn from what top_k, top_p and min_p leave."""
    top_k, top_p, min_p = options[TOP_K], options[TOP_P], options[MIN_P]
    if top_k > 0:
        floor = lightest_of_top_k(integers, vocab, top_k)
    else:
        floor = (total - part_of(top_p, total)) // vocab if top_p > 0 else 0
        floor = floor if floor > min_p else min_p
    count = gather(candidates, weights, integers, vocab, floor if floor > 1 else 1)
    if top_k > 0:
        count = keep_first(candidates, count, top_k, 0)
        total = measure(candidates, count, 0, 1)
    if top_p > 0:
        wanted = part_of(top_p, total)
        count = keep_first(candidates, count, wanted if wanted > 1 else 1, 1)
    if min_p > 0:
        count = keep(candidates, count, min_p, count)
    return drawn(candidates, count, options[RANDOM])


@subroutine
def draw_plain(weights: F32, integers: I64, u: Int, vocab: Int, total: Int) -> Int:
    """The id at the fraction u / 2^60 of all weights."""
    rest = part_of(u, total)
    part = 0
    while rest >= integers[part * INTEGERS + MASS]:
        rest -= integers[part * INTEGERS + MASS]
        part += 1
    i = part * PART
    while rest >= weight_of(weights[i]):
        rest -= weight_of(weights[i])
        i += 1
    return i


@kernel
def sample_choose(
    rank: Int,
    size: Int,
    run: I64,
    options: I64,
    factors: F32,
    candidates: I64,
    weights: F32,
    floats: F32,
    integers: I64,
    logits: F32,
    vocab: Int,
) -> None:
    """options[CHOSEN] = the chosen id, factors[LOG_PROBABILITY] = its log-probability. candidates: (V, 2)."""
    if rank == 0:
        parts = parts_of(vocab)
        best = largest_part(floats, LARGEST_Y, parts)
        largest_y = floats[best * FLOATS + LARGEST_Y]
        chosen = best * PART
        if drawn_at_random(factors[TEMPERATURE], largest_y) != 0:
            total = 0
            for part in range(parts):
                total += integers[part * INTEGERS + MASS]
            if options[TOP_K] > 0 or options[TOP_P] > 0 or options[MIN_P] > 0:
                chosen = draw_filtered(candidates, weights, integers, options, vocab, total)
            else:
                chosen = draw_plain(weights, integers, options[RANDOM], vocab, total)
        else:
            while weights[chosen] != largest_y:
                chosen += 1
        largest_x = floats[largest_part(floats, LARGEST_X, parts) * FLOATS + LARGEST_X]
        options[CHOSEN] = chosen
        factors[LOG_PROBABILITY] = log_probability(logits[chosen], largest_x, floats, TOTAL, FLOATS, parts)


def sampling_arrays(vocab: int, recent: int, banned: int) -> dict[str, np.ndarray]:
    """The operands that the three steps share, empty, for at most so many recent and banned ids."""
    parts = -(-vocab // PART)
    return {
        "options": np.zeros(OPTIONS, np.int64),
        "factors": np.zeros(FACTORS, np.float32),
        "recent": np.zeros(max(recent, 1), np.int64),
        "banned": np.zeros(max(banned, 1), np.int64),
        "weights": np.zeros(parts * PART, np.float32),
        "floats": np.zeros(parts * FLOATS, np.float32),
        "integers": np.zeros(parts * INTEGERS, np.int64),
        "candidates": np.zeros(2 * vocab, np.int64),
    }


def set_options(
    arrays: dict[str, np.ndarray], temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    """Say how to draw: temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep everything; penalty 1 is none."""
    options, factors = arrays["options"], arrays["factors"]
    options[TOP_K] = top_k
    options[TOP_P] = fraction(top_p, 60) if top_p < 1 else 0
    options[MIN_P] = fraction(min_p, WEIGHT_BITS)
    largest = float(np.finfo(np.float32).max)
    factors[TEMPERATURE], factors[PENALTY] = min(temperature, largest), min(penalty, largest)


def fraction(p: float, bits: int) -> int:
    """p in units of 2^-bits, rounded up."""
    return math.ceil(math.ldexp(p, bits))


def sample_exact(
    x: np.ndarray,
    random: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    penalty: float = 1.0,
    recent: Sequence[int] = (),
    banned: Sequence[int] = (),
) -> int:
    """The id that the three steps choose from a row x (V,) float32 of finite numbers, by sorting all of it."""
    y = x.copy()
    some = sorted(set(recent))
    y[some] = np.where(x[some] > 0, x[some] / np.float32(penalty), x[some] * np.float32(penalty))
    y[list(banned)] = MINUS_INFINITY
    if temperature == 0:
        return int(np.argmax(y))
    e = exp_exact((y - y.max()) / np.float32(temperature)).astype(np.float64)
    weights = [int(w) for w in np.rint(e * ONE_WEIGHT)]
    order = sorted((id_ for id_ in range(len(x)) if weights[id_] > 0), key=lambda id_: (-weights[id_], id_))
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1:
        wanted = fraction(top_p, 60) * sum(weights[id_] for id_ in order) >> 60
        count, total = 0, 0
        while total < max(wanted, 1):
            total += weights[order[count]]
            count += 1
        order = order[:count]
    if min_p > 0:
        order = [id_ for id_ in order if weights[id_] >= fraction(min_p, WEIGHT_BITS)]
    rest = random * sum(weights[id_] for id_ in order) >> 60
    for id_ in sorted(order):
        rest -= weights[id_]
        if rest < 0:
            break
    return id_
