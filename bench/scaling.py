"""How much faster several threads compute a prompt than one, beside how the multiply roof itself scales, turn by turn:

    python -m bench.scaling FILE --threads 2 --tokens 256

gain = median time of one thread / that of all, of the prompt and of the INT4 roof (`bench/roof.py`); their ratio is what the
engine keeps. All four are measured in each turn, since a shared machine's second processor is worth more in one minute than
in another; each after a run that doesn't count, for a processor that slept begins slowly.
"""

import argparse
import sys

import numpy as np

from bench.roof import PER_ROUND, Meter, integer_operands, roof_int4
from engine import LLM, load
from engine.threads import default_threads

ROOF_PRODUCTS = 1 << 31  # vectors of 32 multiply-adds in all, however many threads share them: 0.3 s for one of 220 G/s


class RoofRun:
    """The same multiply-adds by so many threads."""

    def __init__(self, threads: int) -> None:
        self._meter = Meter(threads)
        self._operands = integer_operands(threads, ROOF_PRODUCTS // PER_ROUND // threads)

    def seconds(self) -> float:
        """Of one run."""
        return self._meter.seconds(roof_int4, 1, **self._operands)[0]


def prompt_seconds(llm: LLM, ids: list[int]) -> float:
    """Of the second of two prompts, ids backwards and ids, of which the cache holds nothing."""
    llm.generate(ids[::-1], max_tokens=1, ignore_eos=True)
    timings = llm.generate(ids, max_tokens=1, ignore_eos=True).timings
    assert timings.reused_tokens < 3  # random ids can begin alike
    return timings.prefill_s


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    if options.threads < 2:
        parser.error("--threads: expected at least 2")
    counts = (1, options.threads)
    engines = [load(options.file, threads=count, context=options.tokens + 1) for count in counts]
    roofs = [RoofRun(count) for count in counts]
    rng = np.random.default_rng(0)
    times = np.zeros((options.repeats + 1, 4))
    for turn in times:
        ids = rng.integers(3, engines[0].config.vocab_size, options.tokens).tolist()
        turn[:] = [prompt_seconds(llm, ids) for llm in engines] + [roof.seconds() for roof in roofs]
    one, many, roof_one, roof_many = np.median(times[1:], axis=0)  # the first turn doesn't count
    gains = times[1:, 0] / times[1:, 1]
    gain, roof_gain = one / many, roof_one / roof_many
    sys.stdout.write(
        f"{options.threads} threads, prompt of {options.tokens}: {gain:.2f} x one thread "
        f"({gains.min():.2f} to {gains.max():.2f}, {len(gains)} turns); "
        f"multiply roof {roof_gain:.2f} x; kept {100 * gain / roof_gain:.0f} %\n"
    )


if __name__ == "__main__":
    main()
