"""Open a notebook in a real JupyterLab with headless Chromium, and use it as its reader would.

    python drive_page.py NOTEBOOK          steps: a JSON list from stdin; results to stdout

A step is ["run", N], which runs the code cell with that number (from 0) and waits until it is done;
["begin", N, TEXT], which waits only until TEXT is in its output; ["stop", N], which presses the
stop button and waits until the cell is done; or ["picture", FILE, N, M], which takes one of the
cells N to M, of the notebook's head too if N is 0.

A program of its own: server, kernel and browser are its children, and nothing of them is left when
it ends. What they write goes into a directory that is removed.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psutil
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

WAIT_SECONDS = 60.0
"""A bound for a loaded machine, not a wait."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    # Nothing is fetched from elsewhere, and no question about that covers the page.
    "apputils-extension/notification": {
        "checkForUpdates": False,
        "doNotDisturbMode": True,
        "fetchNews": "false",
    },
    # Cells outside of the window are on the page too.
    "notebook-extension/tracker": {"windowingMode": "none"},
}
SIZE = {"width": 900, "height": 3000}
"""Pixels: all cells are in the window, and pictures are parts of it."""
MARGIN = 6


@contextmanager
def serving(notebook: Path, folder: Path) -> Iterator[str]:
    """Run a server on the loopback, at a port that the kernel chose; yield the notebook's URL."""
    for name, content in SETTINGS.items():
        path = folder / f"config/lab/user-settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    (folder / "home").mkdir()
    token = secrets.token_hex()
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *("--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"),
                f"--ServerApp.root_dir={notebook.parent}",
            ],
            env={
                **os.environ,
                "HOME": str(folder / "home"),
                "IPYTHONDIR": str(folder / "ipython"),
                "JUPYTER_CONFIG_DIR": str(folder / "config"),
                "JUPYTER_DATA_DIR": str(folder / "data"),
                "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
                "JUPYTER_TOKEN": token,
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{find_port(server)}/doc/tree/{notebook.name}?token={token}"
    except BaseException:
        print((folder / "log").read_text(errors="replace"), file=sys.stderr)
        raise
    finally:
        server.terminate()  # it shuts its kernels down
        try:
            server.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def find_port(server: subprocess.Popen[bytes]) -> int:
    """Wait until the server answers, and return where."""
    limit = time.monotonic() + WAIT_SECONDS
    process = psutil.Process(server.pid)
    while server.poll() is None and time.monotonic() < limit:
        for connection in process.net_connections("tcp4"):
            if connection.status != psutil.CONN_LISTEN:
                continue
            try:
                with urlopen(f"http://127.0.0.1:{connection.laddr.port}/api", timeout=5):
                    return connection.laddr.port
            except (URLError, OSError):
                continue
        time.sleep(0.05)
    raise RuntimeError(f"no server: exit code {server.poll()}")


class Lab:
    """A notebook's page."""

    def __init__(self, page: Page, url: str) -> None:
        self._page = page
        page.set_default_timeout(WAIT_SECONDS * 1000)
        expect.set_options(timeout=WAIT_SECONDS * 1000)
        page.goto(url)
        self._cells = page.locator(".jp-Notebook .jp-CodeCell")
        # The indicator beside the name shows "idle" before there is a kernel.
        expect(page.locator(".jp-NotebookPanel-toolbar .jp-KernelName")).to_contain_text("Python 3")
        self._idle = page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
        expect(self._idle).to_be_visible()

    def run(self, number: int) -> dict[str, Any]:
        """Run a cell and return its output."""
        self.begin(number, "")
        return self._done(number)

    def begin(self, number: int, text: str) -> dict[str, Any]:
        """Run a cell until this text is in its output."""
        cell = self._cells.nth(number)
        cell.locator(".jp-InputArea-editor").click()
        expect(cell.locator(".cm-focused")).to_be_visible()
        self._page.keyboard.press("Control+Enter")
        if text:
            expect(cell.locator(".jp-OutputArea")).to_contain_text(text)
        return {}

    def stop(self, number: int) -> dict[str, Any]:
        """Press the stop button; return the cell's output, and after how many seconds it ended."""
        began = time.monotonic()
        self._page.locator('.jp-NotebookPanel-toolbar [data-jp-item-name="interrupt"]').click()
        found = self._done(number)
        return {**found, "seconds": time.monotonic() - began}

    def picture(self, file: str, first: int, last: int) -> dict[str, Any]:
        """Keep how some cells look, as a PNG of 8 bits a pixel."""
        self._page.mouse.move(0, 0)  # the cell under it has buttons
        expect(self._idle).to_be_visible()
        boxes = [self._cells.nth(number).bounding_box() for number in (first, last)]
        top = boxes[0]["y"] - MARGIN if first else 0
        height = boxes[1]["y"] + boxes[1]["height"] + MARGIN - top
        clip = {"x": 0, "y": top, "width": SIZE["width"], "height": height}
        with Image.open(io.BytesIO(self._page.screenshot(clip=clip))) as image:
            image.convert("RGB").quantize(128).save(file, "PNG", optimize=True)
        return {}

    def _done(self, number: int) -> dict[str, Any]:
        cell = self._cells.nth(number)
        expect(cell.locator(".jp-InputArea-prompt")).to_have_text(re.compile(r"\[\d+\]:"))
        return {"out": cell.locator(".jp-OutputArea").inner_text()}


def main(notebook: str) -> None:
    """Take the steps one after another."""
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(notebook), Path(folder)) as url,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=browser, args=FLAGS) as chromium,
    ):
        lab = Lab(chromium.new_page(viewport=SIZE), url)
        found = [getattr(lab, kind)(*details) for kind, *details in json.load(sys.stdin)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
