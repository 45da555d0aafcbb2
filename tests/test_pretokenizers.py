"""Each way of cutting words, on a text that shows how they differ; the words are those of llama.cpp."""

import pytest

from engine.pretokenizers import PRE_TOKENIZERS, splitter

TEXT = "It's WE'LLs  12345 cafe\u0301\n\n xY\u4e2d!?` -\u0e44.\u00c9a"
WORDS = {  # cut at each |
    "gpt-2": "It|'s| WE|'|LLs| | 12345| cafe|\u0301|\n\n| xY\u4e2d|!?`| -|\u0e44|.|\xc9a",
    "smollm": "It|'s| WE|'|LLs|  |1|2|3|4|5| cafe|\u0301|\n\n| xY\u4e2d|!?`| -|\u0e44|.|\xc9a",
    "llama-bpe": "It|'s| WE|'LL|s| | |123|45| cafe|\u0301\n\n| xY\u4e2d|!?`| -|\u0e44|.\xc9a",
    "minicpm5": "It|'s| WE|'LL|s|  |123|45| cafe|\u0301\n\n| xY\u4e2d|!?`| -|\u0e44|.\xc9a",
    "qwen2": "It|'s| WE|'LL|s| | |1|2|3|4|5| cafe|\u0301\n\n| xY\u4e2d|!?`| -|\u0e44|.\xc9a",
    "qwen35": "It|'s| WE|'LL|s| | |1|2|3|4|5| cafe\u0301|\n\n| xY\u4e2d|!?`| -|\u0e44|.\xc9a",
    "ufakzeka": "It|'s| WE|'LLs| | |1|2|3|4|5| cafe|\u0301\n\n| xY\u4e2d|!?`| -|\u0e44|.\xc9a",
    "tekken": "It|'s| WE|'LLs| | |1|2|3|4|5| cafe\u0301|\n\n| x|Y\u4e2d|!?`| -|\u0e44|.\xc9a",
    "gpt-4o": "It's| WE'LL|s| | |123|45| cafe\u0301|\n\n| x|Y\u4e2d|!?`| -|\u0e44|.\xc9a",
    "falcon": "It|'|s| WE|'|LLs| | |123|45| cafe|\u0301|\n\n| xY\u4e2d|!?`| |-|\u0e44|.|\xc9a",
    "default": "It|'|s| WE|'|LLs| | |123|45| cafe|\u0301|\n\n| xY\u4e2d|!?|`| |-|\u0e44|.|\xc9a",
    "deepseek-llm": "It|'|s| WE|'|LLs|  |12345| cafe|\u0301|\n|\n| xY|\u4e2d|!?`| -|\u0e44|.|\xc9|a",
    "deepseek-coder": "It|'|s| WE|'|LLs|  |1|2|3|4|5| cafe|\u0301|\n|\n| xY|\u4e2d|!?|`| -|\u0e44|.|\xc9a",
    "deepseek-v3": "It|'s| WE|'LLs|  |123|45| cafe\u0301|\n\n| xY|\u4e2d|!?`| -|\u0e44|.|\xc9a",
    "bloom": "It's| WE'LLs| | 12345| cafe\u0301|\n\n| xY\u4e2d|!?|`| -\u0e44|.|\xc9a",
    "viking": "It's| WE'LLs| | |1|2|3|4|5| cafe\u0301|\n\n| xY\u4e2d|!?|`| -\u0e44|.|\xc9a",
}


@pytest.mark.parametrize("name", WORDS)
def test_words(name: str) -> None:
    assert splitter(PRE_TOKENIZERS[name].steps)(TEXT) == WORDS[name].split("|")


def test_every_way_has_its_words_here() -> None:
    tested = {PRE_TOKENIZERS[name].steps for name in WORDS}
    assert {way.steps for way in PRE_TOKENIZERS.values()} == tested
    assert len(set(WORDS.values())) == len(tested), "the text tells all of them apart"


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_nothing_is_lost(name: str) -> None:
    split = splitter(PRE_TOKENIZERS[name].steps)
    for text in (
        TEXT,
        "",
        " ",
        "\x00\x85\u2028\u3000\U0001f999",
        "'s'S'\u017f",
        "a" * 1000,
        "\r\n \t" * 50,
        "1" * 1000,
    ):
        assert "".join(split(text)) == text
        assert "" not in split(text)


def test_the_long_s_is_no_ending() -> None:
    """Under Unicode case folding it would be one."""
    assert splitter(PRE_TOKENIZERS["llama-bpe"].steps)("a'\u017fb") == ["a", "'\u017fb"]
