"""Opens pages in Chromium or Chrome, where there is one: to read, or to work on by keyboard."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *NAMES))), None)
needed = pytest.mark.skipif(
    BROWSER is None,
    reason=f"no browser found: expected one of {', '.join(NAMES)}, or CHROMIUM=PATH",
)


def command(profile, *flags):
    found = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    found += ["--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"]
    return [*found, *flags]


def scheme(dark):
    return f"--blink-settings=preferredColorScheme={0 if dark else 1}"


def dumped(path, profile, *flags):
    """The document of a page as it is once everything in it has run."""
    argv = command(profile, *flags, "--dump-dom", f"file://{path}")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=True)
    assert "<html" in done.stdout, done.stderr
    return done.stdout


class Tab:
    """A page that was opened from its file, worked on by the protocol of Chromium's tools."""

    def __init__(self, send, receive):
        self._send, self._receive, self._count = send, receive, 0
        self._buffer, self._session = b"", ""

    def call(self, method, **params):
        """What the browser answers to a call; an error fails."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._count:
                assert "error" not in found, found
                return found["result"]

    def _next(self):
        while b"\0" not in self._buffer:
            part = os.read(self._receive, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def open(self, path, width=1280, height=900):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=f"file://{path}")
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def value(self, expression):
        """What an expression of JavaScript gives."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression):
        for _ in range(200):
            if self.value(expression):
                return
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}")

    def press(self, *keys, **more):
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            text |= {"Enter": {"text": "\r", "windowsVirtualKeyCode": 13}}.get(key, {})
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **more)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def type(self, text):
        self.call("Input.insertText", text=text)


@contextlib.contextmanager
def tab(profile, *flags):
    """A browser that is used by `Tab`; what it keeps lies in `profile`."""
    theirs, send = os.pipe()
    receive, back = os.pipe()
    argv = command(profile, *flags, "--remote-debugging-pipe")
    # The browser reads from 3 and writes to 4.
    shell = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{back}', "bash", *argv]
    process = subprocess.Popen(
        shell, pass_fds=(theirs, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(theirs)
    os.close(back)
    try:
        yield (made := Tab(send, receive))
        made._session = ""
        made.call("Browser.close")  # which writes what it keeps
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        os.close(send)
        os.close(receive)
