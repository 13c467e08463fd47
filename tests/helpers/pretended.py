"""Ray as far as the pool asks it, in this process: workers that take no time of their own.

    ray = PretendedRay(num_nodes=25)
    pool = ray.pool(workers_per_node=4)
    for task, result in pool.run(make, args, tasks): ...
    ray.seconds        # CPU time of the workers' own code, to be taken off the driver's
    ray.asked          # the options of every actor and task, in order
    ray.here           # inside a task that is a function: the machine it runs on

An answer is ready when `wait` chooses it; a task's steps are made when it is asked for.
"""

import functools
import itertools
import random
import time
from types import SimpleNamespace

from neuronstats.cluster.nodes import Node, Workers
from neuronstats.cluster.pool import Pool
from neuronstats.cluster.settings import RaySettings


class RayError(Exception):
    pass


class RayTaskError(RayError):
    """What a task raised, as Ray hands it on."""

    def __init__(self, cause):
        super().__init__(f"ray::task()\n{type(cause).__name__}: {cause}")
        self.cause = cause


class _Later:
    """What a method gives: called when it is asked for; by next() where it streams."""

    def __init__(self, ray, call):
        self._ray, self._call, self._steps = ray, call, None

    def __next__(self):
        begun = time.process_time()
        if self._steps is None:
            self._steps = self._call()
        step = next(self._steps)
        self._ray.seconds += time.process_time() - begun
        return _Later(self._ray, lambda: step)

    def get(self):
        begun = time.process_time()
        value = self._call()
        self._ray.seconds += time.process_time() - begun
        return value


class _Method:
    def __init__(self, ray, method):
        self._ray, self._method = ray, method

    def options(self, **_):
        return self

    def remote(self, *args):
        return _Later(self._ray, lambda: self._method(*args))


class _Task(_Later):
    """A function's answer; what it raises comes as Ray's error, from `get`."""

    def __init__(self, ray, node, call):
        super().__init__(ray, call)
        self._node = node

    def __next__(self):
        self._ray.here = self._node
        try:
            step = super().__next__()
        except StopIteration:
            raise
        except Exception as error:  # noqa: BLE001 - as Ray does
            self._steps, cause = iter(()), RayTaskError(error)
            return _Task(self._ray, self._node, lambda: _raise(cause))
        return step

    def get(self):
        self._ray.here = self._node
        try:
            return super().get()
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError(error) from error


def _raise(error):
    raise error


class _Actor:
    def __init__(self, ray, instance):
        self._ray, self._instance = ray, instance

    def __getattr__(self, name):
        return _Method(self._ray, getattr(self._instance, name))


class PretendedRay:
    """The module `ray`, and the cluster behind it."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, num_nodes, seed=0):
        self.seconds, self.asked, self.here = 0.0, [], ""
        self._random = random.Random(seed)
        self._names = [f"node{i}" for i in range(num_nodes)]

    def pool(self, workers_per_node):
        nodes = [Node(name, 64, 0, 1 << 40, id=name) for name in self._names]
        listed = [{"NodeID": name, "Alive": True} for name in self._names]
        watch = SimpleNamespace(
            check=lambda: None, nodes=listed, alive=set(self._names), close=lambda: None
        )
        settings = RaySettings(address="head:6379", workers=workers_per_node * len(nodes))
        pool = Pool(self, watch, settings, on_message=lambda _: None, streaming=True)
        counts = tuple(zip(nodes, itertools.repeat(workers_per_node)))
        count = workers_per_node * len(nodes)
        pool.nodes, pool.workers = nodes, Workers(count, 0, 1, None, 0, counts)
        pool.only_on = lambda node_id: node_id  # where it is placed changes nothing here
        return pool

    def remote(self, kind):
        def begin(options, *args, **settings):
            if isinstance(kind, type):
                return _Actor(self, kind())
            return _Task(self, options["scheduling_strategy"], lambda: kind(*args, **settings))

        def options(**given):
            self.asked.append(given)
            return SimpleNamespace(remote=functools.partial(begin, given))

        return SimpleNamespace(options=options)

    def wait(self, references, *, num_returns, timeout):
        chosen = self._random.sample(references, min(len(references), max(1, num_returns // 20)))
        return chosen, [reference for reference in references if reference not in chosen]

    def get(self, reference):
        return reference.get()

    def kill(self, actor):
        pass
