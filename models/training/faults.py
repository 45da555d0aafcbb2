"""What goes wrong in a told scene, counted: for choosing between two of them (models/training/tales.py).

A small model tells fluent sentences and loses who is who: a character meets himself, answers himself, turns into another.
Predicting the next token hardly punishes that, but it can be seen in the text: names are known by their capitals, speech by
its quotation marks. So the faults are counted by rules. Each of them is sometimes wrong about a text; on the average of
thousands of texts they are right. The weights say how much a reader minds.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from models.training.openings import NO_NAMES, THOUGHTS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WEIGHTS = {
    "nobody": 20.0,  # no character in the first words
    "short": 8.0,
    "lost": 4.0,  # the hero is not named in the second half
    "names himself": 4.0,  # in what he says
    "hero": 3.0,  # another is named more often
    "crowd": 3.0,  # each character after the second
    "twice": 3.0,  # a name again in the same sentence: "Tommy saw Tommy"
    "answers himself": 3.0,  # two turns of the same, or of anybody where there is nobody else
    "meets himself": 3.0,  # "he saw that Tommy", or "watched him" where there is nobody else
    "word twice": 3.0,
    "to nobody": 2.0,  # speaks to "you" where there is nobody else
    "I": 2.0,  # outside speech
    "another Peter": 3.0,  # a first name with two second ones: "Peter Mink", "Peter Rabbit"
    "places": 1.5,  # each kind after the second: water, wood, meadow, hill, home
    "somebody": 0.7,  # each time that a voice, a sound or a stranger without a name is told of, after the first
    "he or she": 1.0,  # the rarer of both, where there is one character
    "they": 0.7,  # where there is one character
    "feelings": 0.7,  # each after the second
    "thoughts": 2.0,  # in twenty words
    "not": 0.5,
    "so that": 0.7,  # "so ... that" after the first
    "phrase": 0.5,  # three words in a row, again
    "word": 0.5,  # each time after the second
    "his wife": 0.5,
}
GAP = 6.0
"""Faults by which two scenes must differ for one of them to be preferred."""
SHORT = 400
"""Characters."""
OPENING = 60
"""Characters in which the hero is named."""
TITLES = _words("Mr Mrs Miss Uncle Aunt Master Farmer Old Grandfather Grandmother King Queen Prince Princess Little")
FEMALE = _words("Mrs Miss Aunt Queen Princess Grandmother Mother Lady")
PLACES = _words(
    "Green Meadows Meadow Forest Path Brook Pool River Briar Patch Crooked Laughing Smiling Lone West Wind Breezes "
    "Sun Moon Hill Mountain Farm Valley Pleasant Blue Swift Black Creek Cedar Swamp Merry Hollow Pond Orchard Lane "
    "Road City Town Street House Castle World Pasture Woods"
)
OTHERS = _words(
    "I Good Big Great Hello Please Let Come Go Look Never Nothing Nobody Everybody Something Sometimes Always Again "
    "Away Down Out Off Over Many Much More Most Next First Last Two Three Each Both Either Is Are Will Can Could "
    "Don Didn Ha Ah Morning Night Day Spring Summer Winter God Mother Father Thank Goodness Bow Mercy Another Any "
    "Indeed Very Almost Long Later Far Maybe Said These Those Too Upon Whether Which Whose Your You My"
)
NOT_NAMES = (_words(NO_NAMES) | OTHERS) - TITLES
CAPITALS = re.compile(r"\b[A-Z][a-z]+(?:(?:\. |'s | |-)[A-Z][a-z]+)*")
SENTENCE = re.compile(r"(?:Mrs?\.|[^.!?])+[.!?]*")
SAID = re.compile(
    r"\b(?:said|asked|cried|replied|answered|exclaimed|shouted|called|thought|declared|told|remarked|whispered|inquired|"
    r"grumbled|growled|explained|begged|muttered|laughed|chuckled|sighed|snapped|groaned|continued|added|returned)\b"
)
MET = re.compile(
    r"\b(?:saw|see|watch|watched|told|tell|asked|met|meet|found|heard|followed|knew|thanked|caught|catch|called|"
    r"looked at|stared at|spoke to|said to) him\b"
)
WHEN = re.compile(r"\W*(?:When|As|While|After|Before|If|Though|Since)\b")
FEELINGS = re.compile(
    r"\b(?:frightened|angry|glad|pleased|disappointed|hungry|tired|surprised|astonished|excited|worried|sorry|happy|puzzled|"
    r"afraid|startled|scared|anxious|comfortable|proud|upset)\b"
)
SOMEBODY = re.compile(r"\b(?:voices?|sounds?|noise|strangers?|newcomer|some one|somebody|creature|fellow|person)\b")
SO_THAT = re.compile(r"\b(?:so|such)\b[^.,;]{3,40}\bthat\b")
PLACE_KINDS = (
    re.compile(r"\b(?:pool|brook|river|water|pond|swim|swam|swimming|sea)\b", re.I),
    re.compile(r"\b(?:forest|woods?|trees?|stump|log|branch)\b", re.I),
    re.compile(r"\b(?:meadows?|fields?|pasture|garden|cornfield|orchard)\b", re.I),
    re.compile(r"\b(?:mountain|hill|hillside|valley)\b", re.I),
    re.compile(r"\b(?:bed|doorstep|briar-patch|house|home|nest|farmhouse|barn|bedroom)\b", re.I),
)
NOT = re.compile(r"\b(?:not|never|nothing|nobody|no)\b|n't\b")
COMMON = _words(
    "that they with this have when then there them what from could would were been their into very down about some "
    "your will upon once time said mrs over more than just like know little"
)


@dataclass(frozen=True, slots=True)
class Person:
    """A character as he is named: "Old Mr. Toad" and "Toad" are one, Mr. and Mrs. Toad are two."""

    names: tuple[str, ...]
    female: bool


def _person(capitals: str) -> Person | None:
    """Who is meant by words in capitals, if it is anybody."""
    words = re.findall(r"[A-Z][a-z]+", capitals)
    while words and words[0] in NOT_NAMES:
        words.pop(0)
    names = tuple(word for word in words if word not in TITLES) or tuple(words)
    if not names or not PLACES.isdisjoint(words) or not NOT_NAMES.isdisjoint(words):
        return None
    return Person(names, words[0] in FEMALE)


def _same(a: Person, b: Person) -> bool:
    first = a.names[0] in b.names or b.names[0] in a.names
    return a.female == b.female and first and (a.names[0] == b.names[0] or min(len(a.names), len(b.names)) == 1)


def _other(a: Person, b: Person) -> bool:
    """Whether two names begin alike and go on differently."""
    return len(a.names) > 1 and len(b.names) > 1 and a.names[0] == b.names[0] and a.names[1] != b.names[1]


def _is_capital_by_place(text: str, found: re.Match[str]) -> bool:
    """Whether a word has its capital because a sentence begins with it: it is no name then, unless it is one elsewhere."""
    word, before = found[0], text[: found.start()].rstrip(" ")
    begins = not before or before[-1] in '.!?"\n'
    return begins and word.isalpha() and re.search(rf"[a-z,] {word}\b", text) is None


class Scene:
    """A text with its characters: `mentions` are (position, number of the character) in ascending order."""

    def __init__(self, text: str) -> None:
        quotes = [i for i, letter in enumerate(text) if letter == '"'] + [len(text)]
        self.text = text
        self.spoken = list(zip(quotes[::2], quotes[1::2]))
        self.people: list[Person] = []
        self.others = 0
        """Mentions of one whose first name another has."""
        self.mentions: list[tuple[int, int]] = []
        for found in CAPITALS.finditer(text):
            if (person := _person(found[0])) is None or _is_capital_by_place(text, found):
                continue
            self.others += any(_other(person, other) for other in self.people)
            known = next((i for i, other in enumerate(self.people) if _same(person, other)), len(self.people))
            if known == len(self.people):
                self.people.append(person)
            elif len(person.names) > len(self.people[known].names):
                self.people[known] = person
            self.mentions.append((found.start(), known))
        self.told = [(at, who) for at, who in self.mentions if not self.is_speech(at)]
        """The mentions outside speech."""

    def is_speech(self, at: int) -> bool:
        """Whether the letter there stands in quotation marks."""
        return any(start <= at <= end for start, end in self.spoken)

    @property
    def hero(self) -> int | None:
        """The character that the scene begins with."""
        return self.told[0][1] if self.told and self.told[0][0] < OPENING else None

    @property
    def hero_name(self) -> str | None:
        """What the scene calls him first."""
        return None if self.hero is None else self.people[self.hero].names[0]


def _count_cast(scene: Scene, hero: int, count: Counter[str]) -> None:
    """Who is there."""
    named = Counter(who for _, who in scene.mentions)
    count["crowd"] = max(0, len(named) - 2)
    count["another Peter"] = scene.others
    count["hero"] = named[hero] < max(named.values())
    count["lost"] = not any(who == hero and at > len(scene.text) / 2 for at, who in scene.told)


def _count_confusions(scene: Scene, hero: int, alone: bool, count: Counter[str]) -> None:
    """Who is who, in every sentence."""
    for sentence in SENTENCE.finditer(scene.text):
        there = [(at - sentence.start(), who) for at, who in scene.told if sentence.start() <= at < sentence.end()]
        count["twice"] += sum(times - 1 for times in Counter(who for _, who in there).values())
        pronoun = re.search(r"\b[Hh]e\b", sentence[0])
        outside = not scene.is_speech(sentence.start() + 1)
        if pronoun and outside and not WHEN.match(sentence[0]):
            count["meets himself"] += any(who == hero and at > pronoun.start() for at, who in there)
        if alone and outside:
            count["meets himself"] += len(MET.findall(sentence[0]))


def _count_dialogue(scene: Scene, alone: bool, count: Counter[str]) -> None:
    """Who speaks, in every paragraph."""
    spoke: int | str | None = None
    answers = False
    at = 0
    for paragraph in scene.text.split("\n\n"):
        end = at + len(paragraph)
        if any(at <= start < end for start, _ in scene.spoken):
            speaker = _speaker(scene, paragraph, at)
            count["answers himself"] += answers and (alone or (speaker is not None and speaker == spoke))
            count["names himself"] += sum(
                who == speaker and at <= place < end and scene.is_speech(place) for place, who in scene.mentions
            )
            count["to nobody"] += alone and re.search(r"\b(?:[Yy]ou|your)\b", paragraph) is not None
            spoke, answers = speaker, True
        else:
            answers = False
        at = end + 2


def _speaker(scene: Scene, paragraph: str, at: int) -> int | str | None:
    """Who speaks in a paragraph that begins at `at`: the number of a character, "he", or nobody who is told."""
    for said in SAID.finditer(paragraph):
        verb = at + said.start()
        if not scene.is_speech(verb):
            near = [who for place, who in scene.told if at <= place < at + len(paragraph) and abs(place - verb) < 30]
            around = paragraph[max(0, said.start() - 5) : said.end() + 5]
            return near[0] if near else "he" if re.search(r"\bs?he\b", around) else None
    return None


def _count_words(scene: Scene, alone: bool, count: Counter[str]) -> None:
    """What the rest is made of."""
    text = scene.text
    words = re.findall(r"[a-z']+", text.lower())
    named = {name.lower() for person in scene.people for name in person.names}
    rare = Counter(word for word in words if len(word) > 3 and word not in COMMON and word not in named)
    count["I"] = sum(not scene.is_speech(found.start()) for found in re.finditer(r"\b(?:I|me|my|we|us|our)\b", text))
    count["phrase"] = sum(times - 1 for times in Counter(zip(words, words[1:], words[2:])).values())
    count["word"] = sum(max(0, times - 2) for times in rare.values())
    count["word twice"] = len(re.findall(r"\b(\w{3,})(?:,? and| or|,)? \1\b", text.lower()))
    count["feelings"] = max(0, len(FEELINGS.findall(text)) - 2)
    count["so that"] = max(0, len(SO_THAT.findall(text)) - 1)
    count["somebody"] = max(0, len(SOMEBODY.findall(text)) - 1)
    count["places"] = max(0, sum(kind.search(text) is not None for kind in PLACE_KINDS) - 2)
    count["not"] = len(NOT.findall(text))
    count["his wife"] = len(re.findall(r"\b(?:his|her) (?:wife|husband)\b", text))
    if alone:
        males, females = (
            len(re.findall(p, text)) for p in (r"\b[Hh](?:e|im|is|imself)\b", r"\b(?:[Ss]he|[Hh]er|herself)\b")
        )
        count["he or she"] = min(males, females)
        count["they"] = len(re.findall(r"\b(?:[Tt]hey|them|their)\b", text))


def count_faults(text: str) -> dict[str, float]:
    """How often each fault of WEIGHTS is in a told scene."""
    scene = Scene(text)
    hero = scene.hero
    if hero is None:
        return {"nobody": 1}
    count: Counter[str] = Counter(short=len(text) < SHORT)
    alone = len(scene.people) == 1
    _count_cast(scene, hero, count)
    _count_confusions(scene, hero, alone, count)
    _count_dialogue(scene, alone, count)
    _count_words(scene, alone, count)
    return {**count, "thoughts": 20 * len(THOUGHTS.findall(text)) / max(1, len(text.split()))}


def faults(text: str) -> float:
    """The weighted faults of a told scene: the fewer, the better."""
    return sum(WEIGHTS[fault] * times for fault, times in count_faults(text).items())
