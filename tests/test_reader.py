"""What a learned reader thinks of scenes (models/training/reader.py). Needs the extra `train`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_faults import SOUND

from models.training.faults import WEIGHTS, count_faults, faults

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)")
tokenizers = pytest.importorskip("tokenizers")

import engine  # noqa: E402
from models.training import reader, tales  # noqa: E402
from models.training.export import read_gguf  # noqa: E402
from models.training.model import Llama, Shape  # noqa: E402
from models.training.reader import READINGS, Reader, Reading, commonness, read_readings, worth  # noqa: E402

SHAPE = Shape(vocab=300, hidden=32, feed_forward=64, layers=4, heads=2, kv_heads=1, context=96)
HEROES = ("Peter", "Sammy", "Reddy")
ACTS = ("ran home", "sat down", "looked up", "was glad", "saw a nut", "went to sleep")
PRETRAINED = Path(reader.__file__).parents[1] / "pretrained"


def scene(number: int) -> str:
    rng = np.random.default_rng(number)
    told = ". ".join(f"{rng.choice(HEROES)} {rng.choice(ACTS)}" for _ in range(rng.integers(3, 9)))
    return f"{tales.PROMPT} {told}."


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SHAPE.vocab, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([scene(i) for i in range(50)], trainer)
    return made


@pytest.fixture(scope="module")
def model() -> Llama:
    torch.manual_seed(1)
    made = Llama(SHAPE)
    for layer in made.blk:  # begin as if they had learned
        for matrix in (layer.attn_output, layer.ffn_down):
            torch.nn.init.normal_(matrix, std=0.1)
    return made


def seen_by(model: Llama, tokenizer: tokenizers.Tokenizer, text: str) -> list[float]:
    """The features of one text, each by itself."""
    ids = [0, *tokenizer.encode(text).ids]
    first = 1 + len(tokenizer.encode(tales.PROMPT).ids)
    with torch.no_grad():
        states = [state[0].double().numpy() for state in model.states(torch.tensor([ids]), "bfloat16")]
        logits = model(torch.tensor([ids]), "bfloat16")[0].double().numpy()
    nats = [logits[i - 1, ids[i]] - np.log(np.exp(logits[i - 1]).sum()) for i in range(first, len(ids))]
    found = [np.mean(nats), np.mean([n < -2 for n in nats]), np.mean(np.square(nats))]
    for state in (states[1], states[2], states[3]):
        told = state[first:]
        found += (told / np.sqrt((told**2).mean(1, keepdims=True))).mean(0).tolist()
    return found + [count_faults(text).get(fault, 0) for fault in WEIGHTS]


def test_the_scores_are_a_ridge_regression_on_what_the_model_holds(
    model: Llama, tokenizer: tokenizers.Tokenizer
) -> None:
    rng = np.random.default_rng(2)
    readings = [Reading(scene(i), float(rng.normal())) for i in range(40)]
    others = [scene(i) for i in range(40, 60)]
    found = Reader(model, tokenizer, tales.PROMPT, readings, workers=1).scores(others)

    read = np.array([seen_by(model, tokenizer, reading.text) for reading in readings])
    given = np.array([seen_by(model, tokenizer, text) for text in others])
    mean, deviation = read.mean(0), read.std(0) + 1e-6
    scores = np.array([reading.score for reading in readings])
    seen = (read - mean) / deviation
    root = np.sqrt(reader.RIDGE) * np.eye(seen.shape[1])
    padded = np.concatenate([np.clip(seen, -4, 4), root]), np.concatenate([scores - scores.mean(), np.zeros(len(root))])
    weights = np.linalg.lstsq(*padded, rcond=None)[0]
    expected = np.clip((given - mean) / deviation, -4, 4) @ weights + scores.mean()
    assert found.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=2e-3)  # bfloat16 products


def test_it_learns_what_readers_like(model: Llama, tokenizer: tokenizers.Tokenizer) -> None:
    texts = [scene(i) for i in range(400)]
    liked = np.array([text.count("Peter") - text.count("Reddy") for text in texts], float)
    readings = [Reading(text, score) for text, score in zip(texts[:300], liked[:300])]
    found = Reader(model, tokenizer, tales.PROMPT, readings, workers=2).scores(texts[300:])
    assert np.corrcoef(found, liked[300:])[0, 1] > 0.5


def test_what_all_say_is_common() -> None:
    same, other = f"{tales.PROMPT} Peter ran home and sat down.", f"{tales.PROMPT} Sammy saw a nut in a hollow tree."
    np.testing.assert_allclose(commonness([same, same, same, other]), [3 * 0.75, 3 * 0.75, 3 * 0.75, 5 * 0.25])


def test_neither_faults_nor_what_all_say_are_worth_anything() -> None:
    faulty = SOUND.replace("Jimmy", "Peter").replace("Skunk", "Rabbit")
    found = worth([SOUND, faulty], np.zeros(2))
    assert faults(faulty) > faults(SOUND) and found[0] > found[1]
    texts = [scene(i) for i in range(300)]
    common = commonness(texts)
    found = worth(texts, common * 5 + np.random.default_rng(1).normal(size=300))
    lost = reader.ORDINARY
    assert np.corrcoef(found, common)[0, 1] == pytest.approx(-lost / np.sqrt(1 + lost**2))


def test_the_readings_are_of_tales_and_on_one_scale() -> None:
    readings = read_readings(READINGS)
    assert len({reading.text for reading in readings}) == len(readings) > 5000
    assert all(reading.text.startswith(tales.PROMPT) for reading in readings)
    assert all(abs(reading.score) < 6 for reading in readings)


@pytest.mark.long
def test_scenes_that_it_has_not_seen_are_judged_as_their_readers_did() -> None:
    """The shipped model looks at the shipped readings, in an order by chance: 3,000 to learn from, 600 others."""
    llm = engine.load(PRETRAINED / "story.gguf")

    class Encoder:
        """The file's own tokenizer; the token that begins a text is added by the reader."""

        def encode(self, text: str) -> SimpleNamespace:
            return SimpleNamespace(ids=llm.tokenize(text)[1:])

        def encode_batch_fast(self, texts: list[str]) -> list[SimpleNamespace]:
            return [self.encode(text) for text in texts]

    readings = read_readings(READINGS)
    chosen = [readings[i] for i in np.random.default_rng(7).permutation(len(readings))[:3600]]
    learned = Reader(read_gguf(PRETRAINED / "story.gguf"), Encoder(), tales.PROMPT, chosen[:3000], workers=2)
    found = learned.scores([reading.text for reading in chosen[3000:]])
    assert np.corrcoef(found, [reading.score for reading in chosen[3000:]])[0, 1] > 0.6
