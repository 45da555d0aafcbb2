"""Choosing the next token in integers alone, from one row of integer logits x: what `kernels/sample.py` does in floats.

    y = x, where repeated: x / penalty (or x * penalty, if negative); where banned: the lowest integer
    temperature 0:  the id of the largest y
    else:           weight = 2^6 * round(2^30 exp((y - max y) / temperature)), of which `top_k`, `top_p` and `min_p` keep the
                    first, and one is drawn (`kernels/candidates.py`)

Equal values go to the lowest id. The chosen token's log-probability is that under softmax(x), x as it was.

    1 integer_adjust   y; each part's largest x, largest y and its id
    2 integer_weigh    each part's sum of exp(x - max x), and with a temperature the weights of its ids
    3 integer_choose   rank 0 alone

The vocabulary is cut into parts of PART ids; each part has its own results, whoever computes it.
"""

import numpy as np

from kernels.candidates import WEIGHT_BITS, drawn, keep, keep_first, part_of
from kernels.integer_exp import RESULT_BITS, exp2_negative, exp2_negative_exact
from kernels.integer_logits import LOGIT_LIMIT, LOWEST, integer_exp_sum, integer_largest, integer_log_probability
from kernels.integer_rescale import element, multipliers_and_shifts, rescaled, rescaled_exact, within
from kernels.log_probability import PART, part_end, parts_of
from kernels.quantize import share
from kernels.registry import kernel, subroutine
from kernels.sample import fraction
from kernels.types import I32, I64, Int

# `options`: whole numbers; top_p and min_p are fractions of 2^60 and 2^36. Ratios are a multiplier and a shift.
RANDOM, TOP_K, TOP_P, MIN_P, RECENT, BANNED, CHOSEN, LOG_PROBABILITY, SAMPLED = range(9)
HEAT, HEAT_SHIFT, FALL, FALL_SHIFT, RISE, RISE_SHIFT = range(9, 15)  # temperature, 1 / penalty, penalty
OPTIONS = 16
LARGEST_X, LARGEST_Y, LARGEST_ID, TOTAL, MASS, NUMBERS = range(6)  # `numbers`: of each part


@subroutine
def part_with(numbers: I64, column: Int, parts: Int) -> Int:
    """The first part whose number in this column is the largest."""
    best = 0
    for part in range(1, parts):
        if numbers[part * NUMBERS + column] > numbers[best * NUMBERS + column]:
            best = part
    return best


@kernel
def integer_adjust(
    rank: Int,
    size: Int,
    run: I64,
    adjusted: I32,
    numbers: I64,
    logits: I32,
    recent: I64,
    banned: I64,
    options: I64,
    vocab: Int,
) -> None:
    """y of each part, the largest x and y, and the lowest id of the largest y."""
    start, end = share(parts_of(vocab), rank, size)
    for part in range(start, end):
        low, high = part * PART, part_end(part, vocab)
        for i in range(low, high):
            adjusted[i] = logits[i]
        for n in range(options[RECENT]):
            i = recent[n]
            if low <= i < high:
                x = element(logits, i)
                ratio = FALL if x > 0 else RISE
                adjusted[i] = within(rescaled(x, options[ratio], options[ratio + 1]), LOGIT_LIMIT)
        for n in range(options[BANNED]):
            i = banned[n]
            if low <= i < high:
                adjusted[i] = LOWEST
        largest = integer_largest(adjusted, low, high)
        i = low
        while element(adjusted, i) != largest:
            i += 1
        numbers[part * NUMBERS + LARGEST_X] = integer_largest(logits, low, high)
        numbers[part * NUMBERS + LARGEST_Y] = largest
        numbers[part * NUMBERS + LARGEST_ID] = i


@kernel
def integer_weigh(
    rank: Int,
    size: Int,
    run: I64,
    candidates: I64,
    adjusted: I32,
    numbers: I64,
    logits: I32,
    options: I64,
    vocab: Int,
    multiplier: Int,
    shift: Int,
) -> None:
    """Each part's sum of exp(x - max x) and, where ids are drawn, their weights: candidates (V, 2), id and weight."""
    parts = parts_of(vocab)
    start, end = share(parts, rank, size)
    largest_x = numbers[part_with(numbers, LARGEST_X, parts) * NUMBERS + LARGEST_X]
    largest_y = numbers[part_with(numbers, LARGEST_Y, parts) * NUMBERS + LARGEST_Y]
    for part in range(start, end):
        low, high = part * PART, part_end(part, vocab)
        numbers[part * NUMBERS + TOTAL] = integer_exp_sum(logits, low, high, largest_x, multiplier, shift)
        mass = 0
        if options[SAMPLED] != 0:
            for i in range(low, high):
                y = element(adjusted, i)
                weight = 0
                if y > LOWEST:
                    t = rescaled(largest_y - y, options[HEAT], options[HEAT_SHIFT])
                    weight = exp2_negative(t) << (WEIGHT_BITS - RESULT_BITS)
                candidates[2 * i] = i
                candidates[2 * i + 1] = weight
                mass += weight
        numbers[part * NUMBERS + MASS] = mass


@subroutine
def draw(candidates: I64, options: I64, vocab: Int, total: Int) -> Int:
    """The id drawn from what top_k, top_p and min_p leave."""
    top_k, top_p, min_p = options[TOP_K], options[TOP_P], options[MIN_P]
    floor = 1
    if top_k == 0 and top_p > 0:
        floor = (total - part_of(top_p, total)) // vocab
        floor = floor if floor > 1 else 1
    count = keep(candidates, vocab, floor, vocab)
    if top_k > 0:
        count = keep_first(candidates, count, top_k, 0)
        total = 0
        for n in range(count):
            total += candidates[2 * n + 1]
    if top_p > 0:
        wanted = part_of(top_p, total)
        count = keep_first(candidates, count, wanted if wanted > 1 else 1, 1)
    if min_p > 0:
        count = keep(candidates, count, min_p, count)
    return drawn(candidates, count, options[RANDOM])


@kernel
def integer_choose(
    rank: Int, size: Int, run: I64, options: I64, candidates: I64, numbers: I64, logits: I32, vocab: Int, bits: Int
) -> None:
    """options[CHOSEN] = the chosen id, options[LOG_PROBABILITY] = its log-probability in units of 2^-24."""
    if rank == 0:
        parts = parts_of(vocab)
        best = part_with(numbers, LARGEST_Y, parts)
        chosen = numbers[best * NUMBERS + LARGEST_ID]
        total, mass = 0, 0
        for part in range(parts):
            total += numbers[part * NUMBERS + TOTAL]
            mass += numbers[part * NUMBERS + MASS]
        if options[SAMPLED] != 0 and mass > 0:
            chosen = draw(candidates, options, vocab, mass)
        largest = numbers[part_with(numbers, LARGEST_X, parts) * NUMBERS + LARGEST_X]
        options[CHOSEN] = chosen
        options[LOG_PROBABILITY] = integer_log_probability(element(logits, chosen), largest, total, bits)


def sampling_integers(vocab: int, recent: int, banned: int) -> dict[str, np.ndarray]:
    """The operands that the three steps share, empty, for at most so many recent and banned ids."""
    return {
        "options": np.zeros(OPTIONS, np.int64),
        "recent": np.zeros(max(recent, 1), np.int64),
        "banned": np.zeros(max(banned, 1), np.int64),
        "adjusted": np.zeros(vocab, np.int32),
        "numbers": np.zeros(-(-vocab // PART) * NUMBERS, np.int64),
        "candidates": np.zeros(2 * vocab, np.int64),
    }


def set_integer_options(
    options: np.ndarray, octaves: float, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    """Say how to draw; `octaves`: what turns a logit into octaves (`octave_ratio`). Temperature 0 is greedy."""
    options[SAMPLED] = int(temperature > 0)
    options[TOP_K] = top_k
    options[TOP_P] = fraction(top_p, 60) if top_p < 1 else 0
    options[MIN_P] = fraction(min_p, WEIGHT_BITS)
    ratios = [min(octaves / temperature, 2.0**29) if temperature > 0 else 0.0, 1 / penalty, min(penalty, 2.0**29)]
    multipliers, shifts = multipliers_and_shifts(np.array(ratios))
    options[HEAT : RISE + 1 : 2], options[HEAT_SHIFT : RISE_SHIFT + 1 : 2] = multipliers, shifts


def integer_sample_exact(logits: np.ndarray, arrays: dict[str, np.ndarray]) -> int:
    """The id that the three steps choose from a row (V,) int32, by sorting all of it in Python's whole numbers."""
    options = [int(x) for x in arrays["options"]]
    y = logits.astype(np.int64)
    for id_ in set(arrays["recent"][: options[RECENT]].tolist()):
        ratio = FALL if logits[id_] > 0 else RISE
        fixed = np.array([options[ratio]]), np.array([options[ratio + 1]])
        y[id_] = rescaled_exact(logits[id_ : id_ + 1, None], *fixed, LOGIT_LIMIT)[0, 0]
    y[arrays["banned"][: options[BANNED]]] = LOWEST
    if not options[SAMPLED]:
        return int(np.argmax(y))
    t = rescaled_exact((y.max() - y)[:, None], np.array([options[HEAT]]), np.array([options[HEAT_SHIFT]]), 2**62)[:, 0]
    weights = np.where(y > LOWEST, exp2_negative_exact(t) << (WEIGHT_BITS - RESULT_BITS), 0).tolist()
    order = sorted((id_ for id_ in range(len(y)) if weights[id_] > 0), key=lambda id_: (-weights[id_], id_))
    if options[TOP_K]:
        order = order[: options[TOP_K]]
    if options[TOP_P]:
        wanted = options[TOP_P] * sum(weights[id_] for id_ in order) >> 60
        count, total = 0, 0
        while total < max(wanted, 1):
            total += weights[order[count]]
            count += 1
        order = order[:count]
    order = [id_ for id_ in order if weights[id_] >= options[MIN_P]]
    rest = options[RANDOM] * sum(weights[id_] for id_ in order) >> 60
    for id_ in sorted(order):
        rest -= weights[id_]
        if rest < 0:
            break
    return id_
