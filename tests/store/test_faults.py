"""What storage answers, in words; an object store that goes away is waited for, then given up."""

import logging
import time

import pytest
from helpers.memory import Failing, memory_stores
from obstore.exceptions import GenericError, PermissionDeniedError

from neuronstats.errors import GoneError, SettingsError, UserError
from neuronstats.store.faults import storage_errors
from neuronstats.store.folder import RunFolder

URL = "s3://bucket/run"


@pytest.mark.parametrize("url", ["foo://x", "s3://", "memory:///x", "s3:///", "file:///tmp/x"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(SettingsError, match="expected a folder, or the URL of an object store"):
        RunFolder(url)


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (PermissionDeniedError("403: <?xml <Code>SignatureDoesNotMatch"), "secret is wrong"),
        (PermissionDeniedError("403: <?xml <Code>InvalidAccessKeyId"), "does not know this key"),
        (PermissionDeniedError("403 Forbidden"), "AWS_ACCESS_KEY_ID"),
        (FileNotFoundError("404 Not Found: <?xml <Code>NoSuchBucket</Code>"), "no such bucket"),
        (GenericError("HTTP error: builder error"), "AWS_ALLOW_HTTP=true"),
        (GenericError("Error performing PUT http://169.254.169.254/latest"), "there is no key"),
        (OSError(36, "File name too long"), "choose a shorter one"),
        (OSError(28, "No space left on device"), "the disk is full"),
    ],
)  # fmt: skip
def test_an_error_names_its_cure(error, cure):
    with pytest.raises(UserError, match=cure) as caught, storage_errors("write", f"{URL}/x"):
        raise error
    assert type(caught.value) is UserError
    assert "xml" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def failing(monkeypatch):
    memory_stores(monkeypatch)
    monkeypatch.setattr("neuronstats.store.faults.PAUSE_SECONDS", (0.02, 0.02))
    return Failing(monkeypatch, "put", "get", "head", "delete", "list")


def test_an_outage_is_waited_for_with_one_line(failing, monkeypatch, caplog):
    folder = RunFolder(URL)
    folder.write("a", b"1")
    sleep = time.sleep

    def wait(seconds):
        sleep(seconds)
        failing.down = failing.failures < 5

    monkeypatch.setattr(time, "sleep", wait)
    failing.down = True
    with caplog.at_level(logging.WARNING):
        folder.write("a", b"2")
    assert failing.failures == 5
    assert folder.read("a") == b"2"
    assert len(caplog.records) == 1
    assert "Waiting for it" in caplog.text


def test_an_outage_ends_in_its_own_error(failing, monkeypatch):
    monkeypatch.setenv("NEURONSTATS_STORE_TIMEOUT", "0.1")
    folder = RunFolder(URL)
    folder.write("a", b"1")
    with failing.outage(), pytest.raises(GoneError, match="does not answer"):
        folder.read("a")
    assert failing.failures > 2


def test_a_store_that_never_answered_is_not_waited_for(failing):
    with failing.outage(), pytest.raises(GoneError, match="AWS_ENDPOINT_URL"):
        RunFolder(URL).read("a")
    assert failing.failures == 1


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_timeout_that_is_none(text, monkeypatch):
    monkeypatch.setenv("NEURONSTATS_STORE_TIMEOUT", text)
    with pytest.raises(SettingsError, match=r"NEURONSTATS_STORE_TIMEOUT=.* expected seconds"):
        RunFolder(URL)
