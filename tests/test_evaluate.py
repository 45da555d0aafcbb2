"""The evaluating command: its figures against those of the truth, tables, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import truth

from engine.errors import OptionError
from engine.evaluate import evaluate, log_softmax, main, sizes
from engine.float_source import float_source
from engine.quantize import main as quantize

TEXT = "the wind was in the trees\n<|endoftext|>\nand the house was still. " * 6


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def test_figures_are_those_of_the_truth(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    tiny.write(a, "llama", "F32", context=40)
    assert quantize([str(a), str(b), "--type", "Q4_0"]) == 0
    found = evaluate(str(b), TEXT, str(a), 100, 1)
    with float_source(a) as source:
        encode = source.tokenizer.encode
        ids = [i for part in TEXT.split("<|endoftext|>") for i in encode(part.strip("\n"))][:101]
        piece_bytes = sum(len(source.tokenizer.piece(i)) for i in ids[1:])
    nats, kl, same = [], [], []
    for start in range(0, 100, 40):
        window = ids[start : start + 41]
        p, q = (truth.log_softmax(truth.forward(path, window[:-1])) for path in (a, b))
        nats += [-row[i] for row, i in zip(q, window[1:])]
        kl += list(np.sum(np.exp(p) * (p - q), axis=1))
        same += list(p.argmax(1) == q.argmax(1))
    assert found.tokens == len(nats) == 100
    assert found.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=0.02)
    assert found.bits_per_byte == pytest.approx(np.sum(nats) / math.log(2) / piece_bytes, rel=0.01)
    assert found.kl == pytest.approx(np.mean(kl), rel=0.2) and found.kl_99 == pytest.approx(
        np.percentile(kl, 99), rel=0.3
    )
    assert found.top_1 == pytest.approx(np.mean(same), abs=0.06)
    assert (found.size, found.bits_per_weight) == sizes(str(b)) and found.size == b.stat().st_size
    itself = evaluate(str(a), TEXT, str(a), 100, 1)
    assert itself.kl == 0 and itself.top_1 == 1 and itself.read > 0
    capsys.readouterr()


def test_table_of_several_models(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    a, static, picture = (str(tmp_path / name) for name in ("a.gguf", "s.safetensors", "p.png"))
    tiny.write(a, "llama", "F32")
    assert quantize([a, static, "--activations", "static", "--text", text, "--tokens", "64"]) in (0, 1)
    (tmp_path / "long.txt").write_text(TEXT * 20)
    assert (
        quantize([a, static, "--activations", "static", "--text", str(tmp_path / "long.txt"), "--tokens", "512"]) == 0
    )
    capsys.readouterr()
    assert main([a, static, "--text", text, "--against", a, "--tokens", "60", "--threads", "1", "--json"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 4 and all(line.count("|") == 12 for line in table)
    figures = json.loads(last)
    assert [f["model"] for f in figures] == [a, static] and figures[1]["write"] > 0 and figures[1]["kl"] < 0.05
    assert [f["arithmetic"] for f in figures] == ["floats", "integers"]
    assert 8 < figures[1]["bits_per_weight"] < 10
    assert main([a, "--integer-only", "--text", text, "--against", a, "--tokens", "60", "--threads", "1", "--json"]) == 0
    (alone,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert alone["arithmetic"] == "integers" and 0 < alone["kl"] < 0.05
    pytest.importorskip("matplotlib")
    assert main([a, "--text", text, "--tokens", "60", "--threads", "1", "--plot", picture]) == 0
    assert Path(picture).read_bytes()[:4] == b"\x89PNG"


def test_refusals(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")
    tiny.write(a, "llama", "F32")
    tiny.write(b, "qwen2", "F32")
    with pytest.raises(OptionError, match="vocabulary"):
        evaluate(a, TEXT, b, 50, 1)
    with pytest.raises(OptionError, match="fewer than two"):
        evaluate(a, "", None, 50, 1)
    assert main([a, "--text", str(tmp_path / "none.txt")]) == 1
    assert main([str(tmp_path / "none.json"), "--text", text]) == 1
    assert all(line.startswith("python -m engine.evaluate: ") for line in capsys.readouterr().err.splitlines())


def test_log_softmax() -> None:
    x = np.array([[1000.0, 0, -1000], [1, 1, 1]], np.float32)
    found = log_softmax(x)
    assert np.isfinite(found).all() and found[1] == pytest.approx([-math.log(3)] * 3) and found[0, 0] == 0
