"""A corpus's n-gram ids, kept in the run: numbered once for all tasks and every later reduction.

RUN/ngrams/KEY/N.NAME      an array of one length's NgramIds, compressed
RUN/ngrams/KEY/N.json      its commit, written last: dtypes, shapes, sizes and checksums
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from neuronstats.errors import UserError
from neuronstats.hashing import checksum
from neuronstats.stats.ngram_ids import NgramIds, build_ngram_ids
from neuronstats.store.folder import RunFolder
from neuronstats.store.layout import NGRAMS, Shard
from neuronstats.store.run import Run

FORMAT = 1
CODEC = "zstd"
ARRAYS = ("ids", "occurrences", "token_ids", "lexical")  # of NgramIds; the others follow from them


@dataclasses.dataclass(frozen=True)
class NgramStore:
    """Where the n-grams of some shards of a run are kept.

    Args:
        run: the run.
        shards: whose sequences are counted.
    """

    run: Run
    shards: Sequence[Shard]

    @property
    def _folder(self) -> RunFolder:
        return self.run.folder

    @property
    def _key(self) -> str:
        """Names the corpus: other tokens, or other shards of a partial run, are another one."""
        bos_id = self.run.about.bos_id
        tokens = self.run.about.tokens_fingerprint
        about = [FORMAT, tokens, bos_id, [shard.index for shard in self.shards]]
        return f"{NGRAMS}/{checksum(json.dumps(about).encode())[:16]}"

    def prepare(self, lengths: Sequence[int]) -> None:
        """Number what is not there yet.

        Raises:
            UserError: the tokens are damaged, or nothing can be written.
        """
        tokens = self.run.corpus().tokens  # checked, also where nothing is to be numbered
        sizes = self._folder.sizes(NGRAMS)
        for key in [key for key in sizes if not key.startswith(f"{self._key}/")]:
            self._folder.remove(key)  # of another, partial state of the run
        missing = [n for n in lengths if not self._is_whole(n, sizes)]
        if missing:
            tokens = np.concatenate([tokens[shard.sequences] for shard in self.shards])
            built = build_ngram_ids(tokens, self.run.about.bos_id, missing)
            for ngrams in built.values():
                self._write(ngrams)

    def read(self, lengths: Sequence[int]) -> dict[int, NgramIds]:
        """Read the n-grams of some lengths, each array checked against its commit.

        Raises:
            UserError: one is missing or was changed.
        """
        return {n: self._read(n) for n in sorted(lengths)}

    def _manifest(self, n: int) -> dict[str, Any]:
        data = self._folder.read(f"{self._key}/{n}.json")
        if data is None:
            raise self._damaged(f"{n}.json")
        return dict(json.loads(data))

    def _is_whole(self, n: int, sizes: Mapping[str, int]) -> bool:
        if f"{self._key}/{n}.json" not in sizes:
            return False
        try:
            arrays = self._manifest(n)
            return all(
                self._folder.checksum(f"{self._key}/{n}.{name}")
                == (arrays[name]["size"], arrays[name]["checksum"])
                for name in ARRAYS
            ) and set(arrays) == set(ARRAYS)
        except (ValueError, KeyError, TypeError, RecursionError):
            return False  # a damaged commit is none

    def _write(self, ngrams: NgramIds) -> None:
        arrays = {}
        for name in ARRAYS:
            array = np.ascontiguousarray(getattr(ngrams, name))
            data = pa.compress(array.view(np.uint8), codec=CODEC, asbytes=True)
            self._folder.write(f"{self._key}/{ngrams.n}.{name}", data)
            arrays[name] = {
                "dtype": array.dtype.str,
                "shape": array.shape,
                "size": len(data),
                "checksum": checksum(data),
            }
        self._folder.write(f"{self._key}/{ngrams.n}.json", json.dumps(arrays).encode())

    def _read(self, n: int) -> NgramIds:
        arrays: dict[str, Any] = {}
        for name, about in self._manifest(n).items():
            data = self._folder.read(f"{self._key}/{n}.{name}")
            if data is None or checksum(data) != about["checksum"]:
                raise self._damaged(f"{n}.{name}")
            dtype, shape = np.dtype(about["dtype"]), tuple(about["shape"])
            num_bytes = dtype.itemsize * int(np.prod(shape))
            plain = pa.decompress(data, decompressed_size=num_bytes, codec=CODEC)
            arrays[name] = np.frombuffer(plain, dtype).reshape(shape)
        return NgramIds.derive(n, **arrays)

    def _damaged(self, name: str) -> UserError:
        return UserError(
            f"{self._folder.location}/{self._key}/{name} is missing or has changed: delete"
            f" {self._folder.location}/{NGRAMS}, and reduce again, which numbers the n-grams anew."
        )


def damaged(folder: RunFolder) -> dict[str, str]:
    """Read all n-grams that a run keeps; return what is wrong, by the key below ngrams/."""
    damage = {}
    for key in folder.sizes(f"{NGRAMS}/"):
        if not key.endswith(".json"):
            continue
        name = key.removeprefix(f"{NGRAMS}/")
        try:
            arrays = json.loads(folder.read(key) or b"")
            for array in ARRAYS:
                about = arrays[array]
                found = folder.checksum(f"{key.removesuffix('json')}{array}")
                if found != (about["size"], about["checksum"]):
                    damage[f"{name.removesuffix('json')}{array}"] = "is missing or has changed"
        except (ValueError, KeyError, TypeError, RecursionError):
            damage[name] = "is damaged"
    return damage
