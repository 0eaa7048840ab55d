"""``cad-fast serve`` in a process of its own, and its page in a real browser, by keyboard and by labels."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cad_fast import zoo
from tests.serving.common import random_edit

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


@pytest.fixture
def server(tmp_path):
    """``cad-fast serve`` in a process of its own: (process, its address, its log)."""
    folder = Path(os.environ.get("CAD_FAST_TEST_EDITS", tmp_path / "edits"))
    if not folder.exists():
        pipeline = zoo.load()
        for name, seed, sign in (("no-car", 1, "positive"), ("more-cat", 2, "negative")):
            edit = random_edit(pipeline, name, seed, 0.01)
            edit.provenance.update(concept=name.split("-")[1], selection={"sign": sign})
            edit.save_pretrained(folder / name)
    log = tmp_path / "log"
    command = [sys.executable, "-m", "cad_fast.cli", "serve", "zoo:emoji", "--edit-dir", str(folder), "--port", "0"]
    with log.open("w") as out:
        process = subprocess.Popen([*command, "--steps", "20", "--guidance-scale", "3"], stderr=out, stdout=out)
    try:
        for _ in range(600):
            found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
            if found:
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        while "startup complete" not in log.read_text():  # the address is known before anybody listens there
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield process, found.group(), log
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_sigterm_finishes_what_runs(server) -> None:
    process, address, log = server
    assert get(f"{address}/ready")["ready"] is True
    body = json.dumps({"prompt": "a car in noto style", "num_inference_steps": 60, "n": 2}).encode()
    request = urllib.request.Request(
        f"{address}/v1/images/generations", body, {"content-type": "application/json"}, method="POST"
    )
    curl = subprocess.Popen(
        [sys.executable, "-c", "import sys,urllib.request as u;r=u.Request(sys.argv[1],sys.argv[2].encode(),"
         "{'content-type':'application/json'});print(len(u.urlopen(r,timeout=120).read()))", request.full_url, body],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    while get(f"{address}/ready")["running"] == 0:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert int(curl.communicate(timeout=120)[0]) > 1000, "the request was cut off"
    assert process.wait(timeout=60) in (0, -signal.SIGTERM), log.read_text()
    assert "Application shutdown complete" in log.read_text()


@pytest.mark.slow
def test_page(server, tmp_path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    _, address, _ = server
    target = os.environ.get("CAD_FAST_TEST_SCREENSHOT", str(tmp_path / "page.png"))
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1080, "height": 640}, color_scheme="light")
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        expect, status = playwright.expect, page.get_by_role("status")
        pictures = page.get_by_label("Pictures")
        expect(status).to_contain_text("with no edits", timeout=60_000)
        before, after = (pictures.get_by_role("img").nth(i) for i in (0, 1))
        assert before.get_attribute("src") == after.get_attribute("src"), "without edits they are the same picture"

        # By keyboard alone: from the prompt to the first slider, and to the left, which erases.
        page.get_by_label("Prompt").focus()
        slider = page.get_by_label("no-car")
        for _ in range(10):
            page.keyboard.press("Tab")
            if slider.evaluate("element => element === document.activeElement"):
                break
        for _ in range(4):
            page.keyboard.press("ArrowLeft")
        assert slider.get_attribute("aria-valuetext") == "erase 1.00"
        expect(status).to_contain_text("with no-car", timeout=60_000)
        page.wait_for_selector("#pictures[aria-busy=false]")
        assert before.get_attribute("src") != after.get_attribute("src")
        assert after.get_attribute("alt") == "a car in noto style, with no-car"
        same = before.get_attribute("src")
        page.screenshot(path=target)

        page.get_by_role("button", name="Next seed").click()
        expect(before).not_to_have_attribute("src", same, timeout=60_000)
        expect(status).to_contain_text("with no-car", timeout=60_000)
        page.get_by_role("button", name="All edits off").click()
        expect(status).to_contain_text("with no edits", timeout=60_000)
        assert before.get_attribute("src") == after.get_attribute("src") != same
        expect(page.get_by_role("alert")).to_be_hidden()

        # An answer that is no success shows in the server's words.
        page.get_by_label("Prompt").evaluate("element => { element.removeAttribute('maxlength') }")
        page.get_by_label("Prompt").fill("x" * 1001)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("at most 1000 characters", timeout=60_000)
        unlabelled = page.evaluate(
            "[...document.querySelectorAll('input, button')].filter(e => !e.labels?.length && !e.textContent).length"
        )
        assert unlabelled == 0
        complaints = [text for text in complaints if "400 (Bad Request)" not in text]
        assert complaints == []
        chromium.close()
