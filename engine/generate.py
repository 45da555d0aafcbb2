"""python -m engine.generate "Once upon a time": text on stdout as it comes, figures on stderr.

Without --model the model that the project ships tells a story.
"""

import argparse
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import options
from engine.errors import FileError, OptionError

if TYPE_CHECKING:
    from engine.results import Timings

QUIET_SECONDS = 1.0
MOST_PROMPT_BYTES = 64 << 20


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = options.parser("generate", "Continue a text. The text goes to stdout as it comes, figures to stderr.")
    made.add_argument("prompt", nargs="?", help="the text to continue; - reads it from stdin")
    made.add_argument("--file", metavar="FILE", help="read the text to continue from a file")
    made.add_argument(
        "--model",
        metavar="FILE",
        help="a GGUF file, a Hugging Face folder, or our static INT8 form (default: the small model that comes along)",
    )
    made.add_argument(
        "--chat", action="store_true", help="the text is a message: answer it by the model's chat template"
    )
    made.add_argument("--context", type=options.whole(1, 1 << 24), metavar="N", help="tokens that the cache holds")
    made.add_argument(
        "--max-tokens", type=options.whole(0, (1 << 31) - 1), default=256, metavar="N", help="default: 256"
    )
    options.add_sampling(made)
    made.add_argument("--seed", type=int, help="the same seed gives the same text (default: a new one, told on stderr)")
    made.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    made.add_argument("--ignore-eos", action="store_true", help="go on after an end token")
    made.add_argument("--integer-only", action="store_true", help="compute without a single floating-point instruction")
    made.add_argument("--cache", type=Path, metavar="DIR", help="where compiled kernels are kept")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return options.run(_generate, parser(), argv)


def _generate(given: argparse.Namespace) -> None:
    begin = time.perf_counter()
    prompt = _prompt(given)
    seed = secrets.randbits(32) if given.seed is None else given.seed
    from engine.sampling_options import command_sampling, generation_options

    asked = vars(given)
    length = {"max_tokens": given.max_tokens, "stop": given.stop, "ignore_eos": given.ignore_eos}
    generation_options(command_sampling(asked, {}) | length | {"seed": seed})
    from engine.llm import load

    llm = load(
        given.model, threads=given.threads, context=given.context, cache=given.cache, integer_only=given.integer_only
    )
    sampling = command_sampling(asked, llm.sampling) | {"seed": seed}
    progress = _Progress()
    ids = llm.chat_ids([{"role": "user", "content": prompt}]) if given.chat else prompt
    stream = llm.stream(ids, progress=progress, **sampling, **length)
    if sampling["temperature"] > 0 and given.seed is None:
        sys.stderr.write(f"seed {seed}\n")
    first = None
    if not given.json and not given.chat:
        sys.stdout.write(prompt)
    text = []
    for piece in stream:
        first = first or time.perf_counter() - begin
        progress.close()
        text.append(piece.text)
        if not given.json:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    progress.close()
    assert llm.last is not None
    reason, timings = llm.last
    if given.json:
        figures = {name: getattr(timings, name) for name in timings.__slots__}
        options.write_json(
            {"text": "".join(text), "finish_reason": reason, "seed": seed, "timings": figures, "first_token_s": first}
        )
    else:
        sys.stdout.write("\n")
        sys.stdout.flush()
        sys.stderr.write(_figures(timings, first, llm.context if reason == "context" else None))


def _prompt(given: argparse.Namespace) -> str:
    if (given.prompt is None) == (given.file is None):
        raise OptionError("prompt: give a text, or - for stdin, or --file FILE; exactly one of them")
    if given.file is None and given.prompt != "-":
        return str(given.prompt)
    name = given.file or "stdin"
    try:
        if given.file:
            with open(given.file, "rb") as file:
                data = file.read(MOST_PROMPT_BYTES + 1)
        else:
            data = sys.stdin.buffer.read(MOST_PROMPT_BYTES + 1)
        if len(data) > MOST_PROMPT_BYTES:
            raise FileError(f"{name}: prompt: over {MOST_PROMPT_BYTES} bytes, expected a text that fits the context")
        return data.decode()
    except OSError as error:
        raise FileError(f"{name}: prompt: can't be read ({error.strerror}); give a text file") from None
    except UnicodeDecodeError as error:
        raise FileError(f"{name}: prompt: byte {error.start} is not UTF-8; give a text in UTF-8") from None


class _Progress:
    """A bar on stderr for prompts that take longer than a second."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None and time.perf_counter() - self._begin > QUIET_SECONDS and done < total:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=" tokens", desc="prompt", leave=False, file=sys.stderr)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _figures(timings: "Timings", first: float | None, full: int | None) -> str:
    prompt = timings.prompt_tokens - timings.reused_tokens
    parts = [f"prompt {prompt} tokens, {prompt / max(timings.prefill_s, 1e-9):.0f}/s"]
    if timings.generated_tokens > 1:
        rate = (timings.generated_tokens - 1) / max(timings.decode_s, 1e-9)
        parts.append(f"generated {timings.generated_tokens} tokens, {rate:.0f}/s")
    if first is not None:
        parts.append(f"first text after {first:.2f} s")
    if full is not None:
        parts.append(f"the context of {full} tokens is full: load with a larger --context to go on")
    return "; ".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
