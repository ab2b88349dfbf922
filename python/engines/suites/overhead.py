"""What does a miss cost? The time inside of the connector's hooks when nothing is found."""

from __future__ import annotations

from statistics import median

from harness.engine import Answer, Engine, Prompt
from harness.prompts import Writer
from harness.setting import Setting

LENGTHS = (64, 512, 2048, 4096)
REPEATS = 7
SCHEDULER_LIMIT_S = 200e-6
SHARE_LIMIT = 0.01
LONG = 2048


def run(setting: Setting) -> None:
    writer = Writer(setting.model(), setting.seed)
    kind = {
        "connector": "TimedConnector",
        "module": "harness.probe",
        "max_model_len": 8192,
        "max_num_batched_tokens": 8192,
    }
    with setting.daemon(dram="1GiB", ssd="2GiB") as daemon:
        with setting.with_undercroft("timed", daemon, **kind).ready() as engine:
            engine.generate([Prompt(writer.tokens("first", 300))], 2)
            rows = [_length(setting, engine, writer, length) for length in LENGTHS]
        counted = daemon.counters()
    report = setting.report
    report.table(
        f"hooks on a total miss, per request of one token (medians of {REPEATS})",
        ["tokens", "ttft ms", "scheduler us", "worst us", "worker us", "all hooks, share of ttft"],
        rows,
    )
    report.check(
        "nothing was found", counted["hits.prefix_pages"] == 0, str(counted["hits.prefix_pages"])
    )
    for tokens, _, scheduler, _, _, _ in rows:
        holds = scheduler <= SCHEDULER_LIMIT_S * 1e6
        report.check(
            f"{tokens} tokens: at most 200 us of the scheduler", holds, f"{scheduler:.0f} us"
        )
    for tokens, _, _, _, _, share in rows:
        if tokens >= LONG:
            text = f"{share:.3%}"
            report.check(
                f"{tokens} tokens: at most 1 % of the time to the first token",
                share <= SHARE_LIMIT,
                text,
            )


def _length(setting: Setting, engine: Engine, writer: Writer, tokens: int) -> list[float]:
    taken: list[tuple[Answer, float, float]] = []
    for repeat in range(REPEATS):
        prompt = Prompt(writer.tokens(f"overhead-{tokens}-{repeat}", tokens))
        engine.call("harness.probe", "times")
        answer = engine.generate([prompt], 1)[0]
        times = engine.call("harness.probe", "times")
        spent = {
            role: sum(sum(v) for name, v in times.items() if name.startswith(role))
            for role in ("scheduler", "worker")
        }
        taken.append((answer, spent["scheduler"], spent["worker"]))
        setting.report.figure(
            f"hooks {tokens} {repeat}", {n: [len(v), sum(v)] for n, v in times.items()}
        )
    seconds = median(answer.seconds for answer, _, _ in taken)
    scheduler = median(s for _, s, _ in taken)
    share = median((s + w) / answer.seconds for answer, s, w in taken)
    return [
        tokens,
        seconds * 1e3,
        scheduler * 1e6,
        max(s for _, s, _ in taken) * 1e6,
        median(w for _, _, w in taken) * 1e6,
        share,
    ]
