"""From a GGUF file, or a Hugging Face folder, to what runs: configuration, tokeniser, packed weights, cache, scratch and
the table of steps.

All that can be wrong with a file is found before a kernel is compiled. The weights are then repacked by all threads, one
tensor after another, and the file's pages are let go as soon as they are used, so that the file and the weights are never
both in memory.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from engine.errors import FileError, OptionError
from engine.gguf import GGUFFile
from engine.gguf_config import read_config
from engine.gguf_types import SUPPORTED
from engine.kernel_cache import prepare
from engine.open_model import open_model
from engine.threads import LOOP_KERNELS, Team
from engine.tokenizer import Tokenizer
from engine.usage import Usage
from kernels.registry import Kernel
from kernels.rope_table import rope_tables
from kernels.run import run_block
from models.architectures import ARCHITECTURES
from models.config import ModelConfig, expected_tensors
from models.formats import FORMS
from models.forward import Forward
from models.integer_weights import IntegerWeights
from models.memory import Arena
from models.state import State, plan
from models.steps import Steps
from models.weights import Matrix, Weights, assemble, empty_matrix, padded, weight_bytes

DEFAULT_CONTEXT = 2048
EXPONENTS = {"float32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run.

    Attributes:
        steps: Keeps alive what the table points to.
        table: The forward pass, (steps, STEP_WIDTH) int64.
        usage: How its file says that it is to be used.
        load_s: Seconds that loading took; compile_s: seconds of it that compiling took.
        logit_bits: Of an integer-only model: one step of a logit is 2^-logit_bits.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    weights: Weights | IntegerWeights
    state: State
    steps: Steps
    table: np.ndarray
    team: Team
    usage: Usage
    load_s: float
    compile_s: float
    logit_bits: int | None = None


def load_gguf(
    path: str | os.PathLike[str], threads: int, context: int | None, chunk: int, also: list[Kernel], slots: int = 1
) -> Loaded:
    """Load a model; `also` are kernels that the caller will need.

    Raises:
        FileError: for a file that can't be read, or isn't a model that we support.
        OptionError: for a context that the model can't have.
    """
    begin = time.perf_counter()
    with open_model(path) as file:
        config = read_config(file)
        usage = Usage.of(file)
        tokenizer = Tokenizer.from_gguf(file.metadata, config.vocab_size, file.path)
        types = {name: tensor.type for name, tensor in file.tensors.items()}
        _check_forms(file, types)
        limits = plan(config, types, checked_context(config, context, file.path), threads, chunk, slots)
        shapes = expected_tensors(config)
        found = {name: _vector(file, name) for name, shape in shapes.items() if len(shape) == 1}
        arena = Arena(weight_bytes(config, types))
        matrices = {name: empty_matrix(types[name], shape, arena) for name, shape in shapes.items() if len(shape) == 2}
        vectors = {name: _padded(vector, arena) for name, vector in found.items()}
        state = State(config, limits)
        weights = assemble(config, matrices, vectors)
        forward = _forward(config, weights, state, found.get("rope_freqs.weight"))
        packing = {name: _packing(file, name, matrix) for name, matrix in matrices.items()}
        kernels = [kernel for steps in packing.values() for kernel in steps.kernels]
        compile_s = prepare([*LOOP_KERNELS, *kernels, *forward.kernels, *also])
        team = Team(threads, run_block(limits.rows))
        for name, steps in packing.items():
            team.run(steps.table())
            file.release(name)
            _check_finite(file, name, matrices[name])
    seconds = time.perf_counter() - begin
    return Loaded(config, tokenizer, weights, state, forward, forward.table(), team, usage, seconds, compile_s)


def checked_context(config: ModelConfig, asked: int | None, path: str) -> int:
    """The positions to make a cache for; `asked` None: what the model was trained for, at most DEFAULT_CONTEXT."""
    trained = config.context_length
    if asked is None:
        return min(trained, DEFAULT_CONTEXT)
    if not 1 <= asked <= trained:
        raise OptionError(f"context: {asked} for {path}, which was trained for {trained}; ask for 1 to {trained}")
    return asked


def _check_forms(file: GGUFFile, types: Mapping[str, str]) -> None:
    unknown = [name for name, info in file.tensors.items() if len(info.shape) == 2 and types[name] not in FORMS]
    if unknown:
        name = unknown[0]
        raise FileError(
            f"{file.path}: tensor '{name}': type {types[name]} is not supported for a matrix; supported: {', '.join(FORMS)}"
        )


def _vector(file: GGUFFile, name: str) -> np.ndarray:
    info = file.tensors[name]
    vector = SUPPORTED[info.type].dequantize(file.data(name))
    if not np.isfinite(vector).all():
        raise FileError(f"{file.path}: tensor '{name}': holds NaN or infinity, expected finite numbers; convert it again")
    return vector


def _padded(vector: np.ndarray, arena: Arena) -> np.ndarray:
    """The vector in the arena, with zeros up to a whole block."""
    place = arena.take("float32", (padded(len(vector)),))
    place[: len(vector)] = vector
    return place


def _forward(config: ModelConfig, weights: Weights, state: State, divisors: np.ndarray | None) -> Steps:
    cos, sin = rope_tables(state.limits.context, config.rope_dims, config.rope_base, divisors)
    forward = Forward(config, weights, state, cos, sin)
    ARCHITECTURES[config.architecture](forward)
    return forward.steps


def _packing(file: GGUFFile, name: str, matrix: Matrix) -> Steps:
    """The one step that repacks a tensor."""
    steps = Steps()
    source = file.data(name).view(matrix.form.source)
    inner = matrix.form.columns(matrix.columns)
    steps.add(matrix.form.pack, source=source, rows=matrix.rows, **matrix.arrays, **inner)
    return steps


def _check_finite(file: GGUFFile, name: str, tensor: Matrix) -> None:
    """Refuse scales, and float weights, that are NaN or infinite."""
    array = tensor.arrays["scales" if tensor.form.quantised else "weights"]
    kind = "float32" if array.dtype == np.float32 else "BF16" if tensor.form.name == "BF16" else "F16"
    bits, exponent = EXPONENTS[kind]
    for start in range(0, len(array), 1 << 20):
        if ((array[start : start + (1 << 20)].view(bits) & exponent) == exponent).any():
            what = "a scale" if tensor.form.quantised else "a weight"
            raise FileError(f"{file.path}: tensor '{name}': {what} is NaN or infinite, expected finite; get a sound copy")
