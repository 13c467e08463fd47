"""The jobs as a user runs them: their real main, in this process, with a command line."""

import contextlib
import importlib.util
import io
import os
import sys
from pathlib import Path
from unittest import mock

JOBS = Path(__file__).parents[2] / "jobs"
WITHOUT_RAY = [sys.executable, "-P", "-W", "ignore", str(Path(__file__).parent / "serial.py")]


def run_job(name, *overrides, cwd=None):
    """Run jobs/NAME.py; return its exit code, standard output and standard error.

    Args:
        name: the job's file, without its ending.
        overrides: the command line, such as "data=local"; strings or what str() makes one of.
        cwd: the current folder meanwhile.
    """
    spec = importlib.util.spec_from_file_location(f"jobs_{name}", JOBS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    out, err = io.StringIO(), io.StringIO()
    command = [f"jobs/{name}.py", *map(str, overrides)]
    with (
        _known(spec.name, module),
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _inside(cwd),
    ):
        spec.loader.exec_module(module)
        try:
            module.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def _known(name, module):
    sys.modules[name] = module  # what it imports stays, as patch.dict would not have it
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def _inside(folder):
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)
