"""Two engines share one daemon at the same time, and one engine of two ranks has both of its shards
there."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from harness.daemon import Daemon
from harness.engine import Answer, Engine, EngineError
from harness.prompts import Case, Cases, Writer, pages_of
from harness.setting import Setting

from suites.equality import TOKENS, judge, proof, reference


MODELS = ("gqa", "mha")


def run(setting: Setting) -> None:
    if setting.wanted("both"):
        both(setting)
    for model in MODELS:
        if setting.wanted(model):
            shape(setting, model)
    if setting.wanted("mla"):
        latent(setting)
    if setting.wanted("ranks"):
        ranks(setting)


def both(setting: Setting) -> None:
    """Two engines at once: each stores what the other asks for next."""
    writer = Writer(setting.model(), setting.seed)
    cases = Cases(writer).few()
    halves = [cases[::2], cases[1::2]]
    with setting.plain("both-reference").ready() as engine:
        expected = [reference(engine, half) for half in halves]
    with setting.daemon("both") as daemon:
        engines = [setting.with_undercroft(f"both-{at}", daemon, core=at) for at in range(2)]
        with engines[0], engines[1], ThreadPoolExecutor(2) as at_once:
            list(at_once.map(lambda engine: engine.ready(), engines))
            list(at_once.map(lambda pair: _store(*pair), zip(engines, halves)))
            pages = pages_of([prompt for case in cases for prompt in case.stored])
            stored = daemon.wait_stored(pages)
            setting.report.check(
                "both store at once", stored == pages, f"{stored} of {pages} pages"
            )
            # Crosswise: what one has stored the other asks for, while it is asked in turn.
            crossed = list(at_once.map(lambda pair: _ask(*pair), zip(engines, halves[::-1])))
            metrics = engines[0].metrics()
        counted = daemon.counters()
    for number, (half, wanted, got) in enumerate(zip(halves, expected, crossed[::-1])):
        setting.report.note(f"engine {1 - number} asked for what engine {number} had stored")
        judge(setting, half, wanted, got)
    proof(setting, crossed[0] + crossed[1], metrics, counted)


def _store(engine: Engine, cases: list[Case]) -> None:
    for case in cases:
        engine.generate(case.stored, 1)


def _ask(engine: Engine, cases: list[Case]) -> list[list[Answer]]:
    return [engine.generate(case.asked, TOKENS) for case in cases]


def shape(setting: Setting, model: str, **options: object) -> None:
    """A model of another shape, one engine after the other."""
    cases = Cases(Writer(setting.model(model), setting.seed)).few()
    name = f"{model}-{options.get('tensor_parallel_size', 1)}"
    with setting.plain(f"{name}-reference", model, **options).ready() as engine:
        expected = reference(engine, cases)
    with setting.daemon(name) as daemon:
        with setting.with_undercroft(f"{name}-stores", daemon, model, **options).ready() as engine:
            _store(engine, cases)
            shards = int(str(options.get("tensor_parallel_size", 1)))
            pages = shards * pages_of([prompt for case in cases for prompt in case.stored])
            stored = daemon.wait_stored(pages)
            setting.report.check(
                f"{name}: every full page is stored, once a shard",
                stored == pages,
                f"{stored} of {pages}",
            )
        with setting.with_undercroft(f"{name}-loads", daemon, model, **options).ready() as engine:
            got = _ask(engine, cases)
            metrics = engine.metrics()
        counted = daemon.counters()
        _spaces(setting, name, daemon, shards)
    setting.report.note(name)
    judge(setting, cases, expected, got)
    proof(setting, got, metrics, counted)


def latent(setting: Setting) -> None:
    """On its CPU platform vLLM cannot begin after a prefix with MLA, and turns its own prefix cache
    off. The connector must stay off with it, and say so."""
    cases = Cases(Writer(setting.model("mla"), setting.seed)).few()[:3]
    with setting.plain("mla-reference", "mla").ready() as engine:
        expected = _ask(engine, cases)
    with setting.daemon("mla") as daemon:
        with setting.with_undercroft("mla-off", daemon, "mla").ready() as engine:
            _store(engine, cases)
            got = _ask(engine, cases)
            log = engine.log.read_text(errors="replace")
        stored = daemon.counters()["stores.offered"]
    same = all(a.same(b) for one, other in zip(expected, got) for a, b in zip(one, other))
    setting.report.check(
        "MLA on a CPU: the connector is off and says so",
        "undercroft: off:" in log and not stored,
        f"{stored} pages offered",
    )
    setting.report.check("MLA on a CPU: the same answers", same)
    setting.report.skip(
        "MLA pages through a real engine", "vLLM's CPU platform has no prefix cache for it"
    )


def _spaces(setting: Setting, name: str, daemon: Daemon, shards: int) -> None:
    status = daemon.status()
    spaces = status["spaces"] if status else []
    setting.report.check(
        f"{name}: a space for each shard", len(spaces) == shards, f"{len(spaces)} of {shards}"
    )


def ranks(setting: Setting) -> None:
    """Tensor parallelism of two on this machine, where its processors allow it."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        setting.report.skip("ranks", "this machine has one processor")
        return
    bind = "|".join(str(processor) for processor in processors[:2])
    options = {
        "tensor_parallel_size": 2,
        "separate": True,
        "env": {"VLLM_CPU_OMP_THREADS_BIND": bind},
    }
    try:
        shape(setting, "gqa", **options)
    except EngineError as error:
        setting.report.check("two ranks", False, str(error))
