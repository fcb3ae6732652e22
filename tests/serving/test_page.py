"""The page in a real browser: typed text is decoded, alignments show, nothing is refused by its own policy."""

from __future__ import annotations

import re
import shutil

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield found
        found.close()


@pytest.mark.parametrize("width", [390, 1200])
def test_typing_translates_and_alignments_show(served, browser, width, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 800})
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(served.url)
    page.wait_for_selector("#model option", state="attached")
    page.keyboard.type("half past three")  # the text field has the focus
    page.wait_for_selector("#others li >> nth=2")
    assert page.inner_text("#best") == "trois heures et demie"
    shown = page.locator("#others .score").all_inner_texts()
    assert all(re.fullmatch(r"-\d\.\d+ · confidence \d+ %", text) for text in shown), shown
    scores = [float(text.split()[0]) for text in shown]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3
    page.locator("#target-tokens button").first.hover()
    assert page.locator("#source-tokens .w3").count() >= 1
    page.keyboard.press("Tab")  # from the text to the tokens of the output
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert "looks at" in focused
    page.select_option("#target", "de")
    page.locator("#best", has_text="halb vier").wait_for()
    page.fill("#source", "seventeen")
    page.locator("#best", has_text="siebzehn").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("summary", has_text="Options").click()
    page.fill("#num_beams", "99")
    page.locator("#num_beams").blur()
    page.wait_for_selector("#error:not([hidden])")
    assert "allows at most 16" in page.inner_text("#error")
    wrong = [text for text in wrong if "400" not in text]  # the browser reports the refusal of 99 beams
    assert wrong == []
    page.close()
