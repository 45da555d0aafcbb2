"""From a GGUF file to an integer-only model: the float model is calibrated on a text, turned into integers, and let go.

    load_gguf -> ranges over a text -> static scales -> INT8 weights, int32 sums, the table of integer steps

After loading, no floating-point instruction runs: not in the forward pass, not in sampling.
"""

import os
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from engine.errors import FileError, OptionError
from engine.gguf import GGUFFile
from engine.gguf_types import SUPPORTED
from engine.integer_calibration import TEXT, calibration_windows, observe_ranges, rope_divisors
from engine.kernel_cache import prepare
from engine.loader import Loaded, checked_context, load_gguf
from engine.threads import LOOP_KERNELS, Team
from kernels.integer_rope import integer_tables
from kernels.registry import Kernel
from kernels.rope_table import rope_tables
from kernels.run import run_block
from models.integer import forward
from models.integer_forward import IntegerForward
from models.integer_scales import Integers
from models.integer_state import IntegerState
from models.state import plan
from models.steps import Steps


def load_integer(
    path: str | os.PathLike[str],
    threads: int,
    context: int | None,
    chunk: int,
    also: list[Kernel],
    calibration: str | None = None,
) -> Loaded:
    """Load a model for integers alone, calibrated on a text (None: on a short one that comes along, said on stderr).

    Raises:
        FileError: for a file that can't be read, or a model that does not fit into these integers.
        OptionError: for a context that the model can't have, or an empty text.
    """
    begin = time.perf_counter()
    if calibration is not None and not calibration.strip():
        raise OptionError("calibration: the text is empty; give some hundred words like those that the model will read")
    floats = load_gguf(path, threads, None, chunk, [])
    try:
        config = floats.config
        positions = checked_context(config, context, os.fspath(path))
        if calibration is None:
            sys.stderr.write(f"{os.fspath(path)}: no static scales, calibrating on a short built-in text\n")
        ranges = observe_ranges(floats, calibration_windows(floats, TEXT if calibration is None else calibration))
        divisors = rope_divisors(floats)
    finally:
        floats.team.close()
    floats = _without_arrays(floats)
    with GGUFFile.open(path) as file:
        types = {name: info.type for name, info in file.tensors.items()}
        limits = plan(config, types, positions, threads, chunk)
        try:
            weights = Integers(config, lambda name: _tensor(file, name), ranges).weights()
        except ValueError as error:
            raise FileError(f"{file.path}: integer-only: {error}; load it without integer_only") from None
    state = IntegerState(config, limits)
    cos, sin = integer_tables(*rope_tables(limits.context, config.rope_dims, config.rope_base, divisors))
    written = IntegerForward(config, weights, state, cos, sin)
    forward(written)
    compile_s = floats.compile_s + prepare([*LOOP_KERNELS, *written.steps.kernels, *also])
    team = Team(threads, run_block(limits.rows))
    seconds = time.perf_counter() - begin
    return replace(
        floats,
        weights=weights,
        state=state,
        steps=written.steps,
        table=written.steps.table(),
        team=team,
        load_s=seconds,
        compile_s=compile_s,
        logit_bits=weights.logit_bits,
    )


def _without_arrays(floats: Loaded) -> Loaded:
    """The model without what takes memory, which is let go before the integers are made."""
    nothing: Any = None
    return replace(floats, weights=nothing, state=nothing, steps=Steps(), table=np.empty(0, np.int64))


def _tensor(file: GGUFFile, name: str) -> np.ndarray:
    """A tensor in float32."""
    info = file.tensor(name)
    values = SUPPORTED[info.type].dequantize(file.data(name)).reshape(info.shape)
    file.release(name)
    return values
