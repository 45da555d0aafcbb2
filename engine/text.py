"""Text as it comes: bytes of tokens in, whole characters out, nothing of a stop string shown.

    stream = TextStream(stop=("\\nUser:",))
    for id in ids:
        print(stream.push(tokenizer.piece(id)), end="")       # may be "" while a character or a stop string is unfinished
        if stream.stopped:
            break
    print(stream.finish(), end="")

What comes out in all, and where it stops, depends on the bytes alone, not on how tokens cut them.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Decodes UTF-8 and looks for stop strings across the cuts between tokens.

    A character is given out once its last byte is there. Bytes that can't be part of one become U+FFFD, as soon as that
    is known. Text that may be the beginning of a stop string is held back until it is one or can't become one. The stop
    string that is complete first counts, of two complete at the same character the longer; it is not given out, nor is
    anything after it.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """stop: strings, none of them empty."""
        assert not isinstance(stop, str) and all(stop)
        self.stopped: bool = False  # a stop string came
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, piece: bytes) -> str:
        """Takes the bytes of the next token; returns the text that is now certain."""
        return self._advance(self._decoder.decode(piece))

    def finish(self) -> str:
        """Returns what was held back; an unfinished character becomes U+FFFD. Then nothing more can be pushed."""
        text = self._advance(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _advance(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        cut = self._certain(text)
        self._held = text[cut:]
        return text[:cut]

    def _certain(self, text: str) -> int:
        """How many characters at the front of `text` can't belong to a stop string any more."""
        for cut in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(stop.startswith(text[cut:]) for stop in self._stop):
                return cut
        return len(text)
