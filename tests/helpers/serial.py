"""The jobs in this process: a pool without Ray, for the tests that are not about Ray.

python -P tests/helpers/serial.py JOB SETTING=VALUE ...
"""

import contextlib
import inspect
import io

import pytest

from neuronstats.cluster.nodes import Workers
from neuronstats.cluster.reports import DEFERRED, PreviousResult
from neuronstats.console import Console
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import LOCK, LOGS, RUN_FILE


class SerialPool:
    """Does the tasks one after another, in the order given or another."""

    def __init__(self, reverse=False):
        self.workers = Workers(count=1, gpus=0, cpus=1)
        self.stopping = False
        self.reached = {}
        self._reverse = reverse

    def run(self, make, args, tasks, tick=lambda: None):
        work, behind = make(*args), None
        for task in reversed(tasks) if self._reverse else tasks:
            result = work(task)
            while inspect.isgenerator(result):
                try:
                    step = next(result)
                    if isinstance(step, PreviousResult):
                        yield behind, step.result
                    else:
                        self.reached[str(task)] = step
                    tick()
                except StopIteration as end:
                    result = end.value
            self.reached.pop(str(task), None)
            if result is DEFERRED:
                behind = task
            else:
                yield task, result
            tick()
        if behind is not None and result is DEFERRED:
            yield behind, work.deferred_result()
            tick()


@contextlib.contextmanager
def serial(monkeypatch, reverse=False):
    """Let collect and reduce run without Ray inside this context."""

    @contextlib.contextmanager
    def connect(settings, on_message, worker_bytes=None):
        yield SerialPool(reverse)

    with monkeypatch.context() as patch:
        patch.setattr("neuronstats.collect.job.connect", connect)
        patch.setattr("neuronstats.reduce.job.connect", connect)
        flops = "neuronstats.collect.worker.matmul_flops"
        patch.setattr(flops, lambda *_: 1e11)  # takes 0.2 s
        none = contextlib.nullcontext()
        patch.setattr("neuronstats.cluster.local.ray_ahead", lambda *_, **__: none)
        yield


def quiet():
    return Console(io.StringIO())


def collect_job(folder, checkpoint, tokens_file, **settings):
    """CollectJob on an array of tokens; settings by their dotted names with __ for the dot."""
    from neuronstats.collect.settings import CollectJob, CollectSettings
    from neuronstats.corpus.settings import DataSettings
    from neuronstats.model.settings import ModelSettings

    groups = {"model": {}, "data": {}, "collect": {}}
    top = {}
    for name, value in settings.items():
        group, _, key = name.partition("__")
        if key:
            groups[group][key] = value
        else:
            top[name] = value
    return CollectJob(
        model=ModelSettings(**{"name": "local", "path": str(checkpoint)} | groups["model"]),
        data=DataSettings(name="tokens", kind="tokens", path=str(tokens_file), **groups["data"]),
        collect=CollectSettings(**groups["collect"]),
        run=str(folder),
        **top,
    )


def make_run(folder, checkpoint, tokens, domains=None, reduction=None, **settings):
    """Collect tokens without Ray, and reduce them by ReduceSettings, if given; return the run."""
    from neuronstats.collect.job import collect
    from neuronstats.reduce.job import reduce
    from neuronstats.reduce.settings import ReduceJob

    file = save_tokens(folder.with_suffix(".npy"), tokens, domains)
    job = collect_job(folder, checkpoint, file, **settings)
    with pytest.MonkeyPatch.context() as patch, serial(patch):
        assert collect(job, quiet()) == 0
        if reduction is not None:
            assert reduce(ReduceJob(run=job.run, reduce=reduction), quiet()) == 0
    return job.run


def contents(location, without=(LOCK, LOGS, RUN_FILE)):
    """Read every object of a run but these."""
    folder = RunFolder(str(location))
    return {key: folder.read(key) for key in sorted(folder.sizes()) if not key.startswith(without)}


def save_tokens(path, tokens, domains=None):
    """Write an .npy file, and the domains beside it."""
    import numpy as np

    np.save(path, tokens)
    if domains is not None:
        path.with_suffix(".domains.txt").write_text("\n".join(domains) + "\n")
    return path


if __name__ == "__main__":
    from neuronstats.cli import command

    with pytest.MonkeyPatch.context() as patch, serial(patch):
        command()
