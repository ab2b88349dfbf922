"""The versions of vLLM this connector was held against, and where they differ.

The connector interface has no version number of its own. A minor that is not in the table is
not guessed at: the connector says so once and stays off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shim:
    """What differs between the versions, as facts."""

    failed_recving: bool
    """Loads can be reported as failed by request; by block alone, one group only."""
    block_table_is_lazy: bool
    """The step's block tables are resolved on demand; a mapping of all of them otherwise."""
    hit_sources: bool
    """The engine asks which tier a hit came from."""


_V29 = Shim(failed_recving=False, block_table_is_lazy=False, hit_sources=False)
_V30 = Shim(failed_recving=True, block_table_is_lazy=True, hit_sources=False)
_V32 = Shim(failed_recving=True, block_table_is_lazy=True, hit_sources=True)

TABLE: dict[tuple[int, int], Shim] = {
    (0, 29): _V29,
    (0, 30): _V30,
    (0, 31): _V30,
    (0, 32): _V32,
    (0, 33): _V32,
}


def minor(version: str) -> tuple[int, int] | None:
    """`0.32.1.post2` is (0, 32); None if it is no version."""
    match = re.match(r"^v?(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def shim(version: str) -> Shim | None:
    """What to know about a version; None if it is not in the table."""
    found = minor(version)
    return TABLE.get(found) if found else None


def known() -> str:
    """The table's versions, for people."""
    return ", ".join(f"{major}.{small}" for major, small in sorted(TABLE))


def block_table(shim: Shim, scheduler_output: Any, req_id: str) -> Sequence[Sequence[int]] | None:
    """The blocks of a request that is scheduled in this step, one list a group."""
    state = getattr(scheduler_output, "kv_connector_block_state", None)
    if state is None:
        return None
    if shim.block_table_is_lazy:
        return state.get_block_ids(req_id)
    return state.block_ids.get(req_id)
