"""Drives a headless Chromium over its DevTools protocol, by pipes and without other packages."""

import base64
import json
import os
import selectors
import subprocess
import tempfile
import time

TIMEOUT = 30


class Browser:
    """A page of a browser that is closed at the end of a `with` block."""

    def __init__(self, program="chromium"):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()
        # The protocol is spoken on the descriptors 3 and 4.
        script = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-first-run",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-sandbox",
            f"--user-data-dir={self.profile.name}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", script, "browser", program, *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.poll = selectors.DefaultSelector()
        self.poll.register(self.read, selectors.EVENT_READ)
        self.buffer = b""
        self.last = 0
        self.problems = []
        targets = self.call("Target.getTargets", session=None)["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attach = {"targetId": page["targetId"], "flatten": True}
        self.session = self.call("Target.attachToTarget", session=None, **attach)["sessionId"]
        for domain in ["Page", "Runtime", "Log"]:
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(TIMEOUT)
        self.profile.cleanup()

    def call(self, method, session=True, **parameters):
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        if session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == message["id"]:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]

    def _message(self):
        while b"\0" not in self.buffer:
            if not self.poll.select(TIMEOUT):
                raise TimeoutError("the browser does not respond")
            data = os.read(self.read, 1 << 20)
            if not data:
                raise RuntimeError("the browser has ended")
            self.buffer += data
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        self._note(message)
        return message

    def _note(self, message):
        """Keeps errors of scripts and of the security policy: a test fails if there are any."""
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters["exceptionDetails"])[:500])
        if message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"] + parameters["entry"].get("url", ""))

    def open(self, url):
        self.call("Page.navigate", url=url)

    def run(self, script):
        """Runs an expression in the page, and returns its value."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, what, script):
        """Waits until an expression is true."""
        end = time.monotonic() + TIMEOUT
        while not (found := self.run(script)):
            if time.monotonic() > end:
                text = self.run("document.body.innerText")
                raise TimeoutError(f"{what}\n{text}\n{self.problems}")
            time.sleep(0.05)
        return found

    def click(self, selector):
        """Clicks an element as a user does: it has to be there, visible and enabled."""
        quoted = json.dumps(selector)
        place = self.wait(
            f"{selector} can be clicked",
            f"(() => {{ const e = document.querySelector({quoted}); if (!e || e.disabled) return;"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return r.width && [r.x + r.width / 2, r.y + r.height / 2]; })()",
        )
        for kind in ["mousePressed", "mouseReleased"]:
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=place[0],
                y=place[1],
                button="left",
                clickCount=1,
            )

    def type(self, selector, text):
        self.wait(f"{selector} exists", f"!!document.querySelector({json.dumps(selector)})")
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def key(self, key):
        code = {"Enter": 13}.get(key, ord(key[0].upper()))
        text = "\r" if key == "Enter" else key
        event = {"key": key, "windowsVirtualKeyCode": code, "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def size(self, width, height, is_phone=False):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def scheme(self, name):
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
