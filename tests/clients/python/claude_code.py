"""Claude Code without a terminal: a task with three tools, in a folder and a home of its own.

It is told by `CLAUDE` which program to run. The engine is scripted to call the tools Write, Read
and Bash, and then to end the turn; whether that has happened is read from the files.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from harness import MODEL, check, feature, key, main, url

MESSAGES = "/v1/messages"


def claude(work, home, task, *arguments):
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": url(),
        "ANTHROPIC_API_KEY": key(),
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "API_TIMEOUT_MS": "20000",
        # Whatever it might still ask of other hosts fails at once.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }
    command = [os.environ["CLAUDE"], "-p", task, "--allowedTools", "Write,Read,Bash", *arguments]
    done = subprocess.run(
        command,
        cwd=work,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    check(done.returncode == 0, done.stdout[-500:], done.stderr[-500:])
    return done.stdout


def run_task(*arguments):
    """Runs the task, and returns the output and what the tools have written."""
    with tempfile.TemporaryDirectory() as folder:
        work, home = Path(folder, "work"), Path(folder, "home")
        work.mkdir()
        home.mkdir()
        note, copy = work / "note.txt", work / "copy.txt"
        calls = [
            ("Write", {"file_path": str(note), "content": "hello from a tool"}),
            ("Read", {"file_path": str(note)}),
            ("Bash", {"command": f"cp {note} {copy}", "description": "copies the note"}),
        ]
        task = "write and copy a note " + " ".join(
            f"<<call {name} {json.dumps(arguments)}>>" for name, arguments in calls
        )
        out = claude(work, home, task, *arguments)
        files = {path.name: path.read_text() for path in work.iterdir() if path.is_file()}
        expected = {"note.txt": "hello from a tool", "copy.txt": "hello from a tool"}
        check(files == expected, files, out[-500:])
        return out


@feature("Claude Code", "task with Write, Read and Bash", MESSAGES)
def task_json():
    result = json.loads(run_task("--output-format", "json"))
    check(result["subtype"] == "success" and not result["is_error"], result)
    check(result["num_turns"] >= 4 and "echo: " in result["result"], result)


@feature("Claude Code", "the same, with streamed messages", MESSAGES)
def task_stream():
    out = run_task("--output-format", "stream-json", "--verbose", "--include-partial-messages")
    events = [json.loads(line) for line in out.splitlines()]
    check(events[-1]["type"] == "result" and not events[-1]["is_error"], events[-1])
    kinds = {event["event"]["type"] for event in events if event["type"] == "stream_event"}
    check({"message_start", "content_block_delta", "message_stop"} <= kinds, kinds)


main()
