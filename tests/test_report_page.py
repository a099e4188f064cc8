"""report.html: what stands in it, that no name breaks out of it, and what it does in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_reports import controls, hostile, measurement, outcomes, planned, result

from edgeopt.errors import UnsupportedOperator
from edgeopt.measurement import Measurement
from edgeopt.report import html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (360, 800, 1400)
RUN = {"schema": 1, "edgeopt": "0.1.0", "recipe": {"document": {"model": "m.onnx"}}, "steps": []}


def measured(document: dict[str, Any]) -> dict[str, Measurement]:
    rows = [one for one in document["candidates"] if one.get("latency_ns")]
    return {one["id"]: measurement(one["backend"], one["latency_ns"]["p50"]["value"] / 1e6) for one in rows}


def page_of(document: dict[str, Any]) -> str:
    return html.render(document, measured(document), RUN)


def told(document: dict[str, Any]) -> str:
    """The text of the page, without its tags and scripts."""
    return re.sub(r"\s+", " ", re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", page_of(document)))


class Seen(HTMLParser):
    """Every tag and attribute of a page, and what stands in its data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.data: Any = None
        self._in_data = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags |= {tag, *(f"{tag} {name}" for name, _ in attrs)}
        self._in_data = ("id", "data") in attrs

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data, self._in_data = json.loads(data), False


def test_a_page_shows_each_candidate_and_the_budgets() -> None:
    page = page_of(result())
    for told in ("int8-onnxruntime", "openvino-bf16", "1.00 ms", "latency p50 1.00 ms ≤ 5.00 ms", "left out", "4.00x"):
        assert told in page


def test_the_verdict_is_one_sentence_with_what_was_won_and_lost() -> None:
    assert "Take int8-onnxruntime : 4.00x as fast as onnxruntime" in told(result())
    assert "a drop in quality of 0.50 ±0.20 points." in told(result())
    assert "No candidate is inside the budgets. int8-onnxruntime came nearest." in told(ODD["no winner"]())
    assert "Every candidate failed." in told(all_failed())
    assert "Take int8-onnxruntime : the original itself." in told(one_candidate())


def test_a_speedup_that_noise_may_be_is_said_to_be_one() -> None:
    found = result()
    winner = next(one for one in found["candidates"] if one["id"] == found["winner"])
    winner["speedup"]["verdict"] = "inconclusive"
    assert "4.00x as fast as onnxruntime, within what noise may be" in told(found)


def test_each_limit_says_how_near_the_winner_came_and_how_many_keep_it() -> None:
    text = told(result())
    assert "latency p50 1.00 ms ≤ 5.00 ms 20 % kept 4 of 5 inside" in text
    assert "accuracy drop 0.50 points ≤ 1.00 points 50 % kept 3 of 5 inside" in text
    assert "The recipe sets no limits." in told(result(budget={"limits": {}, "prefer": ["latency p50"]}))


def test_placement_is_told_by_place_and_precision_with_what_is_not_as_it_should_be() -> None:
    found = result()
    kind = {"where": "CPU", "operator": "Conv", "precision": "int8", "count": 15}
    found["candidates"][0]["placement"] = {
        "operators": [kind, {**kind, "operator": "Softmax", "precision": "fp32", "count": 1}],
        "reason": None,
        "exceptions": ["15 of 16 operators in int8; float: Softmax 1"],
    }
    text = told(found)
    assert "CPU int8 15 Conv CPU fp32 1 Softmax 15 of 16 operators in int8; float: Softmax 1" in text


def test_no_name_breaks_out() -> None:
    page = page_of(hostile())
    seen, clean = Seen(page), Seen(page_of(result()))
    assert seen.tags <= clean.tags
    assert "&lt;script&gt;" in page
    assert not controls(page)
    assert any("<script>alert(1)</script>" in one["name"] for one in seen.data["candidates"])


def test_a_page_names_nothing_to_fetch_and_runs_no_attribute() -> None:
    tags = Seen(page_of(result())).tags
    attributes = {name.split()[1] for name in tags if " " in name}
    assert not tags & {"link", "img", "iframe", "object", "embed", "form", "base"}
    assert not attributes & {"src", "href", "srcset", "action"}
    assert not [name for name in attributes if name.startswith("on")]


def test_only_the_pages_own_scripts_may_run_and_nothing_may_be_fetched() -> None:
    page = page_of(result())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy.group(1).split(";"))
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-\S+' 'sha256-\S+'", rules["script-src"])
    assert rules.keys() == {"default-src", "style-src", "base-uri", "form-action", "script-src"}


def luminance(color: str) -> float:
    """Of "#1b1f24" or "#fff" (WCAG 2.2, relative luminance)."""
    digits = color.lstrip("#")
    parts = [
        int(part * (2 if len(digits) == 3 else 1), 16) / 255 for part in re.findall("." * (len(digits) // 3), digits)
    ]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_stands_out_from_the_paper_and_marks_do_too(scheme: int) -> None:
    """At least 4.5 to 1 for text, 3 to 1 for marks (WCAG 2.2, 1.4.3 and 1.4.11)."""
    block = re.findall(r":root \{(.*?)\}", (html.PAGE / "style.css").read_text(), re.DOTALL)[scheme]
    colors = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]+)", block))
    for name in ("ink", "soft", "good", "bad", *(f"c{number}" for number in range(7))):
        for ground in ("paper", "panel"):
            lights = sorted((luminance(colors[name]), luminance(colors[ground])))
            assert (lights[1] + 0.05) / (lights[0] + 0.05) >= (3 if name.startswith("c") else 4.5), (name, ground)


def all_failed() -> dict[str, Any]:
    plan = planned()
    error = UnsupportedOperator("no Einsum here")
    nothing = {
        name: replace(one, artifact=None, measurement=None, quality=None, error=error, log="log/it.log")
        for name, one in outcomes(plan).items()
    }
    return result(plan, nothing)


def one_candidate() -> dict[str, Any]:
    found = result()
    winner = found["winner"]
    return {**found, "candidates": [c for c in found["candidates"] if c["id"] == winner], "baseline": winner}


def without_quality() -> dict[str, Any]:
    plan = planned()
    return result(plan, {name: replace(one, quality=None) for name, one in outcomes(plan).items()})


def many(count: int = 200) -> dict[str, Any]:
    found = result()
    model = next(one for one in found["candidates"] if one["id"] == "openvino")
    more = [
        {**model, "id": f"distill{number}-openvino", "steps": {"distill": f"distill{number}", "compile": "openvino"}}
        for number in range(count)
    ]
    return {**found, "candidates": [*found["candidates"], *more]}


ODD = {
    "no winner": lambda: result(planned(), outcomes(planned(), slower=6)),
    "all failed": all_failed,
    "one candidate": one_candidate,
    "no quality": without_quality,
    "200 candidates": many,
    "hostile names": hostile,
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_runs_have_a_page(kind: str) -> None:
    page = page_of(ODD[kind]())
    assert page.count("<h2>") == page.count("</section>") >= 6


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


class Opened:
    """A report in the browser, with what it said and asked for."""

    def __init__(self, browser: Any, path: Path, document: dict[str, Any], width: int = 1400, **options: Any) -> None:
        path.write_text(page_of(document), encoding="utf-8")
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def cells(self, column: str) -> list[str]:
        """The text of a column of the candidates' table, of the rows that show."""
        titles = self.page.locator("#candidates thead th").all_inner_texts()
        rows = self.page.locator("#candidates tbody tr:visible")
        index = [title.strip() for title in titles].index(column)
        return [rows.nth(row).locator("th, td").nth(index).inner_text() for row in range(rows.count())]


@pytest.mark.parametrize(
    ("kind", "width"), [*(("as usual", width) for width in WIDTHS), *((kind, 360) for kind in ODD)]
)
def test_a_page_opens_without_an_error_or_a_request(browser: Any, tmp_path: Path, kind: str, width: int) -> None:
    path = tmp_path / "report.html"
    opened = Opened(browser, path, ODD[kind]() if kind in ODD else result(), width)
    assert opened.said == []
    assert opened.requests == [path.as_uri()]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    charts = opened.page.locator("figure > svg")
    assert all(charts.nth(chart).bounding_box()["height"] > 60 for chart in range(charts.count()))
    assert charts.count() == {"all failed": 0, "one candidate": 2, "no quality": 2}.get(kind, 3)
    opened.page.close()


def test_a_click_on_a_title_sorts_by_numbers_not_text(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", result())
    header = opened.page.get_by_role("button", name="p50")
    header.click()
    assert opened.cells("p50") == ["1.00 ms", "2.00 ms", "3.00 ms", "4.00 ms", ""]
    assert opened.page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    header.click()
    assert opened.cells("p50") == ["4.00 ms", "3.00 ms", "2.00 ms", "1.00 ms", ""], "what failed stays below"
    opened.page.get_by_role("button", name="#").press("Enter")
    assert opened.cells("#") == ["1", "2", "3", "4", "5"]
    opened.page.close()


def test_outputs_equal_to_the_originals_sort_above_every_ratio(browser: Any, tmp_path: Path) -> None:
    found = result()
    found["candidates"][0]["quality"] |= {"exact": True, "sqnr_db": None}
    opened = Opened(browser, tmp_path / "report.html", found)
    opened.page.get_by_role("button", name="SQNR").click()
    assert opened.cells("SQNR") == ["30.0 dB", "30.0 dB", "30.0 dB", "exact", ""]
    opened.page.close()


def test_the_filter_keeps_rows_with_every_word_and_counts_them(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", result())
    opened.page.get_by_label("Filter").fill("onnx INT8")
    assert opened.cells("candidate") == ["int8-onnxruntime"]
    assert opened.page.locator("#count").inner_text() == "1 of 5 candidates"
    opened.page.get_by_label("Filter").fill("")
    opened.page.get_by_label("Verdict").select_option("failed")
    assert opened.cells("candidate") == ["int8-openvino"]
    opened.page.close()


def test_hovering_over_a_mark_tells_its_candidate(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", result())
    assert opened.page.locator("#pareto [aria-label=tip]").text_content() == ""
    ring = opened.page.locator("#pareto [aria-label=dot]").nth(1).locator("*").first.bounding_box()
    opened.page.mouse.move(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    opened.page.wait_for_function("document.querySelector('#pareto [aria-label=tip]').textContent !== ''")
    told = opened.page.locator("#pareto [aria-label=tip]").text_content()
    assert "int8-onnxruntime" in told
    assert "1.00 ms" in told
    assert opened.page.locator("tr.pointed").get_attribute("data-n") == "1"
    opened.page.close()


def test_another_percentile_draws_the_limit_of_that_percentile(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", result())
    assert "limit 5 ms" in opened.page.locator("#pareto").inner_text()
    opened.page.locator("#percentile").select_option("p95")
    assert "limit 5 ms" not in opened.page.locator("#pareto").inner_text()
    opened.page.close()


def test_all_rows_of_a_long_chart_are_a_click_away(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", many(30))
    before = opened.page.locator("#spread").bounding_box()["height"]
    opened.page.get_by_role("button", name="Show all 34").click()
    assert opened.page.locator("#spread").bounding_box()["height"] > 1.8 * before
    opened.page.close()


def test_the_charts_are_drawn_again_for_another_width(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", result())
    opened.page.set_viewport_size({"width": 360, "height": 800})
    opened.page.wait_for_function("document.querySelector('#pareto > svg').getAttribute('width') < 360")
    opened.page.close()


def ground(opened: Opened) -> str:
    color: str = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    return color


def test_dark_is_dark_and_paper_is_white(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", result(), color_scheme="dark")
    assert ground(opened) == "rgb(20, 23, 27)"
    tick = "getComputedStyle(document.querySelector('#pareto [aria-label=\"x-axis tick label\"]')).color"
    assert opened.page.evaluate(tick) == "rgb(230, 233, 237)"
    opened.page.emulate_media(media="print")
    assert ground(opened) == "rgb(255, 255, 255)"
    assert opened.page.evaluate(tick) == "rgb(0, 0, 0)"
    assert not opened.page.get_by_label("Filter").is_visible()
    assert opened.page.pdf().startswith(b"%PDF")
    opened.page.close()


def test_without_scripts_the_text_and_the_table_are_all_there(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", result(), java_script_enabled=False)
    shown = opened.page.locator("body").inner_text()
    assert "The charts need JavaScript" in shown
    assert shown.count("int8-onnxruntime") >= 3
    assert not opened.page.locator("#filter").is_visible()
    opened.page.close()


def test_the_policy_stops_a_request_that_something_in_the_page_makes(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", result())
    stopped = opened.page.evaluate(
        """() => new Promise((done) => {
            document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
            document.body.append(Object.assign(new Image(), { src: "http://localhost:1/x.png" }));
        })"""
    )
    assert stopped == "img-src"
    opened.page.close()


def test_a_name_that_tries_to_break_out_is_only_text(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "report.html", hostile())
    assert any("<script>alert(1)</script>" in name for name in opened.cells("candidate"))
    assert opened.page.locator("main img, main script, main a").count() == 0
    opened.page.close()
