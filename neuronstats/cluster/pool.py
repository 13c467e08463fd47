"""A pool of workers, each with one task in flight, and perhaps one behind whose result is to come.

Tasks carry names, not data: what a worker makes goes from it to the store, and only a small summary
comes back. A worker that is lost (killed, its machine gone) is replaced and its task done again,
three times at most; an exception in a task is never retried, but ends the job with the task's name.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from neuronstats.cluster.connection import Connection
from neuronstats.cluster.crew import Crew, LostError
from neuronstats.errors import UserError

ATTEMPTS = 4  # of one task, counting only losses of its worker


class Pool(Connection):
    """Does tasks on the workers of a connection."""

    _crew: Crew | None = None

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
                LATER, where it yields the result as a Before with the next task, or gives it when
                its `rest` is called. It is not called again where make and args are the same
                objects as before.
            args: small and picklable.
            tasks: small and picklable; str(task) names one in messages.
            tick: called at least twice a second while waiting.

        Raises:
            UserError: a task met bad input, or lost its worker too often.
            GoneError: the cluster went away.
            TaskFailedError: a task failed otherwise.
        """
        crew = self._hired(make, args)
        queue = deque(tasks)
        attempts: dict[Any, int] = {}
        try:
            while (queue and not self.stopping) or crew.at_work:
                self.watch.check()
                if not self.stopping:
                    crew.hire(len(queue))
                    if self.spare is not None:
                        self.spare.dismiss()
                    while queue and crew.idle:
                        crew.give(queue.popleft())
                if self.stopping or not queue:
                    crew.settle()
                ready = crew.wait()
                tick()
                for reference in ready:
                    try:
                        done = crew.take(reference)
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
                        if done is not None:
                            yield done
        except BaseException:
            self._crew = None
            crew.dismiss()
            raise
        finally:
            self.reached.clear()

    def close(self) -> None:
        """End the workers; on this machine keep those without work, for the next pool."""
        if self._crew is not None:
            if self.spare is not None and not self._crew.at_work:
                self.spare.gpus, self.spare.actors = self._crew.let_go()
            self._crew.dismiss()

    def _hired(self, make: Callable[..., Any], args: Sequence[Any]) -> Crew:
        """Return the workers of the call before, given other work if it is other, or new ones."""
        if self._crew is None:
            self._crew = Crew(self, make, args)
        else:
            self._crew.assign(make, args)
        return self._crew
