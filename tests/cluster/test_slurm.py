"""deploy/slurm/collect.sbatch word for word on machines with addresses; srun is stood in for."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from helpers import machines, models
from helpers.serial import save_tokens

from neuronstats.errors import DONE, INTERRUPTED
from neuronstats.store.run import Run

ROOT = Path(__file__).parents[2]
NAMES = ("m1", "m2")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # of minutes on a machine at rest
    pytest.mark.skipif(bool(machines.why_not()), reason=f"NO CLUSTER TEST: {machines.why_not()}"),
]

# Each machine has one of these running, as slurmd: it does what srun puts into the shared folder.
SLURMD = """
name=$(hostname)
while sleep 0.2; do
    for step in /mnt/steps/*.$name; do
        [ -e "$step" ] || continue
        mv "$step" "$step.begun"
        (
            setsid bash "$step.begun" >"$step.out" 2>"$step.err" &
            pid=$!
            while kill -0 $pid 2>/dev/null; do
                # as slurmstepd hands a signal on: to the task, and to none of its children
                [ -e "${step%.*}.term" ] && [ -z "$told" ] && kill -TERM $pid && told=yes
                sleep 0.2
            done
            wait $pid
            echo $? >"$step.rc.new"
            # and the step's end is the end of all that it has started
            for left in $(grep -lz '^SLURM_STEP_ID=' /proc/[0-9]*/environ 2>/dev/null); do
                kill -9 "$(basename "$(dirname "$left")")" 2>/dev/null
            done
            mv "$step.rc.new" "$step.rc"
        ) &
    done
done
"""
SRUN = """#!/bin/bash
hosts=${SLURM_JOB_NODELIST//,/ }
while [[ $1 == --* ]]; do
    case $1 in --nodelist=*) hosts=${1#*=} ;; --nodes=* | --ntasks*) ;; *) exit 64 ;; esac
    shift
done
step=/mnt/steps/$$-$RANDOM
trap 'touch $step.term' TERM INT
for host in $hosts; do
    {
        export -p
        echo "export SLURM_STEP_ID=$$"
        echo "cd $(printf %q "$PWD")"
        printf 'exec'; printf ' %q' "$@"; echo
    } >$step.new
    mv $step.new $step.$host
done
code=0
for host in $hosts; do
    until [ -e $step.$host.rc ]; do sleep 0.2; done
    cat $step.$host.out
    cat $step.$host.err >&2
    rc=$(cat $step.$host.rc)
    [ "$rc" -gt "$code" ] && code=$rc
done
exit $code
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
"show hostnames") echo "${3//,/$'\\n'}" ;;
requeue*) echo "$2" >>/mnt/requeued ;;
*) exit 64 ;;
esac
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, tiny_checkpoint):
    with machines.Network(tmp_path_factory.mktemp("network")) as network:
        shared = network.shared
        (shared / "bin").mkdir()
        (shared / "steps").mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (shared / "bin" / name).write_text(text)
            (shared / "bin" / name).chmod(0o755)
        (shared / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"10.77.0.{n[1:]} {n}\n" for n in NAMES)
        )
        shutil.copytree(tiny_checkpoint("pre"), shared / "model")
        save_tokens(shared / "tokens.npy", models.random_tokens(640, 64, seed=3))
        found = [network.machine("mount --bind /mnt/hosts /etc/hosts") for _ in NAMES]
        daemons = [machine.start(SLURMD) for machine in found]
        yield network, found
    for daemon in daemons:
        daemon.communicate(timeout=30)


def sbatch(machine, number, length):
    """Start the file as slurmd does, on the first machine of the allocation."""
    path = f"/mnt/bin:{os.environ['PATH']}"
    environment = {
        **{"PATH": path, "PYTHONPATH": str(ROOT), "SLURM_SUBMIT_DIR": str(ROOT)},
        **{"SLURM_JOB_ID": str(number), "SLURM_JOB_NODELIST": ",".join(NAMES)},
        **{"SLURM_JOB_NUM_NODES": str(len(NAMES)), "SLURM_CPUS_ON_NODE": "1"},
    }
    settings = "model=local model.path=/mnt/model data=tokens data.path=/mnt/tokens.npy"
    settings += f" run=/mnt/run{length} collect.shard_sequences={length}"
    line = f"echo $$ > /mnt/pid; exec bash {ROOT}/deploy/slurm/collect.sbatch {settings}"
    return machine.start(line, **environment)


def committed(run):
    return len(list((run / "activations.zarr" / "records").glob("*.json")))


def test_it_collects_on_all_machines(slurm):
    network, found = slurm
    job = sbatch(found[0], 1, 1)  # of shards so many that the other machine is in time
    out, err = job.communicate(timeout=900)
    assert job.returncode == DONE, (out, err)

    run = Run.open(str(network.shared / "run1"))
    assert len(run.records()) == len(run.layout.shards) == 640
    for name in NAMES:
        assert list((network.shared / "run1" / "logs").glob(f"{name}-*"))
    assert not (network.shared / "requeued").exists()


def test_before_its_time_ends_it_is_requeued_and_goes_on(slurm):
    network, found = slurm
    run = network.shared / "run2"
    job = sbatch(found[0], 2, 2)
    deadline = time.monotonic() + 600
    while not committed(run):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    pid = (network.shared / "pid").read_text().strip()
    found[0].run(f"kill -{signal.SIGTERM.value} {pid}")  # --signal=B:TERM: the batch script alone
    out, err = job.communicate(timeout=900)
    assert job.returncode == INTERRUPTED, (out, err)
    assert "stopping: finishing what is in flight" in out
    assert (network.shared / "requeued").read_text() == "2\n"
    assert 0 < committed(run) < 320
    job = sbatch(found[0], 2, 2)
    out, err = job.communicate(timeout=900)
    assert job.returncode == DONE, (out, err)
    assert "are committed already" in out
    assert committed(run) == 320
