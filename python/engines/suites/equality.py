"""Does an engine that loads from Undercroft say what it would have said with its own prefix cache?

The reference is an engine without a connector. It computes the prompts that are stored, in the same
order and pieces as the engine that stores them, and then what is asked for; so its own prefix cache
ends at the very boundary at which a load ends, what lies before was computed in the same steps, and
what comes after is computed in pieces of the same shape. Then not only the tokens are the same, but
every bit of their probabilities. Where the boundary differs, that is said, and is a failure of its
own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from harness.engine import PAGE, Answer, Engine, Prompt
from harness.prompts import Case, Cases, Writer, pages_of
from harness.setting import Setting

TOKENS = 4


@dataclass(frozen=True)
class Difference:
    case: str
    number: int
    kind: str
    text: str


def run(setting: Setting) -> None:
    writer = Writer(setting.model(), setting.seed)
    cases = [case for case in Cases(writer).many() if setting.wanted(case.name)]
    asked = sum(len(case.asked) for case in cases)
    if setting.only is None:
        setting.report.check("at least 200 prompts", asked >= 200, str(asked))
    with setting.daemon(dram="1GiB", ssd="2GiB") as daemon:
        with ThreadPoolExecutor(2) as both:
            reference = both.submit(_reference, setting, cases)
            storer = both.submit(_stored, setting, daemon, cases)
            expected, _ = reference.result(), storer.result()
        stored = daemon.counters()["stores.stored"]
        pages = pages_of([prompt for case in cases for prompt in case.stored])
        setting.report.check("every full page is stored", stored == pages, f"{stored} of {pages}")
        with setting.with_undercroft("loads", daemon).ready() as engine:
            got = ask(engine, cases)
            hits = engine.metrics()
        counted = daemon.counters()
    judge(setting, cases, expected, got)
    proof(setting, got, hits, counted)
    if setting.only is None:
        control(setting, cases)


def _reference(setting: Setting, cases: list[Case]) -> list[list[Answer]]:
    with setting.plain("reference").ready() as engine:
        return reference(engine, cases)


def reference(engine: Engine, cases: list[Case]) -> list[list[Answer]]:
    """Case by case: what is stored, then what is asked for."""
    answers = []
    for case in cases:
        engine.generate(case.stored, 1)
        answers.append(engine.generate(case.asked, TOKENS))
    return answers


def _stored(setting: Setting, daemon: object, cases: list[Case]) -> None:
    with setting.with_undercroft("stores", daemon, core=1).ready() as engine:  # type: ignore[arg-type]
        for case in cases:
            engine.generate(case.stored, 1)
        pages = pages_of([prompt for case in cases for prompt in case.stored])
        daemon.wait_stored(pages)  # type: ignore[attr-defined]


def ask(engine: Engine, cases: list[Case]) -> list[list[Answer]]:
    return [engine.generate(case.asked, TOKENS) for case in cases]


def differences(
    cases: list[Case], expected: list[list[Answer]], got: list[list[Answer]]
) -> list[Difference]:
    """Everything in which two runs of the same cases are not the same."""
    found = []
    for case, wanted, had in zip(cases, expected, got, strict=True):
        for number, (one, other) in enumerate(zip(wanted, had, strict=True)):
            if one.tokens != other.tokens:
                found.append(
                    Difference(case.name, number, "tokens", f"{one.tokens} became {other.tokens}")
                )
            elif one.logprob != other.logprob:
                text = f"{float.fromhex(one.logprob)!r} became {float.fromhex(other.logprob)!r}"
                found.append(Difference(case.name, number, "logprob", text))
            if one.cached != other.cached:
                text = f"{one.cached} tokens were cached, now {other.cached}"
                found.append(Difference(case.name, number, "boundary", text))
    return found


def judge(
    setting: Setting, cases: list[Case], expected: list[list[Answer]], got: list[list[Answer]]
) -> list[Difference]:
    """Checks that two runs are the same, and says where they are not."""
    report = setting.report
    found = differences(cases, expected, got)
    count = sum(len(answers) for answers in got)
    whats = {
        "tokens": "greedy tokens are the same",
        "logprob": "summed log-probabilities are the same in every bit",
        "boundary": "loads end where the engine's own prefix cache ends",
    }
    for kind, what in whats.items():
        those = [difference for difference in found if difference.kind == kind]
        text = f"{count - len(those)} of {count}"
        if those:
            first = those[0]
            text += f"; first: --only {first.case}, prompt {first.number}: {first.text}"
        report.check(what, not those, text)
    rows = []
    for kind in sorted({case.name.split("-")[0] for case in cases}):
        answers = [
            a for case, had in zip(cases, got) if case.name.split("-")[0] == kind for a in had
        ]
        wrong = {(d.case, d.number) for d in found if d.case.split("-")[0] == kind}
        rows.append(
            [
                kind,
                len(answers),
                sum(a.cached for a in answers),
                sum(a.external for a in answers),
                len(wrong),
            ]
        )
    report.table(
        "what was asked",
        ["kind", "prompts", "tokens not computed", "of them loaded", "prompts that differ"],
        rows,
    )
    return found


def proof(
    setting: Setting, got: list[list[Answer]], engine: dict[str, float], daemon: dict[str, int]
) -> None:
    """That what was not computed really came from Undercroft, said by the daemon's own counters."""
    external = int(sum(answer.external for answers in got for answer in answers))
    served = daemon["hits.dram_pages"] + daemon["hits.ssd_pages"]
    report = setting.report
    report.figure("tokens_loaded", external)
    report.figure("pages_served", served)
    report.check("the engine counts tokens from outside", external > 0, f"{external} tokens")
    text = f"{served} pages served, {external // PAGE} loaded, by the engine"
    report.check(
        "the daemon served every page that was loaded", served >= external // PAGE > 0, text
    )
    report.check(
        "no fetch was cut short",
        daemon["hits.incomplete_fetches"] == 0,
        str(daemon["hits.incomplete_fetches"]),
    )


def control(setting: Setting, cases: list[Case]) -> None:
    """Would wrong bytes have been seen? The same with a connector that damages what it has
    loaded."""
    chosen = [case for case in cases if case.name.startswith(("same", "longer"))][9:40:6]
    with setting.daemon("control") as daemon:
        kind = {"connector": "DamagingConnector", "module": "harness.probe"}
        with setting.with_undercroft("control-stores", daemon).ready() as engine:
            expected = []
            for case in chosen:
                engine.generate(case.stored, 1)
                twin = [Prompt(p.tokens, "reference") for p in case.stored]
                engine.generate(twin, 1)
                expected.append(
                    engine.generate([Prompt(p.tokens, "reference") for p in case.asked], TOKENS)
                )
            daemon.wait_stored(pages_of([prompt for case in chosen for prompt in case.stored]))
        with setting.with_undercroft("control-loads", daemon, **kind).ready() as engine:
            got = ask(engine, chosen)
    found = {(d.case, d.number) for d in differences(chosen, expected, got) if d.kind != "boundary"}
    loaded = sum(1 for answers in got for answer in answers if answer.external)
    text = f"{len(found)} of {loaded} prompts with one wrong byte in each loaded page"
    setting.report.check("a wrong byte is seen", loaded > 0 and len(found) == loaded, text)
