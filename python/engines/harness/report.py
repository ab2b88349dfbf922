"""What a suite has seen: checks, figures, tables; as text for people and as JSON for later."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Report:
    """Collects what one suite says."""

    def __init__(self, suite: str, again: str) -> None:
        self.suite = suite
        self.again = again
        self.checks: list[dict[str, Any]] = []
        self.figures: dict[str, Any] = {}
        self.tables: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.begun = time.monotonic()

    def check(self, what: str, holds: bool, detail: str = "") -> bool:
        """Says whether something that must hold does."""
        self.checks.append({"what": what, "holds": holds, "detail": detail})
        mark = "ok    " if holds else "FAILED"
        print(f"  {mark} {what}{': ' + detail if detail else ''}", flush=True)
        return holds

    def figure(self, name: str, value: Any) -> None:
        self.figures[name] = value

    def note(self, text: str) -> None:
        print(f"  {time.monotonic() - self.begun:6.1f} s  {text}", flush=True)

    def skip(self, what: str, why: str) -> None:
        """Something that could not be tried here, by name."""
        self.skipped.append(f"{what}: {why}")
        print(f"  SKIPPED {what}: {why}", flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        cells = [[shown(cell) for cell in row] for row in rows]
        self.tables.append({"title": title, "columns": list(columns), "rows": cells})
        widths = [
            max(len(column), *(len(row[at]) for row in cells), 0) if cells else len(column)
            for at, column in enumerate(columns)
        ]
        print(f"\n  {title}")
        for row in [list(columns), *cells]:
            print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)))
        print(flush=True)

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [check for check in self.checks if not check["holds"]]

    def end(self, out: Path | None) -> bool:
        """Prints the last line and writes the JSON; whether all is well."""
        seconds = time.monotonic() - self.begun
        well = bool(self.checks) and not self.failed
        counts = f"{len(self.checks) - len(self.failed)} of {len(self.checks)} checks hold"
        also = f", {len(self.skipped)} SKIPPED" if self.skipped else ""
        print(
            f"{self.suite}: {'ok' if well else 'FAILED'}: {counts}{also}, {seconds:.0f} s",
            flush=True,
        )
        if not well:
            print(f"run it again: {self.again}", flush=True)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            whole = {
                "schema": 1,
                "suite": self.suite,
                "well": well,
                "seconds": round(seconds, 1),
                "machine": platform.processor() or platform.machine(),
                "again": self.again,
                "checks": self.checks,
                "figures": self.figures,
                "tables": self.tables,
                "skipped": self.skipped,
            }
            (out / f"{self.suite}.json").write_text(json.dumps(whole, indent=1) + "\n")
        return well


def shown(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}" if abs(cell) < 10 else f"{cell:.1f}"
    return "" if cell is None else str(cell)
