"""Ray's errors in one line."""

import re

ANSI = re.compile(r"\x1b\[[0-9;]*m")
RAISED = re.compile(r"^([\w.]+(Error|Exception|Exit|Interrupt))\b(: .*)?$")
PROCESS_GONE = ("unexpectedly exits", "connection error code 2", "unexpected system error")
NO_MEMORY = ("OutOfMemoryError", "running low on memory", "SIGKILL")


def summary(error: BaseException | str) -> str:
    """Return what an error says: its last line "XError: ...", without colours and full stop.

    Where nothing was raised, because a process or machine ended, its first two lines.
    """
    lines = [line.strip() for line in ANSI.sub("", str(error)).split("\n") if line.strip()]
    raised = [line for line in lines if RAISED.match(line)]
    if raised:
        return raised[-1].rstrip(".")
    told = [line for line in lines if not re.match(r"(\w+: \w+$|traceback)", line, re.IGNORECASE)]
    return " ".join(told[:2]).rstrip(".") or type(error).__name__


def vanished(error: BaseException | str) -> bool:
    """Return whether a process or machine ended without raising: another try may go well."""
    text = f"{type(error).__name__} {error}"
    return any(word in text for word in (*PROCESS_GONE, *NO_MEMORY))


def advice(error: BaseException | str) -> str:
    """Return what to do about a lost worker: of memory only where memory may be the reason."""
    text = f"{type(error).__name__} {error}"
    if any(word in text for word in NO_MEMORY):
        return "Memory ran out: set collect.batch_sequences or collect.shard_sequences lower."
    if any(word in text for word in PROCESS_GONE):
        return (
            "Its process was killed (the kernel does so where memory runs out: then set"
            " collect.batch_sequences or collect.shard_sequences lower) or crashed; the system's"
            " log of that machine says which."
        )
    return "The logs of Ray on that machine say more (/tmp/ray/session_latest/logs)."


def gpu_advice(error: BaseException) -> str:
    """Return one line: a GPU's memory was too small, and what to do."""
    reason = (" ".join(str(error).split()) or type(error).__name__).split(". ")[0]
    return (
        f"the GPU has too little free memory ({reason}): is it used by others? Else give smaller"
        " collect.batch_sequences or collect.shard_sequences."
    )
