"""Reports of errors that the code of a policy did not catch.

The host takes the last report of a call as the cause of its failure.
"""

from enum import Enum
from typing import Any, List, NamedTuple, Optional

from componentize_py_types import Err
from wit_world.imports import types

# The beginning of a log line that reports a fault.
PREFIX = "pointsman:fault/1"
MAX_FRAMES = 8


class Frame(NamedTuple):
    """A frame of a traceback."""

    name: str
    file: str
    line: int


class MethodError(TypeError):
    """An error of a method of the policy, found outside of it, with the method as location."""

    def __init__(self, message: str, method: Any) -> None:
        super().__init__(message)
        code = code_of(method)
        self.frames = [] if code is None else [_frame(code, code.co_firstlineno)]


def code_of(method: Any) -> Any:
    """Return the code object of a function or a method, or None."""
    return getattr(getattr(method, "__func__", method), "__code__", None)


def report_fault(log: Any, error: BaseException) -> None:
    """Report an error to the host."""
    frames = _frames(error)
    place = next((frame for frame in frames if not _is_sdk(frame.file)), None)
    stack = [f"{frame.name} ({frame.file}:{frame.line})" for frame in frames[:MAX_FRAMES]]
    location = ["", ""] if place is None else [place.file, str(place.line)]
    fields = [*location, message_of(error), *stack]
    log.write(types.Level.ERROR, "\t".join([PREFIX, *map(_one_field, fields)]))


def message_of(error: BaseException) -> str:
    """Return the type and the message of an error."""
    if isinstance(error, Err) and isinstance(error.value, Enum):
        name = error.value.name.lower().replace("_", "-")
        return f"{type(error.value).__name__}: {name}"
    try:
        return f"{_name(error)}: {error}".rstrip(": ")
    except Exception:
        return _name(error)


def _name(error: BaseException) -> str:
    return "TypeError" if isinstance(error, MethodError) else type(error).__name__


def _frames(error: BaseException) -> List[Frame]:
    if isinstance(error, MethodError):
        return error.frames
    frames: List[Frame] = []
    trace: Optional[Any] = error.__traceback__
    while trace is not None:
        frames.append(_frame(trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        frames.append(Frame("", _relative(error.filename), error.lineno))
    frames.reverse()
    return frames


def _frame(code: Any, line: int) -> Frame:
    return Frame(code.co_name, _relative(code.co_filename), line)


def _relative(file: str) -> str:
    # A component has its modules in folders that are numbered by the build.
    parts = file.split("/")
    if len(parts) > 2 and parts[0] == "" and parts[1].isdigit():
        return "/".join(parts[2:])
    return file


def _is_sdk(file: str) -> bool:
    # The bindings are those of the contract.
    return "pointsman/" in file or "wit_world/" in file


def _one_field(text: str) -> str:
    return " ".join(text.split())
