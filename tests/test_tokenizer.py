"""Encoding and decoding against slow, obvious ones written here, and against ids that llama.cpp gave."""

from __future__ import annotations

import os
import pathlib
import random
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import gguf
import pytest
import tiny

from engine.errors import EngineError, OptionError
from engine.tokenizer import Tokenizer

STORIES = pathlib.Path(__file__).parents[2] / "shared" / "models" / "stories260K-F32.gguf"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
HARD_TEXTS = [
    "", " ", "   ", "\n", "\t\n\r\n", " a", "a ", "a  b   c", "the  the", "it's", "It'S WE'LL", "caf\u00e9 \u00c9t\u00e9",
    "e\u0301", "\u4e2d\u6587\u3002", "\U0001f999 \U0001f469\u200d\U0001f469", "1234567", "3.14", "x = y[0] + 1;  # z",
    "</s>", "<s>a</s>", "<|im_end|>", "<0x0A>", "\u2581", "a\u2581\u2581b", "\x00\x7f\x85", "\ufeff\u00a0\u3000\u2028",
]  # fmt: skip


def spm(
    tokens: Iterable[str], scores: Iterable[float], types: Iterable[int] | None = None, **keys: Any
) -> dict[str, Any]:
    """The keys of a 'llama' vocabulary: <unk>, <s>, </s> and the byte tokens, then `tokens`."""
    tokens, scores = list(tokens), list(scores)
    values = {
        "model": "llama",
        "tokens": [token.encode() for token in ["<unk>", "<s>", "</s>", *BYTES, *tokens]],
        "scores": [0.0] * 259 + scores,
        "token_type": [2, 3, 3] + [6] * 256 + list(types or [1] * len(tokens)),
    }
    return {"tokenizer.ggml." + key: value for key, value in (values | keys).items()}


def bpe(
    merges: Iterable[str], special: Iterable[str] = (), types: Iterable[int] | None = None, **keys: Any
) -> dict[str, Any]:
    """The keys of a 'gpt2' vocabulary: the letters of the 256 bytes, what `merges` make, then `special`."""
    merges, special = list(merges), list(special)
    made = list(dict.fromkeys(merge.replace(" ", "") for merge in merges))
    tokens = [*tiny.byte_alphabet(), *made, *special]
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [token.encode() for token in tokens],
        "token_type": [1] * (256 + len(made)) + list(types or [3] * len(special)),
        "merges": [merge.encode() for merge in merges],
    }
    return {"tokenizer.ggml." + key: value for key, value in (values | keys).items()}


def tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(metadata, len(metadata["tokenizer.ggml.tokens"]), "tiny.gguf")


def tiny_spm(**keys: Any) -> Tokenizer:
    tokens, scores, types = tiny.vocabulary("spm")
    return tokenizer(spm(tokens[259:], scores[259:], types[259:], **keys))


def tiny_bpe(**keys: Any) -> Tokenizer:
    merges = [pair.replace("_", "\u0120") for pair in tiny.MERGES]
    return tokenizer(bpe(merges, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], **keys))


def naive_spm(metadata: dict[str, Any], text: str) -> list[int]:
    """Joins the leftmost pair of the highest score, over and over; looks at all pairs each time."""
    tokens = [token.decode() for token in metadata["tokenizer.ggml.tokens"]]
    scores = dict(zip(tokens, metadata["tokenizer.ggml.scores"]))
    parts = list(("\u2581" + text.replace(" ", "\u2581")) if text else "")
    while True:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not pairs:
            break
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    spelt = [[part] if part in scores else [f"<0x{byte:02X}>" for byte in part.encode()] for part in parts]
    return [tokens.index(token) for group in spelt for token in group]


def naive_bpe(metadata: dict[str, Any], text: str) -> list[int]:
    """As `naive_spm`, by the order of the merges, in each word of an ASCII text cut as gpt-2 does."""
    tokens = [token.decode() for token in metadata["tokenizer.ggml.tokens"]]
    order = [tuple(merge.decode().split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    cut = r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
    ids = []
    for word in re.findall(cut, text):
        parts = [tiny.byte_alphabet()[byte] for byte in word.encode()]
        while True:
            pairs = [(order.index(pair), i) for i, pair in enumerate(pairwise(parts)) if pair in order]
            if not pairs:
                break
            i = min(pairs)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [tokens.index(part) for part in parts]
    return ids


@pytest.mark.parametrize("seed", range(12))
def test_spm_merges_like_the_naive_one(seed: int) -> None:
    """Random tokens with random scores, many of them equal; half of the vocabularies have tokens across words."""
    rng = random.Random(seed)
    made = {"".join(rng.choices("ab\u2581", k=rng.randint(1, 5))) for _ in range(40)} | {"\u2581"}
    if seed % 2:
        made = {token for token in made if "\u2581" not in token.lstrip("\u2581")}
    metadata = spm(sorted(made), [rng.choice([-1.5, -2.0, -3.25, 0.0, 2.0]) for _ in made])
    ours = tokenizer(metadata)
    for _ in range(150):
        text = "".join(rng.choices("aab  \u00e9", k=rng.randint(0, 20)))
        assert ours.encode(text, bos=False) == naive_spm(metadata, text), text
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("seed", range(8))
def test_bpe_merges_like_the_naive_one(seed: int) -> None:
    rng = random.Random(seed)
    parts, merges = ["a", "b", "1", "\u0120", "\u010a"], []
    for _ in range(30):
        pair = f"{rng.choice(parts)} {rng.choice(parts)}"
        if pair not in merges and pair.replace(" ", "") not in parts:
            merges.append(pair)
            parts.append(pair.replace(" ", ""))
    rng.shuffle(merges)
    metadata = bpe(merges)
    ours = tokenizer(metadata)
    for _ in range(150):
        text = "".join(rng.choices("aab 1'\n", k=rng.randint(0, 20)))
        assert ours.encode(text) == naive_bpe(metadata, text), text
        assert ours.decode(ours.encode(text)) == text


def test_tiny_vocabularies_merge_like_the_naive_ones() -> None:
    tokens, scores, types = tiny.vocabulary("spm")
    metadata = spm(tokens[259:], scores[259:], types[259:])
    text = "the cat and the hat was on it   is in a house"
    assert tiny_spm().encode(text, bos=False) == naive_spm(metadata, text)
    assert len(tiny_spm().encode(text)) < len(text) < len(text.encode()) + 1


@pytest.mark.parametrize("text", HARD_TEXTS, ids=ascii)
def test_round_trip(text: str) -> None:
    assert tiny_bpe().decode(tiny_bpe().encode(text)) == text
    ours = tiny_spm()
    assert ours.decode(ours.encode(text)) == text.replace("\u2581", " ")
    for known in (ours, tiny_bpe()):
        ids = known.encode(text, bos=False)
        assert ids == known.encode(text, bos=False), "a word that is known already"
        assert not set(ids) & known.end_ids, "the text of a user never makes a control token"


def test_one_pair_of_equal_score_goes_to_the_left() -> None:
    ours = tokenizer(spm(["a", "aa", "\u2581"], [0.0, -1.0, 0.0]))
    a, aa, space = 259, 260, 261
    assert ours.encode("aaaaa", bos=False) == [space, aa, aa, a]


def test_a_merge_makes_no_control_token() -> None:
    metadata = bpe(["| >", "< |", "< |>"])  # the last makes "<|>", token 258
    assert tokenizer(metadata).encode("<|>") == [258]
    metadata["tokenizer.ggml.token_type"][258] = 3
    guarded = tokenizer(metadata)
    assert guarded.encode("<|>") == [ord("<"), 256]
    assert guarded.encode("<|>", special=True) == [258]
    metadata = spm(["<", "/", "s>", "</", "\u2581"], [0.0, -1.0, -2.0, -3.0, -4.0])
    guarded = tokenizer(metadata)
    assert 2 not in guarded.encode("a</s>", bos=False)
    assert guarded.encode("</s>", bos=False, special=True) == [2]


def test_ignore_merges_takes_a_whole_word_that_is_a_token() -> None:
    merges = ["a b", "b c", "a bc"]  # merging never gets to "abc", token 258: "a b" comes first
    assert tokenizer(bpe(merges)).encode("abc") == [256, ord("c")]
    assert tokenizer(bpe(merges, pre="llama-bpe")).encode("abc", bos=False) == [258]


def test_of_a_merge_given_twice_the_first_counts() -> None:
    assert tokenizer(bpe(["a b", "b c", "a b"])).encode("abc") == [256, ord("c")]
    assert tokenizer(bpe(["b c", "a b"])).encode("abc") == [ord("a"), 256]


def test_the_start_token() -> None:
    ours = tiny_spm()
    assert (ours.bos_id, ours.add_bos) == (1, True)
    assert ours.encode("") == ours.encode("", bos=True) == [1]
    assert ours.encode("", bos=False) == []
    assert tiny_spm(add_bos_token=False).encode("") == []
    ours = tiny_bpe(bos_token_id=281)
    assert (ours.bos_id, ours.add_bos) == (281, False)
    assert ours.encode("") == []
    assert ours.encode("", bos=True) == tiny_bpe(bos_token_id=281, add_bos_token=True).encode("") == [281]
    assert tiny_bpe(bos_token_id=281, pre="llama-bpe").encode("") == [281]
    with pytest.raises(OptionError, match="no start token"):
        tiny_bpe(bos_token_id=0xFFFFFFFF).encode("", bos=True)


def test_special_tokens_only_where_asked_for() -> None:
    ours = tiny_bpe()
    start, end = ours.vocabulary.index[b"<|im_start|>"], ours.vocabulary.index[b"<|im_end|>"]
    text = "<|im_start|>the<|im_end|>\n"
    assert ours.encode(text, special=True) == [start, *ours.encode("the"), end, *ours.encode("\n")]
    assert not {start, end} & set(ours.encode(text))
    assert ours.decode(ours.encode(text, special=True)) == "the\n"
    assert ours.decode(ours.encode(text, special=True), special=True) == text


def test_user_defined_tokens_always_and_the_longest_first() -> None:
    ours = tokenizer(bpe([], ["<t>", "<t><t>", "<u>", "<n>"], [4, 4, 2, 3]))
    assert ours.encode("a<t><t><t>b<u><n>")[:4] == [ord("a"), 257, 256, ord("b")]
    assert ours.encode("a<u><n>", special=True) == [ord("a"), 258, 259]
    assert ours.decode([ord("a"), 256, 258, 259]) == "a<t>"


def test_a_space_goes_before_the_text_and_after_special_tokens() -> None:
    ours = tiny_spm()
    the, space = ours.vocabulary.index["\u2581the".encode()], ours.vocabulary.index["\u2581".encode()]
    assert ours.encode("the", bos=False) == [the]
    assert ours.encode("the</s>the", special=True) == [1, the, 2, the]
    bare = tiny_spm(add_space_prefix=False)
    assert bare.encode("the the", bos=False) == [*bare.encode("the", bos=False), the]
    assert the not in bare.encode("the")
    assert ours.encode(" ", bos=False) == [space, space]


def test_only_the_first_space_is_taken_away_again() -> None:
    ours = tiny_spm()
    the, space = ours.vocabulary.index["\u2581the".encode()], ours.vocabulary.index["\u2581".encode()]
    assert ours.decode([1, the, the]) == "the the"
    assert ours.decode([the, the], start=False) == " the the"
    assert ours.decode([space, space, the]) == "  the"
    assert tiny_spm(add_space_prefix=False).decode([the]) == " the"
    assert (ours.piece(the), ours.piece(the, start=True)) == (b" the", b"the")


def test_pieces_of_a_character() -> None:
    ours, text = tiny_spm(), "\U0001f999"
    ids = ours.encode(text, bos=False)[1:]
    assert [ours.piece(id) for id in ids] == [bytes([byte]) for byte in text.encode()]
    assert ours.decode(ids) == text
    assert ours.decode(ids[:3]) == "\ufffd"
    assert ours.piece(2) == b""
    assert ours.piece(2, special=True) == b"</s>"


def test_white_space_after_special_tokens_of_phi_3() -> None:
    metadata = spm(["<|user|>", "<|end|>", "\u2581"], [0.0, 0.0, -1.0], [3, 3, 1])
    text, (user, end, space) = "<|user|>\n a<|end|>\n<s>\n", range(259, 262)
    a, newline = 3 + ord("a"), [space, 3 + ord("\n")]
    kept = tokenizer(metadata).encode(text, bos=False, special=True)
    assert kept == [user, *newline, space, a, end, *newline, 1, *newline]
    phi = tokenizer(metadata | {"general.name": "Phi-3-mini"})
    assert phi.encode(text, bos=False, special=True) == [user, space, a, end, 1, *newline]


@pytest.mark.parametrize("id", [-1, 310, 2**31, 1.0, "1", None, True])
def test_ids_outside_of_the_vocabulary(id: Any) -> None:
    for ask in (tiny_spm().piece, lambda id: tiny_spm().decode([1, id])):
        with pytest.raises(OptionError, match=r"^token id .* is outside of the vocabulary, expected 0 to 309$"):
            ask(id)


@pytest.mark.parametrize(
    "text", ["a\ud800b", "a" * ((1 << 22) + 1), b"bytes", None, 5], ids=lambda text: repr(text)[:12]
)
def test_what_is_no_text(text: Any) -> None:
    with pytest.raises(OptionError, match=r"^text: "):
        tiny_spm().encode(text)


def test_long_runs_take_no_quadratic_time() -> None:
    for ours in (tiny_spm(), tiny_bpe()):
        for text in ("a" * 20_000, " " * 20_000, "the" * 7_000, "!" * 20_000, "\n" * 20_000):
            assert ours.decode(ours.encode(text)) == text


def test_characters_that_can_not_be_spelt() -> None:
    metadata = spm(["a", "\u2581"], [-1.0, -2.0])
    metadata["tokenizer.ggml.tokens"][3 + 0xC3] = b"<other>"
    metadata["tokenizer.ggml.token_type"][3 + 0xC3] = 1
    with pytest.raises(EngineError, match=r"^text: '.' has no token in this vocabulary"):
        tokenizer(metadata).encode("a\u00e9")
    metadata = bpe([])
    metadata["tokenizer.ggml.tokens"][0x0B] = b"<other>"  # as in Falcon's vocabulary
    assert tokenizer(metadata).encode("a\x0bb") == [ord("a"), ord("b")]


# ids from llama.cpp, without the start token; special tokens not read from the text
STORIES_IDS = [
    ("", []),
    ("Once upon a time", [403, 407, 261, 378]),
    (" Once", [410, 403]),
    ("   ", [410, 410, 410, 410]),
    ("a  b   c", [261, 410, 268, 410, 410, 280]),
    ("\t\n\r\n", [410, 12, 13, 16, 13]),
    ("It's the dog's bone, isn't it?", [359, 413, 439, 419, 265, 400, 428, 439, 419, 268, 289, 411, 432, 410, 293, 416,
                                        439, 413, 312, 450]),
    ("caf\u00e9 \u00c9t\u00e9", [280, 412, 431, 485, 410, 198, 140, 413, 485]),
    ("\u4e2d\u6587", [410, 231, 187, 176, 233, 153, 138]),
    ("\U0001f999", [410, 243, 162, 169, 156]),
    ("e\u0301", [344, 207, 132]),
    ("1234567", [410, 475, 479, 472, 484, 480, 490, 491]),
    ("x = y[0] + 1;", [410, 444, 410, 64, 348, 508, 477, 509, 410, 496, 410, 475, 474]),
    ("</s>", [410, 504, 492, 419, 505]),
    ("Lily\u2581\u2581and", [317, 410, 269]),
    ("\x00\x7f", [410, 3, 130]),
]  # fmt: skip


def read_gguf(path: pathlib.Path) -> dict[str, Any]:
    """The keys of a file, by the independent `gguf` package; arrays of strings as bytes."""
    keys = {}
    for name, field in gguf.GGUFReader(path).fields.items():
        strings = field.types[0] == gguf.GGUFValueType.ARRAY and field.types[-1] == gguf.GGUFValueType.STRING
        keys[name] = [bytes(field.parts[i]) for i in field.data] if strings else field.contents()
    return keys


@pytest.mark.skipif(not STORIES.exists(), reason=f"{STORIES} is absent")
def test_a_real_vocabulary() -> None:
    metadata = read_gguf(STORIES)
    ours = tokenizer(metadata)
    for text, ids in STORIES_IDS:
        assert ours.encode(text, bos=False) == ids == naive_spm(metadata, text), text
        assert ours.decode([1, *ids]) == text.replace("\u2581", " ")
    assert ours.encode("<s>Once</s> upon", bos=False, special=True) == [1, 403, 2, 410, 407]
    assert (ours.encode("Once"), ours.end_ids, ours.banned_ids) == ([1, 403], {2}, ())


# Published vocabularies with texts and ids, models/ggml-vocab-*.gguf{,.inp,.out} of ggml-org/llama.cpp; not ours to hold.
VOCABULARIES = pathlib.Path(os.environ.get("INTENGINE_VOCABS", ""))
GOLDEN = ["gpt-2", "mpt", "starcoder", "refact", "command-r", "llama-bpe", "qwen2", "qwen35", "falcon", "llama-spm",
          "phi-3", "deepseek-coder", "deepseek-llm"]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", GOLDEN)
def test_published_vocabularies(name: str) -> None:
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.is_absolute() or not path.exists():
        pytest.skip(f"set INTENGINE_VOCABS to the folder of llama.cpp's ggml-vocab-*.gguf; {path.name} is absent")
    ours = tokenizer(read_gguf(path))
    with open(f"{path}.inp", encoding="utf-8", newline="") as texts, open(f"{path}.out") as lines:
        cases = list(zip(texts.read().split("\n__ggml_vocab_test__\n"), lines.read().split("\n")))
    assert len(cases) > 45
    for text, line in cases:
        assert ours.encode(text, bos=False) == [int(id) for id in line.split()], text
        assert ours.decode(ours.encode(text)) == text
