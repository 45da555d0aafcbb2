"""The engine as Python sees it: `LLM`, a model with one conversation's cache.

    prompt ids --chunks--> run(table): forward pass, sampling steps --> id --> text that is certain
                              ^                                         |
                              +---------------- one row ----------------+

Calls from several threads queue. The cache remembers the ids that it holds: a prompt that begins like them is not
computed again, which changes no byte, since no result depends on how a prompt is cut.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import models.pretrained
from engine import kernel_cache
from engine.errors import ContextError, EngineError, FileError, OptionError
from engine.escape import escape
from engine.integer_loader import load_integer, load_static
from engine.integer_sampling import INTEGER_SAMPLING_KERNELS, IntegerSampling
from engine.loader import Loaded, load_gguf
from engine.open_model import is_static
from engine.queueing import Queue
from engine.results import Generation, Piece, Score, Timings
from engine.sampling import SAMPLING_KERNELS, Sampling
from engine.sampling_options import GenerationOptions, SamplingOptions, generation_options, whole
from engine.text import TextStream
from engine.threads import default_threads
from kernels.run import FIRST, LOGIT_ROW, LOGIT_ROWS, POSITION, ROWS, STOP, TOKEN, WIDTH
from models.state import CHUNK

Progress = Callable[[int, int], None]
DEFAULT_MODEL = Path(models.pretrained.__file__).parent / "story.gguf"


class LLM:
    """A loaded model. Made by `engine.load`; may be used from several threads, whose calls then queue.

    Attributes:
        name, config, tokenizer: Of the model; context: positions that the cache holds.
        integer_only: Whether it runs in integers alone.
        sampling: Options of `stream` that its file recommends, and that the commands follow; may be empty.
        load_s: Seconds that loading took; compile_s: those of them that compiling kernels took.
        last: Finish reason and timings of the last generation that came to its end.
    """

    def __init__(self, loaded: Loaded, name: str) -> None:
        self.name = name
        self.config = loaded.config
        self.tokenizer = loaded.tokenizer
        self.sampling = loaded.usage.sampling
        self.integer_only = loaded.logit_bits is not None
        self.context = loaded.state.limits.context
        self.load_s, self.compile_s = loaded.load_s, loaded.compile_s
        self._loaded = loaded
        self._run = loaded.team.run_block
        self._rows = self._run[FIRST:].reshape(-1, WIDTH)
        self._logits = loaded.state.scratch["logits"]
        self._sampling: Sampling | IntegerSampling
        if loaded.logit_bits is None:
            self._sampling = Sampling(self.tokenizer, self._logits, self.config.vocab_size, loaded.team.size)
        else:
            self._sampling = IntegerSampling(self.tokenizer, self._logits, self.config.vocab_size, loaded.logit_bits)
        self._sample_table = np.concatenate([loaded.table, self._sampling.steps.table()])
        self._score_table = np.concatenate([loaded.table, self._sampling.scoring.table()])
        self._held: list[int] = []
        self.last: tuple[str, Timings] | None = None
        self._queue = Queue()

    # ---- text and ids ----

    def tokenize(self, text: str, bos: bool | None = None, special: bool = False) -> list[int]:
        """The ids of a text; `bos`: begin with the start token (None: where the vocabulary asks for it); `special`: read
        control tokens such as <|im_end|> from the text."""
        return self.tokenizer.encode(text, bos=bos, special=special)

    def detokenize(self, ids: Iterable[int]) -> str:
        """The text of ids."""
        return self.tokenizer.decode(ids)

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt that the model's own chat template makes of messages, each {"role": ..., "content": ...}.

        Raises:
            FileError: for a model without a chat template, or with one that fails.
            OptionError: for messages of another form.
        """
        from engine.chat import GUARD, ChatTemplate

        source = self._loaded.usage.chat_template
        if source is None:
            raise FileError(f"{self.name}: chat template: there is none; give the prompt itself instead of messages")
        t = self.tokenizer
        bos, eos = ("" if id_ is None else t.piece(id_, special=True).decode() for id_ in (t.bos_id, t.eos_id))
        text = ChatTemplate(source, self.name).render(messages, bos, eos, t.control_texts)
        ids = t.encode(text, bos=False, special=True, guard=GUARD)
        return [t.bos_id, *ids] if t.add_bos and t.bos_id is not None and ids[:1] != [t.bos_id] else ids

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Generation:
        """Answer a conversation; the options are those of `stream`."""
        return self.generate(self.chat_ids(messages), **options)

    # ---- the model ----

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits after each of the ids: (T, V) float32."""
        ids = self._checked(ids)
        out = np.empty((len(ids), self.config.vocab_size), np.float32)
        size = self._logits.shape[0]
        with self._queue.turn():
            self._run[STOP] = 0
            self._held = []
            for start in range(0, len(ids), size):
                part = ids[start : start + size]
                self._forward(part, start, len(part), self._loaded.table)
                self._check_whole()
                out[start : start + len(part)] = self._logits[: len(part), : self.config.vocab_size]
        if self._loaded.logit_bits is not None:
            out *= np.float32(2.0**-self._loaded.logit_bits)
        return out

    def score(self, text: str | Sequence[int]) -> Score:
        """How likely a text is, token by token; nothing is sampled, and no more than a chunk's logits is kept."""
        ids = self._ids(text)
        logprobs: list[float] = []
        size = self._logits.shape[0]
        with self._queue.turn():
            self._run[STOP] = 0
            self._held = []
            for start in range(0, len(ids) - 1, size):
                following = ids[start + 1 : start + 1 + size]
                self._sampling.want(following)
                self._forward(ids[start : start + len(following)], start, len(following), self._score_table)
                self._check_whole()
                logprobs += self._sampling.scores(len(following))
        mean = math.fsum(logprobs) / len(logprobs) if logprobs else math.nan
        return Score(ids, logprobs, math.exp(-mean) if logprobs else math.nan)

    def _check_whole(self) -> None:
        if self._run[STOP]:
            raise EngineError(f"{self.name}: cancelled before all tokens were computed; call again")

    def _forward(self, ids: list[int], position: int, wanted: int, table: np.ndarray) -> None:
        """One run: ids at position, position + 1, ...; the logits of the last `wanted` of them come to lie in `_logits`."""
        count, rows = len(ids), self._rows
        rows[:count, TOKEN] = ids
        rows[:count, POSITION] = range(position, position + count)
        rows[:wanted, LOGIT_ROW] = range(count - wanted, count)
        self._run[ROWS], self._run[LOGIT_ROWS] = count, wanted
        del self._held[position:]
        if self._loaded.team.run(table):
            self._held += ids

    # ---- generation ----

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Generation:
        """Continue a prompt; the options are those of `stream`."""
        text: list[str] = []
        ids: list[int] = []
        stream = self._stream(prompt, **options)
        while True:
            try:
                piece = next(stream)
            except StopIteration as end:
                reason, timings, rest = end.value
                return Generation("".join(text) + rest, ids, reason, timings)
            text.append(piece.text)
            ids.append(piece.id)

    def stream(self, prompt: str | Sequence[int], **options: Any) -> Iterator[Piece]:
        """Continue a prompt, piece by piece; closing the iterator ends the work.

        Args:
            prompt: Text, or token ids as they are.
            max_tokens: Generate at most this many (128).
            temperature: 0 takes the most likely token; else logits are divided by it (0).
            top_k, top_p, min_p: Keep the k most likely (0: all); the most likely that make up p (1.0: all); those at
                least min_p times as likely as the first (0).
            repetition_penalty: Logits of ids among the last 64 are divided (negative ones multiplied) by it (1.0).
            seed: Of the random numbers (0).
            stop: Strings that end the text; they are not part of it.
            ignore_eos: Go on after an end token.
            progress: Called with (tokens done, tokens in all) after each chunk of the prompt.

        Raises:
            OptionError: for an option outside its range, or ids outside the vocabulary.
            ContextError: for a prompt that leaves no room in the context.
        """
        stream = self._stream(prompt, **options)

        def pieces() -> Iterator[Piece]:
            rest = yield from stream
            if rest[2]:
                yield Piece(rest[2], -1, 0.0)

        return pieces()

    def cancel(self) -> None:
        """End the generation that is running, from another thread; it finishes as `cancelled`.

        Logits and scores that are being computed are then not complete, and their callers get an EngineError.
        """
        self._run[STOP] = 1

    def _stream(self, prompt: str | Sequence[int], progress: Progress | None = None, **options: Any) -> Any:
        length, sampling = generation_options(options)
        return self._pieces(self._ids(prompt), length, sampling, progress)

    def _pieces(
        self, ids: list[int], length: GenerationOptions, sampling: SamplingOptions, progress: Progress | None
    ) -> Any:
        """Yield pieces; the value of the generator is (finish reason, timings, the text that was held back)."""
        prompt_tokens = len(ids)
        with self._queue.turn() as turn:
            self._run[STOP] = 0
            begin = time.perf_counter()
            self._sampling.begin(sampling)
            self._sampling.prepare(ids)
            reused = self._prefill(ids, progress)
            prefilled = time.perf_counter()
            text = TextStream(length.stop)
            at_start = all(id_ == self.tokenizer.bos_id for id_ in ids)
            reason = "cancelled" if self._run[STOP] else "length"
            while len(ids) - prompt_tokens < length.max_tokens and reason == "length":
                id_, logp = self._sampling.chosen
                ids.append(id_)
                if id_ in self.tokenizer.end_ids and not length.ignore_eos:
                    reason = "end"
                    yield Piece("", id_, logp)
                    break
                piece = self.tokenizer.piece(id_, start=at_start)
                at_start = False
                yield Piece(text.push(piece), id_, logp)
                if text.stopped:
                    reason = "stop"
                    break
                if not self._queue.is_on(turn):  # the caller began something else with this model in between
                    reason = "cancelled"
                elif len(ids) - prompt_tokens == length.max_tokens:
                    break
                elif len(ids) > self.context:
                    reason = "context"
                else:
                    self._sampling.prepare(ids)
                    self._forward(ids[-1:], len(ids) - 1, 1, self._sample_table)
                    if self._run[STOP]:
                        reason = "cancelled"
            decoded = time.perf_counter()
            timings = Timings(
                prompt_tokens=prompt_tokens,
                reused_tokens=reused,
                prefill_s=prefilled - begin,
                generated_tokens=len(ids) - prompt_tokens,
                decode_s=decoded - prefilled,
                load_s=self.load_s,
            )
            self.last = reason, timings
            return reason, timings, text.finish()

    def _prefill(self, ids: list[int], progress: Progress | None) -> int:
        """Bring the cache up to `ids`, and sample after the last one; how many it already held."""
        same = 0
        for held, id_ in zip(self._held, ids[:-1]):
            if held != id_:
                break
            same += 1
        chunk = self._loaded.state.limits.rows
        for start in range(same, len(ids), chunk):
            part = ids[start : start + chunk]
            if start + len(part) < len(ids):
                self._forward(part, start, 0, self._loaded.table)
            else:
                self._forward(part, start, 1, self._sample_table)
            if self._run[STOP]:
                break
            if progress:
                progress(start + len(part), len(ids))
        return same

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._checked(
                self.tokenizer.encode(prompt), "the text is empty and the vocabulary has no start token"
            )
        return self._checked(prompt)

    def _checked(self, ids: Sequence[int], empty: str = "no ids") -> list[int]:
        ids = [int(id_) for id_ in ids]
        if not ids:
            raise OptionError(f"prompt: {empty}; give at least one token")
        wrong = [id_ for id_ in ids if not 0 <= id_ < self.config.vocab_size]
        if wrong:
            raise OptionError(f"prompt: token id {wrong[0]}, expected 0 to {self.config.vocab_size - 1}")
        if len(ids) > self.context:
            raise ContextError(
                f"prompt: {len(ids)} tokens, the context holds {self.context}; shorten it or load with more"
            )
        return ids

    def close(self) -> None:
        """End the threads; the model can't run any more."""
        self._loaded.team.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def load(
    model: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    context: int | None = None,
    chunk: int = CHUNK,
    cache: str | os.PathLike[str] | None = None,
    integer_only: bool = False,
    calibration: str | None = None,
) -> LLM:
    """Load a model.

    Args:
        model: Path of a GGUF file, of a Hugging Face folder, or of a static INT8 form, which always runs in integers alone
            (default: the small model that comes along).
        threads: How many compute (default: the physical cores that this process may use).
        context: Positions that the cache holds (default: what the model was trained for, at most 2048).
        chunk: Prompt tokens computed in one run.
        cache: Folder in which compiled kernels are kept (default: `$INTENGINE_CACHE`, or in the user's cache folder).
        integer_only: Run without any floating-point instruction: static INT8 weights and activations; a GGUF file is
            calibrated on a text.
        calibration: That text (default: a short one that comes along); only with integer_only.

    Raises:
        EngineError: one line, for whatever is wrong with the file or an option.
    """
    for name, value, high in (("threads", threads, 1024), ("context", context, 1 << 24), ("chunk", chunk, 4096)):
        if value is not None:
            whole(name, value, 1, high)
    path = DEFAULT_MODEL if model is None else model
    kernel_cache.use(None if cache is None else Path(cache))
    count, name = threads or default_threads(), os.fspath(path)
    if is_static(path):
        if calibration is not None:
            raise OptionError(f"calibration: a text is given, but {escape(name, 300)} holds its scales; leave it away")
        return LLM(load_static(path, count, context, chunk, list(INTEGER_SAMPLING_KERNELS)), name)
    if integer_only:
        return LLM(load_integer(path, count, context, chunk, list(INTEGER_SAMPLING_KERNELS), calibration), name)
    if calibration is not None:
        raise OptionError("calibration: a text is given, but the model is not loaded with integer_only=True; add that")
    return LLM(load_gguf(path, count, context, chunk, list(SAMPLING_KERNELS)), name)
