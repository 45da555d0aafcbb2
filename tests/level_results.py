"""Digests of what compiled kernels compute in this process, as JSON on stdout: run once for each kind of processor."""

import hashlib
import json
import sys

import numpy as np
import test_integer_kernels
import test_matmul
import test_matmul_float
import test_requantize
import test_simd

from kernels.target import host


def results() -> dict[str, np.ndarray]:
    """Every matrix product, requantisation, the integer-only kernels."""
    return (
        test_matmul.results() | test_matmul_float.results() | test_requantize.results() | test_integer_kernels.results()
    )


def vocabulary() -> dict[str, np.ndarray]:
    """Every operation of the vocabulary."""
    found = {}
    for name in test_simd.KERNELS:
        found |= test_simd.compiled(name)
    return found


def digests(all_results: bool = True) -> dict[str, str]:
    """The level that was compiled for, and each result's SHA-256; or those of the vocabulary alone."""
    arrays = vocabulary() | (results() if all_results else {})
    found = {name: hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for name, array in arrays.items()}
    return {"level": host().level, **found}


if __name__ == "__main__":
    json.dump(digests(sys.argv[1:] != ["vocabulary"]), sys.stdout)
