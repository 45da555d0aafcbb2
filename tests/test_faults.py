"""The faults that are seen in a told scene (models/training/faults.py)."""

from __future__ import annotations

import pytest

from models.training.faults import WEIGHTS, Scene, count_faults, faults

SOUND = (
    "Once upon a time Peter Rabbit sat on his doorstep in the sunshine. He looked this way and looked that way. "
    "Then he hopped down to the brook for a drink of cool water.\n\n"
    '"Good morning, Peter," said Jimmy Skunk.\n\n'
    '"Good morning, Jimmy," replied Peter. "Come along with me and look for some sweet clover."\n\n'
    "So Peter and Jimmy trotted off together along the bank. By and by they came to a big patch of clover. Peter nibbled at "
    "the leaves, and Jimmy dug for beetles under an old log."
)


def test_a_sound_scene_has_hardly_any_faults() -> None:
    found = {fault: times for fault, times in count_faults(SOUND).items() if times}
    assert found.keys() <= {"phrase", "word", "places", "thoughts"}, found
    assert faults(SOUND) < 4


@pytest.mark.parametrize(
    ("fault", "old", "new"),
    [
        ("nobody", "Peter Rabbit sat", "there was a king who sat"),
        ("short", SOUND[300:], ""),
        ("twice", "Then he hopped", "Then Peter saw that Peter hopped"),
        ("meets himself", "Then he hopped down to the brook", "Then he went down to the brook and found Peter"),
        ("answers himself", "replied Peter", "replied Jimmy"),
        ("names himself", "Good morning, Jimmy", "Good morning, Peter"),
        ("lost", SOUND[SOUND.index("So Peter") :], "So Jimmy trotted off. " + "The clover was green and sweet. " * 12),
        ("crowd", "look for some sweet clover", "look for Johnny Chuck and Unc' Billy Possum"),
        ("another Peter", "Peter nibbled", "Peter Mink nibbled"),
        ("I", "By and by they", "By and by I"),
        ("word twice", "a big patch", "a big, big patch"),
        ("his wife", "for beetles", "for his wife"),
        ("not", "Jimmy dug", "Jimmy never dug"),
    ],
)
def test_each_fault_is_seen(fault: str, old: str, new: str) -> None:
    assert old in SOUND
    before, after = count_faults(SOUND).get(fault, 0), count_faults(SOUND.replace(old, new, 1))[fault]
    assert after > before and WEIGHTS[fault] > 0


def test_who_is_alone_can_not_answer() -> None:
    alone = (
        SOUND.replace("said Jimmy Skunk", "he said")
        .replace("Good morning, Jimmy", "Good morning")
        .replace("Jimmy", "he")
    )
    assert len(Scene(alone).people) == 1 and count_faults(alone)["answers himself"] == 1


def test_names_of_one_character_are_one() -> None:
    scene = Scene('Once upon a time Old Mr. Toad met Mrs. Toad and Mr. Toad\'s friend. "Hurry," said Toad.')
    assert [(person.names, person.female) for person in scene.people] == [(("Toad",), False), (("Toad",), True)]
    assert [who for _, who in scene.mentions] == [0, 1, 0, 0]
    assert scene.hero_name == "Toad"
