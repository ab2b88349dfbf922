"""A conversation through the OpenAI server, with the engine and the daemon restarted in its middle:
the same answers as from an engine that nothing happened to.

The engines compute in float32. Where a prompt's computing begins differs between the two, and in
bfloat16 that alone changes an answer now and then, with the engine's own prefix cache as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.daemon import Daemon
from harness.engine import PAGE, transfer
from harness.prompts import Writer
from harness.server import Server
from harness.setting import Setting

SYSTEM = (
    "You are a patient teacher who answers in two or three plain sentences. You never invent "
    "names. When a question is about a place, you say in which country it lies. When a question"
    " is about a number, you say how you found it. When you do not know something, you say that"
    " you do not know it. You do not use lists, you do not use headings, and you do not "
    "apologise. The pupils are twelve years old and like examples from nature."
)
QUESTIONS = (
    "What is the capital of France?",
    "Which river flows through it?",
    "Why do rivers bend?",
    "Explain how rain forms.",
    "What colour does the sky have at noon, and why?",
    "How many legs do a spider and a bee have together?",
    "Why do leaves turn brown in autumn?",
    "Tell me how a boat made of steel can float.",
    "What is the largest planet of our solar system?",
    "Why does the moon change its shape?",
    "How do birds find their way in winter?",
    "What did I ask you first?",
)
ENGINE_RESTARTS = 4
DAEMON_RESTARTS = 8
TOKENS = 48
DTYPE = "float32"


def talk(server: Callable[[int], Server]) -> list[str]:
    """Asks all questions, one after the other; `server` is asked which server to use for each."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    answers = []
    for turn, question in enumerate(QUESTIONS):
        client = server(turn).client()
        messages.append({"role": "user", "content": question})
        answer = client.chat.completions.create(
            model="model", messages=messages, max_tokens=TOKENS, temperature=0.0
        )
        text = answer.choices[0].message.content or ""
        messages.append({"role": "assistant", "content": text})
        answers.append(text)
    return answers


class Restarting:
    """An engine with Undercroft behind it, both of which restart in the middle."""

    def __init__(self, setting: Setting, daemon: Daemon) -> None:
        self.setting, self.daemon = setting, daemon
        self.writer, self.fillers = Writer(setting.model(), setting.seed), 0
        self.server = self._begin("first")
        self.from_ssd = 0
        self.loaded: list[float] = []

    def _begin(self, name: str) -> Server:
        chosen = transfer(self.daemon.socket, lookup_deadline_ms=1000.0)
        log = self.setting.folder / f"{name}.log"
        return Server(self.setting.model(), log, kv_transfer=chosen, dtype=DTYPE).ready()

    def at(self, turn: int) -> Server:
        if turn == ENGINE_RESTARTS:
            self._note("before its restart")
            self.server.stop()
            self.server = self._begin("second")
        if turn == DAEMON_RESTARTS:
            self._note("before the daemon's restart")
            self.daemon.restart_cold(self._fill)
            back = self.daemon.wait_engine()
            self.setting.report.check("the engine finds the daemon again", back)
            # The engine has everything itself by now; what it needs next must come from elsewhere.
            self.server.forget()
        return self.server

    def _fill(self) -> None:
        """Pages of somebody else, who takes the room in DRAM."""
        self.fillers += 1
        self.server.compute(self.writer.tokens(f"filler {self.fillers}", 20 * PAGE))

    def _note(self, when: str) -> None:
        self.loaded.append(self.server.metrics().get("vllm:external_prefix_cache_hits_total", 0.0))
        self.setting.report.figure(f"tokens loaded {when}", self.loaded[-1])

    def end(self) -> None:
        self._note("at the end")
        self.from_ssd = self.daemon.counters()["hits.ssd_pages"]
        self.server.stop()


def run(setting: Setting) -> None:
    with Server(setting.model(), setting.folder / "alone.log", dtype=DTYPE).ready() as alone:
        expected = talk(lambda turn: alone)
    with setting.daemon(dram="96MiB", policy=Daemon.LEAVES_IN_ORDER) as daemon:
        restarting = Restarting(setting, daemon)
        got = talk(restarting.at)
        restarting.end()
    report = setting.report
    rows = [
        [turn + 1, "same" if a == b else "DIFFERS", len(b), b[:60].replace("\n", " ")]
        for turn, (a, b) in enumerate(zip(expected, got))
    ]
    report.table("turns", ["turn", "answer", "letters", "begins with"], rows)
    different = [turn + 1 for turn, (a, b) in enumerate(zip(expected, got)) if a != b]
    report.check(
        f"the same {len(QUESTIONS)} answers",
        not different,
        f"turns that differ: {different}" if different else "",
    )
    _, second, after = restarting.loaded
    report.check("the engine that was started anew loaded", second > 0, f"{second:.0f} tokens")
    report.check(
        "after the daemon's restart it loaded from SSD",
        after > second and restarting.from_ssd > 0,
        f"{after - second:.0f} tokens, {restarting.from_ssd} pages",
    )
