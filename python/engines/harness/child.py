"""vLLM in a process of its own, which takes orders and answers as lines of JSON.

Started by `engine.py`. Orders come on standard input; answers go to what was standard output. What
the engine itself prints goes to standard error, which is the log.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any


class Child:
    """The engine and what may be asked of it: each method is an order."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm import LLM

        self.llm = LLM(**arguments)

    def generate(
        self, prompts: list[dict[str, Any]], max_tokens: int, serial: bool = True
    ) -> list[dict[str, Any]]:
        """Greedy continuations; one after the other or all at once."""
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, logprobs=1, ignore_eos=True
        )
        asked = [self._prompt(prompt) for prompt in prompts]
        groups = [[prompt] for prompt in asked] if serial else [asked]
        answers: list[dict[str, Any]] = []
        for group in groups:
            before = self.metrics()
            start = time.perf_counter()
            outputs = self.llm.generate(group, sampling, use_tqdm=False)
            seconds = time.perf_counter() - start
            after = self.metrics()
            name = "vllm:external_prefix_cache_hits"
            external = after.get(name, 0) - before.get(name, 0)
            answers += [self._answer(output, seconds, external) for output in outputs]
        return answers

    @staticmethod
    def _prompt(prompt: dict[str, Any]) -> dict[str, Any]:
        asked: dict[str, Any] = {"prompt_token_ids": prompt["tokens"]}
        if prompt.get("salt"):
            asked["cache_salt"] = prompt["salt"]
        return asked

    @staticmethod
    def _answer(output: Any, seconds: float, external: float) -> dict[str, Any]:
        completion = output.outputs[0]
        steps = [
            step[token].logprob
            for step, token in zip(completion.logprobs or [], completion.token_ids)
        ]
        return {
            "tokens": list(completion.token_ids),
            # As hexadecimal, since equal means equal in every bit.
            "logprob": float(sum(steps)).hex(),
            "finish": completion.finish_reason,
            "cached": output.num_cached_tokens or 0,
            "external": external,
            "seconds": seconds,
        }

    def metrics(self) -> dict[str, float]:
        """The engine's own counters and gauges."""
        values: dict[str, float] = {}
        for metric in self.llm.get_metrics():
            if hasattr(metric, "value"):
                values[metric.name] = values.get(metric.name, 0) + metric.value
        return values

    def reset(self, seconds: float = 30.0) -> bool:
        """Forgets the engine's own prefix cache, and nothing else. Stores under way hold blocks,
        which the engine refuses to forget; it hears that they are over as it steps."""
        until = time.monotonic() + seconds
        while not self.llm.reset_prefix_cache():
            if time.monotonic() >= until:
                return False
            self.llm.llm_engine.step()
            time.sleep(0.02)
        return True

    def call(self, module: str, function: str, arguments: list[Any]) -> Any:
        """A function of the harness in the engine's process, such as one that arms a fault."""
        return getattr(importlib.import_module(module), function)(*arguments)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    child: Child | None = None
    for line in sys.stdin:
        order = json.loads(line)
        name = order.pop("order")
        if name == "end":
            break
        try:
            if name == "begin":
                child = Child(order["arguments"])
                answer: Any = os.getpid()
            else:
                answer = getattr(child, name)(**order)
            said = {"answer": answer}
        except Exception as error:  # whoever gave the order says what it means
            import traceback

            traceback.print_exc()
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said) + "\n")
    # Its threads and its connector end as they would with any program that lets go of the engine.
    if child is not None:
        child.llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
