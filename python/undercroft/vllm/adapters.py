"""What a LoRA adapter is, for the keys of its requests.

The engine's hashes name an adapter by its name, in later versions by its path too; the bytes at a
path can change. So the adapter's own digest is bound into the keys of its requests.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

from . import digests
from .guard import complaints

MAX_ADAPTERS = 1024


class Adapters:
    """Digests of adapters by path, as they were when first asked for. Whoever asks is the engine's
    scheduler, which must not wait for files: another thread reads them."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[digests.Signature, bytes]] = OrderedDict()
        self._reading: set[str] = set()
        self._changed = threading.Condition()

    def salt(self, path: str) -> bytes | None:
        """Bytes that stand for the adapter at `path`; None if it cannot be told what it is, or not
        yet."""
        try:
            signature = digests.signature(path)
            with self._changed:
                found = self._known.get(path)
                if found is None:
                    self._read(path, signature)
                    return None
            known, digest = found
            if known != signature:
                # The engine may still compute with what it read before: nobody can tell.
                raise digests.DigestError(f"the files of {path} have changed while in use")
            return b"lora" + digest
        except (OSError, digests.DigestError) as error:
            self._refuse(error)
            return None

    def wait(self, seconds: float) -> bool:
        """Waits until all that was asked for has been read, and says whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._reading, seconds)

    def _read(self, path: str, signature: digests.Signature) -> None:
        """Begins to read; the lock is held."""
        if path in self._reading:
            return
        self._reading.add(path)
        name, arguments = "undercroft-adapter", (path, signature)
        try:
            threading.Thread(target=self._digest, name=name, args=arguments, daemon=True).start()
        except BaseException:
            self._reading.discard(path)
            raise

    def _digest(self, path: str, signature: digests.Signature) -> None:
        try:
            digest = digests.adapter_digest(path)
            if digests.signature(path) != signature:
                raise digests.DigestError(f"the files of {path} changed while they were read")
        except Exception as error:
            # It is read again for the next request.
            self._refuse(error)
            digest = None
        with self._changed:
            self._reading.discard(path)
            if digest is not None:
                self._known[path] = (signature, digest)
                if len(self._known) > MAX_ADAPTERS:
                    self._known.popitem(last=False)
            self._changed.notify_all()

    @staticmethod
    def _refuse(error: Exception) -> None:
        complaints.say("adapter", "undercroft: requests of an adapter are not cached: %s", error)
