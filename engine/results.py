"""What generating and scoring give back."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went. `prompt_tokens` counts the whole prompt, `reused_tokens` those that the cache already held."""

    prompt_tokens: int
    reused_tokens: int
    prefill_s: float
    generated_tokens: int
    decode_s: float
    load_s: float


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of a stream: the text that is certain by now (it may be empty), the token's id, its log-probability."""

    text: str
    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation.

    Attributes:
        text: Without the prompt and without the stop string.
        ids: All generated ids, the one that ended it included.
        finish_reason: `end` (an end token), `stop` (a stop string), `length` (max_tokens), `context` (the context is full)
            or `cancelled`.
    """

    text: str
    ids: list[int]
    finish_reason: str
    timings: Timings


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a text is: `logprobs[i]` of ids[i + 1] after ids[0..i], natural logarithms; perplexity exp(-mean)."""

    ids: list[int]
    logprobs: list[float]
    perplexity: float
