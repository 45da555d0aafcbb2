"""The INT4 product against ONNX Runtime's `MatMulNBits`, turn by turn:

    python -m bench.onnx_peer --peer /path/to/python        # one that has onnxruntime and onnx; default: this one

Both multiply float32 activations with 4-bit weights in blocks of 32, and quantise the activations to INT8 on the way: for
ONNX Runtime that is accuracy level 4, for us a Q4_0 product with its `quantize` step. 4096 x 4096, 16 matrices one after
another, 144 MB in all, so that no cache holds them. A turn takes some 0.1 s or more: a processor that slept before it begins
with less than half of the memory's bandwidth. The peer runs in a process of its own, started with this same file.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SIZE, COPIES, BLOCK = 4096, 16, 32
PASSES = {1: 20, 16: 4, 256: 1}  # rows: how often a turn multiplies with all matrices
PAUSE = 0.05  # seconds between turns


def peer(threads: int) -> None:
    """The other process: answers each line, a number of rows, with the seconds that a turn took."""
    import numpy as np
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    nodes, constants = [], []
    for i in range(COPIES):
        codes = rng.integers(0, 256, (SIZE, SIZE // BLOCK, BLOCK // 2), np.uint8)
        scales = rng.uniform(0.7, 1.3, SIZE * SIZE // BLOCK).astype(np.float32) / (4.6 * SIZE**0.5)
        for name, value in ((f"codes{i}", codes), (f"scales{i}", scales.astype(np.float32))):
            constants.append(onnx.numpy_helper.from_array(value, name))
        nodes.append(
            helper.make_node(
                "MatMulNBits", [f"x{i}", f"codes{i}", f"scales{i}"], [f"x{i + 1}"],
                domain="com.microsoft", K=SIZE, N=SIZE, bits=4, block_size=BLOCK, accuracy_level=4,
            )
        )  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", SIZE]) for name in ("x0", f"x{COPIES}")]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], constants)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.onnx"
        onnx.save(model, path)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    x = {rows: rng.standard_normal((rows, SIZE), np.float32) for rows in PASSES}
    sys.stdout.write(json.dumps({"version": ort.__version__}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        rows, begin = int(line), time.perf_counter()
        for _ in range(PASSES[rows]):
            session.run(None, {"x0": x[rows]})
        sys.stdout.write(json.dumps({"seconds": time.perf_counter() - begin}) + "\n")
        sys.stdout.flush()


def main() -> None:
    """The command."""
    from bench.compare import Process, processor
    from bench.products import Products
    from engine import kernel_cache
    from engine.threads import default_threads

    parser = argparse.ArgumentParser(prog="python -m bench.onnx_peer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    kernel_cache.use()
    side = Process([options.peer, __file__, "--side", str(options.threads)], Path(__file__).parent)
    write = sys.stdout.write
    write(f"{processor()}; {options.threads} threads; ONNX Runtime {side.hello['version']}; G: 10^9 multiply-adds\n\n")
    write("| rows | ours, G/s | spread | ONNX Runtime, G/s | spread | ratio | ours, GB/s |\n")
    write("| --- | --- | --- | --- | --- | --- | --- |\n")
    for rows, passes in PASSES.items():
        with Products("Q4_0", rows, SIZE, SIZE, COPIES, options.threads) as products:
            ours, theirs = [], []
            for turn in range(-2, options.repeats):
                time.sleep(PAUSE)
                begin = time.perf_counter()
                for _ in range(passes):
                    products.run()
                own = time.perf_counter() - begin
                time.sleep(PAUSE)
                other = side.ask_line(str(rows))["seconds"]
                if turn >= 0:
                    ours.append(passes * products.multiply_adds / own / 1e9)
                    theirs.append(passes * products.multiply_adds / other / 1e9)
            gb = products.nbytes / products.multiply_adds * median(ours)
        cells = [str(rows)]
        for values in (ours, theirs):
            cells += [f"{median(values):.1f}", f"{min(values):.1f} to {max(values):.1f}"]
        write("| " + " | ".join([*cells, f"{median(ours) / median(theirs):.2f}", f"{gb:.1f}" if rows == 1 else ""]) + " |\n")
        sys.stdout.flush()
    side.close()


if __name__ == "__main__":
    if "--side" in sys.argv:
        peer(int(sys.argv[-1]))
    else:
        main()
