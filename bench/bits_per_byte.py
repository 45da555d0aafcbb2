"""Bits per byte of GGUF models on held-out stories, computed by this engine.

    python -m bench.bits_per_byte --corpus ../shared/corpus models/pretrained/story.gguf models/pretrained/story-f16.gguf

The stories of valid.txt and valid_us.txt form one stream: end-of-text entry, story, end-of-text entry, story, ... It is
cut into windows of the model's context that overlap by one token: every token is predicted once. Bits of end-of-text
entries count, their bytes do not.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import engine

END_OF_TEXT = "<|endoftext|>"


def read_stories(corpus: Path) -> list[str]:
    """The held-out stories, without the blank lines around them."""
    texts: list[str] = []
    for name in ("valid.txt", "valid_us.txt"):
        path = corpus / name
        if path.exists():
            texts += [text.strip("\n") for text in path.read_text(encoding="utf-8").split(END_OF_TEXT)]
    return [text for text in texts if text]


def bits_per_byte(llm: engine.LLM, stories: list[str], length: int) -> float:
    """Bits per UTF-8 byte of the stories, in windows of `length` predicted tokens."""
    stream = [id_ for story in stories for id_ in llm.tokenize(story, bos=True)]
    nats: list[float] = []
    for start in tqdm(range(0, len(stream) - 1, length), unit="window", disable=not sys.stderr.isatty()):
        window = stream[start : start + length + 1]
        logits = llm.logits(window[:-1]).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        nats += (np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), window[1:]]).tolist()
    return math.fsum(nats) / math.log(2) / sum(len(story.encode()) for story in stories)


def main() -> int:
    """Run the command: one line per file on stdout, or one JSON object last."""
    parser = argparse.ArgumentParser(prog="python -m bench.bits_per_byte", description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", help="GGUF files")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with valid.txt")
    parser.add_argument("--length", type=int, default=512, help="predicted tokens in a window (default: 512)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    options = parser.parse_args()
    stories, found = read_stories(options.corpus), {}
    for model in options.models:
        llm = engine.load(model, threads=options.threads, context=options.length)
        found[model] = bits_per_byte(llm, stories, options.length)
        sys.stdout.write(f"{model}: {found[model]:.4f} bits per byte\n")
        sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
