#!/usr/bin/env python3
"""Runs suites against real engines. `cargo xtask engines` starts it with everything in place."""

from __future__ import annotations

import argparse
import importlib
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness.processes import end_all  # noqa: E402
from harness.report import Report  # noqa: E402
from harness.setting import Setting, again  # noqa: E402

SUITES = (
    "smoke",
    "equality",
    "pressure",
    "faults",
    "chat",
    "ttft",
    "shared",
    "lmcache",
    "programs",
    "overhead",
    "wheel",
)


def give_up(signal_number: int, frame: object) -> None:
    """The bound is over, or somebody wants us to end: whatever is waited for ends, and so does the
    wait."""
    end_all()
    if signal_number == signal.SIGTERM:
        sys.exit(1)
    raise TimeoutError("the suites took longer than --bound allows")


def run(name: str, arguments: argparse.Namespace) -> bool:
    """One suite in a folder of its own, which stays only if it failed."""
    print(f"== {name}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix=f"undercroft-{name}-", dir=arguments.folder))
    report = Report(name, again(name, arguments.seed, arguments.only))
    setting = Setting(
        arguments.models, folder, report, arguments.seed, arguments.only, arguments.wheel
    )
    try:
        importlib.import_module(f"suites.{name}").run(setting)
    except Exception as error:
        traceback.print_exc()
        report.check("the suite came to its end", False, f"{type(error).__name__}: {error}")
    well = report.end(arguments.out)
    if well and not arguments.keep:
        shutil.rmtree(folder)
    else:
        print(f"logs: {folder}", flush=True)
    return well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--suite", action="append", choices=SUITES, default=[], help="may be given more than once"
    )
    parser.add_argument("--all", action="store_true", help="every suite")
    parser.add_argument(
        "--models", type=Path, required=True, help="the folder of models, made where missing"
    )
    parser.add_argument("--out", type=Path, help="a folder for one JSON file a suite")
    parser.add_argument("--folder", type=Path, help="where temporary folders are made")
    parser.add_argument(
        "--keep", action="store_true", help="keep logs of suites that went well, too"
    )
    parser.add_argument("--wheel", type=Path, help="the wheel that the suite of that name installs")
    parser.add_argument(
        "--bound", type=int, default=4 * 3600, help="seconds that all suites may take"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="run only cases whose name has this in it")
    arguments = parser.parse_args()
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, give_up)
    signal.alarm(arguments.bound)
    names = list(SUITES) if arguments.all else arguments.suite or ["smoke"]
    ended = {name: run(name, arguments) for name in names}
    if len(ended) > 1:
        print("\n".join(f"{name:<10} {'ok' if well else 'FAILED'}" for name, well in ended.items()))
    return 0 if all(ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
