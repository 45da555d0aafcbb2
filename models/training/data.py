"""Stories, tokenizer and token windows for training.

A corpus folder holds `train.txt` and `valid.txt` (optionally `train_us.txt`, `valid_us.txt`): one story after another, each
followed by a line `<|endoftext|>`; and `index.tsv`, which gives every story's simplicity score (lower is plainer) in the
files' order. Plain stories are read more often, some under other names, and beside them tales written for the model: a
stage's Mix says how often.

    stream   <|endoftext|> story <|endoftext|> story ...       uint16
    window   512 inputs and the 512 tokens that follow them    (T + 1,)
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.training.renaming import rename
from models.training.written import Tale

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
TEXTS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Story:
    """One story or chapter of the corpus with its simplicity score."""

    text: str
    score: float


Copies = tuple[tuple[float, int], ...]
"""Upper bounds of the simplicity score, ascending, each with how often such a story is read in one round."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Which stories a stage of training reads, and how."""

    copies: Copies
    renamed: float = 0.0
    """Share of them whose characters get other names (models/training/renaming.py)."""
    written: tuple[int, int] = (0, 0)
    """How often each written tale is told, and each deep one (models/training/written.py)."""


def _count(copies: Copies, story: Story) -> int:
    """The copies of a story; 0 above the last bound."""
    return next((count for bound, count in copies if story.score < bound), 0)


def read_stories(corpus: Path, part: str) -> list[Story]:
    """Read the stories of `part` ("train" or "valid"), the optional `_us` file included.

    Raises ValueError if the files and `index.tsv` disagree about the number of stories.
    """
    with (corpus / "index.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    stories: list[Story] = []
    for name in (f"{part}.txt", f"{part}_us.txt"):
        path = corpus / name
        if not path.exists():
            continue
        texts = [text.strip("\n") for text in path.read_text(encoding="utf-8").split(END_OF_TEXT)]
        texts = [text for text in texts if text]
        scores = [float(row["score"]) for row in rows if row["file"] == name]
        if len(scores) != len(texts):
            raise ValueError(f"{path}: {len(texts)} stories, but index.tsv lists {len(scores)}")
        stories += [Story(text, score) for text, score in zip(texts, scores)]
    return stories


def train_tokenizer(stories: list[Story], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of `vocab_size` entries with the pre-tokenizer pattern of GPT-2; entry 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((story.text for story in stories), trainer)
    return tokenizer


def encode_texts(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Encode each text as uint16 ids that begin with the end-of-text entry (it stands between stories)."""
    ids = []
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        for encoding in tokenizer.encode_batch_fast(texts[first : first + TEXTS_AT_ONCE]):
            ids.append(np.array([END_OF_TEXT_ID, *encoding.ids], np.uint16))
    return ids


class Windows:
    """Training windows in a fixed order: window i depends only on the seed, so a run resumes by its count of windows."""

    def __init__(
        self, tokenizer: Tokenizer, stories: list[Story], tales: list[Tale], length: int, seed: int, mix: Mix
    ) -> None:
        """length: T, tokens predicted per window."""
        self._tokenizer = tokenizer
        self._texts: list[Story | Tale] = [*stories, *tales]
        self._copies = [_count(mix.copies, story) for story in stories] + [mix.written[tale.deep] for tale in tales]
        self._renamed = mix.renamed
        self._length = length
        self._seed = seed
        self._round = -1
        self._first = self._end = 0
        self._windows = np.empty((0, length + 1), np.uint16)

    def _next_round(self) -> None:
        """Lay the texts of the next round end to end, in a new order, and cut them into windows in a new order."""
        self._round += 1
        rng = np.random.default_rng([self._seed, self._round])
        texts: list[str] = []
        for i in rng.permutation(np.repeat(np.arange(len(self._texts)), self._copies)):
            text = self._texts[i]
            if isinstance(text, Tale):
                texts.append(text.tell(rng))
            else:
                texts.append(rename(text.text, rng) if rng.random() < self._renamed else text.text)
        stream = np.concatenate(encode_texts(self._tokenizer, texts))
        tokens = len(stream)
        stream = stream[int(rng.integers(self._length)) :]
        count = (len(stream) - 1) // self._length
        if count < 1:
            raise ValueError(f"the texts of one round have {tokens} tokens; windows of {self._length} need more")
        starts = rng.permutation(count) * self._length
        self._windows = stream[starts[:, None] + np.arange(self._length + 1)]
        self._first, self._end = self._end, self._end + count

    def take(self, first: int, count: int) -> np.ndarray:
        """Windows first .. first + count - 1 of the endless order: (count, T + 1) int64; ask in ascending order."""
        parts = []
        while count:
            while first >= self._end:
                self._next_round()
            part = self._windows[first - self._first : first - self._first + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Validation:
    """The held-out stories as consecutive windows, the last one shorter: every token but the first is predicted once."""

    stream: np.ndarray
    """(N,) int64: end of text, story, end of text, story, ..."""
    text_bytes: int
    """UTF-8 bytes of all the stories: the denominator of bits per byte."""

    def windows(self, length: int) -> list[np.ndarray]:
        """Cut the stream into windows of up to length + 1 tokens that overlap by one."""
        return [self.stream[i : i + length + 1] for i in range(0, len(self.stream) - 1, length)]


def make_validation(tokenizer: Tokenizer, stories: list[Story]) -> Validation:
    """Encode held-out stories into one stream."""
    stream = np.concatenate(encode_texts(tokenizer, [story.text for story in stories])).astype(np.int64)
    return Validation(stream, sum(len(story.text.encode()) for story in stories))
