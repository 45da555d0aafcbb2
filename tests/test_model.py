"""Whole models against the truth in float64, against llama.cpp, and against a published story."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import truth

import engine

SHARED = Path(__file__).parents[2] / "shared" / "models"

# stories260K, greedy, 200 steps from the start token alone: published in llama2.c's test of its float32 code
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, "
    "red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" Lily was "
    "sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\"\nLily was sad and "
    "didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\nLily didn't want to help her mom, "
    "so she"
)
# The mean KL divergence of llama.cpp from the truth, in nats, on the story's 201 ids (first BOS), and on 150 random ids for
# the tiny models. Measured with llama-cpp-python 0.3.36 (AVX-512 VNNI): Llama(path, logits_all=True, n_ctx=512).eval(ids),
# one thread, everything else by default (float16 cache). `test_llama_cpp_measured_again` repeats it. Logits of the tied tiny
# models are 8 times as large as usual, and one token would decide the mean: they are divided by 8 first.
STORY_KL = {"F32": 5.505e-7, "Q8_0": 2.344e-4, "Q4_0": 2.390e-4}
TINY: dict[str, tuple[dict[str, Any], float]] = {
    "llama F32": ({}, 1.754e-8),
    "llama F16": ({"type": "F16"}, 1.023e-7),
    "llama BF16": ({"type": "BF16"}, 5.632e-6),
    "llama Q8_0": ({"type": "Q8_0"}, 7.511e-5),
    "llama Q8_0, rope divisors": ({"type": "Q8_0", "rope_divisors": True}, 7.361e-5),
    "llama Q4_0": ({"type": "Q4_0"}, 7.522e-5),
    "llama Q4_1, tied": ({"type": "Q4_1", "tied": True}, 6.645e-5),
    "llama Q5_0": ({"type": "Q5_0"}, 7.535e-5),
    "llama Q5_1": ({"type": "Q5_1"}, 7.760e-5),
    "llama Q4_K_M": ({"type": "Q4_K_M"}, 1.962e-4),
    "llama Q6_K, tied": ({"type": "Q6_K", "tied": True}, 4.916e-5),
    "qwen2 F32, tied": ({"arch": "qwen2", "tied": True}, 1.526e-8),
    "qwen2 Q8_0, tied": ({"arch": "qwen2", "type": "Q8_0", "tied": True}, 7.359e-5),
    "qwen2 Q4_0 and F16, tied": (
        {"arch": "qwen2", "type": "Q4_0", "tied": True,
         "types": {"ffn_down.weight": "F16", "token_embd.weight": "Q8_0"}},
        4.607e-5,
    ),
}  # fmt: skip
FACTOR = 1.15
FLOAT_KL = 1e-6


def shared(type: str) -> Path:
    """The path of a shared model; the test is skipped where it isn't there."""
    path = SHARED / f"stories260K-{type}.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def story_ids(model: engine.LLM) -> list[int]:
    ids = model.tokenize(STORY, bos=True)
    assert len(ids) == 201
    return ids


def tiny_kl(options: dict[str, Any], path: Path, ids: list[int], found: np.ndarray) -> float:
    scale = 8 if options.get("tied") else 1
    return truth.kl(truth.forward(path, ids) / scale, found / scale)


def tiny_ids(weights: dict[str, np.ndarray]) -> list[int]:
    return np.random.default_rng(1).integers(3, len(weights["token_embd.weight"]), 150).tolist()


@pytest.mark.parametrize("type", STORY_KL)
def test_story_models_against_the_truth(type: str) -> None:
    path = shared(type)
    with engine.load(path, threads=2) as llm:
        ids = story_ids(llm)
        found = llm.logits(ids)
    divergence = truth.kl(truth.forward(path, ids), found)
    assert 0 <= divergence <= (FLOAT_KL if type == "F32" else FACTOR * STORY_KL[type])


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_against_the_truth(name: str, tmp_path: Path) -> None:
    path, (options, peer) = tmp_path / "tiny.gguf", TINY[name]
    ids = tiny_ids(tiny.write(path, **options))
    with engine.load(path, threads=2) as llm:
        divergence = tiny_kl(options, path, ids, llm.logits(ids))
    assert 0 <= divergence <= (FLOAT_KL if "F32" in name else FACTOR * peer)


def test_truth_sees_each_part(tmp_path: Path) -> None:
    """Rope's pairs and divisors, biases and the output all matter to the truth: it can tell a wrong wiring."""
    divided = tiny.write(tmp_path / "divided.gguf", rope_divisors=True)
    ids = tiny_ids(divided)
    tiny.write(tmp_path / "plain.gguf")
    tiny.write(tmp_path / "halves.gguf", "qwen2", vocab="spm")
    tiny.write(tmp_path / "tied.gguf", tied=True)
    plain = truth.forward(tmp_path / "plain.gguf", ids)
    for other in ("divided", "halves", "tied"):
        assert truth.kl(plain, truth.forward(tmp_path / f"{other}.gguf", ids)) > 0.01, other


def test_the_published_story_to_the_letter() -> None:
    with engine.load(shared("F32"), threads=2) as llm:
        made = llm.generate([llm.tokenizer.bos_id], max_tokens=200, temperature=0)
        assert made.text == STORY
        assert [llm.tokenizer.bos_id, *made.ids] == story_ids(llm)
        assert made.finish_reason == "length"


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0"])
def test_quantised_story_is_coherent(type: str) -> None:
    """A weak check by machine of what a person can read: letters, many different words, nothing that goes in circles."""
    with engine.load(shared(type), threads=2) as llm:
        made = llm.generate("Once upon a time", max_tokens=200, temperature=0)
    assert re.fullmatch(r"[A-Za-z ,.!?'\"\n-]+", made.text), made.text
    words = re.findall(r"[A-Za-z']+", made.text)
    known = set(re.findall(r"[A-Za-z']+", STORY))
    assert len(words) >= 80 and len(set(words)) >= 30
    assert sum(word in known for word in words) >= len(words) / 2  # "the", "was", "Lily", ...
    triples = list(zip(words, words[1:], words[2:]))
    assert len(set(triples)) >= 0.6 * len(triples)


@pytest.mark.long
@pytest.mark.parametrize("name", [*(f"story {type}" for type in STORY_KL), *TINY])
def test_llama_cpp_measured_again(name: str, tmp_path: Path) -> None:
    """The figures of llama.cpp above, within 10 %: other processors take other instructions."""
    llama_cpp = pytest.importorskip("llama_cpp")
    path = tmp_path / "tiny.gguf"
    options, peer = TINY.get(name, ({}, 0.0))
    if name in TINY:
        ids = tiny_ids(tiny.write(path, **options))
    else:
        path, peer = shared(name.split()[1]), STORY_KL[name.split()[1]]
        with engine.load(path, threads=2) as llm:
            ids = story_ids(llm)
    model = llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, n_threads=1, n_threads_batch=1, verbose=False)
    model.eval(ids)
    assert tiny_kl(options, path, ids, model.scores[: len(ids)]) == pytest.approx(peer, rel=0.1)
