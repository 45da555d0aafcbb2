"""The weights of a model, repacked for the kernels: frozen, each matrix in the block format of its file.

    Weights ── token_embd, output_norm, output, rope_divisors
       └── layers: Layer ── attn_norm, q, k, v (+ biases), attn_output, ffn_norm, ffn_gate, ffn_up, ffn_down

A matrix (N, K) maps K inputs to N outputs. A tied output is the embedding's own `Matrix`, not a copy.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.config import ModelConfig, expected_tensors
from models.formats import FORMS, Form
from models.memory import Arena, aligned

PAD = 32  # vectors and rows are padded with zeros to whole blocks


def padded(n: int) -> int:
    """n, rounded up to whole blocks of 32."""
    return -(-n // PAD) * PAD


@dataclass(frozen=True, slots=True)
class Matrix:
    """A packed weight matrix of (rows, columns): N outputs, K inputs.

    Attributes:
        arrays: The packed arrays by the names that the kernels' operands have, as `form.arrays(rows, columns)` says.
    """

    form: Form
    rows: int
    columns: int
    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        expected = self.form.arrays(self.rows, self.columns)
        found = {name: (str(array.dtype), len(array)) for name, array in self.arrays.items()}
        if found != expected:
            raise ValueError(f"{self.form.name} matrix of {self.rows} x {self.columns}: {found}, expected {expected}")

    @property
    def nbytes(self) -> int:
        """Bytes that a product with one row reads."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block; biases are None where the architecture has none."""

    attn_norm: np.ndarray
    q: Matrix
    k: Matrix
    v: Matrix
    q_bias: np.ndarray | None
    k_bias: np.ndarray | None
    v_bias: np.ndarray | None
    attn_output: Matrix
    ffn_norm: np.ndarray
    ffn_gate: Matrix
    ffn_up: Matrix
    ffn_down: Matrix


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a model; `rope_divisors` (rope_dims / 2,) float32 where the file has them."""

    token_embd: Matrix
    layers: tuple[Layer, ...]
    output_norm: np.ndarray
    output: Matrix
    rope_divisors: np.ndarray | None


def weight_bytes(config: ModelConfig, types: Mapping[str, str]) -> int:
    """Bytes that the weights take, packed; `types`: the type of each tensor by its name."""
    total = 0
    for name, shape in expected_tensors(config).items():
        if len(shape) == 1:
            total += aligned(4 * padded(shape[0]))
        else:
            for dtype, count in FORMS[types[name]].arrays(*shape).values():
                total += aligned(count * np.dtype(dtype).itemsize)
    return total


def empty_matrix(type_: str, shape: tuple[int, ...], arena: Arena) -> Matrix:
    """A matrix of the given type whose arrays are yet to be filled in."""
    form, (rows, columns) = FORMS[type_], shape
    arrays = {name: arena.take(dtype, (count,)) for name, (dtype, count) in form.arrays(rows, columns).items()}
    return Matrix(form, rows, columns, arrays)


def assemble(config: ModelConfig, matrices: Mapping[str, Matrix], vectors: Mapping[str, np.ndarray]) -> Weights:
    """Put the tensors of `expected_tensors`, those of two axes and those of one, in their places."""

    def layer(i: int) -> Layer:
        block = f"blk.{i}."
        return Layer(
            attn_norm=vectors[block + "attn_norm.weight"],
            q=matrices[block + "attn_q.weight"],
            k=matrices[block + "attn_k.weight"],
            v=matrices[block + "attn_v.weight"],
            q_bias=vectors.get(block + "attn_q.bias"),
            k_bias=vectors.get(block + "attn_k.bias"),
            v_bias=vectors.get(block + "attn_v.bias"),
            attn_output=matrices[block + "attn_output.weight"],
            ffn_norm=vectors[block + "ffn_norm.weight"],
            ffn_gate=matrices[block + "ffn_gate.weight"],
            ffn_up=matrices[block + "ffn_up.weight"],
            ffn_down=matrices[block + "ffn_down.weight"],
        )

    return Weights(
        token_embd=matrices["token_embd.weight"],
        layers=tuple(layer(i) for i in range(config.layers)),
        output_norm=vectors["output_norm.weight"],
        output=matrices["token_embd.weight" if config.tied_embeddings else "output.weight"],
        rope_divisors=vectors.get("rope_freqs.weight"),
    )
