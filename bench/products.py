"""Matrix products alone, as a table of steps: for the benchmarks of kernels.

    with Products("Q4_0", rows=256, outputs=4096, inputs=4096, copies=16, threads=2) as products:
        products.run()          # quantises the activations and multiplies, once with each of 16 matrices

Several matrices in turn keep a decode's product out of the caches: its weights come from memory, as they do in a model.
"""

from typing import Self

import numpy as np

from bench.models import random_blocks
from engine.kernel_cache import prepare
from engine.threads import LOOP_KERNELS, Team
from kernels.quantize import empty_quantized, quantize
from kernels.run import LOGIT_ROWS, ROWS, run_block
from models.formats import FORMS
from models.memory import Arena
from models.steps import Steps
from models.weights import Matrix, empty_matrix


class Products:
    """`copies` products of (rows, inputs) activations with packed weights of (outputs, inputs), run one after another.

    nbytes: packed bytes that all of them read.  multiply_adds: of all of them.
    """

    def __init__(self, type: str, rows: int, outputs: int, inputs: int, copies: int, threads: int) -> None:
        rng = np.random.default_rng(0)
        self._run = run_block(rows)
        self._run[ROWS] = self._run[LOGIT_ROWS] = rows
        form = FORMS[type]
        sizes = [count * np.dtype(dtype).itemsize + 64 for dtype, count in form.arrays(outputs, inputs).values()]
        arena = Arena(copies * sum(sizes))
        matrices = [empty_matrix(type, (outputs, inputs), arena) for _ in range(copies)]
        prepare([*LOOP_KERNELS, form.pack, form.matmul, quantize])
        self._team = Team(threads, self._run)
        self.x = rng.standard_normal((rows, inputs), np.float32)
        self.out = np.zeros((rows, outputs), np.float32)
        self.nbytes = sum(matrix.nbytes for matrix in matrices)
        self.multiply_adds = copies * rows * outputs * inputs
        self.source = random_blocks((outputs, inputs), type, rng)
        for matrix in matrices:
            steps = Steps()
            steps.add(form.pack, source=self.source.reshape(-1), rows=outputs, **form.columns(inputs), **matrix.arrays)
            self._team.run(steps.table())
        self._steps = self._products(matrices)
        self._table = self._steps.table()

    def _products(self, matrices: list[Matrix]) -> Steps:
        (rows, outputs), inputs = self.out.shape, self.x.shape[1]
        blocks = inputs // 32
        made = empty_quantized(rows, blocks)
        bias = np.zeros(outputs, np.float32)
        steps = Steps()
        for matrix in matrices:
            steps.add(quantize, **made, x=self.x, blocks=blocks, stride=inputs, count=ROWS)
            steps.add(
                matrix.form.matmul,
                out=self.out,
                x=made["codes"],
                x_scales=made["scales"],
                x_sums=made["sums"],
                bias=bias,
                groups=-(-outputs // 8),
                stride=outputs,
                add=0,
                count=ROWS,
                **matrix.form.columns(inputs),
                **matrix.arrays,
            )
        return steps

    def run(self) -> None:
        """All products, one after another."""
        self._team.run(self._table)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._team.close()
