"""Other names for the characters of a story, so that the model has to look for them in the story instead of knowing them.

Told again and again, a small corpus teaches its own characters by heart: after "Peter" comes "Rabbit", whoever the story is
about. In a renamed story every name of GROUPS becomes another of its group, the same one throughout ("Peter" -> "Harry",
"fox" -> "lion", "foxes" -> "lions"): a permutation of the group, drawn anew each time. Groups keep the grammar (he or she,
a or an) and what the animals do; bears and crows keep their names, since "bear" and "crow" are verbs as well. The idea is
that of Hermann et al. 2015 (Teaching Machines to Read and Comprehend, section 2), who renamed so that the answer is in the
text alone.
"""

from __future__ import annotations

import re

import numpy as np

BOYS = (
    "Peter Jack Jimmy Johnnie Billy Johnny Sammy Bobby Tommy Neddie Buster Jerry Joe Buddy Jasper Jimmie John Danny Tom "
    "George Frisky Hans Dick Freddie Billie Dickie Andy Benny Benjamin Simon Jackie Jim Walter Jacob Fritz Sam Henry Bob "
    "Tim Teddy Paul Robert Martin Charlie Harry Philip Thomas James Willie Hugh William Donald Paddy Solomon Timothy "
    "Wiggily Reddy Chuck Chatterer Mappo Blacky Bowser Dido Squinty Nero Jacko Fatty Jumpo Lightfoot Bawly Cuffy "
    "Whitefoot Porky Chirpy Hal Spotty Bumper Rex Rover Major Archie Curdie Taro Hansel Pinocchio"
)
GIRLS = (
    "Beckie Heidi Lulu Sara Meg Mary Clara Jennie Sallie Lettie Dinah Nettie Linda Nellie Rosette Matilda Lottie Molly "
    "Susan Helena Marie Sally Gladys Dorothy Polly Betsy Jane Jenny Susie Mabel Nancy Martha Peggy Maria Helen Bessie "
    "Phoebe Nina Janet Katy Betty Catherine Gerda Sue Slicko Mirabell Brighteyes Henrietta Glinda Billina"
)
ANIMALS = (
    "fox wolf lion tiger badger panther coyote",
    "rabbit squirrel mouse chipmunk beaver woodchuck muskrat mole hedgehog skunk mink raccoon coon",
    "robin wren sparrow jay thrush lark woodpecker",
    "frog toad turtle",
    "duck goose hen turkey",
    "cow horse goat pig pony donkey",
)
TRADES = "farmer miller tailor merchant shepherd soldier hunter blacksmith shoemaker baker"
PLURALS = {"wolf": "wolves", "mouse": "mice", "fox": "foxes", "goose": "geese", "thrush": "thrushes", "pony": "ponies"}


def _forms(noun: str) -> tuple[str, ...]:
    """Singular and plural of a noun, each small and with a capital."""
    plural = PLURALS.get(noun, noun + "s")
    return noun, plural, noun.capitalize(), plural.capitalize()


def _groups() -> list[list[tuple[str, ...]]]:
    """Per group its members, each as the forms in which it occurs."""
    groups: list[list[tuple[str, ...]]] = [[(name,) for name in names.split()] for names in (BOYS, GIRLS)]
    groups += [[_forms(noun) for noun in nouns.split()] for nouns in (*ANIMALS, TRADES)]
    return groups


GROUPS = _groups()
NAME = re.compile(r"\b(?:" + "|".join(word for group in GROUPS for forms in group for word in forms) + r")\b")


def rename(text: str, rng: np.random.Generator) -> str:
    """`text` with every name of GROUPS changed for another of its group: one permutation of each group, drawn from `rng`."""
    other: dict[str, str] = {}
    for group in GROUPS:
        for source, target in zip(group, rng.permutation(len(group))):
            other.update(zip(source, group[target]))
    return NAME.sub(lambda found: other[found[0]], text)
