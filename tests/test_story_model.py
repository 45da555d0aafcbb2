"""The embedded model's file against its training forward pass (needs the extra `train`) and against llama.cpp."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import truth

import models.pretrained

STORY = Path(models.pretrained.__file__).parent / "story.gguf"
PROMPTS = ("Once upon a time", "The little rabbit", "One day the old king called his three sons and said")
STEPS = 64

pytestmark = pytest.mark.skipif(not STORY.exists(), reason="models/pretrained/story.gguf is not there")


def test_file_is_small() -> None:
    assert STORY.stat().st_size <= 8e6


@pytest.mark.long
def test_engine_computes_the_training_forward_pass() -> None:
    """To the bit, where that is computed in the engine's order; the quick training forward is near.

    The quick one adds in another order, which moves an INT8 code by one now and then, and the layers after it spread that:
    less than rounding the activations does itself (both 1e-4 to 6e-4 nats).
    """
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)")
    import engine
    from models.training.export import read_gguf

    model, llm = read_gguf(STORY), engine.load(STORY)

    def trained(ids: list[int], mode: str) -> np.ndarray:
        torch.set_num_threads(1)  # more would wait for each other at every operation
        with torch.no_grad():
            return model(torch.tensor([ids]), mode)[0].numpy()

    quick, unrounded = [], []
    for seed, prompt in enumerate(PROMPTS):
        ids = llm.tokenize(prompt)
        ids += llm.generate(prompt, max_tokens=llm.context - len(ids), temperature=0.8, seed=seed, ignore_eos=True).ids
        ours = llm.logits(ids)
        np.testing.assert_array_equal(trained(ids, "engine"), ours)
        quick.append(truth.kl(trained(ids, "int8"), ours))
        unrounded.append(truth.kl(trained(ids, "float32"), ours))
    assert np.mean(quick) < np.mean(unrounded), (
        f"quick {np.mean(quick):.2e}, float activations {np.mean(unrounded):.2e}"
    )


@pytest.mark.long
def test_llama_cpp_continues_with_the_same_tokens() -> None:
    """64 greedy tokens, parted by near-ties only: the two best logits then lie within what INT8 activations can move."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    import engine

    llm = engine.load(STORY)
    peer = llama_cpp.Llama(str(STORY), n_ctx=512, logits_all=True, verbose=False, seed=0)
    for prompt in PROMPTS:
        ids = llm.tokenize(prompt)
        assert peer.tokenize(prompt.encode()) == ids
        ours = llm.generate(prompt, max_tokens=STEPS, temperature=0.0, ignore_eos=True).ids
        theirs: list[int] = []
        for id_ in peer.generate(ids, temp=0.0, repeat_penalty=1.0):
            theirs.append(id_)
            if len(theirs) == STEPS:
                break
        if ours != theirs:
            step = next(i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b)
            row = truth.log_softmax(llm.logits(ids + ours[:step])[-1:])[0]
            margin = row[ours[step]] - row[theirs[step]]
            assert 0 <= margin < math.log(1.05), f"{prompt!r}: parted at step {step}, margin {margin:.4f} nats"
