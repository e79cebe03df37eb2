"""A real browser for tests of pages: a headless Chromium, driven by its own protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import websocket

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


class Browser:
    """One tab of a headless Chromium, driven by its own protocol; pressed keys are real ones."""

    def __init__(self, port: int, downloads: Path, *, offline: bool) -> None:
        # Chromium lists the tab a moment after it opens the port.
        for _ in range(100):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                break
            time.sleep(0.1)
        self.socket = websocket.create_connection(
            tabs[0]["webSocketDebuggerUrl"], timeout=60, suppress_origin=True, skip_utf8_validation=True
        )
        self.number, self.problems = 0, list[str]()
        self.call("Runtime.enable")
        self.call("Network.enable")
        if offline:
            none = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            self.call("Network.emulateNetworkConditions", offline=True, **none)
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(message["params"]))
            if message.get("method") == "Network.requestWillBeSent":
                address = message["params"]["request"]["url"]
                if not address.startswith(("file:", "data:", "blob:")):
                    self.problems.append(address)
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def open(self, path: Path) -> None:
        self.visit(path.as_uri(), "document.readyState == 'complete' && !!document.getElementById('trace')", 10)

    def visit(self, address: str, ready: str, seconds: float) -> None:
        """Go somewhere and wait until the JavaScript expression ``ready`` is true."""
        self.call("Page.navigate", url=address)
        end = time.monotonic() + seconds
        while not self.value(ready):
            if time.monotonic() > end:
                raise TimeoutError(f"{address} did not open: {self.value('document.body.innerText')}")
            time.sleep(0.1)

    def value(self, code: str) -> Any:
        return self.call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def press(self, *keys: str) -> None:
        for key in keys:
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text if kind == "keyDown" else "")

    def text(self, selector: str) -> str:
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")


@contextmanager
def chromium(folder: Path, *, offline: bool = True) -> Iterator[Browser]:
    """A browser with a fresh profile below ``folder``, whose downloads go to ``folder/downloads``."""
    profile, downloads = folder / "profile", folder / "downloads"
    downloads.mkdir()
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    chosen = profile / "DevToolsActivePort"
    try:
        for _ in range(600):
            if chosen.is_file() and chosen.read_text().strip():
                break
            time.sleep(0.1)
        yield Browser(int(chosen.read_text().split()[0]), downloads, offline=offline)
    finally:
        process.terminate()
        process.wait(30)
