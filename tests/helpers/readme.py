"""README's cluster, command by command, on machines with addresses of their own."""

import shlex
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = (
    f"cd {ROOT}; export PATH={Path(sys.executable).parent}:$PATH; "  # README: .venv/bin/activate
)
MODE = "export RAY_AUTH_MODE=token; "  # README: "with the same RAY_AUTH_MODE"
TOKEN, HEAD, OTHER, COLLECT = range(4)
MODEL, DATA = "model=local model.path=/mnt/model", "data=tokens data.path=/mnt/tokens.npy"
SEQUENCES, SHARD_SEQUENCES = 640, 4  # of the text that is collected
LENGTH = f"collect.shard_sequences={SHARD_SEQUENCES} ray.cpus_per_worker=1"  # room for two jobs
LEFT_TOKEN = "0123456789abcdef" * 4  # of another cluster


def commands():
    """README's four commands for a cluster, without their comments."""
    _, _, rest = (ROOT / "README.md").read_text().partition("## A cluster")
    found = [line.split("  #")[0].strip() for line in rest.split("```")[1].strip().splitlines()]
    assert len(found) == COLLECT + 1
    return found


def say(machine, line, code=0):
    """Run a line in a shell of its own."""
    done = machine.run(PLACE + line, timeout=600)
    assert done.returncode == code, (machine.name, line, done)
    return done.stdout


def leave_token(machine):
    """A machine that was part of another cluster."""
    say(machine, f"mkdir -p ~/.ray; echo -n {LEFT_TOKEN} > ~/.ray/auth_token")


def patiently(start):
    """A `ray start`, again where Ray itself gave up after 30 seconds: on a loaded machine."""
    late = "timed out during startup|No node info found"
    tried = f"{start} >/tmp/started 2>&1 && exit; cat /tmp/started"
    again = f"grep -qE '{late}' /tmp/started || exit 1; ray stop --force"
    return f"for n in 1 2 3; do {tried}; {again}; done; exit 1"


def start_head(machine, *more):
    """README's first two commands, one after the other in one shell."""
    token, start = commands()[: HEAD + 1]
    say(machine, f"{token}; {patiently(' '.join([start, *more]))}")


def join(machine, head):
    """README's third command, begun after its first's comment: copy the token."""
    copy_token(machine, head)
    return machine.start(PLACE + MODE + patiently(commands()[OTHER].replace("HEAD", head.ip)))


def copy_token(machine, head):
    token = say(head, "cat ~/.ray/auth_token")
    say(machine, f"mkdir -p ~/.ray; echo -n {shlex.quote(token)} > ~/.ray/auth_token")


def joined(*begun):
    """Wait for machines that join."""
    for process in begun:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, (out, err)


def collect(machine, head, *more, run="/mnt/run", model=MODEL, mode=MODE, **environment):
    """Begin README's last command, of another model, text and run."""
    line = replaced(
        commands()[COLLECT],
        {
            "HEAD": head.ip,
            "model=opt-66b": model,
            "data=paper": DATA,
            "run=s3://bucket/opt-66b": f"run={run}",
        },
    )
    return machine.start(PLACE + mode + " ".join([line, *more]), **environment)


def replaced(line, words):
    """A line with other words in it, of which each must be there."""
    for old, new in words.items():
        assert old in line
        line = line.replace(old, new)
    return line


def logs(run, machine="*"):
    """What workers wrote; of one machine, by its name, or of all."""
    return "".join(path.read_text() for path in (run / "logs").glob(f"{machine}-*.log"))


def wait_for(job, met, seconds=600):
    """Wait until something is so; it must be before the job ends."""
    deadline = time.monotonic() + seconds
    while not met():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline, job.args[-1]
        time.sleep(0.1)


def ended(job, code):
    """Wait for a job's end, with such an exit code; what it wrote."""
    out, err = job.communicate(timeout=600)
    assert job.returncode == code, (out, err)
    return out, err


def check_stores(one, other):
    """Both runs have the same files, byte for byte."""
    ours, theirs = one / "activations.zarr", other / "activations.zarr"
    names = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()}
    assert names == {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)
