"""Chromium without a window, steered through its driver's HTTP interface (WebDriver)."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

KEYS = {"down": "\ue015", "right": "\ue014", "left": "\ue012", "space": " ", "tab": "\ue004"}


class Chromium:
    """A browser with one window.

    Args:
        width, height: of the window, in pixels.
    """

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        self._driver = subprocess.Popen(["chromedriver", f"--port={port}", "--silent"], stdout=subprocess.DEVNULL)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options = {"args": [*flags, f"--window-size={width},{height}"]}
        asked = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = ""
        for _ in range(200):
            try:
                made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": asked}})
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        else:
            raise TimeoutError("chromedriver did not start")
        self._session = f"/session/{made['sessionId']}"
        if width < 500:  # the narrowest window is wider than a phone
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
            self._command("Emulation.setDeviceMetricsOverride", **metrics)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait()

    def open(self, file: Path, fragment: str = "") -> None:
        """Open a file, from the start even if only the fragment differs."""
        self._call("POST", "/url", {"url": "about:blank"})
        self._call("POST", "/url", {"url": file.resolve().as_uri() + fragment})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a function's body returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": arguments})

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def prefer(self, scheme: str) -> None:
        """Ask pages for `light` or `dark` colors."""
        self._command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def scripts(self, run: bool) -> None:
        """Let pages that are opened from now on run their scripts, or not."""
        self._command("Emulation.setScriptExecutionDisabled", value=not run)

    def errors(self) -> list[str]:
        """What the console has said of errors."""
        return [
            line["message"] for line in self._call("POST", "/se/log", {"type": "browser"}) if line["level"] == "SEVERE"
        ]

    def picture(self, file: Path) -> None:
        """Save what is in the window."""
        file.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def _command(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address + self._session + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from None
