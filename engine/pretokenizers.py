r"""How byte-level vocabularies cut a text into words before they merge bytes: `tokenizer.ggml.pre` names the way.

    "It's 2024!"  --gpt-2-->  It | 's | ␣2024 | !          --llama-bpe-->  It | 's | ␣ | 202 | 4 | !

A way is a list of steps. Each step is a regular expression that cuts the pieces left by the step before: what it matches
becomes a piece, and so does what lies between two matches; a lookahead sees only its own piece. The expressions are those
of the models' own `tokenizer.json`, with the case-insensitive group `(?i:'s)` written out, since Unicode case folding
would also let it match the long s, U+017F. llama.cpp cuts alike, but for two things: it knows no characters newer than
Unicode 15, and its forms of tekken and gpt-4o take combining marks and capitals beyond ASCII less exactly than the
models' own do. Source: src/llama-vocab.cpp and src/unicode.cpp of ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(digits: str, endings: str = _ENDINGS + "|") -> str:
    """A word with one sign before it, `digits`, signs, spaces: the llama-3 and qwen2 family."""
    return rf"{endings}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased(digits: str, endings: str = "") -> str:
    """As `_words`, with words cut where a capital follows a small letter: the tekken and gpt-4o family."""
    sign = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{sign}{_UPPER}*{_LOWER}+{endings}|{sign}{_UPPER}+{_LOWER}*{endings}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


def _ranges(hexadecimal: str) -> str:
    """`"C0-D6 D8"` as the inside of a character class; written as numbers, since some of these look like others."""
    return "".join("-".join(chr(int(end, 16)) for end in part.split("-")) for part in hexadecimal.split())


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _words(r"\p{N}{1,3}")
_QWEN2 = _words(r"\p{N}")
_QWEN35 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_BLOOM = rf" ?[^(\s|.,!?{_ranges('2026 3002 FF0C 3001 964 6D4 60C')})]+"
_CASED_LETTERS = """
    B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5
    3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A
    1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4
    1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128
    212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D
    A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F
    104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""  # hexadecimal; beside A-Z and a-z
_DEEPSEEK_LETTERS = rf"\s?[A-Za-z{_ranges(_CASED_LETTERS)}]+"
_DEEPSEEK_SIGNS = rf"\s?[!-/:-~{_ranges('FF01-FF0F FF1A-FF5E 2018-201F 3001-3002')}]+"
_ASIAN_RANGES = "800-167F 1681-1FFF 200B-2027 202A-202E 2030-205E 2060-2FFF 3001-9FA5 AC00-D7FF"
_ASIAN = rf"[{_ranges(_ASIAN_RANGES)}]+"  # white space is left out, as llama.cpp does
_HAN_KANA = rf"[{_ranges('4E00-9FA5 3040-30FF')}]+"
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """The steps of one way of cutting, and what else its name stands for."""

    steps: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is taken whole, without merging
    add_bos: bool = False  # a text begins with the start token unless the file says otherwise
    has_bos: bool = True  # False: a start token only if the file names one


_WAYS: dict[tuple[str, ...], PreTokenizer] = {
    ("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion", "modern-bert", "mellum", "gigachat", "a.x-4.0",
     "granite-docling"): PreTokenizer((_GPT2,)),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"):
        PreTokenizer((r"\p{N}", _GPT2)),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"):
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ("dbrx", "smaug-bpe"): PreTokenizer((_LLAMA3,)),
    ("chatglm-bpe",): PreTokenizer((_LLAMA3,), has_bos=False),
    ("glm4", "glm5"): PreTokenizer((_LLAMA3,), ignore_merges=True, has_bos=False),
    ("minicpm5",): PreTokenizer((r"\p{N}{1,3}", _words(r"\p{N}+")), ignore_merges=True),
    ("qwen2", "deepseek-r1-qwen", "kormo", "stablelm2", "hunyuan", "megrez", "solar-open", "grok-2"):
        PreTokenizer((_QWEN2,)),
    ("qwen35",): PreTokenizer((_QWEN35,)),
    ("ufakzeka",): PreTokenizer((_words(r"\p{N}", ""),)),
    ("tekken",): PreTokenizer((_cased(r"\p{N}"),), ignore_merges=True, add_bos=True),
    ("gpt-4o", "llama4", "kanana2", "minimax-m2"): PreTokenizer((_cased(r"\p{N}{1,3}", _ENDINGS + "?"),)),
    ("falcon",): PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9]{3}")),
    ("default",): PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9]{3}")),
    ("deepseek-llm",):
        PreTokenizer((r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_SIGNS, r"\s+$", _ASIAN, r"\p{N}+")),
    ("deepseek-coder",): PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _ASIAN, r"\p{N}")),
    ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"):
        PreTokenizer((r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK_V3)),
    ("bloom", "poro-chat", "gpt3-finnish"): PreTokenizer((_BLOOM,)),
    ("viking",): PreTokenizer((_BLOOM, r"\p{N}")),
}  # fmt: skip

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: way for names, way in _WAYS.items() for name in names}


def splitter(steps: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Returns the function that cuts a text into words by these steps; nothing is lost, `"".join(words) == text`."""
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(step), "isolated") for step in steps])
    return lambda text: [word for word, _ in split.pre_tokenize_str(text)]
