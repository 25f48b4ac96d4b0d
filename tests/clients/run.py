"""Runs client libraries in front of a host with a scripted engine.

    python run.py --pointsman PROGRAM --venv DIR --node DIR [--short] [--write PAGE] [SCRIPT ..]
    python run.py --install DIR         installs the pinned packages into DIR
    python run.py --list                prints all features, as JSON
    python run.py --check PAGE          fails if the page lacks a feature or version, or has others

With `--write`, the table of results replaces the one in the page. The run fails if a feature fails.
"""

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

from deployment import CREDENTIALS, HERE, KEY, Deployment

# Client libraries that the default run has, and all others of the opt-in run.
SHORT = [
    "python/openai_sdk.py",
    "python/anthropic_sdk.py",
    "python/ollama_sdk.py",
    "python/schemas.py",
    "node/openai_sdk.mjs",
    "node/anthropic_sdk.mjs",
    "python/access.py",
    "node/access.mjs",
]
ALL = [
    *SHORT,
    "node/vercel.mjs",
    "python/frameworks.py",
    "python/clients.py",
    "python/editors.py",
    "python/claude_code.py",
]
# The packages whose versions are shown for a client.
PACKAGES = {
    "openai Python": [("python", "openai")],
    "openai Python, async": [("python", "openai")],
    "anthropic Python": [("python", "anthropic")],
    "anthropic Python, async": [("python", "anthropic")],
    "ollama Python": [("python", "ollama")],
    "openai Node": [("node", "openai")],
    "anthropic Node": [("node", "@anthropic-ai/sdk")],
    "Vercel AI SDK": [
        ("node", name)
        for name in ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic")
    ],
    "ollama Node": [("node", "ollama")],
    "LangChain": [("python", "langchain-openai"), ("python", "langchain-anthropic")],
    "LangGraph": [("python", "langgraph")],
    "LlamaIndex": [
        ("python", "llama-index-llms-openai-like"),
        ("python", "llama-index-embeddings-openai"),
    ],
    "instructor": [("python", "instructor")],
    "LiteLLM": [("python", "litellm")],
    "huggingface_hub": [("python", "huggingface-hub")],
    "llm": [("python", "llm")],
    "Claude Code": [("node", "@anthropic-ai/claude-code")],
    "Roo Code": [],
    "Continue": [],
    "Open WebUI": [],
    "schemas": [("python", name) for name in ("openai", "anthropic", "ollama")],
}
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"


def versions():
    """Returns the pinned versions: of requirements.txt and package.json."""
    lines = (HERE / "requirements.txt").read_text().split()
    names = dict(line.split("==") for line in lines if "==" in line)
    node = json.loads((HERE / "package.json").read_text())["dependencies"]
    return {"python": names, "node": node}


def install(folder):
    """Installs the packages, unless the folder has them already."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted, done = json.dumps(versions(), sort_keys=True), folder / "installed.json"
    if done.exists() and done.read_text() == wanted:
        return
    python, node = folder / "venv", folder / "node"
    # Begins again after an installation that was interrupted.
    venv.create(python, clear=True, symlinks=True, with_pip=True)
    # The list is complete, so that pip need not search for versions that fit together.
    pip = [
        python / "bin/python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "-r",
        HERE / "requirements.txt",
    ]
    subprocess.run(pip, check=True)
    node.mkdir(exist_ok=True)
    (node / "package.json").write_text((HERE / "package.json").read_text())
    npm = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(npm, cwd=node, check=True)
    done.write_text(wanted)


def run_script(script, arguments, options, env=None):
    """Returns the rows that a script prints. One that fails before its end has a row for that."""
    path = HERE / script
    if path.suffix == ".py":
        python = Path(options.venv) / "bin/python" if options.venv else sys.executable
        command = [python, path, *arguments]
    else:
        command = ["node", path, *arguments]
        if options.node:
            command.append(options.node)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=400,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"client"')]
    if done.returncode != 0 or not rows:
        rows.append(
            {
                "client": script,
                "feature": "runs to its end",
                "endpoint": "-",
                "error": done.stderr[-400:] or f"status {done.returncode}",
            }
        )
    return rows, done.stderr


def list_features():
    options = argparse.Namespace(venv=None, node=None)
    return [row for script in ALL for row in run_script(script, ["--list"], options)[0]]


def markdown(rows):
    """Returns the table of results: one for each client, with the versions that were used."""
    text = ""
    for client, packages in PACKAGES.items():
        found = [row for row in rows if row["client"] == client]
        if not found:
            continue
        names = ", ".join(f"{name} {versions()[kind][name]}" for kind, name in packages)
        text += (
            f"\n### {client}\n\n{names or 'requests with the bodies and headers of its source'}\n"
        )
        text += "\n| feature | endpoint | result |\n|---|---|---|\n"
        for row in found:
            result = "works" if row["error"] is None else f"fails: {in_cell(row['error'])}"
            text += f"| {row['feature']} | `{row['endpoint']}` | {result} |\n"
    return text + "\n"


def in_cell(text):
    return re.sub(r"\s+", " ", text).replace("|", "\\|")[:120]


def write_page(page, rows):
    text = page.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(head + BEGIN + markdown(rows) + END + tail)


def check_page(page):
    """Returns the lines in which the page is not that of these features and versions."""
    text = page.read_text().split(BEGIN)[1].split(END)[0]
    rows = [{**row, "error": None} for row in list_features()]

    def without_result(table):
        return [re.sub(r"\| (works|fails: .*) \|$", "|", line) for line in table.splitlines()]

    return list(
        difflib.unified_diff(
            without_result(text),
            without_result(markdown(rows)),
            "page",
            "features",
            lineterm="",
            n=0,
        )
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pointsman")
    parser.add_argument("--venv")
    parser.add_argument("--node")
    parser.add_argument("--install", type=Path)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("scripts", nargs="*")
    options = parser.parse_args()
    if options.install:
        return install(options.install)
    if options.list:
        return print(json.dumps(list_features()))
    if options.check:
        return sys.exit("\n".join(check_page(options.check)) or 0)
    env = {"CREDENTIALS": json.dumps(CREDENTIALS)}
    if options.node:
        env["CLAUDE"] = str(Path(options.node) / "node_modules/.bin/claude")
    rows = []
    with Deployment(options.pointsman) as deployment:
        for script in options.scripts or (SHORT if options.short else ALL):
            found, errors = run_script(script, [deployment.url, KEY], options, env)
            rows.extend(found)
            for row in found:
                mark = "ok  " if row["error"] is None else "FAIL"
                print(mark, f"{row['client']}: {row['feature']}", row["error"] or "", flush=True)
            if options.verbose:
                print(errors)
        problems = [f"log of the host: {line}" for line in deployment.problems()]
    if options.write:
        write_page(options.write, rows)
    failed = [row for row in rows if row["error"] is not None]
    unexpected = [f"{row['client']}: {row['feature']}: {row['error']}" for row in failed] + problems
    print(f"{len(rows) - len(failed)} of {len(rows)} features work")
    for line in unexpected:
        print("unexpected:", line)
    sys.exit(1 if unexpected else 0)


if __name__ == "__main__":
    main()
