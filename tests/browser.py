"""A real headless Chromium, driven by its DevTools protocol over a websocket."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The command, or None; CHROMIUM names another one."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


# An element's colour against the first ground behind it that is not transparent.
_FAINT_TEXTS = """(least) => {
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (parts) => parts.slice(0, 3).map((part) => part / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  function ground(element) {
    if (!element) return [255, 255, 255];
    const colour = rgba(getComputedStyle(element).backgroundColor);
    return colour[3] === 0 ? ground(element.parentElement) : colour;
  }
  const said = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.body.querySelectorAll("*")]
    .filter((e) => said(e) && e.checkVisibility())
    .map((e) => {
      const style = getComputedStyle(e);
      const pair = [rgba(e.ownerSVGElement ? style.fill : style.color), ground(e)].map(luminance);
      return [e, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)];
    })
    .filter(([, contrast]) => contrast < least)
    .map(([e, contrast]) => `${contrast.toFixed(2)} ${e.tagName} ${e.textContent.slice(0, 40)}`);
}"""


class Page:
    """One tab.

    Attributes:
        problems: what the console reported as an error, and exceptions.
        requests: addresses of all that was asked for.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=30))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def open(self, path: Path) -> None:
        """Go to a file and wait until it is loaded."""
        self._loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._note(json.loads(self._socket.recv(timeout=30)))
        self.run("0")  # whatever was reported while loading stands before the answer to this

    def run(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, what it comes to."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and let go a key that gives no character."""
        codes = {"Tab": 9, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key,
                windowsVirtualKeyCode=codes[key],
            )  # fmt: skip

    def point(self, x: float, y: float) -> None:
        """Move the mouse there, in CSS pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screen(self, width: int, height: int = 900, *, dark: bool = False, scale: int = 1) -> None:
        """Make the window so wide, in CSS pixels, and set what the reader prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def faint_texts(self, least: float = 4.5) -> list[str]:
        """What is written with less contrast than `least` (WCAG 2.2) to what is behind it."""
        return list(self.run(f"({_FAINT_TEXTS})({least})"))

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Save what is seen, or the whole page, as PNG."""
        found = self.call(
            "Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole)
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "scale": 1} | {k: size[k] for k in ("width", "height")}}

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "assert"}:
            self.problems.append(str(parameters["args"]))


@contextmanager
def browser(command: str) -> Iterator[Page]:
    """Start Chromium with an empty profile, and end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        arguments = [
            command, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--remote-debugging-port=0",
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_address(Path(profile), process), max_size=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """The websocket of the first tab; Chromium writes its port into the profile."""
    from urllib.request import ProxyHandler, build_opener

    opener = build_opener(ProxyHandler({}))
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            port = (profile / "DevToolsActivePort").read_text().splitlines()[0]
            with opener.open(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
                pages = [tab for tab in json.load(answer) if tab["type"] == "page"]
            return str(pages[0]["webSocketDebuggerUrl"])
        except (OSError, IndexError):
            time.sleep(0.1)
    raise RuntimeError(f"Chromium did not start (exit code {process.poll()})")
