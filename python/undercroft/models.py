"""What models are, for caches that tell no more of them than a name."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from undercroft.vllm.digests import (
    DigestError, Signature, config_digest, files_digest, signature, weight_files,
)

logger = logging.getLogger("undercroft")

#: The files of a model that another process uses are looked at once in this long, seconds. No
#: engine begins anew in less.
LOOK_AGAIN_S = 1.0
#: So many names are remembered.
MAX_NAMES = 1024


@dataclass
class Model:
    """A model's digest, and where it comes from if that may change."""

    digest: bytes | None
    folder: str | None = None
    files: Signature = ()
    looked_at: float = 0.0


class Models:
    """The digests of models of which a cache tells no more than the name.

    `table` names each model's digest: 64 hexadecimal digits, the directory it is loaded from, or
    `none` for whoever vouches that the name alone tells models apart. A name that is not in it and
    is itself a directory with a config and weights is taken for that.

    `is_elsewhere`: the engine is another process. It may outlive files that are replaced, and
    begin anew with others, so that a model whose files have changed is nobody's any more; and it
    has a working directory of its own, so that a name must be a whole path.
    """

    def __init__(self, table: Mapping[str, str], is_elsewhere: bool = False) -> None:
        self._is_elsewhere = is_elsewhere
        self._known: dict[str, Model] = {}
        for name, value in table.items():
            if not isinstance(value, str):
                raise ValueError(f"models[{name!r}] is {value!r}, allowed a text")
            model = self._known[name] = self._model(value)
            if model.digest is None:
                allowed = "64 hexadecimal digits, a model's directory, or none"
                raise ValueError(f"models[{name!r}] is {value!r}, allowed {allowed}")

    def digest(self, name: str) -> bytes | None:
        """`None`: nobody says what stands behind the name, or it is not what it was."""
        model = self._known.get(name)
        if model is None:
            if len(self._known) >= MAX_NAMES:
                return None
            is_told = not self._is_elsewhere or Path(name).is_absolute()
            model = self._known[name] = self._model(name) if is_told else Model(None)
        if self._is_elsewhere and model.digest is not None and self._has_changed(model):
            model.digest = None
        return model.digest

    def _has_changed(self, model: Model) -> bool:
        now = time.monotonic()
        if model.folder is None or now - model.looked_at < LOOK_AGAIN_S:
            return False
        model.looked_at = now
        try:
            is_same = signature(model.folder) == model.files
        except OSError:
            is_same = False
        if not is_same:
            logger.warning("undercroft: the files of the model %s have changed: nothing of it is "
                           "kept until this process begins anew", model.folder)
        return not is_same

    @staticmethod
    def _model(value: str) -> Model:
        if value == "none":
            return Model(bytes(32))
        if len(value) == 64 and all(c in "0123456789abcdefABCDEF" for c in value):
            return Model(bytes.fromhex(value))
        try:
            if not Path(value).is_dir():
                return Model(None)
            # Before they are read: what changes meanwhile is seen afterwards.
            files = signature(value)
            return Model(model_digest(value), value, files)
        except (OSError, ValueError, DigestError) as error:
            logger.warning("undercroft: no digest of the model %s: %s", value, error)
            return Model(None)


def model_digest(folder: str) -> bytes:
    """Of a model's folder: its config and its weights."""
    config = json.loads(Path(folder, "config.json").read_bytes())
    whole = hashlib.blake2b(config_digest(config), digest_size=32)
    whole.update(files_digest(weight_files(folder)))
    return whole.digest()
