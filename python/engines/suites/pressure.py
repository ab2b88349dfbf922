"""Many requests at once in a KV cache that is too small: blocks are given away and taken back while
loads and stores are under way. Whatever was stored must be what is loaded, block by block.

What an engine says depends in its last bits on which requests it computes together; in bfloat16
that is a token now and then, in float32, which is what runs here, hardly ever. So engines without a
connector run several times, in several orders, and how often they differ from each other is how
often the ones with a connector may differ from them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import combinations
from pathlib import Path

from harness.daemon import Daemon
from harness.engine import PAGE, Answer, Engine, Prompt
from harness.prompts import Writer
from harness.setting import Setting

BLOCKS = 56
REQUESTS = 40
TOKENS = 48
RUNS = 3
OPTIONS = {
    "dtype": "float32",
    "num_gpu_blocks_override": BLOCKS,
    "max_num_seqs": 12,
    "max_model_len": 1024,
}


def prompts(writer: Writer) -> list[Prompt]:
    """Some share their beginning, some are alone; none fits more than a few times into the
    cache."""
    roots = [writer.tokens(f"pressure root {at}", PAGE * (2 + at)) for at in range(5)]
    found = []
    for at in range(REQUESTS):
        root = roots[at % len(roots)] if at % 4 else ()
        found.append(Prompt(root + writer.tokens(f"pressure {at}", 40 + 7 * (at % 11))))
    return found


def run(setting: Setting) -> None:
    asked = prompts(Writer(setting.model(), setting.seed))
    orders = [
        random.Random(f"{setting.seed} {at}").sample(range(len(asked)), len(asked))
        for at in range(RUNS)
    ]
    references, preempted = _reference(setting, asked, orders)
    setting.report.check(
        "the cache is too small for the reference", preempted > 0, f"{preempted} preemptions"
    )
    digests = setting.folder / "digests"
    with setting.daemon(dram="128MiB", ssd="1GiB") as daemon:
        got, metrics = _tested(setting, daemon, digests, asked, orders)
        counted = daemon.counters()
    report = setting.report
    preempted = int(metrics["vllm:num_preemptions"])
    report.check(
        "the cache is too small with the connector", preempted > 0, f"{preempted} preemptions"
    )
    external = int(metrics["vllm:external_prefix_cache_hits"])
    report.check("blocks were loaded", external > 0, f"{external} tokens")
    served = counted["hits.dram_pages"] + counted["hits.ssd_pages"]
    report.figure("pages_served", served)
    judge_digests(setting, digests)
    judge_tokens(setting, references, got)


def _reference(
    setting: Setting, asked: list[Prompt], orders: list[list[int]]
) -> tuple[list[list[Answer]], int]:
    with setting.plain("reference", **OPTIONS).ready() as engine:
        answers = [in_order(engine, asked, order) for order in orders]
        return answers, int(engine.metrics()["vllm:num_preemptions"])


def in_order(engine: Engine, asked: list[Prompt], order: list[int]) -> list[Answer]:
    """All at once, submitted in an order; answers in the prompts' own order. The engine begins
    without anything in its own cache."""
    engine.reset()
    got = engine.generate([asked[at] for at in order], TOKENS, serial=False)
    back = dict(zip(order, got))
    return [back[at] for at in range(len(asked))]


def _tested(
    setting: Setting, daemon: Daemon, digests: Path, asked: list[Prompt], orders: list[list[int]]
) -> tuple[list[list[Answer]], dict[str, float]]:
    kind = {
        "connector": "DigestingConnector",
        "module": "harness.probe",
        "env": {"UNDERCROFT_DIGESTS": str(digests)},
    }
    with setting.with_undercroft("tested", daemon, **kind, **OPTIONS).ready() as engine:
        answers = [in_order(engine, asked, order) for order in orders]
        return answers, engine.metrics()


def judge_digests(setting: Setting, path: Path) -> None:
    """Every loaded block is what some engine held when it stored that key; no block changed while
    it was copied."""
    offered: dict[str, set[str]] = defaultdict(set)
    counts: dict[str, int] = defaultdict(int)
    wrong, changed, unsettled = [], [], 0
    for line in path.read_text().splitlines():
        what, key, digest = line.split()
        counts[what] += 1
        if what == "offered":
            offered[key].add(digest)
        elif what == "loaded" and digest not in offered[key]:
            wrong.append(key)
        elif what == "stored" and digest not in offered[key]:
            changed.append(key)
        elif what == "settled":
            unsettled += 1
    report = setting.report
    report.figure("digests", dict(counts))
    loaded, stored = counts["loaded"], counts["stored"]
    report.check(
        "every loaded block is what was stored",
        loaded > 0 and not wrong,
        f"{loaded - len(wrong)} of {loaded} blocks"
        + (f"; first: {wrong[0][:16]}" if wrong else ""),
    )
    report.check(
        "no block changed while it was stored",
        stored > 0 and not changed,
        f"{stored - len(changed)} of {stored} blocks"
        + (f"; first: {changed[0][:16]}" if changed else ""),
    )


def different(one: list[Answer], other: list[Answer]) -> int:
    return sum(a.tokens != b.tokens for a, b in zip(one, other, strict=True))


def apart(run: list[Answer], others: list[list[Answer]]) -> int:
    """Prompts of a run of which no other run says the same."""
    return sum(
        all(answer.tokens != other[at].tokens for other in others) for at, answer in enumerate(run)
    )


def judge_tokens(setting: Setting, references: list[list[Answer]], got: list[list[Answer]]) -> None:
    """A run of the reference is held against the other references, one with the connector against
    as many of them."""
    among = [
        apart(run, references[:at] + references[at + 1 :]) for at, run in enumerate(references)
    ]
    against = [apart(run, references[:at] + references[at + 1 :]) for at, run in enumerate(got)]
    pairs = [different(one, other) for one, other in combinations(references, 2)]
    count, mine, theirs = len(references[0]), sum(against), sum(among)
    setting.report.table(
        f"prompts of {count} that say what no reference says",
        ["runs", "each", "all"],
        [["references", str(among), theirs], ["with the connector", str(against), mine]],
    )
    setting.report.figure("references differ from each other in", pairs)
    kept = {"references": references, "got": got}
    for name, runs in kept.items():
        setting.report.figure(name, [[list(answer.tokens) for answer in run] for run in runs])
    setting.report.check(
        "tokens differ no more often than references do",
        mine <= theirs,
        f"{mine} and {theirs} of {count * len(references)}",
    )
