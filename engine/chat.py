"""Chat templates: the program in a model file that turns messages into a prompt. It is not trusted.

Jinja's immutable sandbox keeps a template from Python's internals; besides, work, output and the size of products are
bounded, so that an endless loop or `'x' * 10**9` ends in one line. What a user wrote can't spell a control token such as
<|im_end|>: a mark is put inside such a text before it is rendered, and taken out again when the prompt is cut into tokens.
"""

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import EngineError, FileError, OptionError
from engine.escape import escape

GUARD = "\ufdd0"  # a noncharacter, which no text has
MAX_TEMPLATE, MAX_OUTPUT = 1 << 17, 1 << 22  # characters
MAX_LINES = 200_000  # lines of the compiled template that may run
MAX_SECONDS = 1.0
ROLES = ("system", "user", "assistant", "tool")


class _TooMuch(Exception):
    pass


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if not numbers or abs(left) > 1 << 31 or (operator == "**" and abs(right) > 64):
            raise _TooMuch(f"{operator} of large or other than numbers")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """The chat template of a model file.

    Raises:
        FileError: if the template is not valid, or is longer than any real one.
    """

    def __init__(self, source: str, name: str) -> None:
        self._name = name
        if len(source) > MAX_TEMPLATE:
            self._fail(f"has {len(source)} characters, expected at most {MAX_TEMPLATE}")
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals = {"raise_exception": _refuse, "strftime_now": _now} | {
            name: environment.globals[name] for name in ("range", "namespace", "dict")
        }
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError, MemoryError) as error:
            self._fail(f"is not valid Jinja ({escape(str(error), 100)})")

    def render(self, messages: Sequence[Mapping[str, str]], bos: str, eos: str, controls: Sequence[str]) -> str:
        """The prompt that asks for the next answer; a user's text holds GUARD inside whatever spells one of `controls`.

        Raises:
            OptionError: for messages that are not a list of role and content.
            FileError: where the template fails, or does too much.
        """
        guarded = [_checked(n, message, controls) for n, message in enumerate(messages)]
        if not guarded:
            raise OptionError("messages: are empty; give at least one, such as {'role': 'user', 'content': 'Hello'}")
        values = {"messages": guarded, "bos_token": bos, "eos_token": eos, "add_generation_prompt": True}
        try:
            return _bounded(lambda: self._template.generate(values))
        except (TemplateError, _TooMuch, EngineError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            self._fail(f"failed ({escape(str(error), 120)})")
        except (RecursionError, MemoryError, AttributeError) as error:
            self._fail(f"failed ({type(error).__name__})")

    def _fail(self, what: str) -> NoReturn:
        raise FileError(f"{self._name}: chat template: {what}; give the prompt itself instead of messages")


def _checked(n: int, message: Mapping[str, str], controls: Sequence[str]) -> dict[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise OptionError(f"messages: number {n} is not {{'role': ..., 'content': ...}}")
    role, content = message["role"], message["content"]
    if role not in ROLES or not isinstance(content, str):
        raise OptionError(f"messages: number {n} has role {escape(repr(role))}, expected {', '.join(ROLES)} and a text")
    content = content.replace(GUARD, "")
    for control in controls:
        content = content.replace(control, control[:1] + GUARD + control[1:])
    return {"role": role, "content": content}


def _bounded(generate: Callable[[], Any]) -> str:
    """Run a template in a thread of its own, which counts its lines; the text, or what the thread raised."""
    found: list[str] = []
    failure: list[BaseException] = []
    lines = 0
    deadline = time.monotonic() + MAX_SECONDS

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += 1
        if lines > MAX_LINES or time.monotonic() > deadline:
            raise _TooMuch("it runs too long")
        return trace

    def work() -> None:
        sys.settrace(trace)
        length = 0
        try:
            for piece in generate():
                length += len(piece)
                if length > MAX_OUTPUT:
                    raise _TooMuch("it writes too much")
                found.append(piece)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="intengine-template")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return "".join(found)


def _refuse(message: str) -> NoReturn:
    raise OptionError(f"the template refuses the messages: {message}")


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
