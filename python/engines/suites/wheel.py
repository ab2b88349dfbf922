"""The wheel as a user gets it: installed into an environment that has the engine and nothing of
this checkout; then what docs/engines/vllm.md says, with its own words.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import venv
from pathlib import Path

from harness.daemon import READY_S
from harness.engine import environment
from harness.processes import started_by_us
from harness.prompts import Writer
from harness.server import Process, free_port, request
from harness.setting import Setting

RECIPE = Path(__file__).resolve().parents[3] / "docs" / "engines" / "vllm.md"


def run(setting: Setting) -> None:
    report = setting.report
    if setting.wheel is None:
        report.check("there is a wheel", False, "--wheel names none")
        return
    place = setting.folder / "user"
    python = install(setting, place)
    bin_folder = python.parent
    env = {
        name: value
        for name, value in environment().items()
        if name not in ("PYTHONPATH", "UNDERCROFT_BIN")
    }
    env |= {
        "HOME": str(place),
        "XDG_RUNTIME_DIR": str(place),
        "XDG_STATE_HOME": str(place / "state"),
    }
    env["PATH"] = f"{bin_folder}{os.pathsep}{env['PATH']}"
    where = subprocess.run(
        [str(python), "-c", "import undercroft; print(undercroft.__file__)"],
        env=env,
        capture_output=True,
        text=True,
    )
    report.check(
        "it is the wheel's package that is imported",
        str(place) in where.stdout,
        (where.stdout or where.stderr).strip()[-200:],
    )
    install_line, serve_line, engine_line = recipe()
    report.note(f"the recipe: {install_line} / {serve_line} / {engine_line[:60]}…")
    serve(setting, serve_line, env, place)
    use(setting, engine_line, env, place)


def install(setting: Setting, place: Path) -> Path:
    """A fresh environment over the engine's, with the wheel."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    own = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    engines = Path(sys.executable).parent.parent / "lib" / own / "site-packages"
    (place / "lib" / own / "site-packages" / "engines.pth").write_text(f"{engines}\n")
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--disable-pip-version-check",
    ]
    done = subprocess.run([*command, str(setting.wheel)], capture_output=True, text=True)
    setting.report.check("pip installs the wheel", done.returncode == 0, done.stderr.strip()[-200:])
    return python


def recipe() -> tuple[str, str, str]:
    """The three commands of the page: install, serve, run the engine."""
    text = RECIPE.read_text()
    block = re.search(r"## Run it\n+```\w*\n(.*?)```", text, re.DOTALL)
    if block is None:
        raise RuntimeError(f"{RECIPE.name} has no commands under `Run it`")
    lines = [line.split("  #")[0].strip() for line in block[1].replace("\\\n", " ").splitlines()]
    whole = "\n".join(lines)
    found = [
        part.strip() for part in re.split(r"\n(?=pip |undercroft |python )", whole) if part.strip()
    ]
    named = {part.split()[0]: part for part in found}
    return named["pip"], named["undercroft"].splitlines()[0].split("#")[0].strip(), named["python"]


def serve(setting: Setting, line: str, env: dict[str, str], place: Path) -> None:
    log = setting.folder / "serve.log"
    # Its defaults reach for gigabytes, and for a port: the page's command is left as it is.
    with log.open("ab") as file:
        command = shlex.split(line)
        process = subprocess.Popen(
            command,
            env=env,
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    started_by_us(process)
    until = time.monotonic() + READY_S
    while time.monotonic() < until and "ready" not in log.read_text():
        time.sleep(0.1)
    setting.report.check(
        f"`{line}` works", "ready" in log.read_text(), log.read_text().strip()[-200:]
    )


def use(setting: Setting, line: str, env: dict[str, str], place: Path) -> None:
    """The engine as the page starts it, twice, and a hit."""
    writer = Writer(setting.model(), setting.seed)
    tokens = writer.tokens("wheel", 400)
    answers, loaded = [], 0.0
    for name in ("first", "second"):
        port = free_port()
        command = shlex.split(line.replace("MODEL", str(setting.model()), 1))
        command += [
            "--port",
            str(port),
            "--served-model-name",
            "model",
            "--max-model-len",
            "2048",
            "--enforce-eager",
        ]
        command[0] = str(place / "bin" / "python")
        url = f"http://127.0.0.1:{port}"
        with Process(command, f"{url}/health", setting.folder / f"{name}.log", env) as engine:
            engine.ready()
            answers.append(ask(url, tokens))
            page = request(f"{url}/metrics")
            loaded = sum(
                float(row.rsplit(" ", 1)[1])
                for row in page.splitlines()
                if row.startswith("vllm:undercroft_loaded_pages_total")
            )
    setting.report.check("the second engine loads pages", loaded > 0, f"{loaded:.0f} pages")
    setting.report.check(
        "and says the same", answers[0] == answers[1], f"{answers[0]!r} and {answers[1]!r}"
    )


def ask(url: str, tokens: tuple[int, ...]) -> str:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)
    answer = client.completions.create(
        model="model", prompt=list(tokens), max_tokens=8, temperature=0.0
    )
    return answer.choices[0].text
