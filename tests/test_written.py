"""Tales with slots (models/training/written.py): the form, and the tales that are shipped."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from models.train import WRITTEN
from models.training.written import NAMES, parse, read_written

KITE = """@ kind=owl|mouse; toy=kite|ball
Once upon a time {A kind} named {boy} had {a toy}. {boy2} the {kind} [took|{girl} took|] it.

{Kind}, {kind}! The {toy} was [red|gone].
"""


def tell(text: str, times: int = 200) -> set[str]:
    """Everything that a tale can become, with many tries."""
    (tale,) = parse(text, "tales.txt")
    rng = np.random.default_rng(4)
    return {tale.tell(rng) for _ in range(times)}


def test_a_slot_stays_what_it_is_and_gets_its_article_and_capital() -> None:
    pattern = re.compile(
        r"Once upon a time (A mouse|An owl) named ([A-Z][a-z]+) had (a kite|a ball)\. ([A-Z][a-z]+) the (mouse|owl)"
        r" (took|[A-Z][a-z]+ took|) it\.\n\n(Mouse|Owl), (mouse|owl)! The (kite|ball) was (red|gone)\."
    )
    seen = set()
    for text in tell(KITE):
        found = pattern.fullmatch(text)
        assert found, text
        kind, boy, toy, other, second, deed, third, fourth, again, state = found.groups()
        assert kind.split()[1] == second == third.lower() == fourth and toy.split()[1] == again
        assert boy != other and {boy, other} <= set(NAMES["boy"])
        girl = deed.removesuffix("took").strip()
        assert not girl or girl in NAMES["girl"]
        seen.add((second, again, bool(girl), bool(deed), state))
    wanted = product(("owl", "mouse"), ("kite", "ball"), ((False, True), (True, True), (False, False)), ("red", "gone"))
    assert seen == {(kind, toy, *deed, state) for kind, toy, deed, state in wanted}


def test_the_same_numbers_tell_the_same_tale() -> None:
    (tale,) = parse(KITE, "tales.txt")
    assert tale.tell(np.random.default_rng(5)) == tale.tell(np.random.default_rng(5))


def test_files_hold_many_tales_and_their_name_says_whether_deep_ones() -> None:
    text = f"{KITE}\n{KITE}\n@\nOnce a king.\n"
    assert [tale.deep for tale in parse(text, "deep-01.txt")] == [True] * 3
    assert [tale.deep for tale in parse(text, "tales-01.txt")] == [False] * 3
    assert parse(text, "tales-01.txt")[2].text == "Once a king."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("@ kind=fox|hen\nThe {kind} saw {toy}.", r"no such slot: \['toy'\]; declared: \['kind'\]"),
        ("@ kind=fox|hen; toy=ball|kite\nThe {kind} ran.", r"declared, but not used: \['toy'\]"),
        ("@ kind=fox||hen\nThe {kind} ran.", r"an empty alternative: \['kind'\]"),
        ("@ kind\nThe {kind} ran.", r"'kind': a slot is declared as name=one\|other"),
        ("@\nHe [ran|sat [down|up]].", r"a stray '\['"),
        ("@\nHe [ran] away.", r"a stray '\['"),
        ("@\nHe ran|sat.", r"a stray '\|'"),
        ("@\nHe saw {two toys}.", r"a stray '\{'"),
    ],
)
def test_what_is_not_in_the_form_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=rf"^tales.txt: tale 2: {says}"):
        parse(f"@\nOnce.\n\n{text}\n", "tales.txt")


def test_a_folder_without_tales_and_one_that_is_not_ascii_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: no tales")):
        read_written(tmp_path)
    (tmp_path / "tales.txt").write_text("@\nOnce a caf\u00e9.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'tales.txt'}: 'ascii' codec")):
        read_written(tmp_path)


def test_the_shipped_tales_are_plain_and_whole() -> None:
    """Every one, told twice: ASCII, balanced quotation marks, the right article, of a length that fits a window."""
    tales = read_written(WRITTEN)
    assert len(tales) > 6000
    rng = np.random.default_rng(6)
    for tale in tales:
        for text in (tale.tell(rng), tale.tell(rng)):
            assert text.isascii() and text.count('"') % 2 == 0 and 50 < len(text.split()) < 200, text
            assert text.startswith("Once upon a time"), text
            assert not re.search(r"[\[\]{}|]|  |\ba [aeio]\w|\ban [^aeiouh\W]", text.replace("a one", "")), text
