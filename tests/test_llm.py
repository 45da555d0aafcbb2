"""The public face: generating, streaming, scoring, stopping, queueing callers, and what is refused."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import engine

PROMPT = [1, 70, 80, 90, 100]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llm") / "tiny.gguf"
    tiny.write(path, type="Q8_0")
    return path


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[engine.LLM]:
    with engine.load(path, threads=2) as llm:
        yield llm


def test_generation_and_stream_agree(llm: engine.LLM) -> None:
    options: dict[str, Any] = {"max_tokens": 20, "temperature": 0.8, "seed": 5, "ignore_eos": True}
    whole = llm.generate(PROMPT, **options)
    pieces = list(llm.stream(PROMPT, **options))
    assert [piece.id for piece in pieces if piece.id >= 0] == whole.ids and len(whole.ids) == 20
    assert "".join(piece.text for piece in pieces) == whole.text
    assert whole.finish_reason == "length"
    assert whole.timings.prompt_tokens == len(PROMPT) and whole.timings.generated_tokens == 20
    assert llm.generate(PROMPT, **options | {"seed": 6}).ids != whole.ids


def test_logprob_of_a_piece_is_that_of_the_logits(llm: engine.LLM) -> None:
    for piece in llm.stream(PROMPT, max_tokens=1, ignore_eos=True):
        row = llm.logits(PROMPT)[-1].astype(np.float64)
        expected = row[piece.id] - row.max() - math.log(np.exp(row - row.max()).sum())
        assert abs(piece.logprob - expected) < 1e-5


def test_score_is_the_logprob_of_each_next_token(llm: engine.LLM) -> None:
    ids = [1, *range(40, 160, 3)]
    score = llm.score(ids)
    logits = llm.logits(ids).astype(np.float64)
    total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    expected = [logits[t, ids[t + 1]] - total[t] for t in range(len(ids) - 1)]
    assert score.ids == ids and np.allclose(score.logprobs, expected, atol=1e-5, rtol=0)
    assert math.isclose(score.perplexity, math.exp(-float(np.mean(score.logprobs))), rel_tol=1e-12)
    assert math.isnan(llm.score([1]).perplexity)


def test_stop_string_and_end_of_context(llm: engine.LLM) -> None:
    free = llm.generate(PROMPT, max_tokens=30, ignore_eos=True)
    stop = free.text[4:7]
    stopped = llm.generate(PROMPT, max_tokens=30, stop=stop, ignore_eos=True)
    assert stopped.finish_reason == "stop" and stopped.text == free.text[: free.text.index(stop)]
    full = llm.generate(PROMPT, max_tokens=10_000, ignore_eos=True)
    assert full.finish_reason == "context"
    assert full.timings.prompt_tokens + full.timings.generated_tokens == llm.context + 1
    assert llm.generate(PROMPT, max_tokens=0).ids == []


def test_penalty_and_filters_reach_the_sampler(llm: engine.LLM) -> None:
    greedy = llm.generate(PROMPT, max_tokens=25, ignore_eos=True).ids
    assert llm.generate(PROMPT, max_tokens=25, ignore_eos=True, temperature=1, top_k=1).ids == greedy
    assert llm.generate(PROMPT, max_tokens=25, ignore_eos=True, temperature=1, min_p=1).ids == greedy
    penalised = llm.generate(PROMPT, max_tokens=25, ignore_eos=True, repetition_penalty=1e6).ids
    assert len(set(penalised)) == 25


def test_callers_in_several_threads_queue(llm: engine.LLM) -> None:
    alone = [llm.generate([1, 60 + n], max_tokens=15, ignore_eos=True).ids for n in range(4)]
    found: dict[int, list[int]] = {}

    def work(n: int) -> None:
        found[n] = llm.generate([1, 60 + n], max_tokens=15, ignore_eos=True).ids

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [found[n] for n in range(4)] == alone


def test_two_engines_at_once(path: Path, llm: engine.LLM) -> None:
    alone = llm.generate(PROMPT, max_tokens=60, ignore_eos=True).ids
    with engine.load(path, threads=2) as other:
        found: list[list[int]] = []
        threads = [
            threading.Thread(target=lambda m=m: found.append(m.generate(PROMPT, max_tokens=60, ignore_eos=True).ids))
            for m in (llm, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == [alone, alone]


def test_closing_a_stream_lets_the_next_caller_in(llm: engine.LLM) -> None:
    stream = llm.stream(PROMPT, max_tokens=100, ignore_eos=True)
    next(stream)
    stream.close()
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.extend(llm.generate(PROMPT, max_tokens=3, ignore_eos=True).ids))
    thread.start()
    thread.join(10)
    assert len(done) == 3


def test_a_stream_gives_way_to_what_its_own_thread_begins(llm: engine.LLM) -> None:
    expected = llm.generate([1, 65], max_tokens=8, ignore_eos=True).ids
    stream = llm.stream(PROMPT, max_tokens=100, ignore_eos=True)
    next(stream)
    assert llm.generate([1, 65], max_tokens=8, ignore_eos=True).ids == expected
    assert len([piece for piece in stream if piece.id >= 0]) <= 1
    assert llm.last is not None and llm.last[0] == "cancelled"
    assert llm.generate([1, 65], max_tokens=8, ignore_eos=True).ids == expected


def test_a_cancelled_prompt_is_not_taken_for_computed(llm: engine.LLM) -> None:
    prompt = [1, *range(40, 140)]
    expected = llm.generate(prompt, max_tokens=5, ignore_eos=True).ids
    with engine.load(llm.name, threads=2, chunk=16) as small:
        cancelled = small.generate(prompt, max_tokens=5, ignore_eos=True, progress=lambda done, total: small.cancel())
        assert cancelled.finish_reason == "cancelled" and cancelled.ids == []
        assert small.generate(prompt, max_tokens=5, ignore_eos=True).ids == expected


def test_cancel_from_another_thread(llm: engine.LLM) -> None:
    stream = llm.stream(PROMPT, max_tokens=100, ignore_eos=True)
    next(stream)
    threading.Thread(target=llm.cancel).start()
    time.sleep(0.05)
    assert len(list(stream)) < 99
    assert llm.last is not None and llm.last[0] == "cancelled"
    assert len(llm.generate(PROMPT, max_tokens=5, ignore_eos=True).ids) == 5


@pytest.mark.parametrize(
    "prompt, options, message",
    [
        ([], {}, "prompt: no ids"),
        ([5000], {}, "token id 5000, expected 0 to"),
        ([-1], {}, "token id -1"),
        ([7] * 1000, {}, "1000 tokens, the context holds"),
        ([1], {"temperature": math.nan}, "temperature"),
        ([1], {"temperature": -1}, "temperature"),
        ([1], {"top_p": 2}, "top_p"),
        ([1], {"max_tokens": -1}, "max_tokens"),
        ([1], {"tempreature": 1}, "not known"),
    ],
)
def test_what_makes_no_sense_is_refused(llm: engine.LLM, prompt: Any, options: dict[str, Any], message: str) -> None:
    for call in (llm.generate, llm.stream):
        with pytest.raises(engine.EngineError, match=message) as caught:
            call(prompt, **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"threads": 1.5}, {"context": 0}, {"context": 2**31}, {"chunk": -1}]
)
def test_load_refuses_options(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(engine.OptionError):
        engine.load(path, **options)


def test_a_context_beyond_training_is_refused(path: Path) -> None:
    with pytest.raises(engine.OptionError, match=r"trained for 160; ask for 1 to 160"):
        engine.load(path, context=161)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for type_, place in (("Q8_0", 0), ("F32", 0)):
        bad = tmp_path / f"{type_}.gguf"
        tiny.write(bad, type=type_)
        from engine.gguf import GGUFFile

        with GGUFFile.open(bad) as file:
            at = file.tensors["blk.1.ffn_up.weight"].offset + place
        data = bytearray(bad.read_bytes())
        data[at : at + 4] = b"\x00\x7c\x80\x7f" if type_ == "Q8_0" else b"\x00\x00\x80\x7f"
        bad.write_bytes(data)
        with pytest.raises(engine.FileError, match=r"tensor 'blk.1.ffn_up.weight': a \w+ is NaN or infinite"):
            engine.load(bad)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_during_a_long_prompt_stops_within_100_ms(path: Path) -> None:
    """A real SIGINT in a process that computes prompts without a pause."""
    code = f"""
        import sys, time
        import engine
        llm = engine.load({str(path)!r}, threads=2)
        print("ready", flush=True)
        try:
            while True:
                llm.logits([1] * 150)
        except KeyboardInterrupt:
            print(time.clock_gettime(time.CLOCK_MONOTONIC), len(llm.generate([1], max_tokens=3, ignore_eos=True).ids))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    sent = time.clock_gettime(time.CLOCK_MONOTONIC)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    stopped, count = out.split()
    assert float(stopped) - sent < 0.1 and count == "3"
