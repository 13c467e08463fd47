"""A real S3 server on loopback: SeaweedFS from the Python registry, ended by its pid."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import obstore
from obstore.store import S3Store

WEED = Path(sys.executable).parent / "weed"
BUCKET = "runs"
KEY = {"accessKey": "test-key", "secretKey": "test-secret"}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class S3Server:
    """One server over a folder; its ports stay the same over restarts."""

    def __init__(self, folder):
        self._folder, self._process = folder, None
        ports = {free_port() for _ in range(200)}
        # Each has a second one for gRPC, 10000 higher.
        usable = [port for port in ports if 10_000 < port < 55_000]
        names = ("master", "volume", "filer", "s3")
        self._ports = dict(zip(names, usable, strict=False))
        identity = {"name": "test", "credentials": [KEY], "actions": ["Read", "Write", "List"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        self.port = self._ports["s3"]
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._ports['s3']}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY["accessKey"],
            "AWS_SECRET_ACCESS_KEY": KEY["secretKey"],
            "AWS_REGION": "us-east-1",
        }

    def start(self):
        options = [f"-{name}.port={port}" for name, port in self._ports.items()]
        options += [f"-{name}.port.grpc={port + 10_000}" for name, port in self._ports.items()]
        command = [
            *(WEED, "server", f"-dir={self._folder / 'data'}", "-ip=127.0.0.1"),
            *("-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={self._folder / 's3.json'}"),
            *("-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=30"),
            *("-master.electionTimeout=1s", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *options,
        ]
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                obstore.put(self.store(), "up", b"")
                return
            except Exception:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.3)
                self._make_bucket()

    def kill(self):
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _make_bucket(self):
        """A folder below the filer's /buckets/ is a bucket."""
        import urllib.request

        url = f"http://127.0.0.1:{self._ports['filer']}/buckets/{BUCKET}/"
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=5).close()
        except OSError:
            return

    def store(self, prefix=""):
        return S3Store(
            BUCKET,
            prefix=prefix or None,
            endpoint=self.environment["AWS_ENDPOINT_URL"],
            access_key_id=KEY["accessKey"],
            secret_access_key=KEY["secretKey"],
            region="us-east-1",
            allow_http=True,
            virtual_hosted_style_request=False,
        )


def installed():
    return WEED.exists() or shutil.which("weed") is not None
