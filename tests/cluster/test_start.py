"""Joining a cluster that is not there, or refuses us: one sentence with the cause."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from neuronstats.cluster import start, watch
from neuronstats.cluster.settings import RaySettings
from neuronstats.errors import GONE, GoneError, UserError


@pytest.fixture
def listener():
    """A port at which somebody accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refusal(address, **settings):
    with pytest.raises(UserError) as caught:
        start._reachable(RaySettings(address=address, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_name_that_nobody_knows(monkeypatch):
    def unknown(*args, **settings):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    words = refusal("nowhere.invalid:6379")
    assert "the name nowhere.invalid is unknown here" in words
    assert "Give the IP" in words


def test_client_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'neuronstats[cluster]'" in refusal("ray://127.0.0.1:10001")


def test_token_that_is_asked_for_and_not_there(listener, monkeypatch, tmp_path):
    """Ray would abort the process, with a C++ trace."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert "there is no token" in refusal(listener)


def test_a_client_that_is_refused_gets_the_causes(listener, monkeypatch, tmp_path):
    """Ray's client says of a wrong token, port or version that time ran out, and warns of ports."""
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert "there is no token" in refusal(f"ray://{listener}")

    def init(**_):
        warnings.warn("Ray Client connection timed out. Ensure that", UserWarning, stacklevel=1)
        raise ConnectionError("ray client connection timeout")

    address = f"ray://{listener}"
    with pytest.raises(UserError, match=r"timeout\. Is it the port of Ray's client \(10001\)"):
        start._join(SimpleNamespace(init=init), RaySettings(address=address), address)


@pytest.mark.parametrize(
    ("said", "mode", "words"),
    [
        ("AuthenticationError: InvalidAuthToken", None, "RAY_AUTH_MODE is not set here"),
        ("AuthenticationError: InvalidAuthToken", "disabled", "RAY_AUTH_MODE is disabled here"),
        ("RuntimeError: Version mismatch", None, "RuntimeError: Version mismatch"),
    ],
)
def test_head_that_refuses(listener, monkeypatch, said, mode, words):
    answer = subprocess.CompletedProcess([], 1, "", f"Traceback\n  line\n{said}\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **settings: answer)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert words in refusal(listener)


def test_port_that_is_open_and_says_nothing(listener, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    begun = time.monotonic()
    assert "did not answer in 1 s, although its port is open" in refusal(listener, start_timeout=1)
    assert time.monotonic() - begun < 30


class DeadRay:
    """Ray whose head has gone: it answered once."""

    def nodes(self):
        return [{"NodeID": "n", "Alive": True, "NodeManagerAddress": "127.0.0.1",
                 "NodeManagerPort": 1}]  # fmt: skip

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "n")


@pytest.mark.parametrize(("local", "says"), [(True, "Ray on this machine"), (False, "the head")])
def test_a_head_that_answers_no_more(monkeypatch, local, says):
    monkeypatch.setattr(watch, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(watch, "GONE_SECONDS", 1.0)
    watching = watch.Watch(DeadRay(), "127.0.0.1:1", local=local)
    watching.check()
    time.sleep(1.1)
    with pytest.raises(GoneError, match="the same command goes on") as caught:
        watching.check()
    assert says.removeprefix("the ") in str(caught.value)
    watching.close()


def test_a_raylet_that_ends_seconds_after_its_workers():
    """With its agent killed it ended its workers first: "no machine can start a worker"."""
    server = socket.create_server(("127.0.0.1", 0))
    place = server.getsockname()
    node = DeadRay().nodes()[0] | {"NodeManagerPort": place[1]}
    ray = SimpleNamespace(nodes=lambda: [node], get_runtime_context=DeadRay().get_runtime_context)
    watching = watch.Watch(ray, f"127.0.0.1:{place[1]}", local=True)
    threading.Timer(1, server.close).start()
    with pytest.raises(GoneError, match="Ray on this machine has ended"):
        watching.require()
    watching.close()


STUCK = """
import time
from types import SimpleNamespace
from neuronstats.cluster import watch
watch.INTERVAL_SECONDS, watch.GONE_SECONDS, watch.STUCK_SECONDS = 0.05, 0.2, 0.2
node = {"NodeID": "n", "Alive": True, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": 1}
context = SimpleNamespace(get_node_id=lambda: "n")
ray = SimpleNamespace(nodes=lambda: [node], get_runtime_context=lambda: context)
watch.Watch(ray, "127.0.0.1:1", local=False)
time.sleep(60)  # as the main thread inside Ray
"""


def test_a_driver_that_hangs_inside_ray_is_ended_with_our_word():
    """With the head unplugged Ray ended it after a minute, with a line of C++ and exit code 1."""
    done = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == GONE
    assert done.stderr == (
        "error: the cluster's head is gone; what was committed stays; the same command goes on.\n"
    )


def test_a_signal_while_machines_are_asked_interrupts(monkeypatch):
    """SIGINT then ended in a ValueError, and in "a defect of neuronstats"."""

    class Ray(DeadRay):
        def wait(self, waited, **settings):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            return [], waited

    assert threading.current_thread() is threading.main_thread()
    said = []
    watching = SimpleNamespace(check=lambda: None)
    pool = start.Pool(Ray(), watching, RaySettings(), on_message=said.append, streaming=True)
    monkeypatch.setattr(pool, "inspect", lambda node: node["NodeID"])
    with start._signals(pool), pytest.raises(KeyboardInterrupt):
        start.inspect_nodes(pool, Ray().nodes())
    assert "stopping" in said[0]


def test_the_code_that_is_shipped_has_conf_and_jobs(monkeypatch):
    monkeypatch.delenv(start.JOB_ENVIRONMENT, raising=False)
    with start._shipped_code() as folder:
        assert sorted(path.name for path in Path(folder).iterdir()) == [
            "conf",
            "jobs",
            "neuronstats",
        ]
    monkeypatch.setenv(start.JOB_ENVIRONMENT, '{"runtime_env": {"working_dir": "gcs://x.zip"}}')
    with start._shipped_code() as folder:
        assert folder is None
