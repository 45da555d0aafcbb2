"""The training forward in the engine's arithmetic (models/training/engine_arithmetic.py) against the engine, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)")
pytest.importorskip("gguf")

import engine  # noqa: E402
from models.training import data, engine_arithmetic, export  # noqa: E402
from models.training.model import Llama, Shape  # noqa: E402

SHAPE = Shape(vocab=300, hidden=64, feed_forward=96, layers=2, heads=4, kv_heads=2, context=83)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch's threads wait for each other at every operation, which takes minutes where others use the processors too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Llama:
    torch.manual_seed(1)
    model = Llama(SHAPE)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def path(model: Llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stories = [data.Story(f"the {i} little foxes and {i} old kings went {i} miles " * 3, 1.0) for i in range(100, 200)]
    tokenizer = data.train_tokenizer(stories, SHAPE.vocab)
    assert tokenizer.get_vocab_size() == SHAPE.vocab
    path = tmp_path_factory.mktemp("story") / "tiny.gguf"
    export.write_gguf(path, model, tokenizer, int4=True)
    return path


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(2).integers(SHAPE.vocab, size=SHAPE.context).tolist()


def test_logits_are_the_engines_to_the_bit(model: Llama, path: Path, ids: list[int]) -> None:
    """Of the trained weights, and of the file read back; at once, and token by token."""
    llm = engine.load(path, threads=1)
    ours = model(torch.tensor([ids]), "engine")[0].numpy()
    np.testing.assert_array_equal(llm.logits(ids), ours)
    np.testing.assert_array_equal(export.read_gguf(path)(torch.tensor([ids]), "engine")[0].numpy(), ours)
    one_by_one = [llm.logits(ids[: i + 1])[-1] for i in range(len(ids))]
    np.testing.assert_array_equal(one_by_one, ours)


def test_the_quick_forward_pass_is_near(model: Llama, ids: list[int]) -> None:
    """Mode "int8" differs by the order of sums alone: much less than the rounding of activations changes."""
    rounded = Llama(SHAPE)
    model.round_weights(into=rounded)
    with torch.no_grad():
        exact, quick, unrounded = (rounded(torch.tensor([ids]), mode) for mode in ("engine", "int8", "float32"))
    assert (quick - exact).norm() < 0.5 * (unrounded - exact).norm()


@pytest.mark.parametrize("shape", [(1000,), (7, 3, 5)])
def test_fma_rounds_once(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    a, b, c = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    c *= (10.0 ** rng.integers(-12, 3, shape)).astype(np.float32)
    a.flat[:3] = b.flat[:3] = 1 + 2.0**-12  # the product lies half-way between two float32
    c.flat[:3] = [2.0**-80, 0, -(2.0**-80)]
    found = engine_arithmetic.fma(*map(torch.from_numpy, (a, b, c))).numpy()
    assert found.flat[0] > found.flat[1] == found.flat[2]
    for x, y, z, r in zip(a.flat, b.flat, c.flat, found.flat):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(Fraction(float(r)) - exact)
        for neighbour in (np.nextafter(r, np.float32(np.inf)), np.nextafter(r, np.float32(-np.inf))):
            assert error <= abs(Fraction(float(neighbour)) - exact)
