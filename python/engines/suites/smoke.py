"""A look that CI can afford: two engines, a daemon between, some prompts of each kind.

The reference is the engine that stores, under another salt: the same tokens under other keys, so
that its own prefix cache is warmed to the boundary at which the other engine's load ends, and
nothing it computes for the reference is found by the other.
"""

from __future__ import annotations

from dataclasses import replace

from harness.engine import Prompt
from harness.prompts import Cases, Writer, pages_of
from harness.setting import Setting

from suites.equality import TOKENS, ask, judge, proof


def apart(prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts under keys of their own."""
    return [replace(prompt, salt=f"reference {prompt.salt}") for prompt in prompts]


def run(setting: Setting) -> None:
    writer = Writer(setting.model(), setting.seed)
    cases = [case for case in Cases(writer).few() if setting.wanted(case.name)]
    with setting.daemon() as daemon:
        storer = setting.with_undercroft("stores", daemon)
        loader = setting.with_undercroft("loads", daemon, core=1)
        with storer, loader:
            storer.ready()
            setting.report.note("the first engine is ready")
            expected = []
            for case in cases:
                storer.generate(case.stored, 1)
                storer.generate(apart(case.stored), 1)
                expected.append(storer.generate(apart(case.asked), TOKENS))
            computed = [prompt for case in cases for prompt in case.stored + apart(case.stored)]
            for case, answers in zip(cases, expected):
                # The last token that was said is one whose KV nobody has computed.
                computed += [
                    replace(prompt, tokens=prompt.tokens + answer.tokens[:-1])
                    for prompt, answer in zip(apart(case.asked), answers)
                ]
            pages = pages_of(computed)
            stored = daemon.wait_stored(pages)
            setting.report.check(
                "every full page is stored", stored == pages, f"{stored} of {pages}"
            )
            loader.ready()
            setting.report.note("the second engine is ready")
            got = ask(loader, cases)
            hits = loader.metrics()
        counted = daemon.counters()
    judge(setting, cases, expected, got)
    proof(setting, got, hits, counted)
    for engine in (storer, loader):
        complaints = engine.complaints()
        setting.report.check(
            f"no error in {engine.log.name}", not complaints, "; ".join(complaints[:2])
        )
