"""Text from handlers, made storable: it may hold anything and be of any size."""

from __future__ import annotations

import re
from itertools import islice
from traceback import FrameSummary, StackSummary, walk_tb
from types import TracebackType
from typing import Final

ENDS: Final = 20
CHAIN: Final = 20
GROUP: Final = 10
GROUP_DEPTH: Final = 3

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_CAUSE: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"


def clean_text(text: str, cap: int) -> str:
    r"""Return *text* without NUL and lone surrogates, at most *cap* bytes of UTF-8.

    What cannot be stored becomes U+FFFD. A cut is marked at the end with the number of bytes cut.

    Example:
        >>> clean_text("page\x004", 100)
        'page�4'
        >>> clean_text("x" * 100, 30)
        'xxxxxxxxxxx… [89 bytes cut]'
    """
    clean, data = _clean(text)
    if len(data) <= cap:
        return clean
    room = max(0, cap - len(_marker(len(data)).encode()))
    kept = data[:room].decode("utf-8", "ignore")
    cut = kept + _marker(len(data) - len(kept.encode()))
    return cut.encode()[: max(0, cap)].decode("utf-8", "ignore")


def cut_middle(text: str, cap: int) -> str:
    """As :func:`clean_text`, but keep both ends: in a traceback the ends matter."""
    clean, data = _clean(text)
    if len(data) <= cap:
        return clean
    room = cap - len(_marker(len(data)).encode()) - 2
    if room < 2:
        return clean_text(clean, cap)
    head = data[: room // 2].decode("utf-8", "ignore")
    tail = data[-(room - room // 2) :].decode("utf-8", "ignore")
    cut = len(data) - len(head.encode()) - len(tail.encode())
    return f"{head}\n{_marker(cut)}\n{tail}"


def class_name(cls: type) -> str:
    """The name a class is stored under: ``module.qualname``, builtins without the module.

    Example:
        >>> class_name(ValueError), class_name(re.Pattern)
        ('ValueError', 're.Pattern')
    """
    module, name = str(cls.__module__), str(cls.__qualname__)
    return name if module == "builtins" else f"{module}.{name}"


def describe_exception(exc: BaseException, cap: int) -> tuple[str, str, str]:
    """Return (type name, message, traceback) of *exc*; together at most *cap* bytes. Never raises.

    A message that cannot be had is replaced by a remark. The traceback follows causes (each once) and groups,
    and keeps 20 frames at each end. Nothing is imported and no class is looked up by name.

    Example:
        >>> describe_exception(KeyError("id"), 1000)[:2]
        ('KeyError', "'id'")
    """
    cap = max(0, cap)
    name = clean_text(_name_of(exc), min(256, cap // 8))
    message = clean_text(_message_of(exc), cap // 4)
    room = cap - len(name.encode()) - len(message.encode())
    try:
        trace = "".join(_render_chain(exc, cap // 4, depth=0))
    except BaseException as error:
        trace = f"(the traceback could not be written: {type(error).__name__})"
    return name, message, cut_middle(trace, room)


def _clean(text: str) -> tuple[str, bytes]:
    if not text.isascii() or "\0" in text:
        text = _UNSTORABLE.sub("\ufffd", text)
    return text, text.encode()


def _marker(size: int) -> str:
    return f"… [{size} bytes cut]"


def _name_of(exc: BaseException) -> str:
    try:
        return class_name(type(exc))
    except BaseException:
        return "(an exception whose class has no name)"


def _message_of(exc: BaseException) -> str:
    try:
        return "".join((str(exc),))
    except BaseException as error:
        return f"(its message could not be had: {type(error).__name__})"


def _render_chain(exc: BaseException, cap: int, *, depth: int) -> list[str]:
    chain: list[tuple[BaseException, str]] = []
    seen: set[int] = set()
    current: BaseException | None = exc
    link = ""
    while current is not None and id(current) not in seen and len(chain) < CHAIN:
        seen.add(id(current))
        chain.append((current, link))
        current, link = _before(current)
    lines = ["(earlier exceptions of the chain are left out)\n"] if current is not None else []
    for one, after in reversed(chain):
        lines += _render_one(one, cap, depth)
        lines.append(after)
    return lines


def _before(exc: BaseException) -> tuple[BaseException | None, str]:
    if exc.__cause__ is not None:
        return exc.__cause__, _CAUSE
    if exc.__suppress_context__:
        return None, ""
    return exc.__context__, _CONTEXT


def _render_one(exc: BaseException, cap: int, depth: int) -> list[str]:
    lines: list[str] = []
    if exc.__traceback__ is not None:
        lines += ["Traceback (most recent call last):\n", *_render_frames(exc.__traceback__)]
    message = clean_text(_message_of(exc), cap)
    lines.append(f"{_name_of(exc)}: {message}\n" if message else f"{_name_of(exc)}\n")
    lines += [f"{clean_text(note, cap)}\n" for note in _notes(exc)]
    if isinstance(exc, BaseExceptionGroup):
        lines += _render_group(exc, cap, depth)
    return lines


def _notes(exc: BaseException) -> list[str]:
    notes = getattr(exc, "__notes__", None)
    if not isinstance(notes, list):
        return []
    return [note for note in notes[:GROUP] if isinstance(note, str)]


def _render_group(group: BaseExceptionGroup[BaseException], cap: int, depth: int) -> list[str]:
    if depth >= GROUP_DEPTH:
        return ["  (deeper groups are left out)\n"]
    lines: list[str] = []
    for number, exc in enumerate(group.exceptions[:GROUP], start=1):
        lines.append(f"  + {number} of {len(group.exceptions)}\n")
        text = "".join(_render_chain(exc, cap // GROUP, depth=depth + 1))
        lines += [f"  | {line}\n" for line in text.splitlines()]
    if len(group.exceptions) > GROUP:
        lines.append(f"  + {len(group.exceptions) - GROUP} more are left out\n")
    return lines


def _render_frames(trace: TracebackType) -> list[str]:
    count = sum(1 for _ in walk_tb(trace))
    if count <= 2 * ENDS:
        return _lines(trace, 0, count)
    cut = f"  … {count - 2 * ENDS} frames left out …\n"
    return [*_lines(trace, 0, ENDS), cut, *_lines(trace, count - ENDS, count)]


def _lines(trace: TracebackType, start: int, stop: int) -> list[str]:
    frames = [
        FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in islice(walk_tb(trace), start, stop)
    ]
    return StackSummary.from_list(frames).format()
