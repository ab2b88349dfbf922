"""What a suite is given: models, a folder, a report, and how to begin engines and daemons."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import make_models

from harness.daemon import Daemon
from harness.engine import Engine, transfer
from harness.report import Report


@dataclass
class Setting:
    """Of one suite's run."""

    models: Path
    folder: Path
    report: Report
    seed: int
    only: str | None = None
    """Part of the name of the cases to run."""
    wheel: Path | None = None
    """The wheel under test, where a suite installs it."""

    def model(self, name: str = "smollm2") -> Path:
        """The model's folder; made now if nobody has."""
        return make_models.make(name, self.models)

    def daemon(self, name: str = "d", **options: Any) -> Daemon:
        return Daemon(self.folder / name, **options).start()

    def plain(self, name: str, model: str = "smollm2", **options: Any) -> Engine:
        """An engine without any connector."""
        return Engine(self.model(model), self.folder / f"{name}.log", **options)

    def with_undercroft(
        self,
        name: str,
        daemon: Daemon,
        model: str = "smollm2",
        *,
        extra: dict[str, Any] | None = None,
        connector: str = "UndercroftConnector",
        module: str = "undercroft.vllm",
        **options: Any,
    ) -> Engine:
        """An engine with the connector in front of `daemon`."""
        # A busy machine's late answer is a miss, and rightly; here it would hide what is asked.
        patient = {
            "lookup_deadline_ms": 1000.0,
            "hold_ms": 60000.0,
            "load_deadline_ms": 30000.0,
            "store_deadline_ms": 30000.0,
        }
        chosen = transfer(
            daemon.socket, connector=connector, module=module, **(patient | (extra or {}))
        )
        return self.plain(name, model, kv_transfer=chosen, **options)

    def wanted(self, name: str) -> bool:
        return self.only is None or self.only in name


def again(suite: str, seed: int, only: str | None = None) -> str:
    """The command that runs the same once more."""
    tail = f" --only {only}" if only else ""
    return f"cargo xtask engines --suite {suite} -- --seed {seed}{tail}"
