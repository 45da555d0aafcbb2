"""Where the time of a forward pass goes, kernel by kernel:

    python -m bench.step_times FILE --rows 1 --position 128        # decoding a token after 128 others
    python -m bench.step_times FILE --rows 256 --position 0        # a prompt of 256

Each step of the table runs by itself, with all threads, in the order of the table, so that weights come from memory as they
do in a real run; the medians of each step are summed by kernel. What a barrier costs is in each step. `G/s` counts the
multiply-adds of matrix products, `GB/s` their packed weights.
"""

import argparse
import sys
import time
from collections import defaultdict

import numpy as np

from engine.llm import LLM, load
from engine.threads import default_threads
from kernels.loop import MEET
from kernels.run import FIRST, LOGIT_ROW, LOGIT_ROWS, POSITION, ROWS, TOKEN, WIDTH
from models.weights import Matrix, Weights


def step_times(llm: LLM, rows: int, position: int, repeats: int) -> tuple[list[str], np.ndarray, float]:
    """The kernel of each step, the median seconds of each, and those of the whole table run at once."""
    loaded = llm._loaded
    run, team = loaded.team.run_block, loaded.team
    words = run[FIRST:].reshape(-1, WIDTH)
    run[ROWS], run[LOGIT_ROWS] = rows, 1
    words[:rows, TOKEN] = np.random.default_rng(0).integers(3, loaded.config.vocab_size, rows)
    words[:rows, POSITION] = np.arange(position, position + rows)
    words[0, LOGIT_ROW] = rows - 1
    table = loaded.table.copy()
    table[:, MEET] = 1
    steps = [table[i : i + 1] for i in range(len(table))]
    names = [kernel.name for kernel, _, _ in loaded.steps._rows]
    times = np.zeros((repeats, len(table)))
    whole = []
    for repeat in range(-1, repeats):
        begin = time.perf_counter()
        team.run(loaded.table)
        whole.append(time.perf_counter() - begin)
        for i, step in enumerate(steps):
            begin = time.perf_counter()
            team.run(step)
            times[max(repeat, 0), i] = time.perf_counter() - begin
    return names, np.median(times, 0), float(np.median(whole[1:]))


def matrices(weights: Weights) -> list[Matrix]:
    """The weight matrices in the order of the table's products."""
    found: list[Matrix] = []
    for layer in weights.layers:
        found += [layer.q, layer.k, layer.v, layer.attn_output, layer.ffn_gate, layer.ffn_up, layer.ffn_down]
    return [*found, weights.output]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.step_times", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--position", type=int, default=128)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    with load(options.file, threads=options.threads, context=options.position + options.rows, chunk=options.rows) as llm:
        names, times, whole = step_times(llm, options.rows, options.position, options.repeats)
        weights = llm._loaded.weights
        if not isinstance(weights, Weights):
            parser.error("an integer-only model isn't taken apart here")
        products = matrices(weights)
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    where = iter(products)
    for name, seconds in zip(names, times):
        matrix = next(where) if name.startswith("matmul") else None
        key = f"{name} {matrix.rows}x{matrix.columns}" if matrix else name
        rows = options.rows if matrix is not products[-1] else 1
        work = (rows * matrix.rows * matrix.columns, matrix.nbytes) if matrix else (0, 0)
        for i, value in enumerate((seconds, 1, *work)):
            totals[key][i] += value
    write = sys.stdout.write
    write(f"{options.rows} rows at {options.position}, {options.threads} threads: {1e3 * whole:.2f} ms at once,")
    write(f" {1e3 * times.sum():.2f} ms step by step\n\n| kernel | steps | ms | share | G/s | GB/s |\n")
    write("| --- | --- | --- | --- | --- | --- |\n")
    for key, (seconds, count, done, nbytes) in sorted(totals.items(), key=lambda item: -item[1][0]):
        rates = f"{done / seconds / 1e9:.1f} | {nbytes / seconds / 1e9:.1f}" if done else " | "
        write(f"| {key} | {count:.0f} | {1e3 * seconds:.2f} | {100 * seconds / times.sum():.1f} % | {rates} |\n")


if __name__ == "__main__":
    main()
