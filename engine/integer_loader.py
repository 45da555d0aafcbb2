"""Models in integers alone, from a static INT8 form, or from a GGUF file or Hugging Face folder calibrated on a text first.

    static INT8  ────────────────────────────────────────────┐
    GGUF -> float model -> scales over a text -> static INT8 ─┴> INT8 weights, int32 sums, the table of integer steps

After loading, no floating-point instruction runs: not in the forward pass, not in sampling.
"""

import os
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from engine.errors import FileError, OptionError
from engine.escape import escape
from engine.gguf import GGUFFile
from engine.gguf_types import SUPPORTED
from engine.integer_calibration import HEADROOM, TEXT, calibrated_scales, calibration_windows
from engine.kernel_cache import prepare
from engine.loader import Loaded, checked_context, load_gguf
from engine.open_model import open_model
from engine.static_int8 import StaticFile
from engine.threads import LOOP_KERNELS, Team
from engine.tokenizer import Tokenizer
from engine.usage import Usage
from kernels.integer_rope import integer_tables
from kernels.registry import Kernel
from kernels.rope_table import rope_tables
from kernels.run import run_block
from models.integer import forward
from models.integer_forward import IntegerForward
from models.integer_scales import integer_weights
from models.integer_state import integer_plan, integer_state
from models.quantizers.static import Static, from_floats
from models.state import Limits
from models.steps import Steps


def load_static(
    path: str | os.PathLike[str], threads: int, context: int | None, chunk: int, also: list[Kernel]
) -> Loaded:
    """Load a model in our static INT8 form: NAME.safetensors or NAME.json.

    Raises:
        FileError: for a form that can't be read, or that does not fit into these integers.
        OptionError: for a context that the model can't have.
    """
    begin = time.perf_counter()
    with StaticFile.open(path) as file:
        limits = integer_plan(file.config, checked_context(file.config, context, file.path), threads, chunk)
        usage = Usage.of(file.vocabulary)
        return _ready(file.static, limits, file.tokenizer, usage, also, begin, file.path, "quantise the model again")


def load_integer(
    path: str | os.PathLike[str],
    threads: int,
    context: int | None,
    chunk: int,
    also: list[Kernel],
    calibration: str | None = None,
) -> Loaded:
    """Load a GGUF file or a Hugging Face folder for integers alone, calibrated on a text.

    calibration: The text (None: a short one that comes along, said on stderr).

    Raises:
        FileError: for a file that can't be read, or a model that does not fit into these integers.
        OptionError: for a context that the model can't have, or an empty text.
    """
    begin = time.perf_counter()
    if calibration is not None and not calibration.strip():
        raise OptionError("calibration: the text is empty; give some hundred words like those that the model will read")
    floats = load_gguf(path, threads, None, chunk, [])
    with open_model(path) as file:
        try:
            limits = integer_plan(floats.config, checked_context(floats.config, context, file.path), threads, chunk)
            if calibration is None:
                sys.stderr.write(f"{file.path}: no static scales, calibrating on a short built-in text\n")
            windows = calibration_windows(floats, TEXT if calibration is None else calibration)
            scales = calibrated_scales(floats, windows, lambda name: float_tensor(file, name), headroom=HEADROOM)
        finally:
            floats.team.close()
        floats = _without_arrays(floats)
        static = from_floats(floats.config, lambda name: float_tensor(file, name), scales)
        advice = "load it without integer_only"
        made = _ready(static, limits, floats.tokenizer, floats.usage, also, begin, file.path, advice)
    return replace(made, compile_s=floats.compile_s + made.compile_s)


def float_tensor(file: GGUFFile, name: str) -> np.ndarray:
    """A tensor in float32."""
    info = file.tensor(name)
    values = SUPPORTED[info.type].dequantize(file.data(name)).reshape(info.shape)
    file.release(name)
    return values


def _ready(
    static: Static,
    limits: Limits,
    tokenizer: Tokenizer,
    usage: Usage,
    also: list[Kernel],
    begin: float,
    path: str,
    advice: str,
) -> Loaded:
    """What runs, of a static model; `path` and `advice` are for an error."""
    config = static.config
    try:
        weights = integer_weights(static)
        divisors = static.outer.get("rope_freqs.weight")
        cos, sin = integer_tables(*rope_tables(limits.context, config.rope_dims, config.rope_base, divisors))
    except ValueError as error:
        raise FileError(f"{escape(path, 300)}: integer-only: {escape(str(error), 300)}; {advice}") from None
    state = integer_state(config, limits)
    written = IntegerForward(config, weights, state, cos, sin)
    forward(written)
    compile_s = prepare([*LOOP_KERNELS, *written.steps.kernels, *also])
    team = Team(limits.workers, run_block(limits.rows))
    seconds, bits = time.perf_counter() - begin, weights.logit_bits
    table = written.steps.table()
    return Loaded(config, tokenizer, weights, state, written.steps, table, team, usage, seconds, compile_s, bits)


def _without_arrays(floats: Loaded) -> Loaded:
    """The model without what takes memory, which is let go before the integers are made."""
    nothing: Any = None
    return replace(floats, weights=nothing, state=nothing, steps=Steps(), table=np.empty(0, np.int64))
