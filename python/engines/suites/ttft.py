"""Time to the first token: computed, from Undercroft's DRAM, from its SSD; beside the engine alone,
LMCache's server in front of the same engine, and the engine's own file-system tier.

All servers stand side by side and are asked in turn, each prompt by all of them: what slows the
machine down for a while slows all of them, and each time is held against that of the engine alone
at the same prompt, just before or after. Each repeat has a prompt of its own. Before a warm one the
engine forgets its own prefix cache, and for the SSD the daemon is started anew, so that nothing of
it is in DRAM.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from harness.daemon import Daemon
from harness.engine import PAGE, transfer
from harness.others import fs_tier, lmcache
from harness.prompts import Writer
from harness.server import Server
from harness.setting import Setting

LENGTHS = (256, 1024, 4096)
REPEATS = 7
SLOWER = 1.05
ALONE, SSD = "alone", "from SSD"


class Table:
    """Seconds of each way, by length and repeat."""

    def __init__(self) -> None:
        self.taken: dict[str, dict[int, list[float]]] = {}

    def add(self, way: str, length: int, seconds: float) -> None:
        self.taken.setdefault(way, {}).setdefault(length, []).append(seconds)

    def middle(self, way: str, length: int) -> float:
        return median(self.taken[way][length])

    def ratio(self, way: str, to: str, length: int) -> float:
        """The median of each repeat's own ratio."""
        pairs = zip(self.taken[way][length], self.taken[to][length], strict=True)
        return median(one / other for one, other in pairs)


def run(setting: Setting) -> None:
    writer = Writer(setting.model(), setting.seed)
    prompts = {
        length: [writer.tokens(f"ttft {length} {repeat}", length) for repeat in range(REPEATS)]
        for length in LENGTHS
    }
    table = Table()
    with ExitStack() as stack:
        daemon = stack.enter_context(setting.daemon(dram="1536MiB", ssd="4GiB"))
        servers = _servers(setting, daemon, stack)
        for server in servers.values():
            server.first_token(writer.tokens("warm up", 512))
        _each(prompts, table, servers, "cold")
        _settle(daemon)
        before = daemon.counters()
        _forget(servers)
        _each(prompts, table, servers, "warm")
        served = daemon.counters()["hits.dram_pages"] - before["hits.dram_pages"]
        pages = sum((length - 1) // PAGE * REPEATS for length in LENGTHS)
        setting.report.check("from DRAM: every page of it", served >= pages, f"{served} of {pages}")
        daemon.stop()
        pair = {name: servers[name] for name in ("alone", "undercroft")}
        from_ssd(setting, daemon.socket, prompts, table, pair, writer)
    say(setting, table)


def _servers(setting: Setting, daemon: Daemon, stack: ExitStack) -> dict[str, Server]:
    model, folder = setting.model(), setting.folder
    found = {
        "alone": Server(model, folder / "alone.log"),
        "undercroft": Server(model, folder / "undercroft.log", kv_transfer=transfer(daemon.socket)),
    }
    others: dict[str, Callable[[Path, Path, ExitStack], Server | str]] = {
        "lmcache": lmcache,
        "fs tier": fs_tier,
    }
    for name, begin in others.items():
        server = begin(model, folder, stack)
        if isinstance(server, str):
            setting.report.skip(name, server)
        else:
            found[name] = server
    for server in found.values():
        stack.enter_context(server.ready())
    return found


def _each(
    prompts: dict[int, list[tuple[int, ...]]], table: Table, servers: dict[str, Server], state: str
) -> None:
    """Every prompt by every server; who comes first goes round. The engine alone computes it each
    time, and then once more with what it has in its own prefix cache: nobody can be faster."""
    names = list(servers)
    for length, ones in prompts.items():
        for repeat, tokens in enumerate(ones):
            turn = repeat % len(names)
            for name in names[turn:] + names[:turn]:
                server = servers[name]
                if name == "alone":
                    server.forget()
                    for way in (ALONE, "own prefix cache"):
                        seconds = server.first_token(tokens)
                        table.add(f"{way}, beside {state}", length, seconds)
                else:
                    table.add(f"{name}, {state}", length, server.first_token(tokens))


def _settle(daemon: Daemon) -> None:
    """Until what there is to store is stored."""
    before, since = -1, time.monotonic()
    until = time.monotonic() + 60
    while time.monotonic() < until and time.monotonic() - since < 3:
        stored = daemon.counters()["stores.stored"]
        if stored != before:
            before, since = stored, time.monotonic()
        time.sleep(0.2)


def _forget(servers: dict[str, Server]) -> None:
    for server in servers.values():
        server.forget()


def from_ssd(
    setting: Setting,
    socket: Path,
    prompts: dict[int, list[tuple[int, ...]]],
    table: Table,
    servers: dict[str, Server],
    writer: Writer,
) -> None:
    """Another daemon takes the place of the first, with little DRAM, and is started anew once all
    of its pages are on the SSD."""
    report, server = setting.report, servers["undercroft"]
    folder, policy = setting.folder / "small", Daemon.LEAVES_IN_ORDER
    with Daemon(folder, dram="192MiB", ssd="4GiB", policy=policy, socket=socket) as daemon:
        report.check("the engine finds the second daemon", daemon.wait_engine())
        server.forget()
        wanted = 0
        for tokens in (tokens for ones in prompts.values() for tokens in ones):
            server.compute(tokens)
            wanted += len(tokens) // PAGE
            daemon.wait_stored(wanted)
        stored = daemon.counters()["stores.stored"]
        report.check("every full page is stored", stored == wanted, f"{stored} of {wanted}")
        fillers = iter(range(1000))
        daemon.restart_cold(
            lambda: server.compute(writer.tokens(f"filler {next(fillers)}", 2048 + PAGE))
        )
        report.check("the engine finds the daemon again", daemon.wait_engine())
        server.forget()
        _each(prompts, table, servers, SSD)
        pages = sum((length - 1) // PAGE * REPEATS for length in LENGTHS)
        # In DRAM there was nothing: what was delivered from there was prefetched.
        counted = daemon.counters()
        served = counted["hits.ssd_pages"] + counted["hits.dram_pages"]
        report.check("from SSD: every page of it", served >= pages, f"{served} of {pages}")
        read = counted["ssd.read_bytes"] // daemon.page_bytes()
        report.check("from SSD: every page of it was read", read >= pages, f"{read} of {pages}")


def say(setting: Setting, table: Table) -> None:
    """Each way beside the engine alone at the same prompts in the same minutes."""
    report = setting.report
    rows = []
    for way in table.taken:
        row: list[object] = [way]
        for length in LENGTHS:
            row += [table.middle(way, length) * 1e3, table.ratio(way, beside(way), length)]
        rows.append(row)
    columns = ["way"] + [text for length in LENGTHS for text in (f"{length} tokens: ms", "of alone")]
    report.table(f"time to the first token, medians of {REPEATS}; ratios of pairs", columns, rows)
    report.figure(
        "seconds", {way: {str(n): s for n, s in by.items()} for way, by in table.taken.items()}
    )
    for way in ("undercroft, cold", "undercroft, warm", f"undercroft, {SSD}"):
        for length in LENGTHS:
            ratio = table.ratio(way, beside(way), length)
            report.check(
                f"{way}, {length} tokens: not slower than the engine alone by more than 5 %",
                ratio <= SLOWER,
                f"{ratio:.3f}",
            )


def beside(way: str) -> str:
    """What was measured beside it: the engine alone, which computes all of it."""
    return f"{ALONE}, beside {way.rsplit(', ', 1)[1].removeprefix('beside ')}"
