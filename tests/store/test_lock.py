"""The lease on an object store: one holder at a time; taken over when dead; no write without it."""

import itertools
import json
import os
import threading
import time
from datetime import timedelta

import obstore
import pytest
from helpers.memory import Failing
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from neuronstats.errors import GoneError, SettingsError, UserError
from neuronstats.store import lock as module
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import LOCK, LOGS

URL = "s3://bucket/run"


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def quick(monkeypatch):
    """A lease of a fraction of a second."""
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.1)


def folder(store):
    return RunFolder(URL, store=store)


def put_lock(store, content=b'{"owner": "process 1 on elsewhere"}'):
    obstore.put(store, LOCK, content)


def test_the_lock_is_for_one_and_is_gone_afterwards(store):
    with folder(store).lock():
        with pytest.raises(UserError, match=r"another job .*process \d+ on "):
            folder(store).lock().__enter__()
        assert list(folder(store).sizes()) == [LOCK]  # and no probe
    assert folder(store).sizes() == {}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("every", [2, 3, 4, 5])
def test_it_is_taken_though_every_nth_answer_is_lost(
    every, carried_out, left, store, quick, monkeypatch
):
    """Also the lock that a dead job has left; however the requests meet the losses."""
    monkeypatch.setattr("neuronstats.store.faults.PAUSE_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(module, "LEASE_SECONDS", 60.0)
    for shift in range(every):
        store = MemoryStore()
        if left:
            put_lock(store)
            monkeypatch.setattr(module, "LEASE_SECONDS", 0.0)
        with monkeypatch.context() as patch:
            numbers = itertools.count(shift)

            def losing(call, numbers=numbers):
                def wrapped(*args, **kwargs):
                    lost = next(numbers) % every == 0
                    if not lost or carried_out:
                        answer = call(*args, **kwargs)
                    if lost:
                        raise GenericError("Generic S3 error: connection closed")
                    return answer

                return wrapped

            run = folder(store)
            run.write("known", b"")
            for name in ("put", "get", "head", "delete"):
                patch.setattr(obstore, name, losing(getattr(obstore, name)))
            with run.lock():
                assert str(os.getpid()).encode() in run.read(LOCK)
                patch.setattr(module, "LEASE_SECONDS", 60.0)
                for _ in range(20):
                    lease, again = run._lease, True
                    while again:  # as its thread does
                        try:
                            again = lease.renew()
                        except GenericError:
                            continue
                    assert lease._until > time.monotonic() + 29


def test_a_dead_jobs_lock_is_taken_over(store, quick):
    put_lock(store)
    with pytest.raises(UserError, match="process 1 on elsewhere"):
        folder(store).lock().__enter__()
    time.sleep(0.5)
    with folder(store).lock():
        assert b"elsewhere" not in folder(store).read(LOCK)


@pytest.mark.parametrize("content", [b"", b'{"owner": "proc', b"[]", b"\xff"])
def test_a_damaged_lock_counts_until_it_is_old(content, store, quick):
    put_lock(store, content)
    with pytest.raises(UserError, match="another job"):
        folder(store).lock().__enter__()
    time.sleep(0.5)
    with folder(store).lock():
        pass


def test_of_many_that_take_over_one_wins(store, quick):
    put_lock(store)
    time.sleep(0.5)
    barrier, held, refused = threading.Barrier(8), [], []
    release = threading.Event()

    def attempt():
        barrier.wait()
        try:
            with folder(store).lock():
                held.append(1)
                release.wait(5)
        except UserError:
            refused.append(1)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(held) + len(refused) < 8:
        time.sleep(0.01)
    release.set()
    for thread in threads:
        thread.join()
    assert len(held) == 1


def test_it_is_renewed(store, quick):
    with folder(store).lock():
        time.sleep(1)
        with pytest.raises(UserError, match="another job"):
            folder(store).lock().__enter__()


def test_age_is_by_the_servers_clock(store, monkeypatch):
    put_lock(store)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(UserError, match="another job"):
        folder(store).lock().__enter__()


def test_who_slept_past_its_lease_stops_before_it_writes(store, quick, monkeypatch):
    monkeypatch.setattr(module.Lease, "_keep", lambda self: None)  # the whole process sleeps
    sleeper = folder(store)
    with sleeper.lock():
        sleeper.write("a", b"1")
        time.sleep(0.5)
        with (
            folder(store).lock(),
            pytest.raises(UserError, match="another job has taken the run over"),
        ):
            sleeper.write("a", b"2")
    assert folder(store).read("a") == b"1"


def test_a_lease_that_looked_older_than_it_was(store, monkeypatch):
    """The server tells whole seconds: 60 of them may have been 59.1."""
    monkeypatch.setattr(module.Lease, "_keep", lambda self: None)
    monkeypatch.setattr(module, "LEASE_SECONDS", 1.5)
    now = module.probe
    sleeper = folder(store)
    with sleeper.lock():
        sleeper.write("a", b"1")
        time.sleep(0.6)
        rounded = timedelta(seconds=0.95)
        monkeypatch.setattr(module, "probe", lambda *of: now(*of) + rounded)
        with (
            folder(store).lock(),
            pytest.raises(UserError, match="another job has taken the run over"),
        ):
            sleeper.write("a", b"2")
    assert folder(store).read("a") == b"1"


def test_who_slept_and_was_not_missed_goes_on(store, quick, monkeypatch):
    monkeypatch.setattr(module.Lease, "_keep", lambda self: None)
    sleeper = folder(store)
    with sleeper.lock():
        time.sleep(0.5)
        sleeper.write("a", b"2")
        with pytest.raises(UserError, match="another job"):  # it was renewed
            folder(store).lock().__enter__()


def test_the_end_deletes_only_its_own_lock(store, quick, monkeypatch):
    monkeypatch.setattr(module.Lease, "_keep", lambda self: None)
    with folder(store).lock():
        put_lock(store)
    assert json.loads(folder(store).read(LOCK))["owner"] == "process 1 on elsewhere"


def test_a_failed_renewal_is_tried_again(store, quick, monkeypatch):
    monkeypatch.setattr("neuronstats.store.faults.PAUSE_SECONDS", (0.05, 0.05))
    failing = Failing(monkeypatch, "put")
    mine = folder(store)
    with mine.lock():
        with failing.outage():
            time.sleep(0.25)
        assert failing.failures
        time.sleep(0.4)
        with pytest.raises(UserError, match="another job"):
            folder(store).lock().__enter__()
        mine.write("a", b"")


def test_the_job_stops_when_the_store_stays_away(store, quick, monkeypatch):
    monkeypatch.setattr("neuronstats.store.faults.PAUSE_SECONDS", (0.05, 0.05))
    monkeypatch.setenv("NEURONSTATS_STORE_TIMEOUT", "0.3")
    failing = Failing(monkeypatch, "put", "get", "head")
    mine = folder(store)
    with mine.lock():
        failing.down = True
        time.sleep(1)
        with pytest.raises(GoneError, match="does not answer"):
            mine.check_lock()


@pytest.mark.parametrize("ignored", ["create", "update"])
def test_a_server_without_conditional_puts_is_refused(ignored, store, monkeypatch):
    put = obstore.put

    def careless(store, key, data, mode="overwrite"):
        kind = "update" if isinstance(mode, dict) else mode
        return put(store, key, data, mode="overwrite" if kind == ignored else mode)

    monkeypatch.setattr(obstore, "put", careless)
    with pytest.raises(SettingsError, match="ignores conditional puts"):
        folder(store).lock().__enter__()
    assert folder(store).sizes() == {}


def test_no_probe_is_left(store):
    with folder(store).lock():
        assert folder(store).sizes(LOGS) == {}
