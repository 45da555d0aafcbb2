"""python -m engine.samples "Once upon a time" --count 20: continuations of one prompt, a JSON object a line.

Each has a seed of its own and is sampled as `engine.generate` does:

    {"seed": 0, "text": what follows the prompt, "prompt_ids": [...], "ids": [...], "logprobs": [...]}

`logprobs` are the natural logarithms of the probability of each id, before temperature and penalty.
"""

import argparse
import json
import sys

from engine import options


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = options.parser(
        "samples", "Continue a text several times, each with a seed of its own: JSON lines on stdout."
    )
    made.add_argument("prompt", help="the text to continue")
    made.add_argument("--model", metavar="FILE", help="a model (default: the small one that comes along)")
    made.add_argument("--count", type=options.whole(1, 1 << 31), default=20, metavar="N", help="default: 20")
    made.add_argument("--first-seed", type=options.whole(0, 1 << 62), default=0, metavar="N", help="default: 0")
    made.add_argument(
        "--max-tokens", type=options.whole(1, (1 << 31) - 1), default=140, metavar="N", help="default: 140"
    )
    options.add_sampling(made)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return options.run(_sample, parser(), argv)


def _sample(given: argparse.Namespace) -> None:
    from engine.sampling_options import SamplingOptions, command_sampling

    asked = vars(given)
    SamplingOptions(**command_sampling(asked, {}))
    from engine.llm import load

    with load(given.model, threads=given.threads) as llm:
        sampling = command_sampling(asked, llm.sampling)
        prompt = llm.tokenize(given.prompt)
        for seed in range(given.first_seed, given.first_seed + given.count):
            pieces = list(llm.stream(prompt, max_tokens=given.max_tokens, seed=seed, **sampling))
            tokens = [piece for piece in pieces if piece.id >= 0]
            told = {"seed": seed, "text": "".join(piece.text for piece in pieces), "prompt_ids": prompt}
            told |= {"ids": [piece.id for piece in tokens], "logprobs": [piece.logprob for piece in tokens]}
            sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    sys.exit(main())
