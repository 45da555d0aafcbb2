"""tokenizer.json of a Hugging Face folder, as the tokenizer's keys of a GGUF file.

Two kinds of it have a form in GGUF, and both are "BPE" there:

    byte-level       "gpt2"    tokens in a letter for each byte; merges; the way to cut words, found among `PRE_TOKENIZERS`
                               by its steps, which must be the same to the letter
    byte fallback    "llama"   tokens with a mark for the space, bytes <0xXX>; scores, which say the same as the merges:

SentencePiece joins the pair whose joined text has the highest score, BPE the pair that stands first. They are the same if
all pairs that make one token stand together among the merges, and every cut of that token into two tokens is one of them;
the score is then their place, negative. Both are checked. (Early converters lost the merges of the one token whose score is
0; it is given back the best score, with which the model was trained.)

What GGUF has no place for is left out as llama.cpp leaves it out: NFC normalising, and what special tokens do to the white
space around them. All else that isn't understood is refused. Source: the `tokenizers` package (huggingface/tokenizers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from engine.errors import FileError
from engine.escape import escape, listed
from engine.gguf_writer import Key
from engine.pretokenizers import PRE_TOKENIZERS
from engine.vocabulary import BYTE, CONTROL, END_TEXTS, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, byte_value

MAX_FILE = 128 << 20
SPACE = "▁"
MAX_TOKEN = 1 << 10  # characters
ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
ANY_CASE = f"(?i:{'|'.join(ENDINGS)})"
WRITTEN_OUT = f"(?:{'|'.join(chr(39) + ''.join(f'[{c}{c.upper()}]' for c in end[1:]) for end in ENDINGS)})"
GPT2 = PRE_TOKENIZERS["gpt-2"].steps
WAYS_TO_CUT = {  # (steps, whether whole words are taken without merging) -> name; of several names the first
    (way.steps, way.ignore_merges): name for name, way in reversed(PRE_TOKENIZERS.items())
}


def spelt(text: str) -> bytes:
    """A token's bytes; JSON can hold halves of surrogate pairs, which are kept."""
    return text.encode("utf-8", "surrogatepass")


class HuggingFaceTokenizer:
    """tokenizer.json and what goes with it."""

    def __init__(self, found: Mapping[str, Any], settings: Mapping[str, Any], path: str) -> None:
        """Args: found: tokenizer.json; settings: tokenizer_config.json, filled up from others; path: for errors."""
        self._found, self._settings, self._path = found, settings, path
        self._model = self._part("model", found.get("model"))
        self._check_model()
        self._vocabulary = self._read_vocabulary()
        self._added = self._read_added()

    def keys(self, rows: int, ends: list[int], start: int | None) -> dict[str, Key]:
        """The tokenizer's keys.

        Args:
            rows: Of the embedding; those without a token get one that is never used.
            ends: Ids that end a generation, as the model's own files have them.  start: its start token, likewise.
        """
        tokens: list[str | None] = [None] * rows
        for token, id_ in (self._vocabulary | {token: id_ for token, (id_, _) in self._added.items()}).items():
            if id_ >= rows:
                self._fail(f"token '{escape(token)}' has the id {id_}, but the embedding has {rows} rows")
            if tokens[id_] is not None and tokens[id_] != token:
                self._fail(f"tokens '{escape(str(tokens[id_]))}' and '{escape(token)}' both have the id {id_}")
            tokens[id_] = token
        types = np.full(rows, NORMAL, np.int32)
        for id_, special in self._added.values():
            types[id_] = CONTROL if special else USER_DEFINED
        byte_level = self._is_byte_level()
        unknown = self._vocabulary.get(str(self._model.get("unk_token")))
        if not byte_level:
            for token, id_ in self._vocabulary.items():
                if types[id_] == NORMAL and byte_value(spelt(token)) is not None:
                    types[id_] = BYTE
            if unknown is not None:
                types[unknown] = UNKNOWN
        types[[id_ for id_, text in enumerate(tokens) if text is None]] = UNUSED
        names = [f"[PAD{id_}]" if text is None else text for id_, text in enumerate(tokens)]
        made: dict[str, Key] = {"tokenizer.ggml.model": ("string", "gpt2" if byte_level else "llama")}
        if byte_level:
            made["tokenizer.ggml.pre"] = ("string", self._way_to_cut())
        made["tokenizer.ggml.tokens"] = ("array of string", [spelt(name) for name in names])
        made["tokenizer.ggml.token_type"] = ("array of i32", types)
        if byte_level:
            made["tokenizer.ggml.merges"] = ("array of string", [spelt(f"{a} {b}") for a, b in self._merges()])
        else:
            made["tokenizer.ggml.scores"] = ("array of f32", self._scores(rows))
            made["tokenizer.ggml.add_space_prefix"] = ("bool", self._space_prefix())
            if unknown is not None:
                made["tokenizer.ggml.unknown_token_id"] = ("u32", unknown)
        return made | self._special_ids(rows, ends, start)

    def _fail(self, text: str) -> NoReturn:
        raise FileError(f"{escape(self._path, 300)}: {text}")

    def _part(self, name: str, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self._fail(f"{name}: is {escape(repr(value), 60)}, an object is expected")
        return value

    def _check_model(self) -> None:
        """A BPE model without what GGUF can't say."""
        kind = self._model.get("type", "BPE" if "merges" in self._model else None)
        if kind != "BPE":
            self._fail(f"model: type {escape(repr(kind), 40)} is not supported; supported: BPE")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if self._model.get(key):
                self._fail(f"model: {key} is {escape(repr(self._model[key]), 40)}, which is not supported")

    def _read_vocabulary(self) -> dict[str, int]:
        found = self._part("model: vocab", self._model.get("vocab"))
        if any(type(id_) is not int or id_ < 0 for id_ in found.values()):
            self._fail("model: vocab: expected a whole number for each token")
        long = next((token for token in found if len(token) > MAX_TOKEN), None)
        if long is not None:
            self._fail(f"model: vocab: '{escape(long)}' has {len(long)} characters, at most {MAX_TOKEN} are allowed")
        return dict(found)

    def _read_added(self) -> dict[str, tuple[int, bool]]:
        """Text -> id, and whether it is special, of the added tokens."""
        made: dict[str, tuple[int, bool]] = {}
        entries = self._found.get("added_tokens") or []
        if not isinstance(entries, list):
            self._fail("added_tokens: a list is expected")
        for entry in entries:
            text, id_, special = (self._part("added_tokens", entry).get(k) for k in ("content", "id", "special"))
            if type(text) is not str or not text or type(id_) is not int or id_ < 0 or type(special) is not bool:
                self._fail("added_tokens: expected content, id and special of each")
            if not special and any(entry.get(key) for key in ("single_word", "lstrip", "rstrip")):
                self._fail(
                    f"added_tokens: '{escape(text)}' takes white space away or stands alone, which is not supported"
                )
            made[text] = id_, special
        return made

    def _steps(self) -> list[Mapping[str, Any]]:
        """The pre-tokenizers, one after the other."""
        first = self._found.get("pre_tokenizer")
        if first is None:
            return []
        first = self._part("pre_tokenizer", first)
        steps = first.get("pretokenizers") if first.get("type") == "Sequence" else [first]
        if not isinstance(steps, list):
            self._fail("pre_tokenizer: a list is expected")
        return [self._part("pre_tokenizer", step) for step in steps]

    def _is_byte_level(self) -> bool:
        return any(step.get("type") == "ByteLevel" for step in self._steps())

    def _way_to_cut(self) -> str:
        """The name of the pre-tokenizer whose steps are these."""
        normalizer = self._found.get("normalizer")
        if normalizer is not None and normalizer != {"type": "NFC"}:
            self._fail(f"normalizer: {escape(str(normalizer), 80)} is not supported for a byte-level vocabulary")
        cut: list[str] = []
        for step in self._steps():
            kind = step.get("type")
            if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
                pattern = self._part("pre_tokenizer: pattern", step.get("pattern"))
                cut.append(str(pattern.get("Regex")).replace(ANY_CASE, WRITTEN_OUT))
            elif kind == "Digits" and step.get("individual_digits"):
                cut.append(r"\p{N}")
            elif kind == "ByteLevel" and not step.get("add_prefix_space", True):
                cut += GPT2 if step.get("use_regex", True) else ()
            else:
                self._fail(f"pre_tokenizer: {escape(str(dict(step)), 120)} is not supported")
        way = WAYS_TO_CUT.get((tuple(cut), bool(self._model.get("ignore_merges"))))
        if way is None:
            self._fail(f"pre_tokenizer: is none of those that GGUF has a name for: {listed(cut, 3)}")
        return way

    def _merges(self) -> list[tuple[str, str]]:
        """Pairs, best first; each may be written "a b" or ["a", "b"]."""
        found = self._model.get("merges")
        if not isinstance(found, list):
            self._fail("model: merges: a list is expected")
        made = []
        for merge in found:
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(pair, list) or len(pair) != 2 or not all(type(part) is str and part for part in pair):
                self._fail(f"model: merges: {escape(repr(merge), 60)}, expected two tokens")
            first, second = pair
            if " " in first + second:
                self._fail(f"model: merges: {escape(repr(merge), 60)} has a space inside, which is not supported")
            for part in (first, second, first + second):
                if part not in self._vocabulary:
                    self._fail(f"model: merges: {escape(repr(merge), 60)}, but '{escape(part)}' is no token")
            made.append((first, second))
        return made

    def _scores(self, rows: int) -> np.ndarray:
        """Scores (rows,) float32 that say what the merges say; raises FileError where none do."""
        merges, known = self._merges(), self._vocabulary
        pairs = set(merges)
        place: dict[str, int] = {}
        last = ""
        for first, second in merges:
            made = first + second
            if made != last and made in place:
                self._fail(f"model: merges: those that make '{escape(made)}' don't stand together; not supported")
            place.setdefault(made, 1 + len(place))
            last = made
        lost = []
        for token in known:
            cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
            absent = next((cut for cut in cuts if cut[0] in known and cut[1] in known and cut not in pairs), None)
            if absent and token in place:
                self._fail(f"model: merges: '{escape(' '.join(absent))}' is none, though '{escape(token)}' is a token")
            if absent and token not in self._added and byte_value(spelt(token)) is None:
                lost.append(token)
        if len(lost) > 1:
            self._fail(f"model: merges: {len(lost)} tokens are made by none: {listed(lost, 3)}; not supported")
        scores = np.zeros(rows, np.float32)  # and 0, the best, for the one that is lost
        for token, rank in place.items():
            scores[known[token]] = -rank
        return scores

    def _space_prefix(self) -> bool:
        """Whether a space is put before a text; the normalizer, or the pre-tokenizer, must do SentencePiece's work."""
        if not self._model.get("byte_fallback"):
            self._fail("model: is neither byte-level nor has it byte_fallback; this is not supported")
        normalizer, steps = self._found.get("normalizer"), self._steps()
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        prepend = {"type": "Prepend", "prepend": SPACE}
        if not steps and normalizer in ({"type": "Sequence", "normalizers": [replace]}, replace):
            return False
        if not steps and normalizer == {"type": "Sequence", "normalizers": [prepend, replace]}:
            return True
        if normalizer is None and len(steps) == 1 and steps[0].get("type") == "Metaspace":
            step = steps[0]
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            if (
                step.get("replacement") == SPACE
                and step.get("split") is False
                and scheme in ("first", "always", "never")
            ):
                return bool(scheme != "never")
        self._fail("normalizer, pre_tokenizer: don't do what SentencePiece does with spaces; this is not supported")

    def _special_ids(self, rows: int, ends: list[int], start: int | None) -> dict[str, Key]:
        """Start, end and padding tokens, and whether a text begins with the first."""
        made: dict[str, Key] = {}
        bos, eos, pad = (self._named(key) for key in ("bos_token", "eos_token", "pad_token"))
        bos = start if bos is None else bos
        ends = ([eos] if eos is not None and (not ends or eos in ends) else []) + ends
        ends = [id_ for id_ in dict.fromkeys(ends) if id_ < rows]
        texts = {id_: token for token, (id_, _) in self._added.items()}
        further = [id_ for id_ in ends[1:] if texts.get(id_) not in END_TEXTS]
        if len(further) > 2:
            self._fail(f"eos_token_id: {len(ends)} tokens end a generation; GGUF has room for three")
        for key, id_ in (
            ("bos", bos),
            ("eos", ends[0] if ends else None),
            *zip(("eot", "eom"), further),
            ("padding", pad),
        ):
            if id_ is not None and id_ < rows:
                made[f"tokenizer.ggml.{key}_token_id"] = ("u32", id_)
        asked = self._settings.get("add_bos_token")
        add = asked if type(asked) is bool else bos is not None and bos in self._begins_with()
        made["tokenizer.ggml.add_bos_token"] = ("bool", bool(add and bos is not None))
        return made

    def _named(self, key: str) -> int | None:
        """The id of a token that the settings name, as text or as an object."""
        value = self._settings.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str):
            return None
        return self._added[text][0] if text in self._added else self._vocabulary.get(text)

    def _begins_with(self) -> list[int]:
        """Ids of the tokens that the post-processor puts before a text."""
        first = self._found.get("post_processor")
        parts = [first] if isinstance(first, dict) else []
        if parts and isinstance(parts[0].get("processors"), list):
            parts = [part for part in parts[0]["processors"] if isinstance(part, dict)]
        found = []
        for part in parts:
            if part.get("type") == "TemplateProcessing" and isinstance(part.get("single"), list):
                for piece in part["single"]:
                    if not isinstance(piece, dict) or "SpecialToken" not in piece:
                        break
                    text = self._part("post_processor", piece["SpecialToken"]).get("id")
                    if isinstance(text, str) and text in self._added:
                        found.append(self._added[text][0])
        return found
