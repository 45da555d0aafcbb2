"""The most probable tokens of a list, found by counting instead of sorting; `kernels/sample.py` makes the list.

    candidates, int64    | id, weight | id, weight | ...     ids ascending; weights are integers, 1 to 2^36

Candidates are ordered by weight, largest first, equal weights by id, lowest first. All that `top_k` and `top_p` keep is a
beginning of that order, which is found bit by bit: the largest weight t such that those of at least t are enough (in number,
or in summed weight). Of those that weigh exactly t, just the first few are needed. Integer sums have no order.

Products with a fraction are floor(u * total / 2^60), u and total below 2^60, cut in halves of 30 bits to fit into int64.
"""

from kernels.registry import subroutine
from kernels.types import I64, Int

WEIGHT_BITS = 36
HALF = 30
LOW = (1 << HALF) - 1


@subroutine
def part_of(u: Int, total: Int) -> Int:
    """floor(u * total / 2^60)."""
    uh, ul, th, tl = u >> HALF, u & LOW, total >> HALF, total & LOW
    return uh * th + ((uh * tl + ul * th + (ul * tl >> HALF)) >> HALF)


@subroutine
def measure(candidates: I64, count: Int, least_weight: Int, by_mass: Int) -> Int:
    """The summed weight (by_mass 1) or the number (0) of the candidates of at least this weight."""
    total = 0
    for n in range(count):
        w = candidates[2 * n + 1]
        total += (w if by_mass != 0 else 1) if w >= least_weight else 0
    return total


@subroutine
def keep(candidates: I64, count: Int, weight: Int, ties: Int) -> Int:
    """Remove what weighs less than `weight`, and all but the first `ties` of what weighs exactly that; how many are left."""
    left = 0
    for n in range(count):
        w = candidates[2 * n + 1]
        if w > weight or (w == weight and ties > 0):
            ties -= 1 if w == weight else 0
            candidates[2 * left] = candidates[2 * n]
            candidates[2 * left + 1] = w
            left += 1
    return left


@subroutine
def keep_first(candidates: I64, count: Int, wanted: Int, by_mass: Int) -> Int:
    """Keep the fewest first candidates that make up `wanted` in summed weight or number, or all; how many are left."""
    weight = 0
    for n in range(WEIGHT_BITS + 1):
        higher = weight | (1 << (WEIGHT_BITS - n))
        if measure(candidates, count, higher, by_mass) >= wanted:
            weight = higher
    if weight > 0:
        rest = wanted - measure(candidates, count, weight + 1, by_mass)
        each = weight if by_mass != 0 else 1
        count = keep(candidates, count, weight, (rest + each - 1) // each)
    return count


@subroutine
def drawn(candidates: I64, count: Int, u: Int) -> Int:
    """The id at the fraction u / 2^60 of the summed weight."""
    rest = part_of(u, measure(candidates, count, 0, 1))
    n = 0
    while n < count - 1 and rest >= candidates[2 * n + 1]:
        rest -= candidates[2 * n + 1]
        n += 1
    return candidates[2 * n]
