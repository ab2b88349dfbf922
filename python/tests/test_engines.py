"""What the engines' suites rest on, as far as it needs no engine."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import unittest
from pathlib import Path

ENGINES = Path(__file__).resolve().parents[1] / "engines"
sys.path.insert(0, str(ENGINES))

import environment  # noqa: E402
from harness.engine import PAGE, Answer, Prompt  # noqa: E402
from harness.prompts import Case, Cases, pages_of  # noqa: E402
from harness.report import Report  # noqa: E402
from suites import equality, faults, pressure, wheel  # noqa: E402


class Numbers:
    """Writes tokens that are no text."""

    def tokens(self, name: str, count: int) -> tuple[int, ...]:
        begin = sum(ord(letter) * (at + 1) for at, letter in enumerate(name)) * 1000
        return tuple(range(begin, begin + count))


def answer(tokens: tuple[int, ...], logprob: float = -1.0, cached: int = 0) -> Answer:
    return Answer(tokens, logprob.hex(), "length", cached, 0.0, 0.1)


class CaseTest(unittest.TestCase):
    def test_there_are_two_hundred_prompts_and_each_case_has_a_name_of_its_own(self) -> None:
        cases = Cases(Numbers()).many()  # type: ignore[arg-type]
        self.assertGreaterEqual(sum(len(case.asked) for case in cases), 200)
        self.assertEqual(len({case.name for case in cases}), len(cases))

    def test_the_smoke_stays_small(self) -> None:
        cases = Cases(Numbers()).few()  # type: ignore[arg-type]
        self.assertLessEqual(sum(len(case.asked) for case in cases), 30)

    def test_pages_are_counted_once_for_each_prefix_and_salt(self) -> None:
        whole = tuple(range(3 * PAGE))
        prompts = [
            Prompt(whole),
            Prompt(whole[: 2 * PAGE + 5]),
            Prompt(whole[: PAGE - 1]),
            Prompt(whole[:PAGE], "x"),
        ]
        self.assertEqual(pages_of(prompts), 4)


class DifferenceTest(unittest.TestCase):
    def kinds(self, one: Answer, other: Answer) -> list[str]:
        case = Case("case", [], [Prompt((1,))])
        return [found.kind for found in equality.differences([case], [[one]], [[other]])]

    def test_a_token_a_bit_and_a_boundary_are_told(self) -> None:
        same = answer((1, 2), -1.5, 32)
        self.assertEqual(self.kinds(same, same), [])
        self.assertEqual(self.kinds(same, answer((1, 3), -1.5, 32)), ["tokens"])
        self.assertEqual(self.kinds(same, answer((1, 2), -1.5000000000000002, 32)), ["logprob"])
        self.assertEqual(self.kinds(same, answer((1, 2), -1.5, 64)), ["boundary"])

    def test_an_answer_after_a_fault_is_that_of_some_boundary(self) -> None:
        known = faults.Reference(Prompt((1,)), [answer((5,), -1.0), answer((5,), -2.0)])
        self.assertEqual(known.verdict(answer((5,), -2.0)), "")
        self.assertIn("no boundary", known.verdict(answer((5,), -3.0)))
        self.assertIn("became", known.verdict(answer((6,), -1.0)))


class DigestTest(unittest.TestCase):
    def judged(self, lines: list[str]) -> list[bool]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "digests"
            path.write_text("".join(f"{line}\n" for line in lines))
            report = Report("digests", "again")

            class Setting:
                pass

            setting = Setting()
            setting.report = report  # type: ignore[attr-defined]
            with contextlib.redirect_stdout(io.StringIO()):
                pressure.judge_digests(setting, path)  # type: ignore[arg-type]
            return [check["holds"] for check in report.checks]

    def test_a_block_that_is_not_what_was_stored_is_found(self) -> None:
        good = ["offered k1 d1", "stored k1 d1", "loaded k1 d1"]
        self.assertEqual(self.judged(good), [True, True])
        self.assertEqual(self.judged([*good, "loaded k1 d2"]), [False, True])
        self.assertEqual(self.judged([*good, "stored k1 d3"]), [True, False])
        self.assertEqual(self.judged(["offered k1 d1"]), [False, False])


class EnvironmentTest(unittest.TestCase):
    def test_locks_have_a_digest_for_everything(self) -> None:
        for lock in (environment.LOCK, environment.INSTALLER, environment.LMCACHE):
            lines = [
                line for line in lock.read_text().splitlines() if line and not line.startswith("#")
            ]
            self.assertTrue(lines)
            for line in lines:
                self.assertRegex(line, r"^[\w.-]+==\S+ --hash=sha256:[0-9a-f]{64}$")

    def test_a_tools_reason_is_the_line_that_says_why(self) -> None:
        self.assertEqual(
            environment.reason("Looking\nerror: no such host\nbye\n"), "error: no such host"
        )
        self.assertEqual(environment.reason(""), "it said nothing")

    def test_the_recipe_can_be_read_from_its_page(self) -> None:
        install, serve, engine = wheel.recipe()
        self.assertTrue(install.startswith("pip install"))
        self.assertTrue(serve.startswith("undercroft serve"))
        self.assertIn("--model MODEL", engine)


if __name__ == "__main__":
    unittest.main()
