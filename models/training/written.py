"""Tales written for the model, each of them many: the plainest prose that it reads.

A model of seven million parameters can keep a character and a scene if what it reads is plain enough: few words, one hero
who wants one thing, and every sentence about what is there already (Eldan and Li 2023, TinyStories, section 2). The corpus
is not as plain, so `written/` has tales that are (by language models far larger than this one, after lists of heroes, places
and plots). A tale is written once and told in many ways, so that it is not learned by heart, and so that the model has
to look up in the tale who and what it is about:

    @ kind=rabbit|mouse|owl; toy=kite|ball               the slots of a tale, each with what may stand there
    Once upon a time there was {a kind} named {boy}.     {a kind}: with its article; {A kind} and {Kind} begin a sentence
    He lost his {toy} [one day|one morning].             {boy} {boy2} {girl} {girl2}: names; [a|b]: either

Once chosen, a slot stays what it is throughout the tale, and two names differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DEEP = "deep"
"""What the names of the files of deep tales begin with."""
_BOYS = (
    "Peter Jack Jimmy Billy Johnny Sammy Bobby Tommy Jerry Joe Jasper Danny Tom George Hans Dick Benny Jim Sam Bob Tim Ben "
    "Robin Andy Simon Henry Teddy Paul Robert James Willie Ned Max Pip Finn"
)
_GIRLS = (
    "Mary Sara Meg Dorothy Polly Betsy Jane Jenny Katy Sue Alice Lulu Clara Molly Susan Sally Susie Mabel Helen Nina Anna "
    "Rose Lily Emma Ella Tilly Milly Ruth Kate Nell Amy Annie Bess Dolly Tess"
)
NAMES = {"boy": _BOYS.split(), "girl": _GIRLS.split()}
NAMED = {slot for kind in NAMES for slot in (kind, f"{kind}2")}
"""The slots that get names."""
SLOT = re.compile(r"\{((?:[aA] )?)([A-Za-z]\w*)\}")
EITHER = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
VOWEL = re.compile(r"[aeiou]", re.I)


def _small(slot: str) -> str:
    """The name of a slot that stands there with a capital."""
    return slot[0].lower() + slot[1:]


@dataclass(frozen=True, slots=True)
class Tale:
    """A written tale: its text and what may stand in its slots."""

    slots: dict[str, tuple[str, ...]]
    text: str
    deep: bool

    def tell(self, rng: np.random.Generator) -> str:
        """The tale with everything chosen, by `rng`."""
        chosen = {slot: values[rng.integers(len(values))] for slot, values in self.slots.items()}
        for kind, names in NAMES.items():
            chosen[kind], chosen[f"{kind}2"] = (names[i] for i in rng.choice(len(names), 2, replace=False))

        def pick(found: re.Match[str]) -> str:
            ways = found[1].split("|")
            return ways[rng.integers(len(ways))]

        def fill(found: re.Match[str]) -> str:
            article, slot = found[1], found[2]
            value = chosen[slot] if slot in chosen else chosen[_small(slot)].capitalize()
            if not article:
                return value
            return article[0] + ("n " if VOWEL.match(value) else " ") + value

        return SLOT.sub(fill, EITHER.sub(pick, self.text))


def parse(text: str, name: str) -> list[Tale]:
    """The tales in the text of a file called `name`, deep ones if that begins with DEEP.

    Raises ValueError for a slot that is not declared or not used, an alternative that is missing, and a stray bracket.
    """
    tales = []
    for number, part in enumerate(re.split(r"^@", text, flags=re.M)[1:], 1):
        header, _, body = part.partition("\n")
        where = f"{name}: tale {number}"
        slots: dict[str, tuple[str, ...]] = {}
        for entry in filter(None, map(str.strip, header.split(";"))):
            slot, equals, values = entry.partition("=")
            if not equals:
                raise ValueError(f"{where}: {entry!r}: a slot is declared as name=one|other")
            slots[slot] = tuple(values.split("|"))
        known = slots.keys() | NAMED
        used = {slot if slot in known else _small(slot) for _, slot in SLOT.findall(body)}
        if unknown := used - known:
            raise ValueError(f"{where}: no such slot: {sorted(unknown)}; declared: {sorted(slots)}")
        if unused := slots.keys() - used:
            raise ValueError(f"{where}: declared, but not used: {sorted(unused)}")
        if empty := [slot for slot, values in slots.items() if not all(map(str.strip, values))]:
            raise ValueError(f"{where}: an empty alternative: {empty}")
        if stray := re.search(r"[\[\]{}|]", SLOT.sub("", EITHER.sub("", body))):
            raise ValueError(f"{where}: a stray {stray[0]!r}; slots are {{name}}, alternatives [one|other]")
        tales.append(Tale(slots, body.strip(), name.startswith(DEEP)))
    return tales


def read_written(folder: Path) -> list[Tale]:
    """All the tales of a folder's text files, in the order of their names.

    Raises ValueError where there is no such file or one is not ASCII, and as `parse` does.
    """
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise ValueError(f"{folder}: no tales; files named *.txt are expected")
    tales = []
    for path in paths:
        try:
            text = path.read_text(encoding="ascii")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: {error}; tales are written in ASCII") from None
        tales += parse(text, path.name)
    return tales
