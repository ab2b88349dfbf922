"""Whether pictures, sounds and the like in a prompt are named by what they are.

The engine's block hashes hold an identifier for each. It is a digest of the content, unless a
client gave a name of its own, or the engine only counts them: then another one has the same name in
another process, or from another client.
"""

from __future__ import annotations

import re
from typing import Any

from .guard import complaints

# blake3, sha256 or sha512; a LoRA that works on pictures puts its name before it.
_DIGEST = re.compile(r"(?:.*:)?[0-9a-f]{64}(?:[0-9a-f]{64})?", re.DOTALL)


def are_named_by_content(request: Any) -> bool:
    """Whether every item of a request is."""
    for feature in getattr(request, "mm_features", None) or ():
        identifier = str(feature.identifier)
        if not _DIGEST.fullmatch(identifier):
            complaints.say(
                "items",
                "undercroft: requests with items that are not named by their content are not"
                " cached: %.40s",
                identifier,
            )
            return False
    return True
