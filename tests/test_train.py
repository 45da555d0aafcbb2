"""Fake quantisation and export of models/train.py against NumPy and the `gguf` package. Needs the extra `train`."""

from __future__ import annotations

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `train`)")
gguf = pytest.importorskip("gguf")

from tokenizers import Tokenizer  # noqa: E402

from models.training import data, export, loop, quantization  # noqa: E402
from models.training.growth import deepen, sources  # noqa: E402
from models.training.model import Llama, Shape, attention  # noqa: E402
from models.training.optimizer import Optimizer, orthogonalize  # noqa: E402
from models.training.renaming import GROUPS, rename  # noqa: E402
from models.training.written import parse  # noqa: E402

SHAPE = Shape(vocab=260, hidden=64, feed_forward=96, layers=2, heads=4, kv_heads=2, context=24)


def weights(n: int, k: int, seed: int) -> np.ndarray:
    """Normal values with an all-zero block, a block of one value, and a tiny one."""
    array = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    array[0, :32] = 0
    array[1, :32] = 0.25
    array[2, :32] *= 1e-9
    return array


def tiny_model(seed: int) -> Llama:
    torch.manual_seed(seed)
    model = Llama(SHAPE)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def test_q4_0_codes_follow_the_formula() -> None:
    w = weights(5, 96, seed=1)
    codes, scales = quantization.quantize_q4_0(torch.from_numpy(w))
    blocks = w.reshape(5, 3, 32)
    for n in range(5):
        for b in range(3):
            block = blocks[n, b]
            scale = np.float16(block[np.argmax(np.abs(block))] / np.float32(-8))
            inverse = np.float32(0) if scale == 0 else np.float32(1) / np.float32(scale)
            expected = np.clip(np.floor(block * inverse + np.float32(8.5)), 0, 15)
            assert scales[n, b, 0].item() == scale
            np.testing.assert_array_equal(codes[n, b].numpy(), expected)


def test_q8_0_codes_follow_the_formula() -> None:
    w = weights(4, 64, seed=2)
    codes, scales = quantization.quantize_q8_0(torch.from_numpy(w))
    blocks = w.reshape(4, 2, 32)
    expected_scales = (np.abs(blocks).max(-1, keepdims=True) / np.float32(127)).astype(np.float16)
    inverse = np.divide(
        1, expected_scales.astype(np.float32), where=expected_scales != 0, out=np.zeros((4, 2, 1), "f4")
    )
    np.testing.assert_array_equal(scales.numpy(), expected_scales)
    np.testing.assert_array_equal(codes.numpy(), np.clip(np.rint(blocks * inverse), -127, 127))


def test_activations_follow_the_formula() -> None:
    x = weights(3, 96, seed=3)
    x[2, 64:] = np.float32(1e-38)
    rounded = quantization.round_activation(torch.from_numpy(x)).numpy().reshape(3, 3, 32)
    for row, blocks in zip(rounded, x.reshape(3, 3, 32)):
        for found, block in zip(row, blocks):
            scale = np.abs(block).max() / np.float32(127)
            if scale < np.float32(2.0**-126):
                assert not found.any()
            else:
                codes = np.clip(np.rint(block / scale), -127, 127).astype(np.float32)
                np.testing.assert_array_equal(found, codes * scale)


def test_gradient_passes_straight_through() -> None:
    x = torch.randn(2, 64, requires_grad=True)
    slope = torch.randn(2, 64)
    (quantization.fake_activation(x) * slope).sum().backward()
    assert torch.equal(x.grad, slope)
    x.grad = None
    (quantization.fake_half(x) * slope).sum().backward()
    assert torch.equal(x.grad, slope)


def test_packed_bytes_are_read_alike_by_gguf() -> None:
    w = torch.from_numpy(weights(5, 96, seed=4))
    q4 = export.pack_q4_0(*quantization.quantize_q4_0(w))
    q8 = export.pack_q8_0(*quantization.quantize_q8_0(w))
    assert q4.shape == (5, 3 * 18)
    assert q8.shape == (5, 3 * 34)
    found = gguf.dequantize(q4, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(found, quantization.dequantize_q4_0(*quantization.quantize_q4_0(w)).numpy())
    found = gguf.dequantize(q8, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(found, quantization.dequantize_q8_0(*quantization.quantize_q8_0(w)).numpy())


@pytest.mark.parametrize("length", [1, 24, 129, 300])
def test_tiled_attention_equals_the_plain_formula(length: int) -> None:
    q, k, v = torch.randn(3, 2, 3, length, 8, dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    bound = 8 * (length + 8) * torch.finfo(torch.float64).eps * v.abs().max()
    assert (attention(q, k, v) - expected).abs().max() <= bound


def test_orthogonalized_singular_values_are_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalize(torch.randn(2, 32, 96)).float())
    assert values.min() > 0.5 and values.max() < 1.5


def test_int4_file_holds_the_last_training_forward_pass(tmp_path: Path) -> None:
    """Train two steps quantised, the last at rate zero; the file's values are those of that step's forward pass."""
    model, rounded = tiny_model(5), Llama(SHAPE)
    optimizer = Optimizer(model, 0.01, 0.003, 0.05)
    batch = torch.randint(0, SHAPE.vocab, (4, 25))
    stage = loop.Stage("int4", True, steps=2, batch=4, rates=(0.3, 0.0))
    with ThreadPoolExecutor(2) as pool:
        for step in range(2):
            loop.train_step(model, rounded, [loop.text_losses(batch, tiny_model(6).predictions)], pool)
            before = [p.clone() for p in rounded.parameters()]
            optimizer.step(stage.factor(step), pool)
    story = data.Story("once upon a time there was a little fox " * 9, 1.0)
    tokenizer = data.train_tokenizer([story], SHAPE.vocab)
    while tokenizer.get_vocab_size() < SHAPE.vocab:
        tokenizer.add_tokens([f"extra {tokenizer.get_vocab_size()}"])
    path = tmp_path / "tiny.gguf"
    export.write_gguf(path, model, tokenizer, int4=True)
    for wanted, found in zip(before, export.read_gguf(path).parameters()):
        assert torch.equal(wanted, found)


def test_rates_fall_to_zero_and_begin_with_a_warm_up() -> None:
    falling = loop.Stage("float", False, steps=5, batch=4, rates=(0.4, 0.0))
    assert [falling.factor(step) for step in range(5)] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    assert falling.factor(4) == 0
    constant = loop.Stage("stable", False, steps=9, batch=4, rates=(1.0, 1.0), warmup_steps=4)
    assert [constant.factor(step) for step in range(9)] == pytest.approx([0.25, 0.5, 0.75] + 6 * [1.0])


STORIES = [data.Story(f"Peter was fox {i}. " + "He went to the wood. " * 40, 1.0 + i % 3) for i in range(10)]
TALES = parse("@ kind=fox|hen\nOnce {a kind} met {boy}. The [end|rest].\n@\nOnce a king.\n", "deep.txt")
TALES += parse("@\nOnce a [queen|king].\n", "tales.txt")
MIX = data.Mix(copies=((1.8, 3), (2.4, 2)), renamed=0.5, written=(5, 4))


def test_windows_depend_only_on_seed_and_index() -> None:
    tokenizer = data.train_tokenizer(STORIES, 300)
    straight = data.Windows(tokenizer, STORIES, TALES, 16, 6, MIX).take(0, 200)
    resumed = data.Windows(tokenizer, STORIES, TALES, 16, 6, MIX)
    assert straight.shape == (200, 17)
    np.testing.assert_array_equal(resumed.take(123, 77), straight[123:])
    assert (data.Windows(tokenizer, STORIES, TALES, 16, 7, MIX).take(0, 200) != straight).any()


def test_a_round_reads_each_story_and_tale_as_often_as_the_mix_says(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = data.train_tokenizer(STORIES, 300)
    encode, rounds = data.encode_texts, []

    def remembered(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
        rounds.append(Counter(texts))
        return encode(tokenizer, texts)

    monkeypatch.setattr(data, "encode_texts", remembered)
    data.Windows(tokenizer, STORIES, TALES, 16, 6, replace(MIX, renamed=0.0)).take(0, 1)
    (found,) = rounds
    for story in STORIES:
        assert found.pop(story.text, 0) == {1.0: 3, 2.0: 2, 3.0: 0}[story.score]
    king, queen = found.pop("Once a king."), found.pop("Once a queen.")
    assert king + queen == 4 + 5 and 0 < queen <= 5 and found.total() == 4
    assert all(re.fullmatch(r"Once a (fox|hen) met [A-Z][a-z]+\. The (end|rest)\.", text) for text in found)


def test_windows_of_too_few_tokens_are_refused() -> None:
    bytes_alone = data.train_tokenizer([], 257)  # one entry for each byte, and the end of text
    windows = data.Windows(bytes_alone, [data.Story("Eh", 1.0)], [], 16, 6, MIX)
    with pytest.raises(ValueError, match="the texts of one round have 9 tokens; windows of 16 need more"):
        windows.take(0, 1)


def test_renaming_keeps_each_character_one_character() -> None:
    text = (
        'Peter Rabbit met the foxes. Peter\'s fox saw two mice, a bear and Alice; "Mouse!" cried Peter. Peterkin ran.'
    )
    words = re.findall(r"[A-Za-z]+", text)
    group_of = {word: i for i, group in enumerate(GROUPS) for forms in group for word in forms}
    for seed in range(20):
        renamed = rename(text, np.random.default_rng(seed))
        pairs = set(zip(words, re.findall(r"[A-Za-z]+", renamed)))
        assert len(pairs) == len(set(words)) == len({new for _, new in pairs})  # one to one
        for old, new in pairs:
            assert group_of.get(old) == group_of.get(new) and old.istitle() == new.istitle()
            assert old in group_of or old == new
        forms = {form: forms for group in GROUPS for forms in group for form in forms}
        other = dict(pairs)
        assert forms[other["fox"]] == forms[other["foxes"]] and forms[other["mice"]] == forms[other["Mouse"]]
    assert rename(text, np.random.default_rng(1)) == rename(text, np.random.default_rng(1)) != text


def test_with_a_teacher_the_loss_is_the_cross_entropy_to_its_predictions() -> None:
    student, model = tiny_model(8), tiny_model(9)
    windows = torch.from_numpy(np.random.default_rng(10).integers(3, student.shape.vocab, (2, 25)))
    with torch.no_grad():
        p = model(windows[:, :-1], "bfloat16").double().softmax(-1)
        expected = -(p * student(windows[:, :-1], "float32").double().log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(model.predictions(windows[:, :-1]).double(), p, rtol=1e-5, atol=1e-7)
    assert student.loss(windows, "float32", model.predictions).item() == pytest.approx(expected.item(), rel=1e-5)


def test_validation_predicts_each_token_once() -> None:
    validation = data.Validation(np.arange(100), 321)
    predicted = np.concatenate([window[1:] for window in validation.windows(16)])
    np.testing.assert_array_equal(predicted, np.arange(1, 100))


def test_tokenizer_splits_like_gpt2() -> None:
    tokenizer = data.train_tokenizer([data.Story('"I\'ll go," said he.\n\nSo he went.', 1.0)] * 3, 300)
    state = json.loads(tokenizer.to_str())
    assert state["pre_tokenizer"]["type"] == "ByteLevel"
    assert state["pre_tokenizer"]["use_regex"] and not state["pre_tokenizer"]["add_prefix_space"]
    assert tokenizer.token_to_id(data.END_OF_TEXT) == data.END_OF_TEXT_ID
    text = "A naïve fox \u2014 \U0001f98a!\n\tEnd "
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_deeper_model_begins_with_the_same_logits_and_every_layer_can_learn() -> None:
    assert sources(5, 8) == [0, 1, 1, 2, 2, 3, 3, 4] and sources(2, 2) == [0, 1] and sources(1, 3) == [0, 0, 0]
    model, ids = tiny_model(17), torch.randint(260, (2, 25), generator=torch.Generator().manual_seed(1))
    deeper = deepen(model, replace(SHAPE, layers=5))
    with torch.no_grad():
        torch.testing.assert_close(deeper(ids[:, :-1], "float32"), model(ids[:, :-1], "float32"), rtol=0, atol=0)
    deeper.loss(ids, "float32").backward()
    assert all(layer.attn_output.grad.any() and layer.ffn_down.grad.any() for layer in deeper.blk)
    for wrong in (replace(SHAPE, layers=1), replace(SHAPE, feed_forward=64, layers=3)):
        with pytest.raises(ValueError, match="only layers can be added"):
            deepen(model, wrong)
