"""Stories cut where a character enters, each part begun like a tale, so that there is more than one way to go on from there.

Few stories of a small corpus begin with "Once upon a time", and they are its hardest: kings, three sons, enchantments. Asked
to go on from these words, a model would tell of those. The plain stories begin with their hero instead ("Peter Rabbit sat in
..."), and so do paragraphs within them; put behind the same words they show it a scene that it can keep.
"""

from __future__ import annotations

import re

from models.training.renaming import NAME

OPENING = "Once upon a time "
PART = 1200
"""Characters, at least, of a part that another follows: some 300 tokens."""
NO_NAMES = (
    "A After All An And As At Because Before But By Did Do Even Every Everyday Finally For From Has He Her Here His How "
    "If In It Just Meanwhile My No Nor Not Now Of Oh On Once Only Or Perhaps Poor Presently She Since So Some Soon Still "
    "Suddenly That The Then There Thereupon They This Though Thus To Up Was We Well What When Where While Who Why With "
    "Would Yes Yet You"
)
CHARACTER = re.compile(
    rf"(?!(?:{'|'.join(NO_NAMES.split())})\b)(?:Mrs?\. [A-Z][a-z]+|[A-Z][a-z]+(?: Mr\.)?(?: [A-Z][a-z]+)+) [a-z]+ "
)
"""A name of two words, and then a small one: "Old Mr. Toad was ", "Uncle Wiggily went "."""
BACK = re.compile(
    r"\b(?:he|him|she|they|them|it|its|that|this|these|those|such|so|then|again|too|also|still|other|another|there|"
    r"answered|replied|said|asked|told|me|I|you|we|at once|at last)\b"
)
"""Words that point back to what was told before."""
SENTENCE = re.compile(r"(?<=[.!?])[\"\s]")
BEGINNING = re.compile(r"(A|An|Two|Three|There was|There were) (?!.{,20}\bonce\b)[a-z]+ ")


def _enters(paragraph: str) -> bool:
    """Whether it begins with a character, in a sentence that can stand alone."""
    return CHARACTER.match(paragraph) is not None and BACK.search(SENTENCE.split(paragraph, 1)[0]) is None


def _begin(story: str) -> str:
    """`story` behind OPENING if its first words say who or what it is about, else as it is."""
    if CHARACTER.match(story) or NAME.match(story):
        return OPENING + story
    if BEGINNING.match(story):
        return OPENING + story[0].lower() + story[1:]
    return story


def tell(text: str) -> list[str]:
    """The parts of a story: cut before paragraphs that begin with a character, after PART characters or more."""
    parts: list[str] = []
    paragraphs: list[str] = []
    for paragraph in text.split("\n\n"):
        if sum(map(len, paragraphs)) >= PART and _enters(paragraph):
            parts.append("\n\n".join(paragraphs))
            paragraphs = []
        paragraphs.append(paragraph)
    parts.append("\n\n".join(paragraphs))
    return [_begin(parts[0]), *(OPENING + part for part in parts[1:])]
