"""Machines of a pretended cluster: who is left out, joins, fails, or has no room."""

from dataclasses import replace

import pytest
from helpers.pretended import PretendedRay

from neuronstats.cluster import connection, worker_group
from neuronstats.cluster.inspection import NodeReport, code_hash, versions
from neuronstats.cluster.nodes import Node, Workers
from neuronstats.cluster.settings import RaySettings
from neuronstats.cluster.start import _first_workers, inspect_nodes
from neuronstats.errors import SettingsError, UserError
from neuronstats.machine import SPARE, Machine

GB = 10**9
MACHINE = Machine(cores=64, host_bytes=100 * GB, gpus=0, gpu_bytes=0)
SAME = NodeReport(MACHINE, code_hash(), versions(), "", 0)
RESOURCES = {"CPU": 8.0, "memory": 50.0 * GB}


def listed(name, **resources):
    """A machine as Ray lists it."""
    return {
        **{"NodeID": name, "NodeManagerHostname": name, "NodeManagerAddress": "10.0.0.1"},
        **{"Alive": True, "Resources": RESOURCES | resources},
    }


@pytest.fixture
def cluster(monkeypatch):
    """cluster(reports, **settings): a pool, its pretended Ray, and what it has said."""

    def make(reports, **settings):
        ray, said = PretendedRay(num_nodes=1), []
        pool = ray.pool(workers_per_node=1)
        pool.settings = RaySettings(address="head:6379", **settings)
        pool.on_message = said.append
        pool.nodes = []
        pool.watch.nodes = [listed(name) for name in reports]
        pool.watch.alive = set(reports)
        pool.watch.require = lambda: None

        def look(gpus):
            if isinstance(reports[ray.here], Exception):
                raise reports[ray.here]
            return reports[ray.here]

        monkeypatch.setattr(connection, "look", look)
        return pool, ray, said

    return make


class Echo:
    def __call__(self, task):
        return task


def test_one_code_everywhere_is_looked_at_before_a_shard_is_done(cluster):
    """Other files, another library, none at all: left out by name; the others work."""
    other = replace(SAME, versions={**versions(), "torch": "1.0"})
    missing = ModuleNotFoundError("No module named 'numba'")
    reports = {"a": SAME, "b": replace(SAME, code="x"), "c": other, "d": missing}
    pool, _, said = cluster(reports)
    assert [node.name for node in inspect_nodes(pool, pool.watch.nodes)] == ["a (10.0.0.1)"]
    assert sorted(said) == [
        "left out: b (10.0.0.1): another neuronstats than this one: its files differ",
        f"left out: c (10.0.0.1): torch 1.0 instead of {versions()['torch']}",
        "left out: d (10.0.0.1): ModuleNotFoundError: No module named 'numba'",
    ]
    pool, _, _ = cluster({"b": replace(SAME, code="x")})
    with pytest.raises(UserError, match=r"no machine of the cluster can be used: b .*files differ"):
        inspect_nodes(pool, pool.watch.nodes)


def test_a_low_priority_is_said_with_its_cure(cluster):
    pool, _, said = cluster({"a": replace(SAME, niceness=15)})
    assert len(inspect_nodes(pool, pool.watch.nodes)) == 1
    assert "a (10.0.0.1): workers run at niceness 15" in said[0]
    assert "export RAY_worker_niceness=0 before ray start" in said[0]


def test_memory_is_the_least_of_what_is_there_and_what_ray_gives_and_asked_of_ray(cluster):
    """Two jobs on one cluster do not share what only one can have."""
    small = replace(SAME, machine=replace(MACHINE, host_bytes=10 * GB))
    pool, ray, _ = cluster({"a": SAME, "b": small})
    pool.nodes = inspect_nodes(pool, pool.watch.nodes)
    memory = {node.id: node.memory for node in pool.nodes}
    assert memory == {"a": 50 * GB, "b": int(SPARE * 10 * GB)}
    pool.workers = replace(_first_workers(pool, None), memory=3 * GB)
    asked = len(ray.asked)
    assert sorted(pool.run(Echo, (), range(4))) == [(n, n) for n in range(4)]
    actors = [options for options in ray.asked[asked:] if "max_restarts" in options]
    assert {options["scheduling_strategy"] for options in actors} == {"a", "b"}
    assert all(options["memory"] == 3 * GB for options in actors)
    assert all(options["num_cpus"] == 8 for options in actors)


def test_max_grows_as_machines_join_as_far_as_each_has_room(cluster):
    """Eight GPUs to begin with; one that joins has two, one none, one another code."""
    gpus = [Node(name, 64, 8, 500 * GB, 80 * GB, name) for name in ("a",)]
    pool, ray, said = cluster({"b": SAME, "c": SAME, "d": replace(SAME, code="x")}, workers="max")
    pool.nodes, pool.watch.alive = gpus, {"a", "b", "c", "d"}
    pool.workers = Workers(8, 1, 8, 10 * GB, 0, ((gpus[0], 8),))
    pool.watch.nodes = [listed("b", CPU=64.0, GPU=2.0), listed("c", CPU=64.0), listed("d")]
    done = [task for task, _ in pool.run(Echo, (), range(200))]
    assert sorted(done) == list(range(200))
    hired = [options["scheduling_strategy"] for options in ray.asked if "max_restarts" in options]
    assert {name: hired.count(name) for name in hired} == {"a": 8, "b": 2}
    assert said == ["left out: d (10.0.0.1): another neuronstats than this one: its files differ"]


def test_max_waits_for_machines_to_join_and_no_longer_than_it_is_told(cluster, monkeypatch):
    """A cloud's cluster begins with a head that has no core."""
    monkeypatch.setattr("neuronstats.cluster.start.time.sleep", lambda seconds: None)
    pool, _, said = cluster({"a": SAME}, workers="max")
    pool.nodes = [Node("head", 0, 0, GB, id="head")]
    assert _first_workers(pool, None).count == 1
    assert said == ["waiting for machines to join the cluster: there is room for no worker yet"]
    pool, _, _ = cluster({}, workers="max", start_timeout=0.05)
    with pytest.raises(SettingsError, match="do not fit"):
        _first_workers(pool, None)
    pool, _, _ = cluster({})
    with pytest.raises(SettingsError, match="do not fit"):
        _first_workers(pool, None)


def test_what_is_waited_for_is_said_and_not_for_ever(cluster, monkeypatch):
    """After a machine was lost nothing was printed for two minutes."""
    monkeypatch.setattr(worker_group, "PATIENCE_SECONDS", 0.05)
    pool, ray, said = cluster({"a": SAME}, start_timeout=0.2)
    pool.nodes = [Node("a", 16, 1, GB, GB, "a")]
    pool.workers = Workers(1, 1, 16, None, 0, ((pool.nodes[0], 1),))
    monkeypatch.setattr(ray, "wait", lambda references, **_: ([], references))
    with pytest.raises(UserError, match=r"did not become ready in ray.start_timeout=0 s"):
        list(pool.run(Echo, (), [1]))
    what = "a worker of 16 cores and 1 GPUs"
    assert said == [f"waiting for {what}: for room in the cluster, or for its model"]


def test_what_fails_on_one_machine_leaves_it_out_and_on_all_ends_the_job(cluster):
    """As a model that only some machines can fetch."""
    pool, ray, said = cluster({"a": SAME, "b": SAME})
    pool.nodes = inspect_nodes(pool, pool.watch.nodes)
    pool.workers = _first_workers(pool, None)

    def work(words):
        yield f"{words} 1"
        if ray.here in broken:
            raise OSError("no route to the hub")
        yield f"{words} 2"

    broken = {"b"}
    told = [(node.id, what) for node, what in pool.on_each_node(work, ("step",))]
    assert sorted(told) == [("a", "step 1"), ("a", "step 2"), ("b", "step 1")]
    assert said == ["left out: b (10.0.0.1): no route to the hub"]
    broken.add("a")
    with pytest.raises(UserError, match=r"no machine of the cluster can be used: .*no route"):
        list(pool.on_each_node(work, ("step",)))
