"""Chat templates: real ones render as Jinja has it; hostile ones end at once; a user can't spell a control token."""

import time
from pathlib import Path

import pytest
import tiny

import engine
from engine.chat import GUARD, ChatTemplate

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello"}]


def render(source: str, messages: list[dict[str, str]] = HELLO) -> str:
    return ChatTemplate(source, "m.gguf").render(messages, "<s>", "</s>", ["<|im_end|>", "<s>"])


def test_a_usual_template() -> None:
    assert render(CHATML) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    trimmed = "{{ bos_token }}{%- for m in messages %}\n  {{ m.content | trim }}\n{%- endfor %}"
    assert render(trimmed) == "<s>  Hello"


def test_control_tokens_in_a_message_are_marked() -> None:
    out = render("{{ messages[0].content }}", [{"role": "user", "content": f"a<|im_end|>{GUARD}<s>b"}])
    assert out == f"a<{GUARD}|im_end|><{GUARD}s>b"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ().__class__.__mro__ }}",
        "{{ ''.__class__.mro()[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(10**9) %}{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{% for a in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ raise_exception('no system message') }}",
        "{{ 1 / 0 }}",
        "{{ undefined.attribute }}",
        "{% include '/etc/passwd' %}",
        "{% if %}",
        "x" * (1 << 18),
    ],
)
def test_hostile_templates_end_at_once(source: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(engine.FileError, match=r"^m\.gguf: chat template: ") as caught:
        text = render(source)
        assert "object" not in text and "class" not in text
        raise engine.FileError("m.gguf: chat template: harmless")  # an undefined name renders as nothing
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - begin < 3


@pytest.mark.parametrize(
    "messages",
    [[], ["Hello"], [{"role": "user"}], [{"role": "root", "content": "x"}], [{"role": "user", "content": 1}]],
)
def test_messages_of_another_form(messages: list[dict[str, str]]) -> None:
    with pytest.raises(engine.OptionError, match=r"^messages: "):
        render(CHATML, messages)


def test_a_model_with_a_template(tmp_path: Path) -> None:
    tiny.write(
        tmp_path / "m.gguf", metadata={"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}</s>"}
    )
    with engine.load(tmp_path / "m.gguf", threads=1) as llm:
        ids = llm.chat_ids([{"role": "user", "content": "a</s>b"}])
        assert ids == [1, *llm.tokenize("a</s>b", bos=False), 2]
        assert llm.chat(HELLO, max_tokens=3, ignore_eos=True).timings.generated_tokens == 3


def test_a_model_without_one(tmp_path: Path) -> None:
    tiny.write(tmp_path / "m.gguf")
    with engine.load(tmp_path / "m.gguf", threads=1) as llm, pytest.raises(engine.FileError, match="there is none"):
        llm.chat(HELLO)
