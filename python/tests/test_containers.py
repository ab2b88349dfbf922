"""A daemon outside, a client inside: namespaces as container engines make them, and of the daemon
nothing but its socket. What an image brings besides cannot be had without a container engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import undercroft
from serving import Daemon, family, page

PATIENCE = 30.0
PAGE_BYTES = 8192
PAGES = 6
#: A user whom nobody has anything to do with.
STRANGER = 65534
NAMESPACES = ["--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]

#: Run by a shell that may mount, before anything runs that may not.
FURNISH = """
set -e
daemon="$1"; room="$2"; shift 2
mount -t tmpfs none /dev/shm
mount --bind "$daemon/u.sock" "$room/u.sock"
mount -t tmpfs none "$daemon"
exec "$@"
"""

#: What runs inside: stores pages, loads them and one that was stored outside, and says so.
INSIDE = """
import json, os, sys
import undercroft
from serving import family, page
pages, size = int(sys.argv[2]), int(sys.argv[3])
client = undercroft.Client(sys.argv[1], name="contained", wait=20.0)
space = client.open_space(family(1), undercroft.Geometry(1, [size]), deadline=10.0)
keys = family(1).keys([b"%d" % n for n in range(pages + 1)])
images = [page(n, size) for n in range(pages)]
stored = space.store(undercroft.Buffers(size, images), keys[: 32 * pages], list(range(pages)),
                     deadline=10.0, wait_for_credits=True)
targets = [bytearray(size) for _ in range(pages)]
loaded = space.load(undercroft.Buffers(size, targets), keys[: 32 * pages], list(range(pages)))
outer = [bytearray(size)]
before = space.load(undercroft.Buffers(size, outer), keys[32 * pages :], [0])
interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
print(json.dumps({
    "pid": os.getpid(), "uid": os.geteuid(), "mode": client.mode, "stored": stored.stored,
    "loaded": loaded.pages, "same": targets == images, "outer": outer[0] == page(pages, size),
    "sees": os.listdir(sys.argv[4]), "interfaces": interfaces, "why": before.why,
}), flush=True)
sys.stdin.readline()
"""


def python_for(command: list[str]) -> str | None:
    """An interpreter that can be run by this command; the tests' own may lie in somebody's home."""
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    for found in (sys.executable, "/usr/bin/python3"):
        try:
            asked = subprocess.run([*command, found, "-c", check], capture_output=True, timeout=30)
        except OSError:
            continue
        if asked.returncode == 0:
            return found
    return None


def overflow_uid() -> int:
    """The number of users that have none in a user namespace."""
    return int(Path("/proc/sys/kernel/overflowuid").read_text())


class Containers(unittest.TestCase):
    room: Path

    @classmethod
    def setUpClass(cls) -> None:
        # Where everybody can read, whoever's home the checkout lies in.
        cls.room = Path(tempfile.mkdtemp(prefix="undercroft-room-"))
        cls.addClassCleanup(shutil.rmtree, cls.room)
        cls.room.chmod(0o755)
        package = Path(undercroft.__file__).parent
        ignored = shutil.ignore_patterns("__pycache__", "vllm")
        shutil.copytree(package, cls.room / "undercroft", ignore=ignored)
        shutil.copy(Path(__file__).with_name("serving.py"), cls.room)
        (cls.room / "u.sock").touch()

    def setUp(self) -> None:
        self.daemon = Daemon(staging="1MiB")
        self.addCleanup(self.daemon.close)
        # A rootless engine mounts with its user's own rights.
        self.daemon.directory.chmod(0o755)

    def contained(
        self, before: list[str], within: list[str], uid: int, daemon_uid: int | None = None
    ) -> None:
        """`before` enters the namespaces, `within` is put before the program inside; `uid` is
        who the daemon is to see, `daemon_uid` who the daemon is inside."""
        probe = subprocess.run([*before, "true"], capture_output=True, text=True, timeout=30)
        if probe.returncode:
            self.skipTest(f"no namespaces here: {probe.stderr.strip()}")
        python = python_for([*before, *within])
        if python is None:
            self.skipTest("no Python that a user in a container can run")
        outside = undercroft.Client(self.daemon.socket, wait=PATIENCE)
        self.addCleanup(outside.close)
        space = outside.open_space(family(1), undercroft.Geometry(1, [PAGE_BYTES]))
        keys = family(1).keys([b"%d" % n for n in range(PAGES + 1)])
        image = undercroft.Buffers(PAGE_BYTES, [page(PAGES, PAGE_BYTES)])
        self.assertEqual(space.store(image, keys[32 * PAGES :], [0]).stored, 1)

        command = [
            *before, "sh", "-c", FURNISH, "furnish", str(self.daemon.directory), str(self.room),
            *within, python, "-c", INSIDE, str(self.room / "u.sock"), str(PAGES), str(PAGE_BYTES),
            str(self.daemon.directory),
        ]
        surroundings = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.room)}
        if daemon_uid is not None:
            surroundings["UNDERCROFT_DAEMON_UID"] = str(daemon_uid)
        inside = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd="/", env={**surroundings, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.addCleanup(self.end, inside)
        assert inside.stdout is not None and inside.stderr is not None
        line = inside.stdout.readline()
        self.assertTrue(line, line or inside.stderr.read())
        pid = self.judge(json.loads(line), outside, uid)

        targets = [bytearray(PAGE_BYTES) for _ in range(PAGES)]
        device = undercroft.Buffers(PAGE_BYTES, targets)
        loaded = space.load(device, keys[: 32 * PAGES], list(range(PAGES)))
        self.assertEqual(loaded.pages, PAGES, "pages stored inside are found outside")
        self.assertEqual(targets, [page(n, PAGE_BYTES) for n in range(PAGES)])

        # The first process of its namespace, by the number it has out here.
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + PATIENCE
        while self.session(outside) is not None:
            self.assertLess(time.monotonic(), until, "the daemon never heard of the end")
            time.sleep(0.02)

    def judge(self, told: dict[str, Any], outside: undercroft.Client, uid: int) -> int:
        """What the daemon calls the process inside."""
        self.assertEqual((told["stored"], told["loaded"]), (PAGES, PAGES))
        self.assertTrue(told["same"] and told["outer"], told)
        self.assertEqual(told["sees"], [], "only the socket is there")
        self.assertEqual(told["interfaces"], ["lo"])
        self.assertEqual(told["pid"], 1, "a process namespace of its own")
        self.assertIn(told["mode"], ("zero_copy", "copy"))
        session = self.session(outside)
        assert session is not None
        self.assertEqual(session["uid"], uid)
        self.assertTrue(Path(f"/proc/{session['pid']}").exists(), "the daemon's own number for it")
        self.assertNotEqual(session["pid"], 1)
        return int(session["pid"])

    def session(self, outside: undercroft.Client) -> dict[str, Any] | None:
        status = outside.status(PATIENCE)
        assert status is not None
        named = [one for one in status["sessions"] if one["name"] == "contained"]
        return named[0] if named else None

    def end(self, inside: subprocess.Popen[str]) -> None:
        if inside.poll() is None:
            inside.kill()
        inside.communicate()

    def group(self) -> int:
        return os.stat(self.daemon.socket).st_gid

    def test_as_root(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root can run a container as root")
        self.contained(["unshare", *NAMESPACES], [], 0)

    def test_as_a_user_of_the_sockets_group(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root can run a container as another user")
        user = ["setpriv", f"--reuid={STRANGER}", f"--regid={self.group()}", "--clear-groups"]
        self.contained(["unshare", *NAMESPACES], user, STRANGER)

    def test_as_root_of_a_rootless_container(self) -> None:
        rootless = ["unshare", "--user", "--map-root-user", *NAMESPACES]
        if os.geteuid() != 0:
            # The daemon's user is this one, who is root inside.
            self.contained(rootless, [], os.geteuid())
            return
        user = ["setpriv", f"--reuid={STRANGER}", f"--regid={self.group()}", "--clear-groups"]
        self.contained([*user, *rootless], [], STRANGER, overflow_uid())

    def test_a_user_who_is_not_of_the_sockets_group_is_turned_away(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root can run a container as another user")
        mode = os.stat(self.daemon.socket).st_mode
        self.assertEqual(stat.S_IMODE(mode), 0o660)
        stranger = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"]
        python = python_for(stranger)
        if python is None:
            self.skipTest("no Python that a user in a container can run")
        said = subprocess.run(
            [*stranger, python, "-c", "import sys, undercroft; "
             "undercroft.Client(sys.argv[1], wait=5.0)", str(self.daemon.socket)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self.room)}, cwd="/",
            capture_output=True, text=True, timeout=60,
        )
        self.assertNotEqual(said.returncode, 0)
        self.assertIn("ConnectError", said.stderr)
        self.assertIn("ermission denied", said.stderr)


if __name__ == "__main__":
    unittest.main()
