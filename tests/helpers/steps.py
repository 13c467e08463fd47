"""Dying at any step of a job: every change of what is stored is one `RunFolder._step`."""

import threading

from neuronstats.errors import UserError
from neuronstats.store.folder import RunFolder


class Steps:
    """Counts steps, and dies at one of them: nothing that follows is written either.

    Or it fails at that one alone, and what the job does about it is carried out.
    """

    def __init__(self, monkeypatch):
        self.taken, self.dies_at, self.dead, self._once = 0, None, False, False
        step, mutex = RunFolder._step, threading.Lock()

        def counted(folder, kind, key, act):
            with mutex:  # Zarr writes chunks from several threads
                moment, self.taken = self.taken, self.taken + 1
            self._die_at(moment)
            return step(folder, kind, key, act)

        monkeypatch.setattr(RunFolder, "_step", counted)

    def _die_at(self, moment):
        self.dead = self.dead or moment == self.dies_at
        if moment == self.dies_at or (self.dead and not self._once):
            raise OSError("died")

    def run(self, job, dies_at=None, *, once=False):
        """Run a job to its end, or to its death; return the steps taken."""
        self.taken, self.dies_at, self.dead, self._once = 0, dies_at, False, once
        try:
            if dies_at is None:
                assert job() == 0
            else:
                try:
                    job()
                except (OSError, UserError):
                    if not self.dead:
                        raise
                assert self.dead, "it ended before it died"
        finally:
            self.dies_at, self.dead = None, False
        return self.taken
