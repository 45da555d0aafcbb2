"""Runs a model in a process of its own and writes what came out, for tests that change the process's environment:

    python -m tests.model_run FILE [THREADS [CHUNK]]      ->      SHA-256 of the logit bytes, and the sampled tokens, as JSON
"""

import hashlib
import json
import sys
from typing import Any

import numpy as np

import engine

IDS = np.random.default_rng(2).integers(3, 280, 61).tolist()  # both vocabularies of `tiny` have these
SAMPLING = {"max_tokens": 24, "temperature": 0.8, "top_p": 0.95, "seed": 11, "ignore_eos": True}


def run(llm: engine.LLM) -> dict[str, Any]:
    """The logits after each of IDS, as a SHA-256, and what is sampled after them: ids and log-probabilities."""
    logits = llm.logits(IDS)
    assert logits.dtype == np.float32 and np.isfinite(logits).all()
    pieces = list(llm.stream(IDS, **SAMPLING))
    return {
        "logits": hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest(),
        "ids": [piece.id for piece in pieces if piece.id >= 0],
        "logprobs": [float(piece.logprob) for piece in pieces if piece.id >= 0],
    }


if __name__ == "__main__":
    file, threads, chunk = sys.argv[1], *map(int, [*sys.argv[2:], "1", "256"][: max(2, len(sys.argv) - 2)])
    with engine.load(file, threads=threads, chunk=chunk) as llm:
        sys.stdout.write(json.dumps(run(llm)))
