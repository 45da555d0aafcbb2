"""Scenes out of the stories, begun like tales, so that there is more than one way to go on from there.

Few stories of a small corpus begin with "Once upon a time", and they are its hardest: kings, three sons, enchantments. Asked
to go on from these words, a model would tell of those. But within the plain stories many a paragraph begins with its hero
("Peter Rabbit sat in ..."); put behind the same words it shows a scene that a model can keep. In a dialogue a small model
loses who is who, and among thoughts and what might have been what happens. So only such scenes count that begin with deeds.
"""

from __future__ import annotations

import re

from models.training.renaming import NAME

OPENING = "Once upon a time "
START = 600
"""Characters, some 150 tokens, that a scene has at least and between whose beginnings so many lie."""
LENGTH = 1200
"""Characters after which a scene ends with its paragraph."""
SPEECH = 0.1
"""Share of a scene's START that may stand in quotation marks."""
THOUGHT = 0.1
"""Share of the words there that may be one of these."""
THOUGHTS = re.compile(
    r"\b(?:had|would|could|might|should|must|been|have|has|having|may|can|hadn't|wouldn't|couldn't|didn't|isn't|is|are|"
    r"knew|know|known|thought|think|believe|seemed|wish|wished|felt|feel|if|because|that)\b"
)
NO_NAMES = (
    "A After All An And As At Because Before But By Did Do Even Every Everyday Finally For From Has He Her Here His How "
    "If In It Just Meanwhile My No Nor Not Now Of Oh On Once Only Or Perhaps Poor Presently She Since So Some Soon Still "
    "Suddenly That The Then There Thereupon They This Though Thus To Up Was We Well What When Where While Who Why With "
    "Would Yes Yet You"
)
CHARACTER = re.compile(
    rf"(?!(?:{'|'.join(NO_NAMES.split())})\b)"
    rf"(?:Mrs?\. [A-Z][a-z]+|[A-Z][a-z]+(?: Mr\.)?(?: [A-Z][a-z]+)+|{NAME.pattern}) (?!the\b)[a-z]+ "
)
"""A name of two words, or one of GROUPS, and then a small one: "Old Mr. Toad was ", "Uncle Wiggily went ", "Peter sat "."""
BACK = re.compile(
    r"\b(?:he|him|she|they|them|it|its|that|this|these|those|such|so|then|again|too|also|still|other|another|there|"
    r"answered|replied|said|asked|told|me|I|you|we|at once|at last)\b"
)
"""Words that point back to what was told before."""
SENTENCE = re.compile(r"(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)[\"\s]")


def _begins_scene(start: str) -> bool:
    """Whether START characters begin with somebody, in a sentence that can stand alone, and tell mostly of deeds."""
    sentence = SENTENCE.split(start, 1)[0]
    spoken = sum(map(len, start.split('"')[1::2]))
    thoughts = len(THOUGHTS.findall(start))
    return (
        len(start) == START
        and CHARACTER.match(sentence) is not None
        and BACK.search(sentence) is None
        and spoken <= SPEECH * START
        and thoughts <= THOUGHT * len(start.split())
    )


def tell(text: str) -> list[str]:
    """The scenes of a story, each behind OPENING. Two may share text."""
    scenes: list[str] = []
    at = after = 0
    for paragraph in text.split("\n\n"):
        if at >= after and _begins_scene(text[at : at + START]):
            end = text.find("\n\n", at + LENGTH)
            scenes.append(OPENING + text[at : end if end >= 0 else len(text)])
            after = at + START
        at += len(paragraph) + 2
    return scenes
