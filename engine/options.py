"""What all commands share: `--threads`, `--json`, checked numbers, and how a run ends.

Exit codes: 0 done; 1 an error that a file or a caller caused, in one line on stderr; 2 usage; 130 Ctrl-C. Anything else
is a bug of ours and shows its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from engine.errors import EngineError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
MAX_THREADS = 1024


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Returns the parser of `python -m engine.COMMAND`, with the shared options; unknown ones are usage errors."""
    made = argparse.ArgumentParser(prog=f"python -m engine.{command}", description=description, allow_abbrev=False)
    made.add_argument(
        "--threads",
        type=whole(1, MAX_THREADS),
        metavar="N",
        help="threads to compute with (default: as many as there are physical cores to use)",
    )
    made.add_argument("--json", action="store_true", help="write the results as one line of JSON, last")
    return made


def add_sampling(made: argparse.ArgumentParser) -> None:
    """The options of drawing the next token, None where not given: see `sampling_options.command_sampling`."""
    group = made.add_argument_group("sampling", "The defaults are for a file that recommends nothing else.")
    add = group.add_argument
    add("--temperature", type=float, help="0 is greedy (default: 0.8)")
    add("--top-k", type=int, help="keep the k most likely tokens (default: 0, all)")
    add("--top-p", type=float, help="keep the most likely that make up p (default: 0.95)")
    add("--min-p", type=float, help="keep those at least so likely as the first times this (default: 0.05)")
    add("--repetition-penalty", type=float, help="make recent tokens less likely (default: 1.1; greedy: 1, none)")


def run(
    work: Callable[[argparse.Namespace], None], made: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """Parses `argv` (default: the command line), calls `work` with the options, and returns the exit code.

    Usage errors leave by SystemExit(2), as argparse has it.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the terminal can't show is escaped, not an error
            stream.reconfigure(errors="backslashreplace")
    try:
        work(made.parse_args(argv))
        sys.stdout.flush()
        return DONE
    except EngineError as error:
        text = str(error)
    except MemoryError as error:
        text = f"out of memory: {error}" if str(error) else "out of memory"
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; that isn't an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.write(f"{made.prog}: {' '.join(text.splitlines())}\n")
    return FAILED


def whole(low: int, high: int) -> Callable[[str], int]:
    """Returns an argument type: a whole number of low..high."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not from {low} to {high}")
        return value

    return convert


def number(low: float, high: float) -> Callable[[str], float]:
    """Returns an argument type: a number of low..high; not NaN."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if math.isnan(value) or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not from {low} to {high}")
        return value

    return convert


def write_json(value: Any) -> None:
    """Writes one line of JSON to stdout; `value` holds no NaN or infinity, which JSON hasn't."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
