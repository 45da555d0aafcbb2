"""The stream of text against the whole of it: however bytes are cut, the same characters and the same stop."""

import random

import pytest

from engine.text import TextStream

CHARACTERS = "ab \n\u00e9\u4e2d\U0001f999\u0301\ufffd"
STOPS = [(), ("ab",), ("a", "aa"), ("abc", "b"), ("aab", "ab", "b\n"), ("\u00e9\u4e2d",), ("aba", "bab"), ("\ufffd",)]


def whole_text(data: bytes, stop: tuple[str, ...]) -> tuple[str, bool]:
    """All at once: the text before the stop string that is complete first, the longest of those."""
    text = data.decode("utf-8", "replace")
    for end in range(1, len(text) + 1):
        for start in range(end):
            if text[start:end] in stop:
                return text[:start], True
    return text, False


def streamed(data: bytes, cuts: list[int], stop: tuple[str, ...]) -> tuple[str, bool]:
    stream, pieces, last = TextStream(stop), [], 0
    for cut in [*cuts, len(data)]:
        pieces.append(stream.push(data[last:cut]))
        last = cut
    pieces.append(stream.finish())
    return "".join(pieces), stream.stopped


@pytest.mark.parametrize("stop", STOPS, ids=repr)
def test_cut_anywhere_the_text_is_the_same(stop: tuple[str, ...]) -> None:
    rng = random.Random(repr(stop))
    for _ in range(300):
        data = "".join(rng.choices(CHARACTERS, k=rng.randint(0, 24))).encode()
        cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randint(0, 9)))
        assert streamed(data, cuts, stop) == whole_text(data, stop), (data, cuts)
        assert streamed(data, list(range(len(data))), stop) == whole_text(data, stop), data


@pytest.mark.parametrize("stop", STOPS, ids=repr)
def test_bytes_that_are_not_utf8(stop: tuple[str, ...]) -> None:
    rng = random.Random(repr(stop))
    parts = [
        b"a",
        b"b",
        b"\xc3",
        b"\xa9",
        b"\xf0\x9f",
        b"\xa6\x99",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        "\u00e9".encode(),
    ]
    for _ in range(300):
        data = b"".join(rng.choices(parts, k=rng.randint(0, 16)))
        cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randint(0, 9)))
        assert streamed(data, cuts, stop) == whole_text(data, stop), (data, cuts)


def test_a_character_comes_with_its_last_byte() -> None:
    stream = TextStream()
    assert [stream.push(bytes([byte])) for byte in "a\U0001f999b".encode()] == ["a", "", "", "", "\U0001f999", "b"]
    assert stream.finish() == ""


def test_a_bad_byte_shows_as_soon_as_it_is_known() -> None:
    stream = TextStream()
    assert stream.push(b"\xff") == "\ufffd"
    assert stream.push(b"\xf0\x9f") == ""
    assert stream.push(b"a") == "\ufffda"
    assert stream.push(b"\xe4\xb8") == ""
    assert stream.finish() == "\ufffd"


def test_text_is_held_only_while_it_may_be_a_stop() -> None:
    stream = TextStream(("User:", "\n\n"))
    given = [stream.push(piece) for piece in (b"Hi\n", b"U", b"ser", b" Us", b"er", b":", b"more")]
    assert given == ["Hi", "\n", "", "User ", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_a_stop_over_many_tokens_is_not_shown() -> None:
    stream = TextStream(("<end>",))
    given = "".join(stream.push(bytes([byte])) for byte in b"one <en <end> two")
    assert (given, stream.stopped) == ("one <en ", True)


def test_what_was_held_comes_at_the_end() -> None:
    stream = TextStream(("<end>",))
    assert stream.push(b"one <en") == "one "
    assert stream.finish() == "<en"
    assert not stream.stopped


def test_the_stop_that_is_complete_first_counts() -> None:
    for stop, text in ((("abc", "b"), "a"), (("b", "abc"), "a"), (("ab", "b"), ""), (("bc", "c"), "a")):
        stream = TextStream(stop)
        assert stream.push(b"abcd") == text
        assert stream.stopped
