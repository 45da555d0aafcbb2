"""Text to token ids and back, with the vocabulary of a GGUF file; the ids are those that llama.cpp gives.

Both kinds of vocabulary merge neighbours until nothing fits any more, the best pair first, the leftmost of equals:

    "llama"  characters, space = ▁; the best pair is the one whose joined text is the token of the highest score.
             What is no token in the end is spelt in byte tokens <0xXX>.
    "gpt2"   words (see pretokenizers) in a printable letter for each byte; the best pair stands first among the merges.

    "Hey you"  llama: ▁Hey | ▁you   (a space goes before the text and after each special token)       gpt2: Hey | Ġyou

Words repeat, so each is merged once and its ids are kept: this costs the start nothing, where handing 150,000 merges to
the `tokenizers` package takes 0.3 s; that package only cuts the words. Special tokens such as <|im_end|> are read from
text only where the caller asks for it, and no merge makes one, so the text of a user can't end a turn or open another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from heapq import heappop, heappush
from typing import Any

import numpy as np

from engine.errors import FileError, OptionError
from engine.escape import escape
from engine.pretokenizers import PRE_TOKENIZERS, splitter
from engine.vocabulary import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary, byte_value, read_vocabulary

SPACE = "▁"
MAX_CHARACTERS = 1 << 22  # of a text; the regular expressions give up on runs of some 10 million spaces
_MAX_KEPT_WORDS = 1 << 16
_MAX_KEPT_CHARACTERS = 64

Priority = Callable[[bytes, bytes], float | None]


class Tokenizer:
    """Cuts text into tokens and joins tokens to text; thread-safe, since all that changes is a table of known words."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.size = len(vocabulary.tokens)
        self.bos_id, self.eos_id, self.pad_id = vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id
        self.end_ids, self.banned_ids = vocabulary.end_ids, vocabulary.banned_ids
        self.add_bos, self.add_space_prefix = vocabulary.add_bos, vocabulary.add_space_prefix
        self._known: dict[str, tuple[int, ...]] = {}
        self._index = vocabulary.index.copy()
        for token in self._control_tokens():
            del self._index[token]

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], rows: int, name: str) -> Tokenizer:
        """The tokenizer of a model file.

        metadata: keys of the file, `tokenizer.ggml.*`; arrays of strings as list[bytes], of numbers as NumPy arrays
        rows: rows of the embedding, each of which must have its token
        name: of the file, for errors
        Raises FileError, one line, for whatever is missing, not supported or inconsistent.
        """
        return cls(read_vocabulary(metadata, rows, name))

    def encode(self, text: str, bos: bool | None = None, special: bool = False, guard: str = "") -> list[int]:
        """Returns the ids of a text.

        bos: whether the start token comes first; None: if the vocabulary asks for it
        special: whether tokens such as <|im_end|> are read from the text. Only for text that no user wrote
        guard: a character that is taken out of the text after special tokens were found in it
        Raises OptionError if the text is not Unicode, too long, or can't be spelt in this vocabulary.
        """
        self._check_text(text)
        ids: list[int] = []
        if self.add_bos if bos is None else bos:
            if self.bos_id is None:
                raise OptionError(f"{self.vocabulary.name}: bos: the vocabulary has no start token, leave bos=None")
            ids.append(self.bos_id)
        for part in self._partition(text, special):
            if isinstance(part, int):
                ids.append(part)
            else:
                for word in self._words(part.replace(guard, "") if guard else part):
                    ids += self._word_ids(word)
        return ids

    def decode(self, ids: Iterable[int], special: bool = False, start: bool = True) -> str:
        """Returns the text of token ids; bytes that aren't UTF-8 become U+FFFD.

        special: whether control tokens show, as `<|im_end|>`; else they give nothing
        start: whether the ids begin a text: then the space that `encode` put before it is taken away
        """
        pieces = []
        for id in ids:
            pieces.append(self.piece(id, special, start))
            start = start and not self.piece(id, special)
        return b"".join(pieces).decode("utf-8", "replace")

    def piece(self, id: int, special: bool = False, start: bool = False) -> bytes:
        """Returns the bytes of one token, which may be part of a character; see `decode` for `special` and `start`.

        Raises OptionError for an id outside of the vocabulary.
        """
        if isinstance(id, bool) or not isinstance(id, int | np.integer) or not 0 <= id < self.size:
            raise OptionError(f"token id {id!r} is outside of the vocabulary, expected 0 to {self.size - 1}")
        token, kind = self.vocabulary.tokens[id], self.vocabulary.types[id]
        if kind in (CONTROL, UNKNOWN):
            return token if special else b""
        if kind == BYTE:
            value = byte_value(token)
            assert value is not None
            return bytes([value])
        if kind == USER_DEFINED:
            return token
        if self.vocabulary.kind == "gpt2":
            return _spelt_bytes(token)
        piece = token.replace(SPACE.encode(), b" ")
        return piece[1:] if start and self.add_space_prefix and piece[:1] == b" " else piece

    def _check_text(self, text: str) -> None:
        if not isinstance(text, str):
            raise OptionError(f"text: is {type(text).__name__}, a string is expected")
        if len(text) > MAX_CHARACTERS:
            raise OptionError(f"text: {len(text)} characters long, at most {MAX_CHARACTERS} are allowed; cut it")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = f"\\u{ord(text[error.start]):04x}"
            raise OptionError(f"text: character {error.start} is half of a surrogate pair, {shown}") from None

    def _control_tokens(self) -> list[bytes]:
        return [self.vocabulary.tokens[id] for id in np.flatnonzero(self.vocabulary.types == CONTROL).tolist()]

    @cached_property
    def control_texts(self) -> list[str]:
        """The texts of all tokens that only the program may spell, such as <|im_end|>, longest first."""
        return [text for _, text, only_special in self._texts if only_special]

    @cached_property
    def _texts(self) -> list[tuple[int, str, bool]]:
        """(id, text, only if special) of what is found in text before all else, longest first."""
        tokens, types = self.vocabulary.tokens, self.vocabulary.types
        ids = np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
        ids.sort(key=lambda id: -len(tokens[id]))
        return [(id, tokens[id].decode("utf-8", "surrogateescape"), types[id] != USER_DEFINED) for id in ids]

    def _partition(self, text: str, special: bool) -> list[str | int]:
        """The text with special tokens taken out of it: strings, none empty, and ids."""
        parts: list[str | int] = [text] if text else []
        for id, token, only_special in self._texts:
            if (special or not only_special) and token in text:
                parts = [new for part in parts for new in self._cut(part, token, id)]
        return parts

    def _cut(self, part: str | int, token: str, id: int) -> list[str | int]:
        if isinstance(part, int):
            return [part]
        first, *rest = part.split(token)
        cut: list[str | int] = [first] if first else []
        for text in rest:
            cut.append(id)
            if id in self.vocabulary.strip_after:
                text = text.lstrip(" \t\n\v\f\r")
            if text:
                cut.append(text)
        return cut

    @cached_property
    def _split(self) -> Callable[[str], list[str]]:
        """Cuts a text into words that no merge joins: by the pre-tokenizer, or before a run of ▁."""
        if self.vocabulary.kind == "gpt2":
            return splitter(PRE_TOKENIZERS[self.vocabulary.pre].steps)
        mark = re.escape(SPACE.encode())
        if re.search(rb"(?<!^)(?<!%s)%s" % (mark, mark), b"\n".join(self._index), re.MULTILINE):
            return lambda text: [text]  # some token has ▁ inside, so a merge may cross words
        return re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+").findall

    def _words(self, text: str) -> list[str]:
        """The words of a part of `_partition`: it is the first or follows a special token, so ▁ goes before it."""
        if self.vocabulary.kind == "llama":
            text = (" " + text if self.add_space_prefix else text).replace(" ", SPACE)
        return self._split(text)

    def _word_ids(self, word: str) -> tuple[int, ...]:
        known = self._known.get(word)
        if known is not None:
            return known
        ids = tuple(self._spell(word))
        if len(word) <= _MAX_KEPT_CHARACTERS:
            if len(self._known) >= _MAX_KEPT_WORDS:
                self._known.clear()
            self._known[word] = ids
        return ids

    def _spell(self, word: str) -> list[int]:
        """The ids of one word, merged from its characters or bytes."""
        if self.vocabulary.kind == "llama":
            symbols = merge([character.encode() for character in word], self._priority)
        else:
            symbols = [BYTE_SYMBOLS[byte] for byte in word.encode()]
            whole = b"".join(symbols)
            ignore_merges = PRE_TOKENIZERS[self.vocabulary.pre].ignore_merges
            symbols = [whole] if ignore_merges and whole in self._index else merge(symbols, self._priority)
        ids: list[int] = []
        for symbol in symbols:
            id = self._index.get(symbol)
            if id is not None:
                ids.append(id)
            else:
                ids += self._bytes(symbol)
        return ids

    def _bytes(self, symbol: bytes) -> list[int]:
        """What is no token, in byte tokens; a byte that a byte-level vocabulary lacks is left out (Falcon: 0x0B)."""
        if self.vocabulary.kind == "gpt2":
            if len(_spelt_bytes(symbol)) > 1:
                shown, name = escape(symbol), escape(self.vocabulary.name, 300)
                raise FileError(f"{name}: key 'tokenizer.ggml.merges': a merge makes '{shown}', which is no token")
            return []
        index = self.vocabulary.index
        ids = [index.get(b"<0x%02X>" % byte, index.get(bytes([byte]))) for byte in symbol]
        if None in ids:
            shown = escape(symbol)
            raise OptionError(f"text: '{shown}' has no token in this vocabulary, nor have its bytes; leave it out")
        return [id for id in ids if id is not None]

    @cached_property
    def _priority(self) -> Priority:
        """The rank of a pair of neighbours, lower is better; None if they aren't merged."""
        index = self._index
        if self.vocabulary.kind == "llama":
            assert self.vocabulary.scores is not None
            ranks = (-self.vocabulary.scores.astype(np.float64)).tolist()

            def by_score(left: bytes, right: bytes) -> float | None:
                id = index.get(left + right)
                return None if id is None else ranks[id]

            return by_score
        merges = self.vocabulary.merges
        order = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1)))  # of two equal ones the first counts
        for token in self._control_tokens():
            for cut in range(1, len(token)):
                order.pop(token[:cut] + b" " + token[cut:], None)
        return lambda left, right: order.get(left + b" " + right)


def merge(symbols: list[bytes], priority: Priority) -> list[bytes]:
    """Joins neighbours for as long as `priority` knows a pair: the lowest first, of equals the leftmost; O(n log n)."""
    symbols = symbols.copy()
    count = len(symbols)
    before, after = list(range(-1, count - 1)), list(range(1, count + 1))
    heap: list[tuple[float, int, int]] = []  # priority, index of the left one, length of both

    def offer(left: int, right: int) -> None:
        rank = priority(symbols[left], symbols[right])
        if rank is not None:
            heappush(heap, (rank, left, len(symbols[left]) + len(symbols[right])))

    for left in range(count - 1):
        offer(left, left + 1)
    while heap:
        _, left, length = heappop(heap)
        right = after[left]
        if not symbols[left] or right == count or len(symbols[left]) + len(symbols[right]) != length:
            continue  # one of them was merged since; lengths only grow
        symbols[left] += symbols[right]
        symbols[right] = b""
        after[left] = after[right]
        if after[left] < count:
            before[after[left]] = left
            offer(left, after[left])
        if before[left] >= 0:
            offer(before[left], left)
    return [symbol for symbol in symbols if symbol]


def _byte_symbols() -> list[bytes]:
    """GPT-2's letter for each byte, in UTF-8: the byte's own character if it prints, else one from U+0100 on."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in own else next(others)).encode() for byte in range(256)]


BYTE_SYMBOLS = _byte_symbols()
_SYMBOL_BYTES = {symbol.decode(): bytes([byte]) for byte, symbol in enumerate(BYTE_SYMBOLS)}


def _spelt_bytes(token: bytes) -> bytes:
    """The bytes that a token in GPT-2's letters stands for; other characters stand for themselves."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return token
    return b"".join(_SYMBOL_BYTES.get(character) or character.encode() for character in text)
