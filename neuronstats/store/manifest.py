"""The tables' manifest: which reduction made them, and every object's size and checksum.

It is written last. Whoever reads tables compares them with it, so that a table that was changed,
lost, or is of another reduction never reads as numbers. Tables of before there were manifests have
none and are read as they are; those made since say in their metadata that there must be one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neuronstats.errors import UserError
from neuronstats.hashing import checksum
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import MANIFEST, PARTIAL, TABLES
from neuronstats.store.zarr_store import OnRead

MARK = {"manifest": 1}  # in the metadata of tables that have one


def publish(folder: RunFolder, reduction: Mapping[str, Any]) -> None:
    """Write the manifest of the new tables, then put all of it in the place of the old ones.

    Args:
        folder: the run.
        reduction: what made the tables.
    """
    names = [key.removeprefix(f"{PARTIAL}/") for key in folder.sizes(f"{PARTIAL}/")]
    objects = {
        name: folder.checksum(f"{PARTIAL}/{name}") for name in sorted(names) if name != MANIFEST
    }
    content: dict[str, Any] = {"reduction": dict(reduction), "objects": objects}
    content["checksum"] = _own_checksum(content)
    folder.write(f"{PARTIAL}/{MANIFEST}", json.dumps(content, indent=1, default=str).encode())
    folder.replace(PARTIAL, TABLES, first=MANIFEST)


def _own_checksum(content: Mapping[str, Any]) -> str:
    return checksum(json.dumps(content, sort_keys=True, default=str).encode())


@dataclass(frozen=True)
class Manifest:
    """What a run's tables must be.

    Args:
        folder: the run.
        objects: size and checksum by the name below tables/; None: they have no manifest.
        reduction: what made the tables.
    """

    folder: RunFolder
    objects: Mapping[str, tuple[int, str]] | None
    reduction: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: RunFolder) -> "Manifest":
        """Read a run's manifest.

        Raises:
            UserError: it is damaged.
        """
        data = folder.read(f"{TABLES}/{MANIFEST}")
        if data is None:
            return cls(folder, None)
        try:
            content = json.loads(data)
            known = content.pop("checksum")
            objects = {
                name: (int(n), str(digest)) for name, (n, digest) in content["objects"].items()
            }
            reduction = dict(content["reduction"])
            whole = known == _own_checksum(content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise _corrupt(folder, MANIFEST, "is damaged")
        return cls(folder, objects, reduction)

    def require(self, metadata: Mapping[str, Any]) -> None:
        """Raise if a table's metadata says that there is a manifest, and there is none.

        Raises:
            UserError: the manifest is missing.
        """
        if self.objects is None and "manifest" in metadata:
            raise _corrupt(self.folder, MANIFEST, "is missing")

    def verify(self, name: str) -> None:
        """Read an object below tables/ and compare it.

        Raises:
            UserError: it is not what was written.
        """
        if self.objects is not None:
            self._compare(name, self.folder.checksum(f"{TABLES}/{name}"))

    def verifier(self, prefix: str) -> OnRead:
        """Return a function that compares what a Zarr store below a prefix reads."""

        def compare(key: str, data: bytes | None) -> None:
            if self.objects is not None:
                found = None if data is None else (len(data), checksum(data))
                self._compare(f"{prefix}/{key}", found)

        return compare

    def damaged(self) -> dict[str, str]:
        """Read all tables; return what is wrong, by the name below tables/."""
        found = self.folder.sizes(f"{TABLES}/")
        names = {key.removeprefix(f"{TABLES}/") for key in found} - {MANIFEST}
        damage = {}
        for name in sorted(names | set(self.objects or ())) if self.objects is not None else ():
            try:
                self.verify(name)
            except UserError as error:
                damage[name] = str(error)
        return damage

    def _compare(self, name: str, found: tuple[int, str] | None) -> None:
        assert self.objects is not None
        expected = self.objects.get(name)
        if expected is None and found is not None and not name.endswith("/zarr.json"):
            raise _corrupt(self.folder, name, "is not of the reduction that made the others")
        if expected is not None and expected != found:
            raise _corrupt(self.folder, name, "is missing" if found is None else "has changed")


def _corrupt(folder: RunFolder, name: str, what: str) -> UserError:
    return UserError(
        f"{folder.location}/{TABLES}/{name} {what}: run jobs/reduce.py run={folder.location} again."
    )
