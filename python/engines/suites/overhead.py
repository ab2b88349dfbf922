"""What does a miss cost? The time inside of the connector's hooks when nothing is found."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from harness.engine import Answer, Engine, Prompt
from harness.prompts import Writer
from harness.setting import Setting

LENGTHS = (64, 512, 2048, 4096)
REPEATS = 11
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
            # In turns: a slow minute of the machine is shared by all lengths.
            taken = [
                (tokens, _miss(setting, engine, writer, tokens, repeat))
                for repeat in range(REPEATS)
                for tokens in LENGTHS
            ]
        counted = daemon.counters()
    report = setting.report
    rows = [_row(tokens, [miss for of, miss in taken if of == tokens]) for tokens in LENGTHS]
    report.table(
        f"hooks on a total miss, per request of one token (medians of {REPEATS})",
        ["tokens", "ttft ms", "scheduler us", "worst us", "worker us", "all hooks, share of ttft"],
        rows,
    )
    report.check(
        "nothing was found", counted["hits.prefix_pages"] == 0, str(counted["hits.prefix_pages"])
    )
    for tokens, _, scheduler, *_ in rows:
        holds = scheduler <= SCHEDULER_LIMIT_S * 1e6
        report.check(
            f"{tokens} tokens: at most 200 us of the scheduler", holds, f"{scheduler:.0f} us"
        )
    for tokens, *_, share in rows:
        if tokens >= LONG:
            text = f"{share:.3%}"
            report.check(
                f"{tokens} tokens: at most 1 % of the time to the first token",
                share <= SHARE_LIMIT,
                text,
            )


@dataclass(frozen=True)
class Miss:
    """One request that found nothing; seconds."""

    first_token: float
    scheduler: float
    """Inside of the scheduler's hooks, those that have nothing to do included."""
    worker: float


def _miss(setting: Setting, engine: Engine, writer: Writer, tokens: int, repeat: int) -> Miss:
    prompt = Prompt(writer.tokens(f"overhead-{tokens}-{repeat}", tokens))
    engine.call("harness.probe", "times")
    answer = engine.generate([prompt], 1)[0]
    times: dict[str, list[float]] = engine.call("harness.probe", "times")
    setting.report.figure(
        f"hooks {tokens} {repeat}", {n: [len(v), sum(v)] for n, v in times.items()}
    )
    spent = {
        role: sum(sum(v) for name, v in times.items() if name.startswith(role))
        for role in ("scheduler", "worker")
    }
    return Miss(answer.seconds, spent["scheduler"], spent["worker"])


def _row(tokens: int, taken: list[Miss]) -> list[float]:
    return [
        tokens,
        median(miss.first_token for miss in taken) * 1e3,
        median(miss.scheduler for miss in taken) * 1e6,
        max(miss.scheduler for miss in taken) * 1e6,
        median(miss.worker for miss in taken) * 1e6,
        median((miss.scheduler + miss.worker) / miss.first_token for miss in taken),
    ]
