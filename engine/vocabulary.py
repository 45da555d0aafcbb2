"""The tokenizer's keys of a GGUF file, checked: tokens, their types and scores, merges, and the ids with a meaning.

    tokenizer.ggml.model     "llama" (SentencePiece-like: scores) or "gpt2" (byte-level: merges)
    tokenizer.ggml.tokens    V strings; token_type V integers; scores V float32 (llama); merges "left right" (gpt2)

Missing keys have llama.cpp's defaults, and tokens that end a generation are found by their text as llama.cpp does, since
many files name only one of them. Source: src/llama-vocab.cpp and docs/gguf.md of ggml-org.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NoReturn

import numpy as np

from engine.errors import FileError
from engine.escape import escape
from engine.pretokenizers import PRE_TOKENIZERS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
NONE = 0xFFFFFFFF  # how files say "there is no such token"
_KEY = "tokenizer.ggml."
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-F]{2})>")

# Tokens that end a generation, whatever their type says.
END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
# Tokens of fill-in-the-middle: key and texts, the first that is there counts. The last three end a generation too.
FIM_TEXTS = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
                "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
                "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
                "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
_OTHER_IDS = ("unknown", "seperator", "cls", "mask")  # checked, not used; the second is spelt so in the files
_FIM_ENDS = ("fim_pad", "fim_rep", "fim_sep")


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """What a file says about its tokens; every id is below `len(tokens)`, `index[tokens[id]] == id`."""

    name: str  # of the file, for errors
    kind: str  # "llama" or "gpt2"
    pre: str  # name of the way to cut words, "" for llama
    tokens: list[bytes]
    index: dict[bytes, int]
    types: np.ndarray  # (V,) int8: NORMAL ... BYTE
    scores: np.ndarray | None  # (V,) float32 for llama
    merges: list[bytes]  # "left right", best first, for gpt2
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    end_ids: frozenset[int]
    banned_ids: tuple[int, ...]
    add_bos: bool
    add_space_prefix: bool
    strip_after: frozenset[int]  # white space after these is dropped where special tokens are read from text


class _Reader:
    """Typed access to the metadata; each failure is one line that names the file and the key."""

    def __init__(self, metadata: Mapping[str, Any], name: str) -> None:
        self.metadata, self.name = metadata, name

    def fail(self, key: str, text: str) -> NoReturn:
        raise FileError(f"{escape(self.name, 300)}: key '{_KEY}{key}': {text}")

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(_KEY + key, default)
        if not isinstance(value, bool | np.bool_):
            self.fail(key, f"is {escape(repr(value))}, a bool is expected")
        return bool(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.metadata.get(_KEY + key, default)
        if value is None:
            self.fail(key, "is missing; the file has no vocabulary that can be used, convert the model again")
        if not isinstance(value, str):
            self.fail(key, f"is {escape(repr(value))}, a string is expected")
        return value

    def strings(self, key: str) -> list[bytes]:
        values = self.metadata.get(_KEY + key)
        if values is None:
            self.fail(key, "is missing; convert the model again")
        if not isinstance(values, list | tuple) or not set(map(type, values)) <= {bytes, str}:
            self.fail(key, "is of another type, an array of strings is expected")
        return [value if type(value) is bytes else value.encode("utf-8", "surrogatepass") for value in values]

    def numbers(self, key: str, kind: str, dtype: type, count: int) -> np.ndarray:
        """An array of `count` numbers; kind: NumPy's letter for what may be in it, "f" or "iu"."""
        given = self.metadata[_KEY + key]
        values = np.asarray(given) if isinstance(given, np.ndarray | list | tuple) else np.empty(())
        single = kind != "f" or values is not given or values.dtype == dtype  # a list of Python's floats will do
        if values.ndim != 1 or values.dtype.kind not in kind or not single:
            self.fail(key, f"is of another type, an array of {np.dtype(dtype).name} is expected")
        if len(values) != count:
            self.fail(key, f"has {len(values)} elements, expected {count}, one for each token")
        return values

    def id(self, key: str, size: int, default: int | None = None) -> int | None:
        value = self.metadata.get(_KEY + key + "_token_id")
        if value is None:
            return default if default is not None and default < size else None
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            self.fail(key + "_token_id", f"is {escape(repr(value))}, an integer is expected")
        if value == NONE:
            return None
        if not 0 <= value < size:
            self.fail(key + "_token_id", f"is {value}, outside of the vocabulary of {size} tokens")
        return int(value)


def read_vocabulary(metadata: Mapping[str, Any], rows: int, name: str) -> Vocabulary:
    """Reads and checks the tokenizer's keys.

    metadata: the file's keys; arrays of strings are lists of bytes or str, arrays of numbers NumPy arrays or lists
    rows: rows of the embedding, of which each must have its token
    name: of the file, for errors
    Raises FileError, one line, for whatever is missing, of another type or inconsistent.
    """
    read = _Reader(metadata, name)
    kind = read.text("model")
    if kind not in ("llama", "gpt2"):
        read.fail("model", f"is '{escape(kind)}', which is not supported; supported: llama, gpt2")
    tokens, index = _read_tokens(read, rows)
    size = len(tokens)
    types = _read_types(read, tokens)
    pre, scores, merges = "", None, []
    if kind == "llama":
        scores = _read_scores(read, size)
    else:
        pre, merges = _read_pre(read), _read_merges(read, index)
    way = PRE_TOKENIZERS.get(pre)
    first, last = (1, 2) if way is None else (11 if way.has_bos else None, 11)
    bos, eos, pad = (read.id("bos", size, first), read.id("eos", size, last), read.id("padding", size))
    for key in _OTHER_IDS:
        read.id(key, size)
    ends = _find_ends(read, index, types, eos)
    add_bos = read.flag("add_bos_token", way is None or way.add_bos)
    if add_bos and bos is None:
        if _KEY + "add_bos_token" in metadata:
            read.fail("add_bos_token", "is true, but there is no start token; set 'bos_token_id' or make it false")
        add_bos = False
    return Vocabulary(
        name=name,
        kind=kind,
        pre=pre,
        tokens=tokens,
        index=index,
        types=types,
        scores=scores,
        merges=merges,
        bos_id=bos,
        eos_id=eos,
        pad_id=pad,
        end_ids=ends,
        banned_ids=tuple(np.flatnonzero(types == UNUSED).tolist()),
        add_bos=add_bos,
        add_space_prefix=kind == "llama" and read.flag("add_space_prefix", True),
        strip_after=_find_stripping(metadata, index, types),
    )


def byte_value(token: bytes) -> int | None:
    """The byte that a token like `<0x0A>` stands for, or None."""
    found = _BYTE_TOKEN.fullmatch(token)
    return int(found[1], 16) if found else None


def _read_tokens(read: _Reader, rows: int) -> tuple[list[bytes], dict[bytes, int]]:
    tokens = read.strings("tokens")
    if len(tokens) != rows:
        read.fail("tokens", f"has {len(tokens)} tokens, expected {rows}, one for each row of 'token_embd.weight'")
    for id in range(len(tokens)) if b"" in tokens else ():
        tokens[id] = tokens[id] or b"[EMPTY_%d]" % id  # the name that llama.cpp gives it
    index = dict(zip(tokens, range(len(tokens))))
    if len(index) < len(tokens):
        id = next(id for id, token in enumerate(tokens) if index[token] != id)
        read.fail("tokens", f"'{escape(tokens[id])}' is there twice, as {id} and {index[tokens[id]]}")
    return tokens, index


def _read_types(read: _Reader, tokens: list[bytes]) -> np.ndarray:
    if _KEY + "token_type" not in read.metadata:
        return np.full(len(tokens), NORMAL, np.int8)
    types = read.numbers("token_type", "iu", np.int32, len(tokens))
    wrong = np.flatnonzero((types < NORMAL) | (types > BYTE))
    if len(wrong):
        read.fail("token_type", f"token {wrong[0]} is of type {types[wrong[0]]}, expected {NORMAL} to {BYTE}")
    for id in np.flatnonzero(types == BYTE).tolist():
        if byte_value(tokens[id]) is None:
            read.fail("tokens", f"token {id} is a byte token '{escape(tokens[id])}', expected '<0x00>' to '<0xFF>'")
    return types.astype(np.int8)


def _read_scores(read: _Reader, size: int) -> np.ndarray:
    if _KEY + "scores" not in read.metadata:
        read.fail(
            "scores", "is missing; a vocabulary of the kind 'llama' can't be used without, convert the model again"
        )
    scores = read.numbers("scores", "f", np.float32, size)
    if not np.isfinite(scores).all():
        id = int(np.flatnonzero(~np.isfinite(scores))[0])
        read.fail("scores", f"the score of token {id} is {scores[id]}, a finite number is expected")
    return scores.astype(np.float32)


def _read_pre(read: _Reader) -> str:
    pre = read.text("pre", "default")
    if pre not in PRE_TOKENIZERS:
        read.fail("pre", f"is '{escape(pre)}', which is not supported; supported: {', '.join(PRE_TOKENIZERS)}")
    return pre


def _read_merges(read: _Reader, index: dict[bytes, int]) -> list[bytes]:
    """The merges, each of two tokens with one space between; byte-level tokens hold no spaces themselves."""
    merges = read.strings("merges")
    single = set(map(bytes.count, merges, repeat(b" "))) <= {1}
    if not single or not index.keys() >= set(b" ".join(merges).split(b" ") if merges else ()):
        for i, merge in enumerate(merges):
            if merge.count(b" ") != 1:
                read.fail("merges", f"merge {i} is '{escape(merge)}', expected two tokens and one space between them")
            for part in merge.split(b" "):
                if part not in index:
                    read.fail("merges", f"merge {i} is '{escape(merge)}', but '{escape(part)}' is no token")
    return merges


def _find_ends(read: _Reader, index: dict[bytes, int], types: np.ndarray, eos: int | None) -> frozenset[int]:
    """All ids that end a generation; makes those found by text control tokens in `types`."""
    size = len(types)
    named = [eos, *(read.id(key, size) for key in ("eot", "eom"))]
    found = [index[text.encode()] for text in END_TEXTS if text.encode() in index]
    types[found] = CONTROL
    for key, texts in FIM_TEXTS.items():
        id = read.id(key, size)
        if id is None:
            id = next((index[text.encode()] for text in texts if text.encode() in index), None)
            if id is not None:
                types[id] = CONTROL
        if key in _FIM_ENDS:
            named.append(id)
    ends = {id for id in named if id is not None} | set(found)
    if index.keys() & {b"<|call|>", b"<|calls|>"} and index.keys() & {b"<|return|>", b"<|flush|>"}:
        ends.discard(index.get(b"<|end|>", -1))  # there it ends a message, not the turn
    types.flags.writeable = False
    return frozenset(ends)


def _find_stripping(metadata: Mapping[str, Any], index: dict[bytes, int], types: np.ndarray) -> frozenset[int]:
    """Phi-3's special tokens swallow the white space after them; its files say so only by the model's name."""
    model = metadata.get("general.name", "")
    if not isinstance(model, str) or not re.search("phi-?3", model.lower()):
        return frozenset()
    special = np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    kept = {index.get(text, -1) for text in (b"<unk>", b"<s>", b"<|endoftext|>")}
    return frozenset({*special, index.get(b"</s>", -1)} - kept)
