"""LMCache's server with Undercroft as its L2, and the engine in front of it: after both began anew,
pages come out of the daemon, through LMCache, and the engine says what it says with LMCache's own
memory, in every bit. Where that differs from what it says with its own prefix cache, that is noted.
"""

from __future__ import annotations

from typing import Any

from harness.daemon import Daemon
from harness.engine import PAGE, Engine
from harness.others import LMCACHE, LMCache, lmcache_python
from harness.prompts import Cases, Writer, pages_of
from harness.setting import Setting

from suites.equality import ask, differences, judge, proof, reference


def run(setting: Setting) -> None:
    report = setting.report
    if lmcache_python() is None:
        report.check("there is an environment with LMCache", False, f"{LMCACHE} names none")
        return
    # Of a prompt that ends with a page and is there as a whole, LMCache has the engine compute one
    # token, and the engine by itself computes that page.
    cases = [
        case
        for case in Cases(Writer(setting.model(), setting.seed)).few()
        if setting.wanted(case.name) and all(len(asked.tokens) % PAGE for asked in case.asked)
    ]
    with setting.plain("reference", separate=True).ready() as engine:
        own = reference(engine, cases)
    with LMCache(setting.folder / "lmcache-alone.log", chunk=PAGE, l1_gib=1.0).ready(120.0) as alone:
        with engine_of(setting, alone, "alone").ready() as engine:
            for case in cases:
                engine.generate(case.stored, 1)
            engine.reset()
            expected = ask(engine, cases)
    for difference in differences(cases, own, expected):
        report.note(f"LMCache by itself: {difference.case} {difference.kind}: {difference.text}")
    with setting.daemon() as daemon:
        with server(setting, daemon, "first") as first:
            with engine_of(setting, first, "stores").ready() as engine:
                for case in cases:
                    engine.generate(case.stored, 1)
            pages = pages_of([prompt for case in cases for prompt in case.stored])
            stored = daemon.wait_stored(pages)
            report.check("every full page is stored", stored >= pages, f"{stored} of {pages}")
        before = daemon.counters()
        with server(setting, daemon, "again") as again:
            with engine_of(setting, again, "loads").ready() as engine:
                got = ask(engine, cases)
                hits = engine.metrics()
        after = daemon.counters()
    judge(setting, cases, expected, got)
    proof(setting, got, hits, {name: after[name] - before[name] for name in after})


def server(setting: Setting, daemon: Daemon, name: str) -> LMCache:
    """LMCache with chunks as long as the engine's pages: a load ends where the engine's own prefix
    cache would."""
    # A busy machine's late answer is a miss, and rightly; here it would hide what is asked.
    patient = {"lookup_deadline": 5.0, "load_deadline": 30.0}
    # Read while the server begins. Else the first lookup waits until a cold disk has brought it.
    model = str(setting.model())
    adapter: dict[str, Any] = {
        "type": "plugin",
        "module_path": "undercroft.lmcache",
        "class_name": "UndercroftL2Adapter",
        "adapter_params": {
            "socket": str(daemon.socket),
            "identity": f"block-size {PAGE}",
            "models": {model: model},
            **patient,
        },
    }
    log = setting.folder / f"lmcache-{name}.log"
    return LMCache(log, chunk=PAGE, l1_gib=0.5, l2=adapter).ready(120.0)


def engine_of(setting: Setting, lmcache: LMCache, name: str) -> Engine:
    return setting.plain(
        name, kv_transfer=lmcache.transfer, python=str(lmcache_python()), separate=True
    )
