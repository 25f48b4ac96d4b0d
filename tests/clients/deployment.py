"""Starts the scripted engine and a host in front of it."""

import base64
import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
KEY = "sesame"
# Tokens of an issuer that exists for these tests only, and its public keys. Its private key was
# not kept; the valid one expires in 2100.
TOKENS = json.loads((HERE / "tokens.json").read_text())
# Keys of the keys file, each with what it may do. Every one has a tenant of its own.
KEYS = {
    "paced": "limits = { requests-per-minute = 2 }",
    "single": "limits = { concurrent = 1 }",
    "narrow": 'models = ["another"]',
    "past": 'expires = "2020-01-01T00:00:00Z"',
}


def secret(name):
    digest = hashlib.sha256(name.encode()).digest()
    return "pm_" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def keys_file():
    entry = '[[keys]]\nid = "{name}"\ntenant = "{name}"\nhash = "sha256:{hash}"\n{more}\n'
    digest = {name: hashlib.sha256(secret(name).encode()).hexdigest() for name in KEYS}
    return "".join(entry.format(name=n, hash=digest[n], more=more) for n, more in KEYS.items())


# What clients get by name.
CREDENTIALS = {name: text for name, text in TOKENS.items() if isinstance(text, str)}
CREDENTIALS.update({name: secret(name) for name in KEYS})
CONFIG = """
log.format = "json"

[state]
dir = "state"

[[keys]]
tenant = "t"
env = "TEST_KEY"

[[keys]]
tenant = "other"
env = "OTHER_KEY"

[access]
keys = "keys.toml"

[access.tokens]
issuer = "https://issuer.example"
audience = ["pointsman"]
jwks-file = "token-keys.json"

[[lanes]]
name = "scripted"
models = ["scripted"]
max-context = 200000
slots = 16
[lanes.engine]
driver = "external"
url = "http://127.0.0.1:{port}/v1"
"""


def wait_for(what, condition, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)
    return found


class Deployment:
    """A host and its engine. They are killed when the `with` block ends."""

    def __init__(self, program, config=CONFIG):
        self.program, self.config = program, config
        self.folder = tempfile.TemporaryDirectory()
        self.processes = []

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        folder = Path(self.folder.name)
        engine_port, host_port = folder / "engine-port", folder / "port"
        self.spawn("engine", [sys.executable, HERE / "engine.py", engine_port])
        self.engine = int(wait_for("the engine listens", lambda: read(engine_port)))
        keys = folder / "keys.toml"
        keys.touch(mode=0o600)
        keys.write_text(keys_file())
        (folder / "token-keys.json").write_text(json.dumps({"keys": TOKENS["keys"]}))
        (folder / "pointsman.toml").write_text(self.config.format(port=self.engine))
        command = [
            self.program,
            "serve",
            "--log",
            "info",
            "--listen",
            "127.0.0.1:0",
            "--port-file",
            host_port,
            folder / "pointsman.toml",
        ]
        self.host = self.spawn("host", command, {"TEST_KEY": KEY, "OTHER_KEY": "other"})
        self.port = int(wait_for("the host listens", lambda: read(host_port)).split()[0])
        self.url = f"http://127.0.0.1:{self.port}"
        wait_for("the lane is ready", lambda: self.send("GET", "/health")[0] == 200)

    def spawn(self, name, command, env=None):
        log = open(Path(self.folder.name) / f"{name}.log", "w")
        env = {**os.environ, **(env or {}), "XDG_STATE_HOME": self.folder.name}
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=env, stdin=subprocess.DEVNULL, cwd=self.folder.name
        )
        log.close()
        self.processes.append(process)
        return process

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()
        self.folder.cleanup()

    def log(self, name="host"):
        return (Path(self.folder.name) / f"{name}.log").read_text()

    def send(self, method, path, body=None, headers=None, port=None):
        """Returns status, headers and bytes of a response."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        headers = {"authorization": f"Bearer {KEY}", **(headers or {})}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("content-type", "application/json")
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def problems(self):
        """Returns lines of the host's log that no request may cause."""
        lines = [line for line in self.log().splitlines() if line.strip()]
        bad = ("panicked", '"level":"ERROR"', "internal_error")
        found = [line for line in lines if any(word in line for word in bad)]
        if self.host.poll() is not None:
            found.append(f"the host has ended: {self.host.returncode}")
        return found


def read(path):
    return path.read_text().strip() if path.exists() else None
