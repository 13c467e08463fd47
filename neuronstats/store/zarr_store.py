"""Zarr's store on a run folder: every byte read and written goes the folder's one way."""

# ruff: noqa: D102 - the methods are those of the class above, where Zarr says what they do

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from zarr.storage import ObjectStore

from neuronstats.errors import GoneError
from neuronstats.store.faults import storage_errors

OnObject = Callable[[str, bytes], None]
OnRead = Callable[[str, bytes | None], None]


class ZarrStore(ObjectStore):  # type: ignore[misc]
    """Zarr's object store on a run folder: the same steps, the same patience, all bytes seen."""

    def __init__(
        self,
        folder: Any,
        name: str,
        *,
        read_only: bool = False,
        on_write: OnObject | None = None,
        on_read: OnRead | None = None,
    ) -> None:
        super().__init__(folder._store, read_only=read_only)
        self._folder, self._name = folder, name
        self._on_write, self._on_read = on_write, on_read

    def with_read_only(self, read_only: bool = False) -> "ZarrStore":  # noqa: FBT001, FBT002
        return ZarrStore(
            self._folder,
            self._name,
            read_only=read_only,
            on_write=self._on_write,
            on_read=self._on_read,
        )

    def _full(self, key: str) -> str:
        return f"{self._name}/{key}".rstrip("/")

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        full = self._full(key)
        while True:
            try:
                with storage_errors("read", f"{self._folder.location}/{full}"):
                    found = await super().get(full, prototype, byte_range)
            except GoneError as error:
                await asyncio.sleep(self._folder._patience.pause(error))
            else:
                self._folder._patience.answered()
                if self._on_read is not None and byte_range is None:
                    self._on_read(key, None if found is None else found.to_bytes())
                return found

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._folder.exists, self._full(key))

    async def set(self, key: str, value: Any) -> None:
        data = value.to_bytes()
        if self._on_write is not None:
            self._on_write(key, data)
        await asyncio.to_thread(self._folder.write, self._full(key), data)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._folder.remove, self._full(key))

    async def delete_dir(self, prefix: str) -> None:
        await asyncio.to_thread(self._folder.clear, self._full(prefix))

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in await asyncio.to_thread(self._folder.sizes, self._full(prefix)):
            yield key.removeprefix(f"{self._name}/")

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return super().list_dir(self._full(prefix))
