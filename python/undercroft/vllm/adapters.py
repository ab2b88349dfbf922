"""What a LoRA adapter is, for the keys of its requests.

The engine's hashes name an adapter by its name, in later versions by its path too; the bytes at a
path can change. So the adapter's own digest is bound into the keys of its requests.
"""

from __future__ import annotations

import os
from collections import OrderedDict

from . import digests
from .guard import complaints

MAX_ADAPTERS = 1024


class Adapters:
    """Digests of adapters by path, as they were when first asked for."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[digests.Signature, bytes]] = OrderedDict()

    def salt(self, path: str) -> bytes | None:
        """Bytes that stand for the adapter at `path`; None if it cannot be told what it is."""
        try:
            if not os.path.isdir(path):
                raise digests.DigestError(f"{path} is no folder here")
            signature = digests.signature(path)
            if path not in self._known:
                self._known[path] = (signature, digests.adapter_digest(path))
                if len(self._known) > MAX_ADAPTERS:
                    self._known.popitem(last=False)
            known, digest = self._known[path]
            if known != signature:
                # The engine may still compute with what it read before: nobody can tell.
                raise digests.DigestError(f"the files of {path} have changed while in use")
            return b"lora" + digest
        except (OSError, digests.DigestError) as error:
            complaints.say(
                "adapter", "undercroft: requests of an adapter are not cached: %s", error
            )
            return None
