"""What works say of their tasks, and what workers make of it."""

import enum
from dataclasses import dataclass
from typing import Any


class Later(enum.Enum):
    """What a work returns of a task whose result comes with the next one, or from its `rest`."""

    LATER = enum.auto()


LATER = Later.LATER


@dataclass(frozen=True)
class Before:
    """What a work yields once the task before, whose result was to come later, is done."""

    result: Any


class Said(enum.Enum):
    """What a worker says of its task."""

    REACHED = enum.auto()  # how far it has come
    DONE = enum.auto()  # its result
    LATER = enum.auto()
    BEFORE = enum.auto()  # the result of the task before
