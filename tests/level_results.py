"""Digests of what compiled kernels compute in this process, as JSON on stdout: run once for each kind of processor."""

import hashlib
import json
import sys

import numpy as np
import test_integer_kernels
import test_matmul
import test_requantize
import test_simd

from kernels.target import host


def results() -> dict[str, np.ndarray]:
    """Every operation of the vocabulary, every matrix product, requantisation, the integer-only kernels."""
    found = test_matmul.results() | test_requantize.results() | test_integer_kernels.results()
    for name in test_simd.KERNELS:
        found |= test_simd.compiled(name)
    return found


def digests() -> dict[str, str]:
    """The level that was compiled for, and each result's SHA-256."""
    found = {name: hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for name, array in results().items()}
    return {"level": host().level, **found}


if __name__ == "__main__":
    json.dump(digests(), sys.stdout)
