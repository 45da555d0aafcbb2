"""A vocabulary that a file gets wrong is refused in one line; defaults and ends of generation are llama.cpp's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny

from engine.errors import FileError
from engine.vocabulary import Vocabulary, byte_value, read_vocabulary

NONE = 0xFFFFFFFF
SPM_SIZE, BPE_SIZE = 310, 283


def keys(kind: str, **changes: Any) -> dict[str, Any]:
    """The keys of a good vocabulary, 'spm' or 'bpe', with changes; a value of ... removes the key."""
    tokens, scores, types = tiny.vocabulary(kind)
    values: dict[str, Any] = {"tokens": [token.encode() for token in tokens], "token_type": np.array(types, np.int32)}
    if kind == "spm":
        values |= {"model": "llama", "scores": np.array(scores, np.float32)}
    else:
        merges = [pair.replace("_", tiny.BPE_SPACE).encode() for pair in tiny.MERGES]
        values |= {"model": "gpt2", "pre": "gpt-2", "merges": merges}
    return {"tokenizer.ggml." + key: value for key, value in (values | changes).items() if value is not ...}


def read(metadata: dict[str, Any], rows: int | None = None) -> Vocabulary:
    return read_vocabulary(metadata, rows or len(metadata["tokenizer.ggml.tokens"]), "m.gguf")


def with_token(kind: str, id: int, token: bytes, type: int, **changes: Any) -> dict[str, Any]:
    metadata = keys(kind, **changes)
    metadata["tokenizer.ggml.tokens"][id] = token
    metadata["tokenizer.ggml.token_type"][id] = type
    return metadata


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("spm", {"model": ...}, "'tokenizer.ggml.model': is missing"),
    ("spm", {"model": "bert"}, "'tokenizer.ggml.model': is 'bert', which is not supported; supported: llama, gpt2"),
    ("spm", {"model": 7}, "'tokenizer.ggml.model': is 7, a string is expected"),
    ("spm", {"model": b"\xff"}, "'tokenizer.ggml.model': is .*, a string is expected"),
    ("spm", {"model": "a\nb\x1b[31m" * 99}, r"'tokenizer.ggml.model': is 'a\\nb\\x1b"),
    ("spm", {"tokens": "abc"}, "'tokenizer.ggml.tokens': is of another type, an array of strings is expected"),
    ("spm", {"tokens": np.zeros(SPM_SIZE)}, "'tokenizer.ggml.tokens': is of another type"),
    ("spm", {"tokens": [1] * SPM_SIZE}, "'tokenizer.ggml.tokens': is of another type"),
    ("spm", {"tokens": [b"a"] * SPM_SIZE}, "'tokenizer.ggml.tokens': 'a' is there twice, as 0 and 309"),
    ("spm", {"token_type": "abc"}, "'tokenizer.ggml.token_type': is of another type, an array of int32 is expected"),
    ("spm", {"token_type": np.ones(SPM_SIZE)}, "'tokenizer.ggml.token_type': is of another type"),
    ("spm", {"token_type": np.ones(5, np.int32)}, "'tokenizer.ggml.token_type': has 5 elements, expected 310"),
    ("spm", {"token_type": np.full(SPM_SIZE, 7)}, "'tokenizer.ggml.token_type': token 0 is of type 7, expected 1 to 6"),
    ("spm", {"token_type": np.full(SPM_SIZE, -(2**31))}, "token 0 is of type -2147483648"),
    ("spm", {"token_type": np.full(SPM_SIZE, 2**63, np.uint64)}, "token 0 is of type 9223372036854775808"),
    ("spm", {"scores": ...}, "'tokenizer.ggml.scores': is missing"),
    ("spm", {"scores": np.zeros(SPM_SIZE, np.int32)}, "'tokenizer.ggml.scores': is of another type"),
    ("spm", {"scores": np.zeros(SPM_SIZE, np.float64)}, "'tokenizer.ggml.scores': is of another type"),
    ("spm", {"scores": [b"1"] * SPM_SIZE}, "'tokenizer.ggml.scores': is of another type"),
    ("spm", {"scores": 1.0}, "'tokenizer.ggml.scores': is of another type, an array of float32 is expected"),
    ("spm", {"scores": np.zeros(309, np.float32)}, "'tokenizer.ggml.scores': has 309 elements, expected 310"),
    ("spm", {"scores": np.zeros(311, np.float32)}, "'tokenizer.ggml.scores': has 311 elements, expected 310"),
    (
        "spm",
        {"scores": np.full(SPM_SIZE, np.nan, np.float32)},
        "the score of token 0 is nan, a finite number is expected",
    ),
    (
        "spm",
        {"bos_token_id": SPM_SIZE},
        "'tokenizer.ggml.bos_token_id': is 310, outside of the vocabulary of 310 tokens",
    ),
    ("spm", {"bos_token_id": -1}, "'tokenizer.ggml.bos_token_id': is -1, outside"),
    ("spm", {"bos_token_id": 1.0}, "'tokenizer.ggml.bos_token_id': is 1.0, an integer is expected"),
    ("spm", {"bos_token_id": True}, "'tokenizer.ggml.bos_token_id': is True, an integer is expected"),
    ("spm", {"eos_token_id": 2**63}, "'tokenizer.ggml.eos_token_id': is 9223372036854775808, outside"),
    ("spm", {"padding_token_id": 5000}, "'tokenizer.ggml.padding_token_id': is 5000, outside"),
    ("spm", {"unknown_token_id": 5000}, "'tokenizer.ggml.unknown_token_id': is 5000, outside"),
    ("spm", {"eot_token_id": 5000}, "'tokenizer.ggml.eot_token_id': is 5000, outside"),
    ("spm", {"fim_pad_token_id": 5000}, "'tokenizer.ggml.fim_pad_token_id': is 5000, outside"),
    ("spm", {"add_bos_token": 1}, "'tokenizer.ggml.add_bos_token': is 1, a bool is expected"),
    ("spm", {"add_space_prefix": "yes"}, "'tokenizer.ggml.add_space_prefix': is 'yes', a bool is expected"),
    ("spm", {"add_bos_token": True, "bos_token_id": NONE}, "'tokenizer.ggml.add_bos_token': is true, but there is no"),
    (
        "bpe",
        {"pre": "qwen99"},
        "'tokenizer.ggml.pre': is 'qwen99', which is not supported; supported: gpt-2, phi-2, .*viking",
    ),
    ("bpe", {"merges": ...}, "'tokenizer.ggml.merges': is missing"),
    ("bpe", {"merges": [1, 2]}, "'tokenizer.ggml.merges': is of another type"),
    ("bpe", {"merges": [b"h e", b"x"]}, "merge 1 is 'x', expected two tokens and one space between them"),
    ("bpe", {"merges": [b"h e", b"a b c"]}, "merge 1 is 'a b c', expected two tokens"),
    ("bpe", {"merges": [b"a b c", b"x"]}, "merge 0 is 'a b c', expected two tokens"),
    ("bpe", {"merges": [b"h e", b"he "]}, "merge 1 is 'he ', but '' is no token"),
    ("bpe", {"merges": [b"h e", b"he xyz"]}, "merge 1 is 'he xyz', but 'xyz' is no token"),
    ("bpe", {"merges": [b"\xff e"]}, r"merge 0 is '\\xff e', but '\\xff' is no token"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED, ids=[message[:60] for _, _, message in REFUSED])
def test_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=message) as caught:
        read(keys(kind, **changes), rows=SPM_SIZE if kind == "spm" else BPE_SIZE)
    assert str(caught.value).startswith("m.gguf: key 'tokenizer.ggml.")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("rows", [0, SPM_SIZE - 1, SPM_SIZE + 1, 2**40])
def test_as_many_tokens_as_rows(rows: int) -> None:
    with pytest.raises(FileError, match=rf"has 310 tokens, expected {rows}, one for each row of 'token_embd.weight'"):
        read_vocabulary(keys("spm"), rows, "m.gguf")


@pytest.mark.parametrize("token", [b"<0x-1>", b"<0x100>", b"<0xa0>", b"<0xG0>", b"<0x0A", b"0x0A", b"\n", b"<0x0A>\n"])
def test_byte_tokens_that_name_no_byte(token: bytes) -> None:
    assert byte_value(token) is None
    with pytest.raises(FileError, match=r"token 13 is a byte token '.*', expected '<0x00>' to '<0xFF>'"):
        read(with_token("spm", 13, token, 6))


def test_the_names_in_errors_are_one_line() -> None:
    with pytest.raises(FileError) as caught:
        read_vocabulary({}, 1, "a\nb\x1b.gguf")
    assert str(caught.value).isprintable()


def test_a_good_vocabulary() -> None:
    vocabulary = read(keys("spm"))
    assert (vocabulary.kind, vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id) == ("llama", 1, 2, None)
    assert (vocabulary.add_bos, vocabulary.add_space_prefix, vocabulary.end_ids) == (True, True, {2})
    vocabulary = read(keys("bpe", add_space_prefix=True))
    assert (vocabulary.kind, vocabulary.pre, vocabulary.bos_id, vocabulary.eos_id) == ("gpt2", "gpt-2", 11, 11)
    assert (vocabulary.add_bos, vocabulary.add_space_prefix) == (False, False)
    assert all(vocabulary.index[token] == id for id, token in enumerate(vocabulary.tokens))


def test_strings_and_lists_do_as_well() -> None:
    """As the `gguf` package and hand-written metadata give them."""
    metadata = keys("spm")
    metadata["tokenizer.ggml.tokens"] = [token.decode() for token in metadata["tokenizer.ggml.tokens"]]
    metadata["tokenizer.ggml.scores"] = metadata["tokenizer.ggml.scores"].tolist()
    metadata["tokenizer.ggml.token_type"] = metadata["tokenizer.ggml.token_type"].tolist()
    metadata["tokenizer.ggml.eos_token_id"] = np.uint32(5)
    vocabulary = read(metadata)
    assert vocabulary.tokens == read(keys("spm")).tokens
    assert vocabulary.eos_id == 5
    assert vocabulary.scores is not None
    assert vocabulary.scores.dtype == np.float32


def test_no_such_token_is_said_with_all_bits() -> None:
    vocabulary = read(keys("spm", bos_token_id=NONE, eos_token_id=NONE, padding_token_id=NONE))
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id, vocabulary.add_bos) == (None, None, None, False)
    assert vocabulary.end_ids == {2}, "</s>, by its text"


@pytest.mark.parametrize(("pre", "add_bos"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), (..., False)])
def test_the_start_token_by_pre_tokenizer(pre: Any, add_bos: bool) -> None:
    assert read(keys("bpe", pre=pre)).add_bos == add_bos
    assert read(keys("bpe", pre=pre, add_bos_token=not add_bos)).add_bos == (not add_bos)


def test_unused_tokens_are_banned() -> None:
    metadata = with_token("spm", 300, b"[PAD300]", 5)
    assert read(metadata).banned_ids == (300,)
    assert read(keys("spm")).banned_ids == ()


def test_empty_tokens_have_a_name() -> None:
    assert read(with_token("spm", 300, b"", 1)).tokens[300] == b"[EMPTY_300]"


def test_ends_of_generation() -> None:
    vocabulary = read(keys("bpe", eos_token_id=280))
    assert vocabulary.end_ids == {280, 282}, "<|endoftext|> by key and text, <|im_end|> by text"
    assert read(keys("bpe", eos_token_id=281)).end_ids == {280, 281, 282}
    assert read(keys("bpe", eos_token_id=280, eot_token_id=5, eom_token_id=6)).end_ids == {5, 6, 280, 282}
    metadata = with_token("bpe", 270, b"<|eot_id|>", 1)
    metadata["tokenizer.ggml.merges"] = metadata["tokenizer.ggml.merges"][:10]
    vocabulary = read(metadata)
    assert 270 in vocabulary.end_ids
    assert vocabulary.types[270] == 3, "found by its text, it is a control token whatever the file says"


def test_ends_of_fill_in_the_middle() -> None:
    metadata = with_token("spm", 300, b"<|fim_pad|>", 4)
    assert read(metadata).end_ids == {2, 300}
    assert read(metadata | {"tokenizer.ggml.fim_pad_token_id": 301}).end_ids == {2, 301}
    vocabulary = read(with_token("spm", 300, b"<|fim_prefix|>", 4))
    assert (vocabulary.end_ids, vocabulary.types[300]) == ({2}, 3)


def test_the_end_of_a_message_is_not_the_end_of_a_turn() -> None:
    metadata = with_token("spm", 300, b"<|end|>", 3)
    assert read(metadata).end_ids == {2, 300}
    metadata["tokenizer.ggml.tokens"][301:303] = [b"<|call|>", b"<|return|>"]
    assert read(metadata).end_ids == {2, 301, 302}
