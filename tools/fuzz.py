"""Feed all that parses foreign bytes with bytes chosen by coverage: python tools/fuzz.py TARGET.

Needs atheris. Targets and their readers are tests/helpers/foreign.py's. Whatever is raised but an
error meant for people is told once, with the bytes that did it; they become a case of the tests.

python tools/fuzz.py TARGET -max_total_time=240 FOLDER   keeps what reaches new code in a folder
python tools/fuzz.py TARGET keep FOLDER   copies the fewest of these that reach as much, and short
    ones first, to tests/bad_input/corpus, whose files bad_input/test_corpus.py reads every time
"""

import copy
import functools
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SECONDS = 240
OTHERS = (None, True, -1, 0, 7, 1 << 70, 1.5, "x", "", [], {}, [[]], {"x": []})  # a value's
MOST, MOST_ITEMS = 60, 3  # keys of an object and items of a list that are replaced
GONE = object()  # the value is deleted
KEPT, KEPT_BYTES = 40, 1 << 14  # files of a target, and bytes of one, at most
INSTRUMENTED = ["neuronstats", "json", "yaml"]
RUN = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from helpers import models, planted
from helpers.reported import planted_run
folder = Path(sys.argv[1])
checkpoint = models.save_checkpoint(planted.planted_opt(), folder / "p")
planted_run(folder, models.save_word_tokenizer(checkpoint, planted.VOCABULARY))
"""

if "keep" not in sys.argv:
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        from helpers.foreign import TARGETS, Place
else:
    from helpers.foreign import TARGETS, Place


def place_of(target: str) -> Place:
    """Lay down good files for a target, in memory where there is such a folder."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))
    if TARGETS[target][0].startswith("r/"):  # elsewhere: numba compiles nothing instrumented
        command = [sys.executable, "-c", RUN, str(folder), str(ROOT), str(ROOT / "tests")]
        subprocess.run(command, check=True)
    logging.disable(logging.CRITICAL)
    return Place(folder, target, folder / "run")


def variants(data: bytes) -> Iterator[bytes]:
    """Yield a file with each value of its JSON or YAML in turn replaced by one of another kind."""
    length = int.from_bytes(data[:8], "little")
    if 8 < length < len(data):  # safetensors: JSON behind its length, before the numbers
        for header in variants(data[8 : 8 + length]):
            yield len(header).to_bytes(8, "little") + header + data[8 + length :]
        return
    try:
        content, dump = json.loads(data), json.dumps
    except ValueError:
        try:
            content, dump = yaml.safe_load(data), yaml.safe_dump
        except (ValueError, yaml.YAMLError):
            return
    if not isinstance(content, dict | list):
        return
    for *above, last in _paths(content):
        for value in (*OTHERS, GONE):
            changed = copy.deepcopy(content)
            at = functools.reduce(lambda part, key: part[key], above, changed)
            if value is GONE:
                del at[last]
            else:
                at[last] = value
            yield dump(changed).encode()


def _paths(content: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value; of long ones, to the first."""
    items = content.items() if isinstance(content, dict) else list(enumerate(content))[:MOST_ITEMS]
    for key, value in list(items)[:MOST]:
        yield (key,)
        if isinstance(value, dict | list):
            yield from ((key, *below) for below in _paths(value))


def where(error: BaseException) -> tuple[str, str, int | None]:
    """Return what was raised, and the last place of ours that it came from."""
    at = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in at if "/neuronstats/" in frame.filename] or list(at)
    return type(error).__name__, Path(ours[-1].filename).name, ours[-1].lineno


def fuzz(target: str) -> None:
    """Fuzz one target; tell each place that raises what it should not."""
    place, known = place_of(target), set()

    def one(data: bytes) -> None:
        try:
            place.read(data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - that is what is looked for
            if where(error) not in known:
                known.add(where(error))
                name = hashlib.sha256(data).hexdigest()[:8]
                sys.stderr.write(
                    f"FOUND {target} {where(error)} {error!s:.200} {data[:300]!r} {name}\n"
                )
                if "FUZZ_OUT" in os.environ:
                    (Path(os.environ["FUZZ_OUT"]) / f"{target}-{name}").write_bytes(data)

    start = Path(tempfile.mkdtemp(prefix="fuzz-start-"))
    for number, data in enumerate((place.good, *variants(place.good))):
        (start / str(number)).write_bytes(data)
    kept = ROOT / "tests" / "bad_input" / "corpus" / target
    limits = [f"-max_total_time={SECONDS}", "-verbosity=0", "-rss_limit_mb=4000", "-timeout=60"]
    limits.append(f"-artifact_prefix={start}/")
    folders = [*sys.argv[1:], str(start), *([str(kept)] if kept.is_dir() else [])]
    atheris.Setup([sys.argv[0], *limits, *folders], one)
    atheris.Fuzz()


def keep(target: str, folder: Path) -> None:
    """Copy the fewest files that reach all lines and errors that a folder's files reach."""
    place, seen = place_of(target), set[Any]()
    corpus = ROOT / "tests" / "bad_input" / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    found = {path.read_bytes() for path in (*corpus.iterdir(), *folder.iterdir())}
    place.read(place.good)  # imports, caches
    kept: list[bytes] = []
    for data in sorted(found, key=lambda data: (len(data), data)):
        new = reached(place, data) - seen
        if new and len(kept) < KEPT and len(data) <= KEPT_BYTES:
            seen |= new
            kept.append(data)
    for path in corpus.iterdir():
        path.unlink()
    for data in kept:
        (corpus / hashlib.sha256(data).hexdigest()[:8]).write_bytes(data)
    print(f"{target}: {len(kept)} files, {sum(map(len, kept))} bytes")  # noqa: T201


def reached(place: Place, data: bytes) -> set[Any]:
    """Return the lines of ours that reading these bytes runs, and the words of its error."""
    found: set[Any] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if "/neuronstats/" not in name:
            return None
        found.add((name, frame.f_lineno))
        if event == "exception" and argument[0].__name__ in ("UserError", "SettingsError"):
            words = re.sub(r"[^a-z ]+|\b[a-z]*\d\w*", "", str(argument[1]).lower())
            found.add(" ".join(words.split()[:12]))
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        place.read(data)
    except BaseException as error:  # noqa: BLE001 - to be kept: the test then fails
        found.add(where(error))
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    return found


if __name__ == "__main__":
    chosen = sys.argv.pop(1)
    if sys.argv[1:2] == ["keep"]:
        keep(chosen, Path(sys.argv[2]))
    else:
        fuzz(chosen)
