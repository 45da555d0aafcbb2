"""Random numbers by counting: the n-th number of a seed is a hash of both, so nothing has to be remembered.

Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014, figure 16 (SplitMix64); the constants of its
mixing function are Stafford's variant 13.
"""

BITS = 60  # what one number has: two halves of 30, whose products fit into int64
GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def random_bits(seed: int, index: int) -> int:
    """The random number `index` of `seed`, evenly from 0 to 2^60 - 1; both are taken modulo 2^64."""
    return _mixed(_mixed(seed & MASK) + (index + 1) * GOLDEN & MASK) >> (64 - BITS)


def _mixed(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)
