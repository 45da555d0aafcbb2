"""Which kernels and arrays serve a weight matrix of each type: one table, read wherever a matrix is packed or used."""

from collections.abc import Callable
from dataclasses import dataclass

from kernels import (
    matmul_float,
    matmul_q4_0,
    matmul_q4_1,
    matmul_q4_k,
    matmul_q5_0,
    matmul_q5_1,
    matmul_q5_k,
    matmul_q6_k,
    matmul_q8_0,
    matmul_tq1_0,
    matmul_tq2_0,
)
from kernels.matmul_blocks import Format
from kernels.registry import Kernel


@dataclass(frozen=True, slots=True)
class Form:
    """How weights of one type are kept and used.

    Attributes:
        name: The type, as GGUF names it.
        quantised: Whether products take INT8 activations (else float32 ones).
        columns_multiple: K must be a multiple of this.
        arrays: (rows, columns) -> {operand of the kernels: (dtype, length)}, the packed arrays.
        source: dtype in which `pack` reads the file's bytes.
        inner: The name of the operand that gives K to the kernels, and the k that it counts at a time.
    """

    name: str
    quantised: bool
    columns_multiple: int
    matmul: Kernel
    pack: Kernel
    embed: Kernel
    arrays: Callable[[int, int], dict[str, tuple[str, int]]]
    source: str
    inner: tuple[str, int]

    def columns(self, columns: int) -> dict[str, int]:
        """The operand that tells a kernel how many columns there are."""
        name, unit = self.inner
        return {name: columns // unit}


def _blocks(format_: Format) -> Form:
    def arrays(rows: int, columns: int) -> dict[str, tuple[str, int]]:
        codes, scales = format_.packed(rows, columns)
        return {"codes": ("uint8", codes), "scales": ("uint16", scales)}

    f = format_
    return Form(f.name, True, f.file_block, f.matmul, f.pack, f.embed, arrays, "uint8", ("blocks", 32))


def _floats(name: str, dtype: str, matmul: Kernel, pack: Kernel, embed: Kernel) -> Form:
    def arrays(rows: int, columns: int) -> dict[str, tuple[str, int]]:
        return {"weights": (dtype, -(-rows // 8) * 8 * columns)}

    return Form(name, False, 1, matmul, pack, embed, arrays, dtype, ("columns", 1))


FORMS = {
    form.name: form
    for form in (
        _blocks(matmul_q4_0.Q4_0),
        _blocks(matmul_q4_1.Q4_1),
        _blocks(matmul_q5_0.Q5_0),
        _blocks(matmul_q5_1.Q5_1),
        _blocks(matmul_q8_0.Q8_0),
        _blocks(matmul_q4_k.Q4_K),
        _blocks(matmul_q5_k.Q5_K),
        _blocks(matmul_q6_k.Q6_K),
        _blocks(matmul_tq1_0.TQ1_0),
        _blocks(matmul_tq2_0.TQ2_0),
        _floats("F32", "float32", matmul_float.matmul_f32, matmul_float.pack_f32, matmul_float.embed_f32),
        _floats("F16", "uint16", matmul_float.matmul_f16, matmul_float.pack_f16, matmul_float.embed_f16),
        _floats("BF16", "uint16", matmul_float.matmul_bf16, matmul_float.pack_f16, matmul_float.embed_bf16),
    )
}
