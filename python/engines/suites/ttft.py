"""Time to the first token: computed, from Undercroft's DRAM, from its SSD; beside the engine alone,
LMCache's server in front of the same engine, and the engine's own file-system tier.

All servers stand side by side and are asked in turn, each prompt by all of them: what slows the
machine down for a while slows all of them. Each repeat has a prompt of its own. Before a warm one
the engine forgets its own prefix cache, and for the SSD the daemon is started anew, so that nothing
of it is in DRAM.
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
        warm_up = writer.tokens("warm up", 512)
        for server in servers.values():
            server.first_token(warm_up)
        _each(prompts, table, servers, "cold")
        _settle(daemon, servers)
        before = daemon.counters()
        _forget(servers)
        _each(prompts, table, servers, "warm")
        served = daemon.counters()["hits.dram_pages"] - before["hits.dram_pages"]
        pages = sum((length - 1) // PAGE * REPEATS for length in LENGTHS)
        setting.report.check("from DRAM: every page of it", served >= pages, f"{served} of {pages}")
        _own_cache(prompts, table, servers["alone"])
        from_ssd(setting, daemon, prompts, table, servers["undercroft"], pages)
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
    """Every prompt by every server; who comes first goes round."""
    names = list(servers)
    for length, ones in prompts.items():
        for repeat, tokens in enumerate(ones):
            turn = repeat % len(names)
            for name in names[turn:] + names[:turn]:
                if name == "alone" and state != "cold":
                    continue
                table.add(f"{name}, {state}", length, servers[name].first_token(tokens))


def _settle(daemon: Daemon, servers: dict[str, Server]) -> None:
    """Until everybody has stored what there is to store."""
    before, since = -1, time.monotonic()
    until = time.monotonic() + 60
    while time.monotonic() < until and time.monotonic() - since < 3:
        stored = daemon.counters()["stores.stored"]
        if stored != before:
            before, since = stored, time.monotonic()
        time.sleep(0.2)


def _forget(servers: dict[str, Server]) -> None:
    for name, server in servers.items():
        if name != "alone":
            server.forget()


def _own_cache(prompts: dict[int, list[tuple[int, ...]]], table: Table, alone: Server) -> None:
    """What the engine's own prefix cache gives: nobody can be faster."""
    for length, ones in prompts.items():
        for tokens in ones:
            alone.first_token(tokens)
            table.add("alone, own prefix cache", length, alone.first_token(tokens))


def from_ssd(
    setting: Setting,
    daemon: Daemon,
    prompts: dict[int, list[tuple[int, ...]]],
    table: Table,
    server: Server,
    pages: int,
) -> None:
    from suites.faults import wait_back

    daemon.stop()
    daemon.start()
    setting.report.check("the engine finds the daemon again", wait_back(daemon))
    server.forget()
    for length, ones in prompts.items():
        for tokens in ones:
            table.add("undercroft, from SSD", length, server.first_token(tokens))
    served = daemon.counters()["hits.ssd_pages"]
    setting.report.check("from SSD: every page of it", served >= pages, f"{served} of {pages}")


def say(setting: Setting, table: Table) -> None:
    report = setting.report
    rows = []
    for way in table.taken:
        row: list[object] = [way]
        for length in LENGTHS:
            row += [table.middle(way, length) * 1e3, table.ratio(way, "alone, cold", length)]
        rows.append(row)
    columns = ["way"] + [text for length in LENGTHS for text in (f"{length} tokens: ms", "of cold")]
    report.table(f"time to the first token, medians of {REPEATS}; ratios of pairs", columns, rows)
    report.figure(
        "seconds", {way: {str(n): s for n, s in by.items()} for way, by in table.taken.items()}
    )
    for way in ("undercroft, cold", "undercroft, warm", "undercroft, from SSD"):
        for length in LENGTHS:
            ratio = table.ratio(way, "alone, cold", length)
            report.check(
                f"{way}, {length} tokens: not slower than the engine alone by more than 5 %",
                ratio <= SLOWER,
                f"{ratio:.3f}",
            )
