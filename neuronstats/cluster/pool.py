"""A pool of workers, each with one task in flight, and perhaps one behind whose result is to come.

Tasks carry names, not data: what a worker makes goes from it to the store, and only a small summary
comes back. A worker that is lost (killed, its machine gone) is replaced and its task done again,
three times at most; an exception in a task is never retried, but ends the job with the task's name.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from neuronstats.cluster.connection import Connection
from neuronstats.cluster.worker_group import LostError, WorkerGroup
from neuronstats.errors import UserError

ATTEMPTS = 4  # of one task, counting only losses of its worker


class Pool(Connection):
    """Does tasks on the workers of a connection."""

    _group: WorkerGroup | None = None

    def run(
        self,
        make: Callable[..., Any],
        args: Sequence[Any],
        tasks: Sequence[Any],
        *,
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Any, Any]]:
        """Do tasks, in any order; yield (task, result) as they finish.

        Args:
            make: called on each worker once, with args; its result is called with each task. Where
                that is a generator, it yields how far it has come, and returns the result; or
                DEFERRED, where it yields the result as a PreviousResult with the next task, or
                returns it from `deferred_result`. It is not called again where make and args
                are the same objects as before.
            args: small and picklable.
            tasks: small and picklable; str(task) names one in messages.
            tick: called at least twice a second while waiting.

        Raises:
            UserError: a task met bad input, or lost its worker too often.
            GoneError: the cluster went away.
            TaskFailedError: a task failed otherwise.
        """
        group = self._group_for(make, args)
        queue = deque(tasks)
        attempts: dict[Any, int] = {}
        try:
            while (queue and not self.stopping) or group.has_tasks:
                self.watch.check()
                if not self.stopping:
                    group.start_missing(len(queue))
                    if self.spare is not None:
                        self.spare.kill()
                    self._submit(queue, group)
                if self.stopping or not queue:
                    group.request_deferred()
                ready = group.wait()
                tick()
                finished = []
                for reference in ready:
                    try:
                        done = group.receive(reference)
                    except LostError as loss:
                        if not loss.tasks:
                            continue
                        task = loss.tasks[0]  # the one before, still written, is not to blame
                        attempts[task] = attempts.get(task, 0) + 1
                        if attempts[task] >= ATTEMPTS:
                            raise UserError(
                                f"{task} lost its worker {ATTEMPTS} times, the last time on {loss}."
                                f" {loss.advice}"
                            ) from loss
                        queue.extendleft(loss.tasks)
                    else:
                        finished += [] if done is None else [done]
                self._submit(queue, group)  # before the caller takes its time
                yield from finished
        except BaseException:
            self._group = None
            group.kill()
            raise
        finally:
            self.reached.clear()

    def _submit(self, queue: deque[Any], group: WorkerGroup) -> None:
        """Start tasks on all idle workers."""
        while queue and group.idle and not self.stopping:
            group.submit(queue.popleft())

    def close(self) -> None:
        """End the workers; on this machine keep those without work, for the next pool."""
        if self._group is not None:
            if self.spare is not None and not self._group.has_tasks:
                self.spare.gpus, self.spare.actors = self._group.release()
            self._group.kill()

    def _group_for(self, make: Callable[..., Any], args: Sequence[Any]) -> WorkerGroup:
        """Return the workers of the call before, given other work if it is other, or new ones."""
        if self._group is None:
            self._group = WorkerGroup(self, make, args)
        else:
            self._group.assign(make, args)
        return self._group
