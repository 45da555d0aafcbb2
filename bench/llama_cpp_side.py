"""llama.cpp's side of `bench.compare`: a process that runs in an environment with llama-cpp-python and nothing of ours.

    python bench/llama_cpp_side.py FILE --threads 2 --context 1024

It reads one JSON command a line and answers with one line, as `bench/own_side.py` does. Work is handed to llama.cpp as its
own llama-bench does: one batch of up to 512 tokens for a prompt, one token at a time for decoding, no sampling, and every
answer waited for by `llama_synchronize`.
"""

import argparse
import ctypes
import json
import os
import random
import sys
import time
from typing import Any

import llama_cpp

BATCH = 512


class Side:
    """A loaded model and the two measurements."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        begin = time.perf_counter()
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, BATCH, BATCH
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.load_s = time.perf_counter() - begin
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def _decode(self, ids: list[int], position: int) -> None:
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, id_ in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = id_, position + i, 1, 0
            batch.logits[i] = i == len(ids) - 1
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(self.context)

    def prefill(self, ids: list[int]) -> float:
        """Seconds to compute a prompt from an empty cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        begin = time.perf_counter()
        for start in range(0, len(ids), BATCH):
            self._decode(ids[start : start + BATCH], start)
        return time.perf_counter() - begin

    def decode(self, ids: list[int], tokens: int) -> float:
        """Seconds to compute `tokens` tokens, one by one, after a prompt."""
        self.prefill(ids)
        following = [random.randrange(3, 500) for _ in range(tokens)]
        begin = time.perf_counter()
        for i, id_ in enumerate(following):
            self._decode([id_], len(ids) + i)
        return time.perf_counter() - begin


def answer(side: Any, command: dict[str, Any]) -> dict[str, Any]:
    """What one command gives."""
    ids = command["ids"]
    if command["do"] == "prefill":
        return {"seconds": side.prefill(ids)}
    return {"seconds": side.decode(ids, command["tokens"])}


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024)
    options = parser.parse_args()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # llama.cpp logs a page of text
    side = Side(options.file, options.threads, options.context)
    system = ctypes.cast(llama_cpp.llama_print_system_info(), ctypes.c_char_p).value or b""
    hello = {"name": "llama.cpp", "version": llama_cpp.__version__, "system": system.decode(), "load_s": side.load_s}
    sys.stdout.write(json.dumps(hello) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(side, json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
