"""Ray on this machine alone, started by us: beside a job's imports, and ended without waiting."""

import contextlib
import importlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from neuronstats.cluster.connection import SpareWorkers
from neuronstats.cluster.guard import Guard
from neuronstats.cluster.nodes import Node, place
from neuronstats.cluster.settings import RaySettings
from neuronstats.cluster.watch import Watch
from neuronstats.cluster.words import summary
from neuronstats.cluster.worker_group import start_worker
from neuronstats.errors import GoneError, SettingsError, UserError
from neuronstats.machine import probe

OBJECT_STORE_BYTES = 128 << 20  # results are small; ray's default is 30 % of the memory
# glibc, in workers: threads share what is freed (each of forty would keep its own), and pages are
# kept for the next batch (to fault them in anew took 5 % of a sweep).
MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
NODE_SECONDS = 30.0  # for Ray's node to be there
EARLY_WORKERS = 2  # at most: with more workers the others import while these work


@dataclass
class LocalRay:
    """Ray on this machine: whether it is still there, and its workers without work."""

    watch: Watch
    spare: SpareWorkers


_started: list[LocalRay] = []  # one while it runs


@contextlib.contextmanager
def local_ray() -> Iterator[LocalRay]:
    """Run Ray on this machine; inside another such context there is nothing to do.

    Raises:
        UserError: it cannot be started.
    """
    if _started:
        yield _started[0]
        return
    prepare_environment(remote=False)
    import ray

    with contextlib.closing(Guard()) as guard:
        _start(ray)
        guard.started()
        watch = Watch(ray, ray.get_runtime_context().gcs_address, local=True)
        _started.append(LocalRay(watch, SpareWorkers(ray)))
        try:
            yield _started[0]
        except (GoneError, GeneratorExit):  # it has ended by itself: to end it would wait for it
            raise
        except BaseException:
            _end(ray)
            raise
        else:
            _end(ray)
        finally:
            watch.close()
            _started.clear()


@contextlib.contextmanager
def ray_ahead(
    settings: RaySettings, job: str, *worker: str, per_core: bool = False, wanted: bool = True
) -> Iterator[None]:
    """Start Ray here while a job's module is imported, and have workers import theirs.

    On a cluster there is nothing to do: what its machines are is asked first.

    Args:
        settings: where, and how many workers.
        job: the module that this process will need.
        worker: the modules that the workers will need.
        per_core: whether auto is one worker per core, without a GPU.
        wanted: False where there will be no work; then nothing is done.

    Raises:
        UserError: Ray cannot be started.
    """
    if settings.address is not None or not wanted:
        yield
        return
    prepare_environment(remote=False)
    import ray  # noqa: F401 - before the thread imports, so that no module of both is half there

    imports = threading.Thread(target=_import, args=(job,), name="imports")
    imports.start()
    old = signal.getsignal(signal.SIGTERM)
    try:
        with local_ray() as here:
            signal.signal(signal.SIGTERM, _interrupt)  # Ray has set one of its own
            _start_workers(here.spare, settings, worker, per_core=per_core)
            imports.join()
            yield
    finally:
        imports.join()
        signal.signal(signal.SIGTERM, old)


def _import(module: str) -> None:
    with contextlib.suppress(Exception):  # it will be raised where the module is imported again
        importlib.import_module(module)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _start_workers(
    spare: SpareWorkers, settings: RaySettings, modules: Sequence[str], *, per_core: bool
) -> None:
    import ray

    try:
        workers = place(settings, [Node.of(probe())], per_core=per_core)
    except SettingsError:
        return  # the job says so when it knows what it needs
    spare.gpus = workers.gpus
    for _ in range(min(workers.count, EARLY_WORKERS)):
        actor = start_worker(ray, num_cpus=0, num_gpus=workers.gpus)
        actor.load.remote(modules)
        spare.actors.append(actor)


def prepare_environment(*, remote: bool) -> None:
    """Set what ray reads at import: no telemetry, no chatter, an authentication that is stated."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SCHEDULER_EVENTS": "0",
        "RAY_worker_niceness": "0",  # 15 otherwise, which any other process starves
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **MALLOC,
        # Of workers that were still being built for work that others have finished.
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    }.items():
        os.environ.setdefault(name, value)
    if not remote and "RAY_AUTH_MODE" not in os.environ:
        # A token of this run alone, in the environment: ray's own would be left in a file in HOME,
        # and a cluster started later would demand it.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def sigterm_blocked() -> Iterator[None]:
    """Block SIGTERM for what is started meanwhile.

    A SIGTERM to the whole process group (a scheduler's, a container's) then reaches this process
    alone, which lets the shards in flight finish.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _start(ray: Any) -> None:
    machine = probe()
    options = {"num_cpus": machine.cores, "num_gpus": machine.gpus}
    options |= {"object_store_memory": OBJECT_STORE_BYTES}
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        with sigterm_blocked(), _minimal_ray(ray):
            ray.init(address="local", include_dashboard=False, **options, **quiet)
    except Exception as error:
        raise UserError(f"Ray could not be started on this machine: {summary(error)}.") from error


@contextlib.contextmanager
def _minimal_ray(ray: Any) -> Iterator[None]:
    """Make Ray listen on 127.0.0.1 alone, as on macOS, and start only the processes a job needs.

    Without dashboard, autoscaler and log monitor, and told of its node as soon as it is there and
    not a second later, it starts in half the time. None of these names is public.
    """
    services, private = ray._private.services, ray._private
    wait = services.get_node

    def get_node(address: str, node_id: str) -> Any:
        state = private.state.GlobalState()
        state._initialize_global_state(services._get_gcs_client_options(address))
        end = time.monotonic() + NODE_SECONDS
        while time.monotonic() < end and node_id not in {n["NodeID"] for n in state.node_table()}:
            time.sleep(0.02)
        return wait(address, node_id)

    unused = ("start_api_server", "start_log_monitor", "start_monitor")
    with (
        _replaced(private.ray_constants, ENABLE_RAY_CLUSTER=False),
        _replaced(private.node.Node, **dict.fromkeys(unused, lambda *_, **__: None)),
        _replaced(services, get_node=get_node),
    ):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Set attributes to other values for a while."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _end(ray: Any) -> None:
    """End Ray, which would give each of its processes a second to heed the SIGTERM they blocked."""
    node = ray._private.worker._global_node  # not public
    if node is not None:
        kill = node.kill_all_processes
        node.kill_all_processes = lambda **_: kill(check_alive=False, allow_graceful=False)
    ray.shutdown()
