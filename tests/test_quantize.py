"""The quantising command: files that the `gguf` package and the engine read, what GPTQ is worth, what is refused."""

import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
import truth

from engine.errors import FileError
from engine.float_source import float_source
from engine.gguf import GGUFFile
from engine.quantize import main
from engine.spill import Spill
from kernels.block_types import QUANTIZERS
from models.config import expected_tensors
from models.quantizers.choice import choose_types, fitting
from models.quantizers.folding import fold, shared
from models.quantizers.gptq import DAMP, PANEL, Plan, against_drift, gathered, gptq, moments, panels, plan
from models.quantizers.knapsack import choose
from models.quantizers.observers import Observer
from models.quantizers.sensitivity import Judge, choices, measure, needs_ternary
from models.quantizers.transformer import GROUPS, MATRICES, rms_norm, run_layer

TEXT = "the wind was in the trees and the house was still. " * 400


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def tensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    return {t.name: (t.tensor_type.name, gguf.quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}


def test_types_give_way_to_what_fits() -> None:
    assert [fitting(*pair) for pair in (("Q4_K", 512), ("Q4_K", 96), ("Q4_K", 172), ("Q6_K", 96), ("TQ2_0", 64))] == [
        "Q4_K", "Q5_0", "F16", "Q8_0", "Q4_0",
    ]  # fmt: skip


@pytest.mark.parametrize("arch, type_", [("llama", "Q4_0"), ("qwen2", "Q8_0"), ("llama", "Q4_K"), ("llama", "TQ1_0")])
def test_rounded_files(tmp_path: Path, arch: str, type_: str, capsys: pytest.CaptureFixture[str]) -> None:
    hidden, ff = (256, 512) if type_ in ("Q4_K", "TQ1_0") else (None, None)
    before = tiny.write(tmp_path / "a.gguf", arch, "F16", hidden=hidden, ff=ff)
    assert main([str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf"), "--type", type_]) == 0
    assert "weights" in capsys.readouterr().err
    after = tensors(tmp_path / "b.gguf")
    assert list(after) == list(before) or set(after) == set(before)
    for name, (kind, values) in after.items():
        if before[name].ndim == 1:
            assert kind == "F32"
            np.testing.assert_array_equal(values, before[name])
        elif kind in QUANTIZERS:
            expected = QUANTIZERS[kind].rounded(before[name])[1]
            np.testing.assert_array_equal(values, expected)
    with GGUFFile.open(tmp_path / "a.gguf") as a, GGUFFile.open(tmp_path / "b.gguf") as b:
        assert {**a.metadata}.keys() <= {*b.metadata, "general.file_type"}
        assert b.metadata["tokenizer.ggml.tokens"] == a.metadata["tokenizer.ggml.tokens"]


def planned(*texts: np.ndarray) -> Plan:
    return plan(*gathered(lambda: texts, lambda: texts, {})[:2])


@pytest.mark.parametrize("columns", [6, PANEL, 2 * PANEL + 37])
def test_plan_holds_the_factor_of_the_inverse(columns: int) -> None:
    x = np.random.default_rng(1).standard_normal((3 * columns, columns)).astype(np.float32)
    x *= np.linspace(3, 1, columns, dtype=np.float32)
    x[:, 2] = 0
    wide = x.astype(np.float64)
    expected = wide.T @ wide
    mean = np.diag(expected).mean()
    np.testing.assert_allclose(moments(np.array_split(x, 3)), wide.T @ wide, rtol=1e-4, atol=1e-5 * mean)
    made = planned(*np.array_split(x, 3))
    assert np.all(np.diff(np.diag(expected)[made.sequence]) >= -1e-4 * mean)
    expected[2, 2] = mean
    expected += np.eye(columns) * mean * DAMP
    expected = np.linalg.inv(expected[np.ix_(made.sequence, made.sequence)])
    found = np.zeros((columns, columns))
    for rows, part in zip(made.inverse, panels(columns), strict=True):
        found[part, : part.stop] = rows
    np.testing.assert_array_equal(found, np.tril(found))
    assert np.abs(found.T @ found - expected).max() < 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(made.importance.mean(), 1, rtol=1e-5)


def test_inputs_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        planned(np.full((3, 40), np.nan, np.float32))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0", "TQ2_0"])
def test_gptq_lowers_the_error_of_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    quantizer, columns = QUANTIZERS[name], 512
    w = random.standard_normal((24, columns)).astype(np.float32)
    x = (random.standard_normal((3000, 40)) @ random.standard_normal((40, columns)) / 6).astype(np.float32)
    x += 0.3 * random.standard_normal(x.shape).astype(np.float32)
    given = planned(x)
    values = w.copy()
    data = np.concatenate(list(gptq(values, given, quantizer)))
    np.testing.assert_array_equal(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name]), values)
    plain = quantizer.rounded(w)[1]
    assert np.mean((x @ (values - w).T) ** 2) < 0.6 * np.mean((x @ (plain - w).T) ** 2)
    monkeypatch.setattr("models.quantizers.gptq.AT_ONCE", 5 * columns)  # rows by fives: each row is rounded by itself
    again = w.copy()
    assert len(list(gptq(again, given, quantizer))) == 5
    assert np.mean((again - values) ** 2) < 1e-3 * np.mean((values - w) ** 2)


@pytest.mark.parametrize("rows", [5, 33])
def test_drift_is_made_good_halfway(rows: int) -> None:
    random = np.random.default_rng(3)
    w = random.standard_normal((rows, 20)).astype(np.float32)
    original = random.standard_normal((900, 20)).astype(np.float32)
    x = (original @ (np.eye(20) + 0.1 * random.standard_normal((20, 20)))).astype(np.float32)
    sequence, h, moved = gathered(lambda: [x[:500], x[500:]], lambda: [original[:500], original[500:]], {"w": w})
    wide, first = x.astype(np.float64), original.astype(np.float64)
    np.testing.assert_allclose(
        moved["w"], w @ ((first - wide).T @ wide), rtol=1e-3, atol=1e-3 * np.abs(moved["w"]).max()
    )
    made = against_drift(w, moved["w"], plan(sequence, h))
    before, after = (np.linalg.norm(x @ v.T - original @ w.T) for v in (w, made))
    assert 0.4 * before < after < 0.65 * before


def test_arrays_in_files(tmp_path: Path) -> None:
    arrays = [np.arange(7 * i, dtype=np.float32).reshape(i, 7) for i in (3, 0, 5)]
    kept = Spill(str(tmp_path))(iter(arrays))
    for _ in range(2):
        assert all(np.array_equal(a, b) and a.shape == b.shape for a, b in zip(arrays, kept, strict=True))
    assert np.array_equal(kept[-1], arrays[2]) and len(kept[:2]) == 2
    assert list(tmp_path.iterdir()) == [] or os.name != "posix"
    with pytest.raises(FileError, match="temporary"):
        Spill(str(tmp_path / "none"))([])


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_calibration_runs_the_model_that_truth_runs(tmp_path: Path, arch: str) -> None:
    tiny.write(tmp_path / "a.gguf", arch, "F32", rope_divisors=arch == "llama")
    ids = np.random.default_rng(4).integers(3, 280, 37)
    with float_source(tmp_path / "a.gguf") as source:
        model = source.model
        xs = model.embedded([ids])
        for i in range(model.config.layers):
            xs = run_layer(model.config, model.layer(i), xs, model.angles(40)).finish()
        logits = rms_norm(xs[0], model.read("output_norm.weight"), model.config.rms_eps) @ model.read("output.weight").T
    expected = truth.forward(tmp_path / "a.gguf", ids)
    assert np.abs(logits - expected).max() < 2e-4 * np.abs(expected).max()


def test_gptq_file(tmp_path: Path, text: str) -> None:
    before = tiny.write(tmp_path / "a.gguf", "llama", "F32")
    arguments = [str(tmp_path / "a.gguf"), "", "--text", text, "--tokens", "2048"]
    for method in ("round", "gptq"):
        arguments[1] = str(tmp_path / f"{method}.gguf")
        assert main([*arguments, "--method", method]) == 0
    assert (tmp_path / "round.gguf").stat().st_size == (tmp_path / "gptq.gguf").stat().st_size
    rounded, fed = tensors(tmp_path / "round.gguf"), tensors(tmp_path / "gptq.gguf")
    ids = np.arange(20, 60)
    reference = truth.forward(tmp_path / "a.gguf", ids)
    assert truth.kl(reference, truth.forward(tmp_path / "gptq.gguf", ids)) < 1
    for name, (kind, values) in fed.items():
        assert kind == rounded[name][0]
        same = np.array_equal(values, rounded[name][1])
        assert same == (not (name.startswith("blk") and before[name].ndim == 2)), name


def test_refusals(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tmp_path / "a.gguf", "llama", "F16")
    tiny.write(tmp_path / "q.gguf", "llama", "Q8_0")
    a, q, out = (str(tmp_path / name) for name in ("a.gguf", "q.gguf", "out.gguf"))
    (tmp_path / "short.txt").write_text("the")
    (tmp_path / "no.txt").write_bytes(b"\xff")
    cases = {
        "quantised already": [q, out],
        "needs a calibration text": [a, out, "--method", "gptq"],
        "ends in .gguf": [a, out + ".bin"],
        "tokens, expected": [a, out, "--method", "gptq", "--text", str(tmp_path / "short.txt")],
        "not UTF-8": [a, out, "--method", "gptq", "--text", str(tmp_path / "no.txt")],
        "is a directory": [str(tmp_path), out],
        "can't be written": [a, str(tmp_path / "none" / "b.gguf")],
    }
    for part, arguments in cases.items():
        assert main(arguments) == 1
        err = capsys.readouterr().err
        assert part in err and err.count("\n") <= 2, err
    before = sorted(os.listdir(tmp_path))
    assert "out.gguf" not in before and not [name for name in before if "part" in name]


def test_a_weight_that_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tmp_path / "a.gguf", "llama", "F32")
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        offset = file.tensor("blk.1.ffn_up.weight").offset
    with open(tmp_path / "a.gguf", "r+b") as raw:
        raw.seek(offset)
        raw.write(np.float32(np.nan).tobytes())
    assert main([str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")]) == 1
    assert "blk.1.ffn_up.weight" in capsys.readouterr().err and not (tmp_path / "b.gguf").exists()


def test_float_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tiny.write(tmp_path / "a.gguf", "llama", "F32")
    assert main([str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf"), "--type", "BF16"]) == 0
    for name, (kind, values) in tensors(tmp_path / "b.gguf").items():
        type_ = gguf.GGMLQuantizationType["F32" if before[name].ndim == 1 else "BF16"]
        expected = gguf.quants.dequantize(gguf.quants.quantize(before[name], type_), type_)
        assert kind == type_.name
        np.testing.assert_array_equal(values.reshape(expected.shape), expected)
    with GGUFFile.open(tmp_path / "a.gguf") as file:
        offset = file.tensor("blk.1.ffn_up.weight").offset
    with open(tmp_path / "a.gguf", "r+b") as raw:
        raw.seek(offset)
        raw.write(np.float32(1e5).tobytes())
    assert main([str(tmp_path / "a.gguf"), str(tmp_path / "c.gguf"), "--type", "F16"]) == 1
    assert "blk.1.ffn_up.weight': holds weights that are too large for F16" in capsys.readouterr().err


def test_nothing_compiled_is_needed(tmp_path: Path) -> None:
    tiny.write(tmp_path / "a.gguf", "llama", "F16")
    code = "import sys, engine.quantize as q; assert q.main(sys.argv[1:]) == 0; sys.exit('llvmlite' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")], check=True)


def test_chosen_types(tmp_path: Path) -> None:
    tiny.write(tmp_path / "a.gguf", "llama", "F16", tied=True, hidden=256, ff=512)
    with float_source(tmp_path / "a.gguf") as source:
        types = choose_types(source.config, "Q4_K")
        assert types["token_embd.weight"] == "Q6_K" and types["blk.0.ffn_down.weight"] == "Q4_K"
        assert set(types) == set(expected_tensors(source.config))


@pytest.mark.parametrize("cells", [1 << 14, 40])
def test_knapsack(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr("models.quantizers.knapsack.CELLS", cells)
    random = np.random.default_rng(5)
    for _ in range(20):
        costs = {item: {form: int(random.integers(1, 9)) * 4 for form in "abc"} for item in range(4)}
        losses = {item: {form: float(random.random()) for form in "abc"} for item in range(4)}
        for room in (20, 37, 64, 200):
            sums = [
                (sum(losses[i][f] for i, f in enumerate(forms)), forms)
                for forms in itertools.product("abc", repeat=4)
                if sum(costs[i][f] for i, f in enumerate(forms)) <= room
            ]
            if not sums:
                with pytest.raises(ValueError) as caught:
                    choose(losses, costs, room)
                assert caught.value.args == (sum(min(of.values()) for of in costs.values()),)
            else:
                assert list(choose(losses, costs, room).values()) == list(min(sums)[1])


def test_a_knapsack_of_coarse_cells_uses_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.quantizers.knapsack.CELLS", 3)
    costs = {item: {"a": 1, "b": 11 + item} for item in range(5)}
    losses = {item: {"a": 1.0, "b": 0.1 * item} for item in range(5)}
    assert list(choose(losses, costs, 35).values()) == ["b", "b", "a", "a", "a"]


def test_choices_for_a_budget() -> None:
    shapes = {"a": (10, 256), "b": (10, 256), "c": (20, 256)}
    types = {"TQ1_0": 9.0, "Q4_0": 1.0, "Q4_K": 0.8, "Q5_0": 0.3, "Q8_0": 0.01}
    losses = {"a": {t: 100 * e for t, e in types.items()}, "b": types, "c": dict(types)}
    found = choices(losses, shapes, 5.5)
    assert found["mixed"] == {"a": "Q8_0", "b": "Q4_K", "c": "Q4_K"}
    assert found["Q5_0 throughout"] == dict.fromkeys("abc", "Q5_0") and len(found) == 3
    assert choices(losses, shapes, 8.5) == {
        "mixed": dict.fromkeys("abc", "Q8_0"),
        "Q5_0 throughout": dict.fromkeys("abc", "Q5_0"),
    }
    assert "mixed" not in choices(losses, shapes, 4.4)
    assert [needs_ternary(shapes, bits) for bits in (1.69, 4.49, 4.5)] == [True, True, False]
    with pytest.raises(ValueError, match=r"at least 1\.69 are"):
        needs_ternary(shapes, 1.68)
    with pytest.raises(ValueError, match=r"at least 4\.50 are"):
        needs_ternary({"a": (10, 96)}, 4.4)


def test_measured_divergence_is_that_of_the_truth(tmp_path: Path) -> None:
    tiny.write(tmp_path / "a.gguf", "qwen2", "F32")
    assert main([str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf"), "--type", "Q4_0", "--output-type", "Q4_0"]) == 0
    texts = [np.arange(20, 60), np.arange(90, 120)]
    reference, rounded = (
        np.concatenate([truth.forward(tmp_path / name, ids) for ids in texts]) for name in ("a.gguf", "b.gguf")
    )
    expected = truth.kl(reference, rounded)
    with float_source(tmp_path / "a.gguf") as source:
        judge = Judge.of(dataclasses.replace(source.model, keep=Spill(str(tmp_path))), texts)
        types = {name: "Q4_0" for name, shape in expected_tensors(source.config).items() if len(shape) == 2}
        assert abs(judge.of_types(types) - expected) < 1e-3 * expected
        losses = dict(measure(judge, ternary=False))
        for name in ("blk.1.ffn_down.weight", "output.weight", "token_embd.weight"):
            alone = judge.of_types({other: "Q4_0" if other == name else "F32" for other in types})
            assert abs(losses[name]["Q4_0"] - alone) < 1e-3 * alone


def test_mixed_file(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = tiny.write(tmp_path / "a.gguf", "llama", "F16", hidden=256, ff=256, layers=1)
    out = tmp_path / "b.gguf"
    assert main([str(tmp_path / "a.gguf"), str(out), "--bits", "5.2", "--text", text]) == 0
    shown = capsys.readouterr().err
    assert "types: " in shown
    kls = {label: float(kl) for label, kl in re.findall(r"(mixed[a-z, ]*|Q\w+ throughout) (\d+\.\d+)", shown)}
    assert len(kls) > 2 and min(kls, key=lambda label: kls[label]).startswith("mixed")
    with GGUFFile.open(out) as file:
        matrices = [t for t in file.tensors.values() if len(t.shape) == 2]
        assert 5.1 < 8 * sum(t.nbytes for t in matrices) / sum(np.prod(t.shape) for t in matrices) <= 5.2
    assert set(tensors(out)) == set(before)
    for bits, part in (("1", "at least 1.69"), ("3", "types")):
        assert main([str(tmp_path / "a.gguf"), str(out), "--bits", bits, "--text", text]) == (bits == "1")
        assert part in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_folding_keeps_the_function(tmp_path: Path, arch: str) -> None:
    tiny.write(tmp_path / "a.gguf", arch, "F32")
    random = np.random.default_rng(9)
    with float_source(tmp_path / "a.gguf") as source:
        model, config = source.model, source.config
        x = [random.standard_normal((23, config.hidden_size)).astype(np.float32)]
        before, layer = model.layer(0), model.layer(0)
        for group in GROUPS:
            scale = shared(config, group, np.exp(random.standard_normal(before[group[0]].shape[1])))
            fold(config, layer, group, scale)
        first, second = (run_layer(config, v, x, model.angles(23)).finish()[0] for v in (before, layer))
    assert np.abs(first - second).max() < 1e-4 * np.abs(first).max()
    assert all(not np.allclose(before[name], layer[name]) for name in MATRICES)


def test_awq_file(tmp_path: Path, text: str) -> None:
    tiny.write(tmp_path / "a.gguf", "llama", "F32")
    out = tmp_path / "b.gguf"
    assert main([str(tmp_path / "a.gguf"), str(out), "--method", "awq-scale", "--text", text, "--tokens", "2048"]) == 0
    ids = np.arange(20, 60)
    reference = truth.forward(tmp_path / "a.gguf", ids)
    assert truth.kl(reference, truth.forward(out, ids)) < 1


@pytest.mark.parametrize("kind, limit", [("min-max", 50), ("percentile", 3), ("mse", 20)])
def test_observers(kind: str, limit: float) -> None:
    watched = Observer(kind)
    assert watched.limit() == 0
    random = np.random.default_rng(10)
    for spread in (0.01, 1.0, 1.0):
        watched.watch(np.clip(spread * random.standard_normal((300, 400)), -2.5, 2.5))
    watched.watch(np.array([50.0, np.nan, np.inf]))
    assert 2.2 < watched.limit() <= limit or watched.limit() == limit == 50


def test_options_that_do_not_go_together(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tmp_path / "a.gguf", "llama", "F16")
    a, out = str(tmp_path / "a.gguf"), str(tmp_path / "o.gguf")
    for options in (["--bits", "5"], ["--bits", "5", "--type", "Q4_0", "--text", text], ["--smooth", "0.5"],
                    ["--activations", "static", "--text", text], ["--activations", "static", "--type", "Q8_0"]):  # fmt: skip
        assert main([a, out, *options]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert not Path(out).exists()


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_an_interrupted_run_leaves_no_file(tmp_path: Path, number: signal.Signals, code: int) -> None:
    tiny.write(tmp_path / "a.gguf", "llama", "F32", layers=40, hidden=256, ff=512)
    (tmp_path / "text.txt").write_text(TEXT * 4)
    command = [sys.executable, "-m", "engine.quantize", "a.gguf", "b.gguf", "--method", "gptq", "--text", "text.txt"]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}

    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.read(1)  # the bar: the output file is open
        process.send_signal(number)
        process.stderr.read()
        assert process.wait() == code
    if number == signal.SIGINT or hasattr(os, "O_TMPFILE"):
        assert sorted(os.listdir(tmp_path)) == ["a.gguf", "text.txt"]
