"""The console in headless Chromium in front of a running host: every page and every action, which
has to be in the log of actions. Writes the screenshots of the documentation."""

import argparse
import hashlib
import json
import os
import re
import shutil
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
[access]
keys = "keys.toml"
[[peers]]
name = "edge"
key-file = "peer.key"
[policies]
dir = "policies"
cache = "cache"
{chain}
[[groups]]
name = "gpu0"
memory = "24GiB"
pool = "none"
"""
# Policies, and how a new version of each is put in service.
CHAIN = {
    "spread": 'rollout = "canary"\ncanary = { share = "50%", by = "request" }',
    "first-come": 'rollout = "shadow"',
    "deadline": 'probation = { duration = "1h" }',
}
KEYS = """
[[tenants]]
name = "acme"
limits = { tokens-per-minute = 100_000, budget = [{ period = "month", tokens = 5_000_000 }] }
[[groups]]
name = "staff"
limits = { requests-per-minute = 600, concurrent = 20 }
shared-limits = { budget = [{ period = "day", requests = 5_000, tokens = 1_000_000 }] }
"""
# Names, the groups of which and what else is written of them.
NAMES = {
    "alice": 'tenant = "acme"\ngroup = "staff"',
    "nightly-batch": 'tenant = "acme"\nexpires = "2099-01-01T00:00:00Z"\n'
    "limits = { requests-per-minute = 2, tokens-per-minute = 2_000 }",
    "dashboard": 'tenant = "internal"',
    "<i>eve</i>": 'tenant = "<img src=x onerror=alert(1)>"',
}
SECRET = "pm_secret-of-"
# What an action on the page is in the log of actions; `None` if it changes nothing.
AUDITED = {
    "lane-load": "POST /lanes/small/load?wait=false",
    "lane-unload": "POST /lanes/small/unload?wait=false",
    "lane-hold": "POST /lanes/small/unload?wait=false&hold=true",
    "lane-drain": "POST /lanes/small/drain?wait=false",
    "lane-resume": "POST /lanes/small/drain?wait=false&undo=true",
    "lane-restart": "POST /lanes/small/restart?wait=false",
    "request-cancel": "DELETE /requests/request-0",
    "policy-promote": "POST /policies/spread/promote",
    "policy-rollback": "POST /policies/spread/rollback",
    "policy-disable": "POST /policies/spread/disable",
    "policy-enable": "POST /policies/spread/enable",
    "reload": "POST /reload",
    "playground-send": "POST /playground/chat/completions",
    "playground-decide": None,
}
# Sessions are events of the log.
SESSIONS = {"log-in": "console_login", "log-out": "console_logout"}
# Another host, one of whose lanes is a lane of the host that is tested.
OTHER = """
log.format = "json"
[fleet]
name = "gpu-2"
[[peers]]
name = "desk"
key-file = "peer.key"
[[lanes]]
name = "big"
models = ["qwen-72b"]
slots = 4
[lanes.engine]
driver = "llama-cpp"
command = {command}
"""
FAR = """
[[lanes]]
name = "far"
[lanes.engine]
driver = "pointsman"
url = "http://127.0.0.1:{port}"
lane = "big"
key-file = "peer.key"
"""
PEER_KEY = "peer-key-0123456789"
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


class Server:
    """A host in a folder of its own."""

    def __init__(self):
        self.dir = tempfile.TemporaryDirectory()
        self.folder = Path(self.dir.name)
        (self.folder / "peer.key").write_text(PEER_KEY)

    def start(self, program, config):
        folder = self.folder
        (folder / "pointsman.toml").write_text(config)
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [program, "serve", "--listen", "127.0.0.1:0", "--port-file", folder / "port",
             folder / "pointsman.toml"],
            env={**os.environ, "ADMIN_TOKEN": TOKEN},
            stderr=self.log.open("w"),
        )
        self.wait("the host listens", lambda: (folder / "port").exists())
        self.port = int((folder / "port").read_text().split()[0])

    def events(self):
        """The events of the log; its last line may be incomplete."""
        lines = self.log.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait(self, what, condition, seconds=60):
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end or self.process.poll() is not None:
                raise TimeoutError(f"{what}\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)
        return found

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.dir.cleanup()


class Host(Server):
    def __init__(self, program, engine):
        super().__init__()
        folder = self.folder
        self.other = Server()
        command = json.dumps([engine, "--port", "{port}", "--alias", "{lane}"])
        self.other.start(program, OTHER.format(command=command))
        chain = [f"[[policies.chain]]\nname = {json.dumps(name)}\n{more}" for name, more in
                 CHAIN.items()]
        for name in CHAIN:
            self.write_policy(name)
        keys = [KEYS]
        for name, more in NAMES.items():
            digest = hashlib.sha256((SECRET + name).encode()).hexdigest()
            keys.append(f'[[keys]]\nid = {json.dumps(name)}\nhash = "sha256:{digest}"\n{more}\n')
        (folder / "keys.toml").write_text("".join(keys))
        config = CONFIG.format(chain="\n".join(chain)) + lanes(engine)
        self.start(program, config + FAR.format(port=self.other.port))
        self.admin = self.wait("the admin API listens", self.find_admin)

    def write_policy(self, name, description="first"):
        """Puts a version into the folder of a policy: its manifest is a part of its fingerprint."""
        folder, source = self.folder / "policies" / name, ROOT / "policies" / name
        if not folder.exists():
            shutil.copytree(source, folder)
        manifest = (source / "policy.toml").read_text()
        line = f'description = "{description}"'
        manifest = re.sub("^description = .*", line, manifest, flags=re.MULTILINE)
        (folder / "next").write_text(manifest)
        (folder / "next").rename(folder / "policy.toml")

    def find_admin(self):
        for event in self.events():
            if event.get("event") == "admin_listening" and "address" in event:
                return int(event["address"].rsplit(":", 1)[1])
        return None

    def chat(self, model, text="Hello!", request_id=None, key="alice"):
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        headers = {"content-type": "application/json", "authorization": f"Bearer {SECRET}{key}"}
        if request_id:
            headers["x-request-id"] = request_id
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    def read_fleet(self):
        """Reads what the host tells others, until the response is closed."""
        headers = {"authorization": f"Bearer {PEER_KEY}"}
        url = f"http://127.0.0.1:{self.port}/fleet"
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)


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
        self.begun = time.time()
        # The actions that were done, each with what it is in the log of actions.
        self.done = {}

    def act(self, action, selector, then, audited=None):
        """Clicks a button, confirms, and waits for what it does."""
        self.page.click(f'{selector} [data-action="{action}"]')
        confirm(self.page)
        self.page.wait(f"{action} is done", then)
        self.note(action, audited)

    def note(self, action, audited=None):
        self.done.setdefault(action, set()).add(audited or AUDITED.get(action))

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
        self.note("log-in")

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
            ("lane-drain", lane_is("small", "down")),
            ("lane-resume", lane_is("small", "ready")),
            ("lane-hold", lane_is("small", "down")),
            ("lane-load", lane_is("small", "ready")),
            ("lane-unload", lane_is("small", "unloaded")),
            ("lane-load", lane_is("small", "ready")),
            # The last one: it is ready before and after.
            ("lane-restart", lane_is("small", "ready")),
        ]:
            self.act(action, "[data-lane=small]", then)
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
            button = "document.querySelector('#main tbody button').dataset.focus"
            audited = f"DELETE /requests/{page.run(button)}"
            both = f"{rows.format('in-flight')} + {rows.format('queue')} === {left}"
            self.act("request-cancel", "#main tbody", both, audited)
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
        """Versions that are put in service by a change of files, and what operators do then."""
        page, host = self.page, self.host
        page.key("4")
        state = "document.querySelector('[data-policy=spread] .state')?.textContent === '{}'"
        page.wait("the policy is active", state.format("active"))
        spread = "[data-policy=spread]"
        self.act("policy-disable", spread, state.format("disabled"))
        self.act("policy-enable", spread, state.format("active"))
        # Neither a candidate nor an earlier version: nothing to promote or to go back to.
        for action in ["policy-promote", "policy-rollback"]:
            found = f"document.querySelectorAll('{spread} [data-action={action}]').length"
            assert page.run(found) == 0, action

        def value(policy, name):
            terms = f"[...document.querySelectorAll('[data-policy={policy}] dt')]"
            found = f"{terms}.find(term => term.textContent === '{name}')"
            return f"({found}?.nextSibling.textContent ?? '')"

        def has(policy, name, part):
            return f"{value(policy, name)}.includes({json.dumps(part)})"

        first = {name: page.run(value(name, "version")) for name in CHAIN}
        for name in CHAIN:
            host.write_policy(name, "second")
        page.wait("a canary is staged", has("spread", "candidate", "canary of 50 %"))
        page.wait("a shadow is staged", has("first-come", "candidate", "shadow"))
        page.wait("a version is on probation", has("deadline", "probation", "left"))
        assert page.run(value("deadline", "version")) != first["deadline"]
        for _ in range(4):
            assert host.chat("llama-8b") == 200
        agreed = has("first-come", "agreement", "100 % of 4 decisions")
        page.wait("the shadow is compared", agreed)
        self.picture("policies")
        gone = f"{value('spread', 'candidate')} === ''"
        self.act("policy-rollback", spread, f"{gone} && {has('spread', 'rejected', ':')}")
        host.write_policy("spread", "third")
        page.wait("another one is staged", has("spread", "candidate", "canary"))
        third = page.run(value("spread", "candidate")).split(",")[0]
        self.act("policy-promote", spread, has("spread", "version", third))
        page.wait("there is an earlier one", has("spread", "earlier", first["spread"]))
        self.act("policy-rollback", spread, has("spread", "version", first["spread"]))
        shadow = page.run(value("first-come", "candidate")).split(",")[0]
        self.act("policy-promote", "[data-policy=first-come]",
                 has("first-come", "version", shadow), "POST /policies/first-come/promote")
        self.act("policy-rollback", "[data-policy=deadline]",
                 has("deadline", "version", first["deadline"]), "POST /policies/deadline/rollback")
        self.act("reload", "#main", "document.body.innerText.includes('Reloaded')")
        page.click(f'{spread} a[href="#policies/spread"]')
        page.wait("the history is shown", text_has("History"))
        page.wait("with the operator", text_has("rolled-back") + " && " + text_has("ann"))
        self.picture("policy")

    def keys(self):
        page, host = self.page, self.host
        page.key("5")
        row = "document.querySelector('[data-key={}]')"
        page.wait("keys are shown", "!!" + row.format("alice"))
        statuses = [host.chat("llama-8b", key="nightly-batch") for _ in range(4)]
        assert sorted(statuses) == [200, 200, 429, 429], statuses
        batch = row.format("nightly-batch") + ".innerText"
        page.wait("refusals are shown", f"{batch}.includes('requests per minute')")
        page.wait("what is left is shown", f"{batch}.includes('2 of 2, 0 left, resets in')")
        first = "document.querySelector('#keys tbody tr').dataset.key"
        page.wait("it is the first one", f"{first} === 'nightly-batch'")
        page.wait("a shared limit is shown",
                  row.format("alice") + ".innerText.includes('tokens per day of group staff')")
        page.wait("a key without limits is shown",
                  row.format("dashboard") + ".innerText.includes('no limits')")
        page.wait("names are shown as text", text_has("<img src=x onerror=alert(1)>"))
        assert page.run("document.querySelectorAll('#main img, #main i').length") == 0
        assert not page.run(text_has(SECRET))
        self.picture("keys")
        page.type("#key-filter", "staff")
        page.wait("keys are filtered", "document.querySelectorAll('#keys tbody tr').length === 1")
        page.run("document.activeElement.blur()")

    def usage(self):
        page = self.page
        page.key("6")
        page.wait("actions are listed", text_has("POST /"))
        page.wait("with their operator", text_has("ann"))
        self.picture("usage")

    def log(self):
        page = self.page
        page.key("7")
        page.wait("lines are shown", "document.querySelectorAll('#log-lines div').length > 3")
        page.type("#filter", "admin_action")
        matches = "[...document.querySelectorAll('#log-lines div')]" \
            ".every(line => line.textContent.includes('admin_action'))"
        page.wait("lines are filtered", matches)
        self.picture("log")
        page.run("document.activeElement.blur()")

    def playground(self):
        page = self.page
        page.key("8")
        page.wait("the page is shown", "!!document.getElementById('send')")
        page.type("#key", SECRET + "alice")
        page.click("#send")
        page.wait("the response is shown", text_has("Status 200, lane small"))
        self.note("playground-send")
        page.wait("the decision is shown", "!!document.querySelector('#decision .explanation')")
        self.picture("playground")
        page.click("#decide")
        page.wait("the preview is shown", text_has("What would be decided"))
        self.note("playground-decide")

    def hosts(self):
        page, host = self.page, self.host
        page.key("9")
        row = "document.querySelector('[data-host=far]')?.innerText"
        page.wait("the other host is live", f"{row}.includes('live')")
        page.wait("its name and its lane are shown", text_has("gpu-2") + " && " + text_has("big"))
        page.wait("the lane there is shown", f"{row}.includes('ready, 0 of 4 slots')")
        readers = "document.querySelectorAll('#readers tbody tr').length"
        assert page.run(readers) == 0
        with host.read_fleet():
            page.wait("the reader is shown with its key", text_has("edge"))
            page.wait("there is no store", text_has("shares no state"))
            self.picture("hosts")
        page.wait("the reader is gone", f"{readers} === 0")
        host.other.stop()
        page.wait("the other host is down", f"{row}.includes('down')")
        page.wait("with the reason", f"{row}.includes('peer_unreachable')")

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
        fits = "document.documentElement.scrollWidth <= innerWidth"
        names = page.run("[...document.querySelectorAll('#nav a')].map(a => a.dataset.page)")
        assert len(names) == 9, names
        for name in [*names, "decisions/request-0", "policies/spread", "lanes/small"]:
            page.run(f"location.hash = '#{name}'")
            page.wait(f"{name} is shown", "document.getElementById('main').children.length > 1")
            page.wait(f"{name} fits the width", fits)
            if self.all_pictures:
                page.screenshot(self.all_pictures / f"phone-{name.replace('/', '-')}.png")
        for name, element in [("keys", "[data-key=alice]"), ("lanes", "[data-lane=small]")]:
            page.run(f"location.hash = '#{name}'")
            page.wait(f"{name} are shown", f"!!document.querySelector('{element}')")
            self.picture("phone" if name == "lanes" else f"phone-{name}")
        page.size(1200, 760)
        page.scheme("light")

    def audit(self):
        """Every action of the page was done, and noted: who, what, when, and the result."""
        table = "import('./actions.js').then(found => Object.keys(found.actions))"
        actions = set(self.page.run(table))
        assert actions == set(AUDITED) | set(SESSIONS), actions
        missing = actions - set(self.done) - {"log-out"}
        assert not missing, f"actions without a test: {missing}"
        # Nothing else of the page changes anything.
        changing = re.compile(r'(call|send)\(\s*["\'](?!GET)|\bfetch\(|XMLHttpRequest|sendBeacon')
        for script in (ROOT / "host/console").glob("*.js"):
            found = changing.findall(script.read_text())
            assert not found or script.name in ["actions.js", "api.js"], script
        noted = self.page.run("fetch('api/actions').then(found => found.json())")["actions"]
        by_action = {entry["action"]: entry for entry in noted}
        for action, audited in [(name, text) for name, all in self.done.items() for text in all]:
            if audited is None:
                continue
            entry = by_action.get(audited)
            assert entry, f"{action} is not noted: {sorted(by_action)}"
            assert entry["by"] == "ann" and entry["via"].startswith("session "), entry
            assert (entry["result"], entry["status"]) == ("done", 200), entry
            assert self.begun <= entry["unix_ms"] / 1000 + 1 <= time.time() + 2, entry
        assert not [name for name in by_action if "/decide" in name], "it changes nothing"

    def log_out(self):
        self.page.click("#logout")
        self.page.wait("the login is shown", "!!document.getElementById('token')")
        status = "fetch('api/lanes').then(response => response.status)"
        assert self.page.run(status) == 401
        self.page.problems.clear()
        for event in SESSIONS.values():
            is_noted = lambda: [found for found in self.host.events()
                                if found.get("event") == event and found.get("by") == "ann"]
            self.host.wait(f"{event} is logged", is_noted)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pointsman", required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--all-pictures", type=Path, help="folder for pictures of every page")
    parser.add_argument("only", nargs="*")
    options = parser.parse_args()
    for folder in filter(None, [options.pictures, options.all_pictures]):
        folder.mkdir(parents=True, exist_ok=True)
    host = Host(options.pointsman, options.engine)
    try:
        with Browser(options.browser) as page:
            test = Test(host, page, options.pictures)
            test.all_pictures = options.all_pictures
            test.log_in()
            for name in ["lanes", "requests", "decisions", "policies", "keys", "usage", "log",
                         "playground", "hosts", "injection", "phone", "audit", "log_out"]:
                if options.only and name not in options.only:
                    continue
                getattr(test, name)()
                print(f"{name}: ok", flush=True)
                expected = [text for text in page.problems if "favicon" not in text]
                assert not expected, expected
    finally:
        host.stop()
        if host.other.process.poll() is None:
            host.other.stop()


if __name__ == "__main__":
    main()
