"""Our side of `bench.compare`: a process that loads a model and answers commands, as `bench/llama_cpp_side.py` does.

    python -m bench.own_side FILE --threads 2 --context 1024

Times are those that `generate` reports: `prefill_s` is the prompt, `decode_s` everything behind it, so sampling and the
making of text are in it.
"""

import argparse
import json
import resource
import sys
from importlib.metadata import version
from typing import Any

import engine


class Side:
    """A loaded model and the two measurements."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        self.llm = engine.load(path, threads=threads, context=context)

    def prefill(self, ids: list[int]) -> float:
        """Seconds to compute a prompt of which the cache holds nothing."""
        timings = self.llm.generate(ids, max_tokens=1, ignore_eos=True).timings
        assert timings.reused_tokens < 3  # random ids can begin alike
        return timings.prefill_s

    def decode(self, ids: list[int], tokens: int) -> float:
        """Seconds to compute `tokens` tokens after a prompt, each sampled from the logits before it."""
        timings = self.llm.generate(ids, max_tokens=tokens + 1, ignore_eos=True).timings
        assert timings.generated_tokens == tokens + 1  # the first one is sampled from the prompt's logits
        return timings.decode_s


def answer(side: Side, command: dict[str, Any]) -> dict[str, Any]:
    """What one command gives."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if command["do"] == "prefill":
        return {"seconds": side.prefill(command["ids"]), "peak_mb": peak / 1024}
    return {"seconds": side.decode(command["ids"], command["tokens"]), "peak_mb": peak / 1024}


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024)
    options = parser.parse_args()
    side = Side(options.file, options.threads, options.context)
    hello = {"name": "IntEngine", "version": version("numba"), "load_s": side.llm.load_s}
    sys.stdout.write(json.dumps(hello) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(side, json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
