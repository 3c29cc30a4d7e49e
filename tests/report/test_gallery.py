"""The page in a browser, clicked through."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from outputs_on_disk import STARTED, failure, row, write_output

from diffedit_batch.report import build
from diffedit_batch.report.build import build_report
from diffedit_batch.schema import FILE_COLUMNS

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip)")

EVIL = "<img src=x onerror=\"document.title='owned'\">"
ARABIC = "قطة سوداء على العشب"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        own = running.chromium.executable_path
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        found = own if Path(own).exists() else next(filter(None, map(shutil.which, names)), None)
        if found is None:
            pytest.skip("needs Chromium (apt install chromium, or playwright install chromium)")
        # Root may not use the sandbox; what is opened here is our own.
        browser = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a gallery of 1,206 rows in many files, a few of them with pictures."""
    nothing = dict.fromkeys(FILE_COLUMNS, "")
    rows = [
        row(
            f"row-{number}",
            number,
            image="",
            mask_coverage=number / 1200,
            background_psnr=20 + number / 60,
            clip_text=number / 4800,
            lpips=number / 2400,
            filter_reasons=["clip_text < 0.2"] if number < 960 else [],
            finished_at=STARTED + timedelta(seconds=number),
            **nothing,
        )
        for number in range(1200)
    ]
    evil = {"source_prompt": [f"a {EVIL}"], "target_prompt": [f"b {EVIL}"]}
    rows += [
        row("a-first", 1, image="pictures/1.png", note=EVIL),
        row(EVIL, 2, image="2.png", **evil),
        row("عربي/1?#&", 3, source_prompt=[ARABIC], target_prompt=[f"{ARABIC} 🐶"]),
        failure("lost", "load", "ImageNotFound", f"no file {EVIL}", image=""),
        failure("lost too", "load", "ImageNotFound", "no file", image=""),
        failure("bad", "edit", "NonFiniteResult", "not finite", image="2.png"),
    ]
    for one in rows:
        one.setdefault("note", "")
    folder = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_INDEX_ROWS", 400)
        report = build_report(write_output(folder, rows))
    return report.page.as_uri()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page without network, on which nothing goes wrong."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
    page = context.new_page()
    page.set_default_timeout(10_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.route(lambda url: not url.startswith("file:"), lambda route: problems.append("asked"))
    yield page
    title = page.title()
    context.close()
    assert problems == []
    assert title == "Gallery: output"


def visit(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("html[data-ready]")


def found(page: Any) -> str:
    text: str = page.locator("#found").inner_text()
    return text


def ids(page: Any) -> list[str]:
    texts: list[str] = page.locator(".card .id").all_inner_texts()
    return texts


def test_search_filters_sort_and_their_address(page: Any, gallery: str) -> None:
    visit(page, gallery)
    assert found(page) == "1,206 edits"
    page.keyboard.press("/")
    page.keyboard.type("row-11 CIRCLE")
    page.locator("#found", has_text="111 of").wait_for()
    page.get_by_label("Mask coverage from, %").fill("95.5")
    page.get_by_label("Mask coverage from, %").press("Enter")
    assert found(page) == "54 of 1,206 edits"
    page.locator("#sort").select_option("-mask_coverage")
    assert ids(page)[:2] == ["row-1199", "row-1198"]
    assert "100.0" not in page.locator(".card").first.inner_text()
    address = page.url
    page.get_by_role("button", name="Remove the filter Mask coverage").click()
    assert found(page) == "111 of 1,206 edits"
    page.goto("about:blank")
    visit(page, address)
    assert found(page) == "54 of 1,206 edits"
    assert ids(page)[:2] == ["row-1199", "row-1198"]
    page.get_by_role("button", name="Clear all filters").click()
    assert found(page) == "1,206 edits"
    page.get_by_role("checkbox", name="failed").check()
    page.get_by_role("checkbox", name="load/ImageNotFound").check()
    assert sorted(ids(page)) == ["lost", "lost too"]


def test_what_was_just_typed_is_not_lost_by_a_click(page: Any, gallery: str) -> None:
    visit(page, gallery)
    page.locator("#search").evaluate(
        """box => {
          box.value = "row-11";
          box.dispatchEvent(new Event("input"));
          document.querySelector("[data-view=summary]").click();
          document.querySelector("[data-view=edits]").click();
        }"""
    )
    assert page.locator("#search").input_value() == "row-11"
    assert found(page) == "111 of 1,206 edits"


def test_every_view_begins_at_its_top(page: Any, gallery: str) -> None:
    visit(page, gallery)
    page.locator("#main").evaluate("main => (main.scrollTop = 300)")
    page.get_by_role("button", name="Summary").click()
    assert page.locator("#main").evaluate("main => main.scrollTop") == 0


def test_rows_by_why_they_do_not_pass_the_filter(page: Any, gallery: str) -> None:
    visit(page, gallery)
    page.get_by_role("checkbox", name="clip_text < 0.2").check()
    assert found(page) == "960 of 1,206 edits"
    page.get_by_label("CLIP text fit from, cosine").fill("0.199")
    page.get_by_label("CLIP text fit from, cosine").press("Enter")
    assert ids(page) == ["row-956", "row-957", "row-958", "row-959"]
    address = page.url
    page.goto("about:blank")
    visit(page, address)
    assert found(page) == "4 of 1,206 edits"
    page.locator("#sort").select_option("-lpips")
    page.get_by_label("Distance to source from, LPIPS").fill("0.3985")
    page.get_by_label("Distance to source from, LPIPS").press("Enter")
    assert ids(page) == ["row-959", "row-958", "row-957"]
    page.get_by_label("Distance to source from, LPIPS").fill("")
    page.get_by_label("Distance to source from, LPIPS").press("Enter")
    page.get_by_role("button", name="Open row-956, edited").click()
    detail = page.locator("#detail")
    assert "Distance to source\n0.398\u202fLPIPS" in detail.locator(".scores").inner_text()
    assert "CLIP text fit\n0.199" in detail.locator(".scores").inner_text()
    reasons = detail.locator("tr", has_text="filter_reasons").locator("td")
    assert reasons.text_content() == "clip_text < 0.2"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Clear all filters").click()
    page.get_by_role("checkbox", name="passes").check()
    assert found(page) == "240 of 1,206 edits", "of rows without a verdict nothing is said"


def test_only_cards_in_sight_exist(page: Any, gallery: str) -> None:
    visit(page, gallery)
    seen = set(ids(page))
    for _ in range(3):
        assert 4 <= len(ids(page)) < 40
        page.mouse.move(800, 500)
        page.mouse.wheel(0, 20000)
        page.wait_for_timeout(200)
        assert not seen & set(ids(page))
        seen |= set(ids(page))
    page.evaluate("document.getElementById('main').scrollTop = 1e9")
    page.wait_for_timeout(200)
    assert "عربي/1?#&" in ids(page)
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(200)
    boxes = [card.bounding_box() for card in page.locator(".card").all()]
    assert {round(box["x"]) for box in boxes} == {14}, "one column"
    assert max(box["x"] + box["width"] for box in boxes) <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_more_rows_than_a_browser_scrolls_come_in_pages(
    page: Any, gallery: str, tmp_path: Path
) -> None:
    shutil.copytree(Path(gallery.removeprefix("file://")).parent, tmp_path / "report")
    script = tmp_path / "report" / "cards.js"
    text = script.read_text("utf-8")
    script.write_text(text.replace("PAGE = 10000;", "PAGE = 500;"), "utf-8")
    visit(page, f"{(tmp_path / 'report' / 'index.html').as_uri()}#sort=-mask_coverage")
    pager = page.locator("#pager")
    assert "1 to 500 of 1,206" in pager.inner_text()
    pager.get_by_role("button", name="Next").click()
    assert ids(page)[0] == "row-699"
    page.goto(f"{page.url}&row=row-150")
    page.locator("#detail h2", has_text="row-150").wait_for()
    page.keyboard.press("Escape")
    assert "1,001 to 1,206 of 1,206" in pager.inner_text(), "where the closed edit is"
    assert "row-150" in ids(page)
    assert pager.get_by_role("button", name="Next").is_disabled()


def test_one_edit_by_mouse_keys_and_address(page: Any, gallery: str) -> None:
    visit(page, gallery)
    page.get_by_role("button", name="Open a-first, edited").focus()
    page.keyboard.press("Enter")
    detail = page.locator("#detail")
    detail.get_by_text("background_psnr").wait_for(state="detached")
    assert detail.locator(".scores").inner_text().split("\n")[:2] == [
        "Mask coverage",
        "50.0\u202f%",
    ]
    assert detail.locator("del").inner_text() == "red"
    assert detail.locator("ins").inner_text() == "blue"
    row_ = detail.locator("tr", has_text="guidance_scale").first
    assert row_.locator("td").inner_text() == "5"
    pictures = detail.locator(".stage img")
    pictures.first.wait_for()
    alts = pictures.evaluate_all("all => all.map((one) => one.alt)")
    assert alts[0] == "Edited: a blue circle on grass"
    assert alts[1] == "Source: a red circle on grass"
    assert alts[2].startswith("Mask over the source: 50.0")
    widths = pictures.evaluate_all(
        "all => Promise.all(all.map((one) => one.decode().then(() => one.naturalWidth)))"
    )
    assert widths == [48] * 3
    stage = detail.locator(".stage")
    box = stage.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert abs(float(detail.locator(".cut").input_value()) - 25) < 2
    assert stage.evaluate("it => it.style.getPropertyValue('--cut')").startswith("2")
    page.keyboard.press("Space")
    assert detail.locator(".cut").input_value() == "100"
    assert detail.locator(".overlay").is_hidden()
    page.keyboard.press("m")
    assert detail.locator(".overlay").is_visible()
    page.keyboard.press("s")
    names = ["Source", "Mask", "Soft map", "Edited"]
    assert detail.locator("figcaption").all_inner_texts() == names
    soft = detail.locator("figure", has_text="Soft map").locator("img")
    assert soft.evaluate("it => it.decode().then(() => it.naturalWidth)") == 48
    assert "../edited/" in str(detail.locator(".original").get_attribute("href"))
    page.get_by_role("button", name="Next edit").click()
    assert detail.locator("h2").inner_text() == "bad"
    detail.locator(".error").wait_for()
    assert "not finite" in detail.locator(".error").inner_text()
    assert page.url.endswith("#row=bad")
    page.keyboard.press("k")
    assert page.url.endswith("#row=a-first")
    page.keyboard.press("Escape")
    assert detail.is_hidden()
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "Open a-first, edited"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.url.endswith("#row=bad")
    page.go_back()
    assert detail.is_hidden()


def test_soft_maps_are_shown_where_there_are_any(page: Any, gallery: str, tmp_path: Path) -> None:
    visit(page, f"{gallery}#search=a-first")
    card = page.locator(".card", has_text="a-first")
    labels = card.locator(".label").all_inner_texts()
    assert labels == ["Source", "Mask50.0\u202f%", "Soft map3.00\u202f\u00d7", "Edited40.0\u202fdB"]
    boxes = [cell.bounding_box() for cell in card.locator(".cell").all()]
    assert len({round(box["y"]) for box in boxes}) == 1
    right = card.bounding_box()["x"] + card.bounding_box()["width"]
    assert right - 3 <= max(box["x"] + box["width"] for box in boxes) <= right
    own = row("own", 1, map_file_name="", map_sha256="", map_contrast=None)
    old = build_report(write_output(tmp_path / "old", [own])).page.as_uri()
    visit(page, old)
    assert page.locator(".card .label").all_inner_texts()[0] == "Source"
    assert page.locator(".card .cell").count() == 3
    both = build_report(write_output(tmp_path / "both", [own, row("a", 2)])).page.as_uri()
    visit(page, f"{both}#row=own")
    assert page.locator(".card", has_text="own").locator(".cell", has_text="No map").count() == 1
    page.keyboard.press("m")
    page.keyboard.press("s")
    captions = page.locator("#detail figcaption").all_inner_texts()
    assert captions == ["Source", "Mask", "Edited"]


def test_html_and_other_scripts_are_only_text(page: Any, gallery: str) -> None:
    from urllib.parse import quote

    visit(page, f"{gallery}#row={quote(EVIL)}")
    detail = page.locator("#detail")
    assert detail.locator("h2").inner_text() == EVIL
    assert detail.locator("ins").first.inner_text() == "b"
    assert detail.locator("td", has_text="<img").first.inner_text() == f"a {EVIL}"
    assert page.locator("img[src='x']").count() == 0
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    assert f"no file {EVIL}" in page.locator("#failures").inner_text()
    page.goto("about:blank")
    visit(page, f"{gallery}#row={quote('عربي/1?#&')}")
    change = detail.locator(".change")
    assert change.inner_text().strip() == f"{ARABIC} 🐶"
    assert change.evaluate("it => getComputedStyle(it).direction") == "rtl"


def test_the_browser_itself_keeps_texts_from_becoming_elements(browser: Any, gallery: str) -> None:
    page = browser.new_page()
    visit(page, gallery)
    for attempt in (
        "document.body.innerHTML = '<b>'",
        "document.body.append(Object.assign(document.createElement('script'), {text: '1'}))",
        "document.createElement('script').src = 'data/20261122T000000/../../x.js'",
    ):
        is_blocked = f"() => {{ try {{ {attempt}; return false }} catch {{ return true }} }}"
        assert page.evaluate(is_blocked), attempt
    page.close()


def test_failures_and_summary(page: Any, gallery: str) -> None:
    visit(page, gallery)
    page.get_by_role("button", name="Failures").click()
    causes = page.locator(".cause h2").all_inner_texts()
    assert causes == ["load/ImageNotFound", "edit/NonFiniteResult"]
    assert "2 rows, 67" in page.locator(".cause").first.inner_text()
    page.get_by_role("button", name="Show these rows").nth(1).click()
    assert ids(page) == ["bad"]
    page.keyboard.press("3")
    tiles = page.locator(".tiles").inner_text().split("\n")
    assert tiles[:8] == ["Rows", "1", "Edited", "0", "Unchanged", "0", "Failed", "1"]
    label = page.locator("svg[role=img]").first.get_attribute("aria-label")
    assert label.startswith("Mask coverage: 0 rows"), "of the rows found"
    page.get_by_role("button", name="Clear all filters").click()
    tiles = page.locator(".tiles").inner_text().split("\n")
    assert tiles[:8] == ["Rows", "1,206", "Edited", "1,203", "Unchanged", "0", "Failed", "3"]
    plots = page.locator("svg[role=img]")
    labels = plots.evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
    assert labels[0] == "Mask coverage: 1,203 rows, from 0.0 to 100.0 %"
    assert "Throughput of run" in labels[6]
    bar = plots.first.locator("g").nth(29)
    assert bar.locator("title").text_content() == "96.7 to 100.0 %: 40 of 40 rows"
    bar.locator(".mark").click()
    assert found(page) == "40 of 1,206 edits"
    page.go_back()
    assert page.locator("#summary").is_visible()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a gallery of three rows in three variants; one has failed, one is missing."""
    rows = []
    for number, name in enumerate(("first", EVIL, "عربي/1?#&")):
        for step, value in enumerate(("0.35", "0.5", "0.05")):
            label = f"mask_threshold={value}, preset=paper"
            told = {"variant_of": name, "variant": label, "image": f"{number}.png"}
            if (number, step) == (1, 0):
                message = f"no file {EVIL}"
                rows.append(failure(f"{name} {label}", "edit", "Broken", message, **told))
            elif (number, step) != (2, 1):
                scores = {"mask_coverage": (number + 1) / 10 + step / 100}
                rows.append(row(f"{name} {label}", 3 * number + step, **told, **scores))
    folder = tmp_path_factory.mktemp("sweep")
    return build_report(write_output(folder, rows)).page.as_uri()


def test_variants_of_a_row_stand_side_by_side(page: Any, sweep: str) -> None:
    visit(page, sweep)
    variants = page.locator("#variants")
    assert variants.get_by_role("status").inner_text() == "3 rows, 3 variants"
    heads = variants.locator("thead th").all_inner_texts()
    assert [head.split("\n")[0] for head in heads] == [
        *("Source", "mask_threshold=0.05", "mask_threshold=0.35", "mask_threshold=0.5")
    ]
    assert "preset=paper" in heads[1]
    assert "median 22.0\u202f% · 40.0\u202fdB" in heads[1]
    assert "1 failed" in heads[2]
    lines = variants.locator("tbody tr")
    assert lines.locator("th .id").all_inner_texts() == [EVIL, "first", "عربي/1?#&"]
    first = lines.nth(1).locator("td")
    assert [one.split("\n")[0] for one in first.all_inner_texts()] == [
        *("Mask12.0\u202f%", "Mask10.0\u202f%", "Mask11.0\u202f%")
    ]
    alts = first.first.locator("img").evaluate_all("all => all.map((one) => one.alt)")
    assert alts[0] == "Edited: a blue circle on grass"
    assert f"no file {EVIL}" in lines.nth(0).locator("td").nth(1).inner_text()
    assert lines.nth(2).locator("td").nth(2).inner_text() == "not done"
    masks = variants.locator(".with-mask")
    assert masks.first.is_visible()
    page.keyboard.press("m")
    assert masks.first.is_hidden()
    variants.get_by_role("checkbox", name="Masks").check()
    assert masks.first.is_visible()


def test_variants_open_one_edit_and_follow_the_filters(page: Any, sweep: str) -> None:
    visit(page, sweep)
    name = "first mask_threshold=0.35, preset=paper"
    button = page.get_by_role("button", name=f"Open {name}, edited")
    button.click()
    assert page.locator("#detail h2").inner_text() == name
    assert "#row=first+mask_threshold" in page.url
    page.keyboard.press("ArrowRight")
    assert page.locator("#detail h2").inner_text() == "first mask_threshold=0.5, preset=paper"
    page.keyboard.press("Escape")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "Open first mask_threshold=0.5, preset=paper, edited"
    page.get_by_label("Mask coverage to, %").fill("11.5")
    page.get_by_label("Mask coverage to, %").press("Enter")
    said = page.locator("#variants").get_by_role("status").inner_text()
    assert said == "1 row with an edit that matches the filters, 3 variants"
    opacity = "all => all.map((one) => getComputedStyle(one).opacity)"
    assert page.locator("button.variant").evaluate_all(opacity) == ["0.3", "1", "1"]
    page.get_by_role("button", name="Edits", exact=True).click()
    assert page.locator("#found").inner_text() == "2 of 8 edits"
    address = page.url
    assert "view=edits" in address
    page.goto("about:blank")
    visit(page, address)
    assert page.locator("#edits").is_visible()
    page.keyboard.press("4")
    assert page.locator("#variants table").is_visible()


def test_variants_on_a_phone_scroll_in_their_own_box(page: Any, sweep: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    visit(page, sweep)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    source = page.locator("#variants tbody th").first
    before = source.bounding_box()["x"]
    page.evaluate("document.querySelector('.sheet-of-variants').scrollTo(120, 60)")
    page.wait_for_timeout(200)
    assert source.bounding_box()["x"] == before, "what was edited stays in sight"
    head = page.locator("#variants thead th").nth(1).bounding_box()
    box = page.locator(".sheet-of-variants").bounding_box()
    assert abs(head["y"] - box["y"]) <= 2, "and what is different"


def test_without_variants_there_is_no_such_view(page: Any, gallery: str) -> None:
    visit(page, f"{gallery}#view=variants")
    assert page.locator("#edits").is_visible()
    assert page.locator("[data-view=variants]").is_hidden()
    page.keyboard.press("4")
    assert page.locator("#edits").is_visible()


def test_dark_mode_and_what_a_page_without_its_data_says(
    browser: Any, gallery: str, tmp_path: Path
) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    ground = "getComputedStyle(document.body).backgroundColor"
    visit(page, gallery)
    assert page.evaluate(ground) == "rgb(20, 20, 22)"
    page.get_by_role("button", name="Colours").click()
    assert page.evaluate(ground) == "rgb(250, 249, 247)"
    shutil.copytree(Path(build.__file__).parent / "gallery", tmp_path / "empty")
    page.goto((tmp_path / "empty" / "index.html").as_uri())
    assert "not finished" in page.locator("#main").inner_text()
    context.close()
