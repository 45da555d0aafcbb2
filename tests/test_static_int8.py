"""The static INT8 form: written by the quantiser, run in integers alone, what its options do, and what is refused."""

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import model_run
import numpy as np
import pytest
import static_truth
import tiny
import truth
from safetensors.numpy import load_file, save_file
from test_integer_only import CALIBRATION, MODELS, VALID, float_uses, kernels_of
from test_model import shared

import engine
from engine.evaluate import evaluate
from engine.float_source import float_source
from engine.integer_calibration import HEADROOM, calibrated_scales, calibration_windows
from engine.loader import load_gguf
from engine.quantize import main as quantize
from engine.static_int8 import StaticFile, write_form
from models.quantizers.observers import OBSERVERS
from models.quantizers.static import channel_units, from_floats, stored_shapes

FLOATS = {name: options | {"type": "F32"} for name, options in MODELS.items() if name != "k"}
FLOATS["llama"] = {"type": "F16", "rope_divisors": True}
TEXT = CALIBRATION * 6


@pytest.fixture(scope="module", params=FLOATS)
def form(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static form; the float model lies beside it, as NAME.gguf."""
    path = tmp_path_factory.mktemp("forms") / f"{request.param}.gguf"
    tiny.write(path, **FLOATS[request.param])
    return quantized(path, path.with_suffix(".safetensors"))


def quantized(source: Path, out: Path, *options: str, text: str = TEXT) -> Path:
    (out.parent / "text.txt").write_text(text)
    arguments = ["--activations", "static", "--text", str(out.parent / "text.txt"), "--tokens", "1024", *options]
    assert quantize([str(source), str(out), *arguments]) == 0
    return out


# ---- what runs ----


def test_a_form_runs_in_integers_alone(form: Path) -> None:
    """Whether it is asked for or not: no float in any kernel, and close to the float model."""
    with engine.load(form, threads=2) as llm:
        assert llm.integer_only
        found = model_run.run(llm)
        kernels = {kernel.name: kernel for kernel in kernels_of(llm)}
        assert len(kernels) == 15
        ids = llm.tokenize(CALIBRATION)[:90]
        logits = llm.logits(ids)
    if form.stem == "llama":
        assert {name: float_uses(kernel) for name, kernel in kernels.items()} == {name: [] for name in kernels}
    with engine.load(form.with_suffix(".json"), threads=1, chunk=7, integer_only=True) as llm:
        assert model_run.run(llm) == found
    scale = 8 if FLOATS[form.stem].get("tied") else 1  # as in `test_model.py`
    assert truth.kl(truth.forward(form.with_suffix(".gguf"), ids) / scale, logits / scale) < 0.001


def test_the_form_says_all(form: Path) -> None:
    """A plain forward pass over the file's tensors, by the formulas of its description, gives the engine's logits."""
    # to 5e-6 of them, until a code near the middle between two is the other one, which moves all that follows by 1 %
    texts = np.random.default_rng(5).integers(3, 280, (16, 3)).tolist()
    with engine.load(form, threads=2) as llm:
        found = [llm.logits(ids) for ids in texts]
    expected = [static_truth.forward(form, ids) for ids in texts]
    errors = np.array([np.abs(a - b).max(1) for a, b in zip(expected, found)]) / np.std(expected)
    assert np.mean(errors < 2e-5) > 0.4 and errors.max() < 0.1


def test_generic_code(form: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same integers from code for any processor."""
    with engine.load(form, threads=1) as llm:
        expected = model_run.run(llm)
    root, base = Path(__file__).parents[1], tmp_path_factory.getbasetemp()
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "INTENGINE_CACHE": str(base / "generic")}
    environment |= {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    command = [sys.executable, "-m", "model_run", str(form), "2", "16"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_a_form_is_what_a_gguf_file_becomes_when_it_is_loaded(form: Path) -> None:
    """One mechanism: the same scales, written and read, give the same integers as those that stayed in memory."""
    source = form.with_suffix(".gguf")
    with engine.load(source, threads=1, integer_only=True, calibration=CALIBRATION) as llm:
        expected = model_run.run(llm)
    out = form.with_name("same.safetensors")
    with float_source(source) as opened:
        loaded = load_gguf(source, 2, None, 256, [])
        read = opened.model.read
        scales = calibrated_scales(loaded, calibration_windows(loaded, CALIBRATION), read, headroom=HEADROOM)
        loaded.team.close()
        write_form(str(out), from_floats(opened.config, read, scales), opened.keys, {}, lambda weights: None)
    with engine.load(out, threads=2) as llm:
        assert model_run.run(llm) == expected


def test_what_is_written(form: Path) -> None:
    stored = load_file(form)
    with StaticFile.open(form) as file:
        shapes = stored_shapes(file.config)
        assert file.size == form.stat().st_size + form.with_suffix(".json").stat().st_size
        nbytes = sum(stored[name].nbytes for name in shapes)
        weights = sum(stored[name].size for name in shapes if not name.endswith("scale"))
        assert file.bits_per_weight == 8 * nbytes / weights
    assert {name: (str(stored[name].dtype), stored[name].shape) for name in shapes} == shapes
    assert set(stored) == {*shapes, "vocabulary"} and bytes(stored["vocabulary"][:4]) == b"GGUF"
    beside = sorted(path.name for path in form.parent.glob(f"{form.stem}.*"))
    assert beside == [f"{form.stem}{end}" for end in (".gguf", ".json", ".safetensors")]


def test_commands_take_a_form(form: Path) -> None:
    if form.stem != "llama":
        pytest.skip("one is enough")
    command = [
        sys.executable,
        "-m",
        "engine.generate",
        "--integer-only",
        "--model",
        str(form),
        "--json",
        "--threads",
        "1",
    ]
    command += ["--temperature", "0", "--max-tokens", "5", "--ignore-eos", "the cat"]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with engine.load(form, threads=1) as llm:
        expected = llm.generate("the cat", max_tokens=5, ignore_eos=True).text
    assert json.loads(done.stdout)["text"] == expected
    with pytest.raises(engine.OptionError, match="holds its scales"):
        engine.load(form, calibration=CALIBRATION)
    with pytest.raises(engine.OptionError, match="trained for 160"):
        engine.load(form, context=161)


# ---- options of the quantiser ----


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, float], dict[str, np.ndarray]]:
    """The scales that each observer and each power of SmoothQuant give, by name."""
    path = tmp_path_factory.mktemp("grid") / "a.gguf"
    tiny.write(path, layers=1)
    found = {}
    for observer, smooth in [(name, 0.5) for name in OBSERVERS] + [("min-max", 0.0), ("min-max", 1.0)]:
        out = quantized(path, path.with_suffix(".safetensors"), "--observer", observer, "--smooth", str(smooth))
        assert json.loads(out.with_suffix(".json").read_text())["calibration"]["observer"] == observer
        stored = load_file(out)
        found[observer, smooth] = {n: v.astype(np.float64) for n, v in stored.items() if n.endswith(".scale")}
        found[observer, smooth] |= {"W": np.abs(stored["blk.0.ffn_down.weight"]).max(1).astype(np.float64)}
    return found


INPUTS = ("blk.0.attn_in", "blk.0.attn_out", "blk.0.ffn_in", "blk.0.product", "output_in")


def test_smoothquant_moves_ranges_between_channels(grid: dict[tuple[str, float], dict[str, np.ndarray]]) -> None:
    """Power 0: one scale for all channels. Power 1: that of its largest. Power 1/2: the geometric mean of both ends."""
    none, half, whole = (grid["min-max", power] for power in (0.0, 0.5, 1.0))
    for name in (f"{name}.scale" for name in INPUTS):
        assert np.ptp(none[name]) == 0 and np.ptp(whole[name]) > 0.1 * whole[name].mean()
        assert none[name][0] == pytest.approx(whole[name].max(), rel=1e-6)  # the largest of all channels
        assert np.ptp(half[name]) > 0
        assert (half[name] >= whole[name] * (1 - 1e-6)).all()  # no channel's range is cut
        assert (half[name] / whole[name]).min() == pytest.approx(1, rel=1e-6)
    for name in ("blk.0.k.scale", "blk.0.v.scale", "x.scale", "logits.scale"):
        np.testing.assert_array_equal(none[name], half[name])


def test_the_units_are_smoothquants(tmp_path: Path) -> None:
    tiny.write(tmp_path / "a.gguf", layers=1)
    random = np.random.default_rng(3)
    with float_source(tmp_path / "a.gguf") as source:
        c, read = source.config, source.model.read
        widths = {"attn_in": c.hidden_size, "k": c.kv_size, "v": c.kv_size, "attn_out": c.query_size}
        widths |= {"ffn_in": c.hidden_size, "product": c.feed_forward_size}
        ranges = {f"blk.0.{name}": random.uniform(0.5, 4, n).astype(np.float32) for name, n in widths.items()}
        ranges["output_in"] = random.uniform(0.5, 4, c.hidden_size).astype(np.float32)
        w = np.maximum(np.abs(read("blk.0.ffn_gate.weight")).max(0), np.abs(read("blk.0.ffn_up.weight")).max(0))
        for power in (0.3, 0.5, 0.8):
            units = channel_units(c, ranges, read, power)
            expected = ranges["blk.0.ffn_in"].astype(np.float64) ** power / w.astype(np.float64) ** (1 - power)
            np.testing.assert_allclose(units["blk.0.ffn_in"], expected, rtol=1e-6)
            np.testing.assert_array_equal(units["blk.0.v"], ranges["blk.0.v"])
            pairs = ranges["blk.0.k"].reshape(-1, 2).max(1)
            np.testing.assert_array_equal(units["blk.0.k"], np.repeat(pairs, 2))


def test_observers_choose_the_limit(grid: dict[tuple[str, float], dict[str, np.ndarray]]) -> None:
    """The others cut what min-max covers, all channels of an activation alike; they leave alone what isn't INT8."""
    widest = grid["min-max", 0.5]
    limits: dict[str, list[float]] = {}
    for observer in ("percentile", "mse"):
        found = grid[observer, 0.5]
        for name in (*INPUTS, "blk.0.k", "blk.0.v"):
            ratio = found[f"{name}.scale"] / widest[f"{name}.scale"]
            assert ratio.max() <= 1.000001 and np.ptp(ratio) < 1e-6
            limits.setdefault(observer, []).append(float(ratio.mean()))
        np.testing.assert_array_equal(found["x.scale"], widest["x.scale"])
        np.testing.assert_array_equal(found["blk.0.up.scale"], widest["blk.0.up.scale"])
    assert min(limits["percentile"]) < 0.95 and min(limits["mse"]) < 0.98 and limits["percentile"] != limits["mse"]


@pytest.mark.parametrize("observer, smooth", [("mse", 0.5), ("min-max", 0.5), ("percentile", 0.5), ("mse", 0.0)])
def test_perplexity_within_two_percent(observer: str, smooth: float, tmp_path: Path) -> None:
    """stories260K on held-out stories, whatever the options; measured with all of the command's defaults: +0.6 %."""
    source = shared("F32")
    train = VALID.parent / "train.txt"
    if not VALID.exists():
        pytest.skip(f"{VALID} is not there")
    with open(train, encoding="utf-8") as file:
        text = file.read(40000)
    out = quantized(source, tmp_path / "s.safetensors", "--observer", observer, "--smooth", str(smooth), text=text)
    held_out = VALID.read_text(encoding="utf-8")[:20000]
    found, floats = (evaluate(str(path), held_out, None, 4096, 2) for path in (out, source))
    assert (found.arithmetic, floats.arithmetic) == ("integers", "floats")
    assert found.perplexity < 1.02 * floats.perplexity, (observer, smooth, found.perplexity / floats.perplexity)


# ---- forms that mean harm, or were cut short ----


@pytest.fixture
def copy(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A form of its own for each test, to be damaged."""
    kept = tmp_path_factory.getbasetemp() / "whole.safetensors"
    if not kept.exists():
        tiny.write(kept.with_suffix(".gguf"), layers=2)
        quantized(kept.with_suffix(".gguf"), kept)
    for end in (".safetensors", ".json"):
        (tmp_path / f"b{end}").write_bytes(kept.with_suffix(end).read_bytes())
    return tmp_path / "b.safetensors"


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(engine.FileError) as caught:
        engine.load(path, threads=1)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 2000 and all(part in text for part in parts), text


DESCRIPTIONS: dict[str, tuple[Any, str]] = {
    "empty": ("", "not valid JSON"),
    "list": ("[]", "not a JSON object"),
    "no format": ("{}", "not a description of a static INT8 model: 'format'"),
    "no JSON": ("\xff{", "not valid JSON"),
    "deep": ("[" * 60000, "not valid JSON"),
    "huge": ('{"format": "' + "x" * (1 << 20) + '"}', "larger than 1 MiB"),
    "number": ("9" * 20000, "not valid JSON"),
    "twice": ('{"format": 1, "format": 1}', "'format' is there twice"),
    "version": (("version", 1), "intengine-static-int8 1, expected intengine-static-int8 2"),
    "heads": (("heads", 0), "heads is 0"),
    "layers": (("layers", 10**9), "layers is 1000000000"),
    "more layers": (("layers", 3), "missing: "),
    "hidden": (("hidden_size", 96), "of another type or shape: "),
    "text": (("hidden_size", "64"), "expected int"),
    "context": (("context_length", 2**31), "context_length is 2147483648"),
    "eps": (("rms_eps", math.nan), "not valid JSON"),
    "base": (("rope_base", 1), "rope_base is 1, expected float"),
    "architecture": (("architecture", "mamba"), "'mamba' is not supported"),
    "beyond": (("window", 3), "window"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_wrong_descriptions(copy: Path, name: str) -> None:
    change, part = DESCRIPTIONS[name]
    description = copy.with_suffix(".json")
    if isinstance(change, str):
        description.write_bytes(change.encode("latin-1"))
    else:
        key, value = change
        found = json.loads(description.read_text())
        (found if key in found else found["model"])[key] = value
        description.write_text(json.dumps(found))
    refused(copy, "b.", part)


@pytest.mark.parametrize("name, message", [("b.json", "alone is not a model"), ("b.safetensors", "is missing")])
def test_half_a_form(copy: Path, name: str, message: str) -> None:
    copy.with_name(name).unlink()
    refused(copy, message)
    os.mkfifo(copy.with_name(name))  # opening it would wait for ever
    refused(copy, "not a regular file")


def header(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(entries: Any, data: bytes) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_damaged_safetensors(copy: Path) -> None:
    """Cut, lengthened, and with offsets, shapes and types that can't be."""
    whole = copy.read_bytes()
    entries, data = header(whole)
    damaged = [
        b"",
        whole[:7],
        whole[:100],
        whole[:-1],
        whole + b"x",
        b"\xff" * 200,
        struct.pack("<Q", 2**63) + whole[8:],
    ]
    damaged += [with_header(text, data) for text in (b"{", b"[]", b"{" * 5000, b'{"a":' * 5000, b"\xff\xfe")]
    damaged += [
        with_header({"__metadata__": {}}, b""),
        with_header(b" " * (100 << 10), data),
        b"version https://git-lfs",
    ]
    name = "blk.1.ffn_up.weight"
    begin, end = entries[name]["data_offsets"]
    for field, value in [
        ("data_offsets", [begin - 1, end - 1]), ("data_offsets", [begin, end + 1]), ("data_offsets", [end, begin]),
        ("data_offsets", [-1, 5]), ("data_offsets", [0, 2**64]), ("data_offsets", [0, end - begin]), ("data_offsets", "x"),
        ("shape", [96, 63]), ("shape", [64, 96]), ("shape", [2**32, 2**32]), ("shape", [-96, -64]), ("shape", [96 * 64]),
        ("dtype", "U8"), ("dtype", "F32"), ("dtype", "X"), ("dtype", 3),
    ]:  # fmt: skip
        damaged.append(with_header(entries | {name: entries[name] | {field: value}}, data))
    missing = {key: entry for key, entry in entries.items() if key != name}
    damaged += [with_header(missing, data), with_header(entries | {name: 5}, data)]
    for wrong in damaged:
        copy.write_bytes(wrong)
        refused(copy, "b.safetensors")


VALUES: dict[str, tuple[str, float, str]] = {
    "NaN scale": ("blk.1.attn_in.scale", math.nan, "'blk.1.attn_in.scale': holds NaN"),
    "infinite scale": ("blk.0.ffn_down.weight_scale", math.inf, "'blk.0.ffn_down.weight_scale': holds NaN"),
    "zero scale": ("blk.0.product.scale", 0, "'blk.0.product.scale': a scale is 0.0"),
    "negative scale": ("output_in.scale", -1, "'output_in.scale': a scale is -1.0"),
    "tiny scale": ("blk.0.v.scale", 1e-38, "integer-only: a ratio of scales is not finite, or 2^30 and more"),
    "huge scale": ("blk.1.attn_output.weight_scale", 1e38, "integer-only: a ratio of scales"),
    "norm": ("blk.1.attn_norm.weight", math.nan, "'blk.1.attn_norm.weight': holds NaN"),
    "residual stream": ("x.scale", 0.3, "x.scale is 0.3"),
    "residual stream, far": ("x.scale", 2.0**-120, "x.scale is 7.52"),
    "epsilon": ("x.scale", 2.0**-60, "epsilon"),
    "logits": ("logits.scale", 2.0**-40, "logits.scale is"),
    "pair": ("blk.0.k.scale", 0.5, "inside of a rotary pair"),
    "code": ("blk.0.attn_q.weight", -128, "the code -128"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_cannot_be(copy: Path, name: str) -> None:
    tensor, value, message = VALUES[name]
    stored = load_file(copy)
    stored[tensor].reshape(-1)[:1] = value
    save_file(stored, copy)
    refused(copy, "b.safetensors", message)


@pytest.mark.parametrize("change", ["beyond", "missing", "type", "vocabulary", "empty vocabulary", "no vocabulary"])
def test_tensors_that_do_not_belong(copy: Path, change: str) -> None:
    stored = load_file(copy)
    if change == "beyond":
        stored["blk.7.attn_q.weight"] = stored["blk.0.attn_q.weight"]
    elif change == "missing":
        del stored["blk.0.attn_q.weight"]
    elif change == "type":
        stored["blk.0.attn_q.weight"] = stored["blk.0.attn_q.weight"].astype(np.float32)
    elif change == "no vocabulary":
        del stored["vocabulary"]
    else:
        stored["vocabulary"] = stored["vocabulary"][: 0 if change == "empty vocabulary" else 99]
    save_file(stored, copy)
    refused(copy, "vocabulary" if "vocabulary" in change else "blk.")


def test_a_bias_beyond_int32(copy: Path, tmp_path: Path) -> None:
    tiny.write(tmp_path / "q.gguf", arch="qwen2", layers=1)
    form = quantized(tmp_path / "q.gguf", tmp_path / "q.safetensors")
    for value in (1e9, 3e38):
        stored = load_file(form)
        stored["blk.0.attn_q.bias"][3] = value
        save_file(stored, form)
        refused(form, "more than int32 holds")
