"""Weights read from disk for every pass: our sweep, and accelerate's disk offload where installed.

Before each pass over the weights their files' pages are dropped from the page cache, as they would
be in a memory too small for them.
"""

import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from neuronstats.bench_forward import Swept, batches, load_model
from neuronstats.bench_model import Subject
from neuronstats.checkpoint import Checkpoint


class Streamed:
    """Our sweep with two layers in memory, the next one read while one is computed."""

    def __init__(self, subject: Subject) -> None:
        """Make ready."""
        self._files = _weight_files(subject.folder)
        self.layer_bytes = Checkpoint(subject.folder).layer_bytes
        self.swept = Swept(subject, resident=False)

    def record(self) -> None:
        """Run over the shard, each layer read once."""
        drop_pages(self._files)
        self.swept.record()


class Offloaded:
    """accelerate's disk offload of the base model: every layer is read for every batch."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        """Write the weights as accelerate wants them.

        Args:
            subject: model and tokens.
            folder: for them; made here.

        Raises:
            ImportError: accelerate is not installed.
        """
        accelerate: Any = importlib.import_module("accelerate")
        self._subject = subject
        self._model: Any = load_model(subject).model
        folder.mkdir(parents=True)
        accelerate.disk_offload(self._model, str(folder), execution_device=subject.device)
        self._files = _weight_files(folder)

    @torch.inference_mode()
    def forward(self) -> None:
        """Run over the shard's batches, recording nothing."""
        for ids in batches(self._subject, self._subject.batch_sequences):
            drop_pages(self._files)
            self._model(input_ids=ids, use_cache=False)


def _weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".dat"))


def drop_pages(files: Iterable[Path]) -> None:
    """Drop files from the page cache, as far as they are not mapped."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages not yet written cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def disk_bytes_read() -> int | None:
    """Return the bytes that this process has had read from disks; None where not told."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
