"""The daemon dies, hangs and comes back, its SSD rots, and loads fail at every point there is: the
engine says the same, in time, and without an error.

What the reference says is asked at every boundary there can be: computed from the beginning, and
after each page. A prompt of which these differ in a token is not used. So the tokens must be the
same whatever part of a load arrived, and the probabilities must be those of one of the boundaries,
in every bit.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

from harness.daemon import Daemon
from harness.engine import PAGE, Answer, Engine, EngineError, Prompt
from harness.prompts import Writer
from harness.setting import Setting

PAGES = 5
PROMPTS = 4
TOKENS = 8
LOOKUP_S, LOAD_S, STORE_S = 0.5, 3.0, 4.0
SLACK_S = 3.0
# How long a client takes to find a daemon that is there again.
BACK_S = 15.0
PROBE = "harness.probe"


@dataclass(frozen=True)
class Fault:
    """What is done, and at which point of what the connector does."""

    point: str
    act: str
    short: int | None = None
    is_store: bool = False

    @property
    def name(self) -> str:
        pages = f" {self.short} of {PAGES} pages" if self.short is not None else ""
        return f"{self.act} {self.point}{pages}".strip()


def faults() -> list[Fault]:
    found = [Fault("none", "nothing")]
    for point in ("before lookup", "after lookup", "allocation", "before load"):
        found += [Fault(point, act) for act in ("raise", "kill", "freeze")]
    found += [Fault("during load", act) for act in ("kill", "freeze")]
    found += [Fault("after load", "nothing", short) for short in range(PAGES)]
    found += [Fault("after load", act) for act in ("raise", "kill", "freeze")]
    for point in ("before store", "after store"):
        found += [Fault(point, act, is_store=True) for act in ("raise", "kill", "freeze")]
    found += [Fault("during store", act, is_store=True) for act in ("kill", "freeze")]
    return found


@dataclass
class Reference:
    """What is said at each boundary, and the longest it took."""

    prompt: Prompt
    answers: list[Answer]

    @property
    def is_steady(self) -> bool:
        return len({answer.tokens for answer in self.answers}) == 1

    def verdict(self, answer: Answer) -> str:
        """How an answer stands to it; empty if it is what it must be."""
        if answer.finish != "length":
            return f"it ended with {answer.finish}"
        if answer.tokens != self.answers[0].tokens:
            return f"{self.answers[0].tokens} became {answer.tokens}"
        if all(answer.logprob != one.logprob for one in self.answers):
            return "its log-probability is that of no boundary"
        return ""


def run(setting: Setting) -> None:
    chosen = [fault for fault in faults() if setting.wanted(fault.name)]
    writer = Writer(setting.model(), setting.seed)
    prompts = [Prompt(writer.tokens(f"fault {at}", PAGE * PAGES + 9)) for at in range(PROMPTS)]
    extra = {
        "lookup_deadline_ms": LOOKUP_S * 1e3,
        "load_deadline_ms": LOAD_S * 1e3,
        "store_deadline_ms": STORE_S * 1e3,
    }
    with setting.daemon(dram="48MiB", ssd="1GiB", policy=Daemon.LEAVES_IN_ORDER) as daemon:
        with setting.with_undercroft(
            "faulty", daemon, connector="FaultyConnector", module=PROBE, extra=extra
        ) as engine:
            references = _references(setting, prompts)
            bench = Bench(setting, daemon, engine.ready(), references)
            try:
                for fault in chosen:
                    bench.rows.append(bench.one(fault))
                more = {
                    "restart, ssd": bench.restarted,
                    "rotten ssd": bench.rotten,
                    "frozen all along": bench.stopped_for_long,
                }
                for name, trial in more.items():
                    if setting.wanted(name):
                        trial()
            finally:
                bench.end()
    if setting.wanted("late"):
        late(setting, references)


def _references(setting: Setting, prompts: list[Prompt]) -> list[Reference]:
    found = []
    with setting.plain("reference").ready() as engine:
        for prompt in prompts:
            answers = []
            for pages in range(PAGES + 1):
                engine.reset()
                if pages:
                    engine.generate([Prompt(prompt.tokens[: PAGE * pages])], 1)
                answers += engine.generate([prompt], TOKENS)
            found.append(Reference(prompt, answers))
    steady = [reference for reference in found if reference.is_steady]
    setting.report.note(f"{len(steady)} of {len(found)} prompts say the same at every boundary")
    return steady


class Bench:
    """The engine and daemon that faults are tried on."""

    def __init__(
        self, setting: Setting, daemon: Daemon, engine: Engine, references: list[Reference]
    ) -> None:
        self.setting, self.daemon, self.engine = setting, daemon, engine
        self.references, self.taken = references, 0
        cold = max(answer.seconds for reference in references for answer in reference.answers)
        self.bound = cold + LOOKUP_S + LOAD_S + SLACK_S
        self.rows: list[list[object]] = []
        self.wrong: list[str] = []
        setting.report.figure("bound_s", self.bound)
        setting.report.note(
            f"a request may take {self.bound:.1f} s: the longest without a connector "
            f"{cold:.1f} + lookup {LOOKUP_S} + load {LOAD_S} + {SLACK_S}"
        )

    def _next(self) -> Reference:
        """A prompt under a salt of its own: nobody has asked for it before, and what is said is the
        same."""
        chosen = self.references[self.taken % len(self.references)]
        self.taken += 1
        return replace(chosen, prompt=replace(chosen.prompt, salt=f"fault {self.taken}"))

    def one(self, fault: Fault) -> list[object]:
        """Stores, forgets, and asks again with the fault in the way; then once more without."""
        reference = self._next() if fault.is_store else self._kept()
        self.engine.call(PROBE, "arm", fault.point, fault.act, self.daemon.pid, fault.short)
        answer = self._ask(reference, fault.name)
        if fault.is_store:
            # Whether or not it was stored: what is loaded afterwards is right.
            self.engine.reset()
        met = self.engine.call(PROBE, "met")
        if fault.point != "none" and not met:
            self.wrong.append(f"{fault.name}: the point was never reached")
        self._back()
        if fault.is_store:
            self._ask(reference, f"{fault.name}, asked again")
        return [fault.name, met, answer.seconds, answer.cached, self._works(fault.name)]

    def _ask(self, reference: Reference, name: str) -> Answer:
        try:
            answer = self.engine.generate([reference.prompt], TOKENS, bound=self.bound + 60)[0]
        except EngineError as error:
            raise EngineError(f"{name}: {error}") from error
        if verdict := reference.verdict(answer):
            self.wrong.append(f"{name}: {verdict}")
        if answer.seconds > self.bound:
            self.wrong.append(f"{name}: took {answer.seconds:.1f} s")
        return answer

    def _keep(self, prompt: Prompt, seconds: float = 20.0) -> bool:
        """Has the engine compute and store a prompt's pages, and forget them."""
        before = self.daemon.counters()["stores.stored"]
        self.engine.generate([replace(prompt, tokens=prompt.tokens[: PAGE * PAGES])], 1)
        stored = self.daemon.wait_stored(before + PAGES, seconds)
        self.engine.reset()
        return stored >= before + PAGES

    def _kept(self) -> Reference:
        """A prompt whose pages are with the daemon."""
        for _ in range(3):
            # What is stored while a session begins anew may be declined.
            reference = self._next()
            if self._keep(reference.prompt, 5.0):
                return reference
        raise EngineError(f"{reference.prompt.salt}: its pages are not stored, three times over")

    def _works(self, name: str) -> float:
        """Seconds until pages are stored and loaded again, once the daemon is there again."""
        begun = time.monotonic()
        while time.monotonic() - begun < BACK_S:
            reference = self._next()
            # What is stored while a session begins anew may be declined: it is asked for again.
            if self._keep(reference.prompt, 3.0) and self._ask(reference, f"after {name}").external:
                return time.monotonic() - begun
        self.wrong.append(f"after {name}: nothing is loaded any more")
        return BACK_S

    def _back(self) -> None:
        """Brings the daemon back, and waits until both halves of the connector have found it."""
        if self.daemon.is_up():
            self.daemon.thaw()
        else:
            self.daemon.kill()
            self.daemon.start()
        if not self.daemon.wait_engine(BACK_S):
            self.wrong.append(f"the connector did not come back within {BACK_S:.0f} s")

    def _restart_cold(self) -> None:
        self.daemon.restart_cold(lambda: self._keep(self._next().prompt))
        self._back()

    def restarted(self) -> None:
        """Stopped and started as an operator would: what was in DRAM comes back from SSD."""
        references = [self._kept() for _ in range(3)]
        self._restart_cold()
        # The first lookup may come while the spaces are opened anew, and is a miss then.
        answers = [self._ask(reference, "restart") for reference in references]
        served = self.daemon.counters()["hits.ssd_pages"]
        self.rows += [["stop and start", 1, a.seconds, a.cached, None] for a in answers]
        self.setting.report.check(
            "after a restart pages come from SSD", served > 0, f"{served} pages"
        )

    def rotten(self) -> None:
        """A byte of each stretch of the SSD's file turns while the daemon runs."""
        prompts = [self._kept() for _ in range(4)]
        self._restart_cold()
        turned = rot(self.daemon)
        answers = [self._ask(reference, "rotten SSD") for reference in prompts]
        corrupt = self.daemon.counters()["ssd.corrupt_records"]
        self.rows += [["rotten SSD", turned, a.seconds, a.cached, None] for a in answers]
        self.setting.report.check(
            "rotten pages were met and recognised", corrupt > 0, f"{corrupt} records"
        )
        self._works("rotten SSD")

    def stopped_for_long(self) -> None:
        """Nobody answers for a while: requests go on, each within the bound."""
        references = [self._kept() for _ in range(3)]
        self.daemon.freeze()
        answers = [self._ask(reference, "frozen") for reference in references]
        self.rows += [["frozen all along", 1, a.seconds, a.cached, None] for a in answers]
        self._back()
        self._works("frozen all along")

    def end(self) -> None:
        report = self.setting.report
        report.table(
            "faults, each met by one request",
            ["fault", "met", "seconds", "cached", "works again after s"],
            self.rows,
        )
        report.check(
            "same tokens, in time, and loads come again",
            not self.wrong,
            "; ".join(self.wrong[:6]) or f"{len(self.rows)} requests met a fault",
        )
        complaints = self.engine.complaints()
        report.check("the engine has no error", not complaints, "; ".join(complaints[:2]))


def rot(daemon: Daemon, stretch: int = 192 << 10) -> int:
    """Turns one byte in each stretch, from behind the first MiB on; how many."""
    path = next(daemon.ssd.glob("pages-*.log"))
    turned = 0
    with path.open("r+b") as file:
        for at in range(1 << 20, os.fstat(file.fileno()).st_size, stretch):
            file.seek(at)
            byte = file.read(1)
            if byte and byte != b"\0":
                file.seek(at)
                file.write(bytes([byte[0] ^ 0x55]))
                turned += 1
        file.flush()
        os.fsync(file.fileno())
    return turned


def late(setting: Setting, references: list[Reference]) -> None:
    """No daemon when the engine begins: it serves all the same, and stores once there is one."""
    daemon = Daemon(setting.folder / "late")
    reference = references[0]
    with setting.with_undercroft(
        "late", daemon, connector="FaultyConnector", module=PROBE
    ) as engine:
        answer = engine.ready().generate([reference.prompt], TOKENS)[0]
        verdict = reference.verdict(answer)
        setting.report.check("an engine without a daemon serves", not verdict, verdict)
        with daemon.start():
            until = time.monotonic() + BACK_S
            loaded = 0.0
            while not loaded and time.monotonic() < until:
                engine.reset()
                loaded = engine.generate([reference.prompt], TOKENS)[0].external
            setting.report.check("and loads once there is one", loaded > 0, f"{loaded:.0f} tokens")
        complaints = engine.complaints()
        setting.report.check("without an error", not complaints, "; ".join(complaints[:2]))
