"""Starting Ray on this machine, or joining a cluster; refusals that name their cause."""

import atexit
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuronstats.cluster.connection import name_of
from neuronstats.cluster.inspection import PACKAGE, missing_cuda
from neuronstats.cluster.local import MALLOC, local_ray, prepare_environment, sigterm_blocked
from neuronstats.cluster.nodes import Node, Workers, place
from neuronstats.cluster.pool import Pool
from neuronstats.cluster.settings import RaySettings
from neuronstats.cluster.watch import Watch
from neuronstats.cluster.words import summary
from neuronstats.errors import GONE, GoneError, SettingsError, UserError
from neuronstats.machine import Machine, probe

HEAD_SECONDS = 45.0  # for the head to answer a question
SHIPPED = ("conf", "jobs")  # beside the package, where they are there
JOB_ENVIRONMENT = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit`
# Of the hub's client, and no secret: the workers' machines then use the same cache and hub.
HUB_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT")
INSTALL = "pip install 'neuronstats[cluster]'"
# Ray's client says of all of these that time ran out.
CLIENT_CURE = (
    " Is it the port of Ray's client (10001), has this shell the head's RAY_AUTH_MODE and token"
    " (~/.ray/auth_token or RAY_AUTH_TOKEN), and is ray of the same version here and there?"
)


@contextlib.contextmanager
def connect(
    settings: RaySettings, *, on_message: Callable[[str], None], worker_bytes: int | None = None
) -> Iterator[Pool]:
    """Start Ray on this machine, or join a cluster, and check that it has what is asked for.

    SIGINT and SIGTERM then ask the pool to stop, until the end of the context.

    Args:
        settings: where, and how many workers.
        on_message: called with a line when a signal is taken, or a machine left out.
        worker_bytes: for work on one core and no GPU, host memory that a worker takes: auto is then
            one worker per core, as far as memory goes. None: one per GPU, or one per machine.

    Raises:
        SettingsError: the resources asked for are not there.
        UserError: the cluster cannot be reached.
        GoneError: it went away meanwhile.
    """
    prepare_environment(remote=settings.address is not None)
    address = None if settings.address is None else _reachable(settings)
    import ray

    # Ray prints of every lost worker what we say ourselves, in one line, if it matters.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    with contextlib.ExitStack() as stack:
        client = address is not None and address.startswith("ray://")
        if address is None:
            here = stack.enter_context(local_ray())
            watch, spare = here.watch, here.spare
        else:
            _join(ray, settings, address)
            stack.callback(ray.shutdown)
            head = None if client else ray.get_runtime_context().gcs_address
            watch, spare = Watch(ray, head, local=False), None
            stack.callback(watch.close)
        pool = Pool(ray, watch, settings, on_message=on_message, streaming=not client, spare=spare)
        stack.callback(pool.close)
        stack.enter_context(_signals(pool))
        try:
            pool.nodes = _own_node(watch) if address is None else inspect_nodes(pool, watch.nodes)
            pool.workers = _first_workers(pool, worker_bytes)
            yield pool
        except GoneError:
            stack.pop_all()
            _leave_without_ray()
            raise


def this_node(settings: RaySettings, machine: Machine) -> Node:
    """Return this machine, before Ray is started.

    Raises:
        UserError: it has GPUs that torch cannot use.
    """
    if machine.gpus and settings.gpus_per_worker != 0:
        reason = missing_cuda()
        if reason:
            raise UserError(
                f"this machine has {machine.gpus} GPU(s), but {reason}; or set"
                " ray.gpus_per_worker=0 to work on the CPU."
            )
    return Node.of(machine)


def _own_node(watch: Watch) -> list[Node]:
    """Return this machine as Ray started by us names it."""
    return [replace(Node.of(probe()), id=watch.nodes[0]["NodeID"])]


def _first_workers(pool: Pool, worker_bytes: int | None) -> Workers:
    """Place the workers; with ray.workers=max wait for machines where there is room for none."""
    deadline = time.monotonic() + pool.settings.start_timeout
    known = {node.id for node in pool.nodes}
    said = False
    while True:
        try:
            return place(
                pool.settings, pool.nodes, memory=worker_bytes, per_core=worker_bytes is not None
            )
        except SettingsError:
            if pool.settings.workers != "max" or time.monotonic() > deadline:
                raise
        if not said:
            said = True
            pool.on_message(
                "waiting for machines to join the cluster: there is room for no worker yet"
            )
        time.sleep(1)
        pool.pause()
        joined = [node for node in pool.watch.nodes if node["NodeID"] not in known]
        if joined:
            known |= {node["NodeID"] for node in joined}
            pool.nodes += inspect_nodes(pool, joined)


@contextlib.contextmanager
def _signals(pool: Pool) -> Iterator[None]:
    """Make SIGINT and SIGTERM stop the pool; set after ray.init, which sets handlers of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in old:
        signal.signal(number, pool.request_stop)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _leave_without_ray() -> None:
    """End this process by our own exit code: Ray's ending waits for what is gone, then kills it."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(GONE)

    atexit.register(leave)  # the last registered is called first


def _join(ray: Any, settings: RaySettings, address: str) -> None:
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    with _shipped_code() as folder:
        if folder is not None:
            names = (*HUB_VARIABLES, *MALLOC)
            set_here = {name: os.environ[name] for name in names if name in os.environ}
            options["runtime_env"] = {
                **{"working_dir": folder, "excludes": ["**/__pycache__"]},
                "env_vars": set_here,
            }
        try:
            with sigterm_blocked(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Ray Client connection timed out")  # said below
                ray.init(address=address, **options)
        except Exception as error:
            where = f"at ray.address={settings.address}"
            cure = CLIENT_CURE if address.startswith("ray://") else ""
            raise UserError(f"Ray could not be started {where}: {summary(error)}.{cure}") from error


@contextlib.contextmanager
def _shipped_code() -> Iterator[str | None]:
    """Yield a folder with this package, its conf and jobs, for the workers to compute with.

    As Ray's working_dir, which keeps the driver's own folders off the workers' path: on another
    machine these may hold an older checkout. None in a job that was submitted with a working_dir.
    """
    if "working_dir" in os.environ.get(JOB_ENVIRONMENT, ""):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="neuronstats-") as folder:
        for path in (PACKAGE, *(PACKAGE.parent / name for name in SHIPPED)):
            if path.is_dir():
                (Path(folder) / path.name).symlink_to(path)
        yield folder


def _reachable(settings: RaySettings) -> str:
    """Return the address with its host as an IP; find out in seconds what ray.init takes minutes.

    Raises:
        UserError: nothing answers there, or it refuses us; says which.
    """
    given = str(settings.address)
    client = given.startswith("ray://")
    if client and importlib.util.find_spec("grpc") is None:
        raise UserError(f"ray.address={given} needs Ray's client: {INSTALL}.")
    where = given.removeprefix("ray://") if given != "auto" else _address_of_this_machine()
    host, _, port = where.rpartition(":")
    try:
        # Ray's own resolver waits for minutes where a name is only in /etc/hosts.
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        ip = str(found[0][4][0])
        socket.create_connection((ip, int(port)), timeout=min(10, settings.start_timeout)).close()
    except socket.gaierror as error:
        raise UserError(
            f"ray.address={given} cannot be reached: the name {host} is unknown here"
            f" ({error.strerror}). Give the IP address of the machine that ran ray start --head."
        ) from error
    except OSError as error:
        raise UserError(
            f"ray.address={given} cannot be reached ({error}): is a cluster running there"
            " (ray start --head), and is the port right?"
        ) from error
    place = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    _check_token(given)
    if client:
        return f"ray://{place}"
    _ask_head(given, place, settings.start_timeout)
    return place


def _address_of_this_machine() -> str:
    """Return the address of the cluster that this machine belongs to."""
    from ray._private import services  # not public; a cluster that has ended leaves its address

    found = services.canonicalize_bootstrap_address("auto")
    if found is None:
        raise UserError(
            "ray.address=auto: no cluster runs on this machine. Start one (ray start --head) or"
            " join one (ray start --address=HOST:6379), or give ray.address=HOST:PORT."
        )
    return str(found)


def _check_token(given: str) -> None:
    """Refuse a token that is asked for and not there: Ray would abort this process."""
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        raise UserError(
            f"ray.address={given}: RAY_AUTH_MODE=token, but there is no token: {path} does not"
            " exist. Copy it from the machine that ran ray get-auth-token --generate, or set"
            " RAY_AUTH_TOKEN."
        )


def _ask_head(given: str, place: str, timeout: float) -> None:
    """Ask the head in a process of its own, which can be ended: ray.init would print and wait."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", place]
    seconds = min(HEAD_SECONDS, timeout)
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"ray.address={given} did not answer in {seconds:.0f} s, although its port is open: is"
            " it the port of ray start --head (6379)?"
        ) from error
    if answer.returncode == 0:
        return
    said = answer.stdout + answer.stderr
    if "Auth" in said:
        mode = os.environ.get("RAY_AUTH_MODE")
        state = f"is {mode}" if mode else "is not set"
        raise UserError(
            f"ray.address={given} refuses us: the token is missing or wrong. RAY_AUTH_MODE {state}"
            " here. In this shell: export RAY_AUTH_MODE=token, and the head's token in"
            " ~/.ray/auth_token or RAY_AUTH_TOKEN."
        )
    raise UserError(
        f"ray.address={given} is no head that we can join ({summary(said)}): is a cluster running"
        " there (ray start --head), with the same version of ray, and is the port right?"
    )


def inspect_nodes(pool: Pool, nodes: Sequence[dict[str, Any]]) -> list[Node]:
    """Ask every machine of the cluster what it is; leave out those that compute differently.

    Raises:
        UserError: none is left.
    """
    asked = {pool.inspect(node): node for node in nodes if node["Alive"]}
    deadline = time.monotonic() + pool.settings.start_timeout
    found: list[Node] = []
    while asked and time.monotonic() < deadline:
        pool.pause()
        done, _ = pool.ray.wait(list(asked), num_returns=len(asked), timeout=0.5)
        for reference in done:
            node = pool.inspected(reference, asked.pop(reference))
            found += [] if node is None else [node]
    for silent in asked.values():
        pool.leave_out(name_of(silent), f"it did not answer in {pool.settings.start_timeout:.0f} s")
    if not found:
        raise UserError(f"no machine of the cluster can be used: {pool.left_out_words}.")
    return sorted(found, key=lambda node: node.name)  # not by who answers first
