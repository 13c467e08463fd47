"""Machines of a cluster on this one: each with its own network, processes, /tmp, /dev/shm, name.

Needs root and network namespaces; `why_not` says what is missing. All of it ends with the process
that made it, also where that is killed; a namespace's name that stays is removed by the next one.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = Path("/mnt")  # a folder that every machine sees
PREFIX = "neuronstats-"
TAG = f"{PREFIX}{os.getpid()}-"

LAUNCH = "setpriv --pdeathsig KILL unshare -m -p -f -u --kill-child --mount-proc"

# Becomes process 1 of the machine; what is mounted is seen by it alone.
INIT = """
trap '' TERM
mount --make-rprivate /
mount --bind {base}/shared /mnt
{mounts}
{checkout}
mount --rbind {base}/{name} /tmp
mount -t tmpfs -o size=512m none /dev/shm
hostname {name}
ip link set lo up
touch /tmp/ready
while :; do sleep 1; done
"""


def why_not():
    """Why machines cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "not root"
    # setpriv and --kill-child: the machine ends with us.
    probe = f"ip netns add {TAG}p && ip netns del {TAG}p && {LAUNCH} true"
    done = subprocess.run(["sh", "-c", probe], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no namespaces: {done.stderr.strip()}"


class Machine:
    """One machine; 10.77.0.NUMBER."""

    def __init__(self, number):
        self._number, self.name, self.ip = number, f"m{number}", f"10.77.0.{number}"
        self._outer, self._init = None, None

    def start_up(self, base, mounts):
        number, namespace = self._number, f"{TAG}{self.name}"
        (base / self.name / "home").mkdir(parents=True)
        (base / self.name).chmod(0o1777)
        _sh(f"ip netns add {namespace}")
        inside = f"ip netns exec {namespace}"
        cable = f"ip link add v{number} type veth peer name eth0 netns {namespace}"
        _sh(f"ip netns exec {TAG} {cable}")
        _sh(f"ip netns exec {TAG} ip link set v{number} master br0 up")
        _sh(f"{inside} ip addr add {self.ip}/24 dev eth0; {inside} ip link set eth0 up")
        _sh(f"{inside} ip route add default via 10.77.0.254")
        checkout = ""
        if ROOT.is_relative_to("/tmp"):  # it would be hidden by the machine's own
            place = base / self.name / ROOT.relative_to("/tmp")
            place.mkdir(parents=True)
            checkout = f"mount --bind {ROOT} {place}"
        script = INIT.format(base=base, name=self.name, mounts=mounts, checkout=checkout)
        command = f"exec {inside} {LAUNCH} sh -c {shlex.quote(script)}"
        self._outer = subprocess.Popen(["sh", "-c", command], start_new_session=True)
        deadline = time.monotonic() + 120
        while not (base / self.name / "ready").exists():
            assert time.monotonic() < deadline, f"{self.name} did not start"
            time.sleep(0.05)
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._outer.pid)],
            capture_output=True,
            text=True,
            check=True,
        )
        self._init = int(found.stdout.split()[0])

    def command(self, line, **environment):
        """What runs a shell line on the machine, in a fresh environment."""
        words = {"PATH": os.environ["PATH"], "HOME": "/tmp/home", "LANG": "C.UTF-8", **environment}
        settings = [f"{name}={value}" for name, value in words.items()]
        enter = ["nsenter", "-t", str(self._init), "-n", "-m", "-p", "-u"]
        return [*enter, "env", "-i", *settings, "bash", "-c", line]

    def run(self, line, timeout=120, **environment):
        return subprocess.run(
            self.command(line, **environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, line, **environment):
        return subprocess.Popen(
            self.command(line, **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def unplug(self):
        """End the machine with all its processes at once."""
        if self._outer is None or self._outer.returncode is not None:
            return
        for pid in filter(None, (self._init, self._outer.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._outer.wait()


class Network:
    """A bridge, and the machines on it; a context, at whose end nothing of them is left."""

    def __init__(self, base):
        self._base, self.machines = base, []
        self.shared = base / "shared"

    def __enter__(self):
        self.shared.mkdir()
        _remove_left()
        try:
            _sh(f"ip netns add {TAG}")
            _sh(f"ip netns exec {TAG} ip link add br0 type bridge")
            _sh(f"ip netns exec {TAG} ip addr add 10.77.0.254/24 dev br0")
            _sh(f"ip netns exec {TAG} ip link set br0 up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def machine(self, mounts=""):
        machine = Machine(len(self.machines) + 1)
        self.machines.append(machine)  # before it starts, so that half of one is removed too
        machine.start_up(self._base, mounts)
        return machine

    def __exit__(self, *_):
        for machine in self.machines:
            machine.unplug()
        _remove(f"{TAG}\\S*")


def _remove(pattern):
    """Remove the namespaces of such a name; a machine that has ended leaves its own."""
    names = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=False).stdout
    for line in names.splitlines():
        name = line.split()[0]
        if re.fullmatch(pattern, name):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _remove_left():
    """Remove the namespaces of processes that have ended before they could."""
    names = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=False).stdout
    for pid in set(re.findall(rf"^{PREFIX}(\d+)-", names, re.MULTILINE)):
        if not Path(f"/proc/{pid}").exists():
            _remove(rf"{PREFIX}{pid}-\S*")


def _sh(line):
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (line, done.stderr)
