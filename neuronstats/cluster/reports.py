"""What a worker reports of a task."""

import enum
from dataclasses import dataclass
from typing import Any


class Deferred(enum.Enum):
    """Returned by work whose result comes with the next task, or from its `deferred_result`."""

    DEFERRED = enum.auto()


DEFERRED = Deferred.DEFERRED


@dataclass(frozen=True)
class PreviousResult:
    """Yielded by work once the task before, whose result was deferred, is done."""

    result: Any


class Report(enum.Enum):
    """The kinds of report."""

    PROGRESS = enum.auto()  # how far it has come
    RESULT = enum.auto()  # its result
    DEFERRED = enum.auto()
    PREVIOUS = enum.auto()  # the result of the task before
