"""The console in headless Chromium in front of a running host: every page and every action. Writes
the screenshots of the documentation."""

import argparse
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from browser import Browser

ROOT = Path(__file__).parents[2]
TOKEN = "t0ken-0123456789"
MAX_PICTURE = 250_000
CONFIG = """
log.format = "json"
[state]
dir = "state"
orphan-grace = "0s"
[admin]
listen = "127.0.0.1:0"
token-env = "ADMIN_TOKEN"
[policies]
dir = {policies}
cache = "cache"
[[policies.chain]]
name = "spread"
[[groups]]
name = "gpu0"
memory = "24GiB"
pool = "none"
"""
LANE = """
[[lanes]]
name = {name}
models = {models}
slots = 2
group = "gpu0"
memory = "{need}"
load = "{load}"
[lanes.engine]
driver = "llama-cpp"
command = {command}
stop-grace = "2s"
"""


def lanes(engine):
    def lane(name, models, need, load, *more):
        command = [engine, "--port", "{port}", "--alias", "{lane}", *more]
        quoted = [json.dumps(value) for value in (name, models, command)]
        name, models, command = quoted
        return LANE.format(name=name, models=models, command=command, need=need, load=load)

    hang = json.dumps({"hang": True})
    return (
        lane("small", ["llama-8b"], "6GiB", "at-start")
        + lane("large", ["llama-70b"], "20GiB", "on-demand")
        + lane("slow", ["qwen-14b"], "2GiB", "at-start", "--script", hang)
    )


class Host:
    def __init__(self, program, engine):
        self.dir = tempfile.TemporaryDirectory()
        folder = Path(self.dir.name)
        policies = json.dumps(str(ROOT / "policies"))
        (folder / "pointsman.toml").write_text(CONFIG.format(policies=policies) + lanes(engine))
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [program, "serve", "--listen", "127.0.0.1:0", "--port-file", folder / "port",
             folder / "pointsman.toml"],
            env={**os.environ, "ADMIN_TOKEN": TOKEN},
            stderr=self.log.open("w"),
        )
        self.wait("the host listens", lambda: (folder / "port").exists())
        self.port = int((folder / "port").read_text().split()[0])
        self.admin = self.wait("the admin API listens", self.find_admin)

    def wait(self, what, condition, seconds=60):
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end or self.process.poll() is not None:
                raise TimeoutError(f"{what}\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)
        return found

    def find_admin(self):
        for line in self.log.read_text().splitlines():
            event = json.loads(line)
            if event.get("event") == "admin_listening" and "address" in event:
                return int(event["address"].rsplit(":", 1)[1])
        return None

    def chat(self, model, text="Hello!", request_id=None):
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        headers = {"content-type": "application/json"}
        if request_id:
            headers["x-request-id"] = request_id
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.dir.cleanup()


def confirm(page):
    page.wait("the question is shown", "document.getElementById('confirm').open")
    page.click("#confirm-yes")


def text_has(part):
    return f"document.getElementById('main').innerText.includes({json.dumps(part)})"


def lane_is(name, state):
    return f"document.querySelector('[data-lane={name}] .state')?.textContent === '{state}'"


class Test:
    def __init__(self, host, page, pictures):
        self.host, self.page, self.pictures = host, page, pictures

    def picture(self, name):
        path = self.pictures / f"{name}.png"
        self.page.run("document.getElementById('notices').replaceChildren()")
        self.page.screenshot(path)
        size = path.stat().st_size
        assert size < MAX_PICTURE, f"{path} has {size} bytes"

    def log_in(self):
        page = self.page
        page.size(1200, 760)
        page.open(f"http://127.0.0.1:{self.host.admin}/console")
        page.type("#operator", "ann")
        page.type("#token", "guess")
        page.key("Enter")
        page.wait("the wrong token is refused", text_has("The token is wrong."))
        page.problems.clear()  # The browser logs the 401.
        page.type("#token", TOKEN)
        page.key("Enter")
        page.wait("the lanes are shown", lane_is("small", "ready"))

    def lanes(self):
        page, host = self.page, self.host
        # The large lane takes the memory of the small one, and back.
        assert host.chat("llama-70b") == 200
        page.wait("the lanes take turns", lane_is("large", "ready"))
        assert host.chat("llama-8b") == 200
        page.wait("the lanes take turns back", lane_is("small", "ready"))
        held = "document.querySelector('[data-group=gpu0] progress').value > 0"
        page.wait("the memory is shown", held)
        for action, then in [
            ("Drain", lane_is("small", "down")),
            ("Resume", lane_is("small", "ready")),
            ("Hold", lane_is("small", "down")),
            ("Load", lane_is("small", "ready")),
            ("Unload", lane_is("small", "unloaded")),
            ("Load", lane_is("small", "ready")),
            # The last one: it is ready before and after.
            ("Restart", lane_is("small", "ready")),
        ]:
            page.click(f'[data-lane=small] [data-action="{action}"]')
            confirm(page)
            page.wait(f"{action} is done", then)
        page.wait("the time line is drawn", "!!document.querySelector('svg.timeline rect.ready')")
        self.picture("lanes")
        page.click('[data-lane=small] a[href="#lanes/small"]')
        page.wait("the engine's log is shown", text_has("Log of small"))

    def requests(self):
        page, host = self.page, self.host
        threads = [
            threading.Thread(target=host.chat, args=("qwen-14b", "Hello!", f"request-{number}"))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        page.key("2")
        rows = "document.querySelectorAll('#{} tbody tr').length"
        page.wait("two are in flight", rows.format("in-flight") + " === 2")
        page.wait("two wait", rows.format("queue") + " === 2")
        page.wait("the reason is shown", text_has("a slot"))
        self.picture("requests")
        for left in [3, 2, 1, 0]:
            page.click("#main tbody button")
            confirm(page)
            both = f"{rows.format('in-flight')} + {rows.format('queue')} === {left}"
            page.wait("the request is cancelled", both)
        for thread in threads:
            thread.join(30)

    def decisions(self):
        page = self.page
        page.key("3")
        page.wait("decisions are listed", "!!document.querySelector('#main tbody tr a')")
        self.picture("decisions")
        page.click("#main tbody tr a")
        page.wait("the decision is explained", "!!document.querySelector('.explanation h3')")
        self.picture("decision")

    def policies(self):
        page = self.page
        page.key("4")
        state = "document.querySelector('[data-policy=spread] .state')?.textContent === '{}'"
        page.wait("the policy is active", state.format("active"))
        self.picture("policies")
        for action, then in [("disable", "disabled"), ("enable", "active")]:
            page.click(f"[data-policy=spread] [data-action={action}]")
            confirm(page)
            page.wait(f"{action} is done", state.format(then))
        page.click("#reload")
        confirm(page)
        page.wait("it is reloaded", "document.body.innerText.includes('Reloaded')")
        page.click('[data-policy=spread] a[href="#policies/spread"]')
        page.wait("the history is shown", text_has("History"))

    def usage(self):
        page = self.page
        page.key("5")
        page.wait("actions are listed", text_has("POST /"))
        page.wait("with their operator", text_has("ann"))
        self.picture("usage")

    def log(self):
        page = self.page
        page.key("6")
        page.wait("lines are shown", "document.querySelectorAll('#log-lines div').length > 3")
        page.type("#filter", "admin_action")
        matches = "[...document.querySelectorAll('#log-lines div')]" \
            ".every(line => line.textContent.includes('admin_action'))"
        page.wait("lines are filtered", matches)
        self.picture("log")
        page.run("document.activeElement.blur()")

    def playground(self):
        page = self.page
        page.key("7")
        page.wait("the page is shown", "!!document.getElementById('send')")
        page.click("#send")
        page.wait("the response is shown", text_has("Status 200, lane small"))
        page.wait("the decision is shown", "!!document.querySelector('#decision .explanation')")
        self.picture("playground")
        page.click("#decide")
        page.wait("the preview is shown", text_has("What would be decided"))

    def injection(self):
        """What clients write is shown as text."""
        self.host.chat("<img src=x onerror=alert(1)>", request_id="<b>bold</b>")
        self.page.run("location.hash = '#decisions'")
        self.page.wait("the text is shown", text_has("<img src=x onerror=alert(1)>"))
        assert self.page.run("document.querySelectorAll('#main img, #main b').length") == 0

    def phone(self):
        page = self.page
        page.size(390, 760, is_phone=True)
        page.scheme("dark")
        page.run("location.hash = '#lanes'")
        page.wait("the lanes are shown", "!!document.querySelector('[data-lane=small]')")
        fits = "document.documentElement.scrollWidth <= innerWidth"
        for name in ["lanes", "requests", "decisions", "policies", "usage", "log", "playground"]:
            page.run(f"location.hash = '#{name}'")
            page.wait(f"{name} fits the width", fits)
        page.run("location.hash = '#lanes'")
        page.wait("the lanes are shown", "!!document.querySelector('[data-lane=small]')")
        self.picture("phone")
        page.size(1200, 760)
        page.scheme("light")

    def log_out(self):
        self.page.click("#logout")
        self.page.wait("the login is shown", "!!document.getElementById('token')")
        status = "fetch('api/lanes').then(response => response.status)"
        assert self.page.run(status) == 401
        self.page.problems.clear()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pointsman", required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("only", nargs="*")
    options = parser.parse_args()
    options.pictures.mkdir(parents=True, exist_ok=True)
    host = Host(options.pointsman, options.engine)
    try:
        with Browser(options.browser) as page:
            test = Test(host, page, options.pictures)
            test.log_in()
            for name in ["lanes", "requests", "decisions", "policies", "usage", "log", "playground",
                         "injection", "phone", "log_out"]:
                if options.only and name not in options.only:
                    continue
                getattr(test, name)()
                print(f"{name}: ok", flush=True)
                expected = [text for text in page.problems if "favicon" not in text]
                assert not expected, expected
    finally:
        host.stop()


if __name__ == "__main__":
    main()
