"""The web page in a real browser, without a window. `MLPDEPLOY_SCREENSHOTS=FOLDER` keeps pictures of it."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import Running, running

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: on Debian run: sudo apt install chromium")

DROP = """([selector, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
  document.querySelector(selector).dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
}"""
PASTE = """(bytes) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
  dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that may talk to the server only, and whose errors fail the test."""
    page = browser.new_page(viewport={"width": 1000, "height": 760})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not local(request.url) else None)
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    yield page
    page.close()
    assert not wrong


def local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:"))


def picture(size: int = 64) -> bytes:
    data = io.BytesIO()
    gradient = np.linspace(0, 255, size, dtype=np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(gradient, gradient[:, None], 128), axis=2).astype(np.uint8)).save(
        data, "PNG"
    )
    return data.getvalue()


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("MLPDEPLOY_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder, f"{name}.png")), full_page=True)


def wait_for_classes(page: Any) -> list[str]:
    page.wait_for_selector("#classes .percent", timeout=15_000)
    return page.locator("#classes .percent").all_inner_texts()


def test_a_picture_is_chosen_dropped_and_pasted(server: Running, page: Any) -> None:
    page.goto(server.url)
    page.wait_for_selector("#state.ready", timeout=15_000)
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    chosen = wait_for_classes(page)
    assert len(chosen) == 5 and 0 < sum(float(text.split()[0]) for text in chosen) <= 100.3
    assert "random weights" in page.inner_text("#message") and "ms on the server" in page.inner_text("#took")
    assert page.inner_text("#model") == "tiny"
    for script, argument in ((DROP, ["#drop", list(picture())]), (PASTE, list(picture()))):
        page.evaluate("document.querySelector('#classes').replaceChildren()")
        page.evaluate(script, argument)
        assert wait_for_classes(page) == chosen
    page.wait_for_selector("#chart circle.dot50", timeout=5_000)
    assert page.locator("#chart rect.rate").count() >= 1
    shot(page, "light")


def test_it_is_dark_where_the_reader_wants_it_dark(server: Running, page: Any) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(server.url)
        page.wait_for_selector("#state.ready", timeout=15_000)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture(300)})
    wait_for_classes(page)
    page.wait_for_selector("#chart circle.dot50", timeout=5_000)
    shot(page, "dark")
    assert len(set(colours)) == 2
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shot(page, "narrow")


def test_what_is_no_picture_says_so(server: Running, page: Any) -> None:
    page.goto(server.url)
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"<b>no</b>"})
    page.wait_for_selector("#message:not([hidden])", timeout=15_000)
    assert "not an image" in page.inner_text("#message") and page.locator("#classes li").count() == 0


def test_the_key_is_asked_for(exported: Path, tmp_path: Path, page: Any) -> None:
    (tmp_path / "keys").write_text("0123456789\n")
    with running(tmp_path, f"tiny={exported}", "--api-key-file", tmp_path / "keys") as server:
        page.goto(server.url)
        page.wait_for_selector("#key", state="visible", timeout=15_000)
        page.fill("#key", "0123456789")
        page.press("#key", "Enter")
        page.wait_for_selector("#state.ready", timeout=15_000)
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture()})
        assert len(wait_for_classes(page)) == 5


def test_the_api_page_shows_every_call(server: Running, page: Any) -> None:
    page.goto(f"{server.url}/docs")
    page.wait_for_selector(".operation", timeout=15_000)
    paths = server.ask("GET", "/openapi.json")[2]["paths"]
    assert page.locator(".operation").count() == len(paths)
    page.locator(".operation summary", has_text="/v1/classify").click()
    assert "Labels of a JPEG" in page.inner_text("#operations")
    shot(page, "docs")
