"use strict";
/* One edit: before and after, what changed, and everything that is known of it. */

const detail = (() => {
  const ABOUT = ["image", "width", "height", "working_width", "working_height", "num_truncated_prompts", "attempts", "attempt_errors", "map_mean", "map_max"];
  const TEXTS = ["caption", "negative_prompt", "source_negative_prompt"];
  let root, step, close;
  let row = -1;
  let facts = {}; // its other columns, once they are loaded
  let mode = "slider";
  let hasMask = false;

  function start(element, onStep, onClose) {
    root = element;
    step = onStep;
    close = onClose;
    root.addEventListener("cancel", (event) => {
      event.preventDefault();
      close();
    });
    root.addEventListener("click", (event) => {
      if (event.target === root) close(); // beside the sheet
    });
    root.addEventListener("keydown", press);
  }

  async function show(newRow, where) {
    const isSame = row === newRow && root.open;
    row = newRow;
    if (!isSame) draw(where);
    if (!root.open) root.showModal();
    if (isSame) return;
    const known = await gallery.details(newRow).catch((error) => ({ error_message: error.message }));
    if (newRow !== row) return; // meanwhile another one was opened
    facts = known;
    root.querySelector(".facts").replaceChildren(...describe());
    showOriginal();
  }

  function hide() {
    row = -1;
    if (root.open) root.close();
  }

  function draw(where) {
    facts = {};
    const held = root.contains(document.activeElement) ? document.activeElement.title : "";
    const id = gallery.cell("id", row);
    const button = (text, label, action) => h("button", { type: "button", class: "quiet", "aria-label": label, title: label, on: { click: action } }, text);
    const copy = button("Copy link", "Copy a link to this edit (c)", () => copyLink(copy));
    copy.classList.add("wide", "copy");
    root.replaceChildren(h(
      "div", { class: "sheet" },
      h(
        "header", {}, h("h2", { class: "id", dir: "auto", tabIndex: -1, autofocus: true }, id), statusChip(row),
        h("span", { class: "muted where" }, where), copy,
        button("←", "Previous edit (left arrow)", () => step(-1)), button("→", "Next edit (right arrow)", () => step(1)),
        button("✕", "Close (Escape)", close),
      ),
      h("div", { class: "split" }, viewer(), h("div", { class: "known" }, changeOf(row), scores(), h("div", { class: "facts" }))),
    ));
    drawPictures();
    const buttons = [...root.querySelectorAll("header button")];
    if (root.open) (buttons.find((one) => held && one.title === held) || root.querySelector("h2")).focus();
  }

  function scores() {
    if (gallery.meta.scores.every((name) => gallery.cell(name, row) === null)) return null;
    const entries = gallery.meta.scores.map((name) => {
      const value = gallery.cell(name, row);
      return h("div", {}, h("dt", {}, SCORES[name].label), h("dd", { title: value === null ? "" : String(value) }, score(name, value)));
    });
    return h("dl", { class: "scores" }, entries);
  }

  function viewer() {
    const choose = (name, text) => h("button", { type: "button", "data-mode": name, disabled: name === "slider" && !canSlide(), on: { click: () => set(name) } }, text);
    const box = h("input", { type: "checkbox", class: "with-mask", disabled: !gallery.cell("mask", row), on: { change: () => setMask(box.checked) } });
    return h(
      "div", { class: "viewer" },
      h("div", { class: "seen" }),
      h(
        "div", { class: "controls" },
        h("div", { class: "segmented", role: "group", "aria-label": "How to compare" }, choose("slider", "Slider"), choose("side", "Side by side")),
        h("label", { class: "inline" }, box, "Mask"),
        h("a", { class: "wide original", hidden: true, target: "_blank", rel: "noopener" }, "Original file"),
      ),
    );
  }

  function canSlide() {
    return Boolean(gallery.cell("source", row) && gallery.cell("edited", row));
  }

  function drawPictures() {
    const seen = root.querySelector(".seen");
    const isSlider = mode === "slider" && canSlide();
    const hadFocus = seen.contains(document.activeElement);
    seen.replaceChildren(isSlider ? slider() : sideBySide());
    for (const button of root.querySelectorAll("[data-mode]")) {
      button.setAttribute("aria-pressed", String((button.dataset.mode === "slider") === isSlider));
    }
    root.querySelector(".with-mask").checked = hasMask;
    // Keys reach a dialog only while the focus is inside it.
    if (hadFocus) (seen.querySelector(".cut") || root.querySelector("[aria-pressed=true]")).focus();
  }

  /* A link to the file in the output, where the gallery stands inside it. */
  function showOriginal() {
    const link = root.querySelector(".original");
    const { output } = gallery.meta;
    if (!facts.edited_file_name || !output) return;
    link.href = output + facts.edited_file_name.split("/").map(encodeURIComponent).join("/");
    link.hidden = false;
  }

  function slider() {
    const range = h("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50, class: "cut", "aria-label": "Share of the picture that shows the source" });
    const stage = h(
      "div", { class: hasMask ? "stage" : "stage no-mask" },
      picture("edited", row, false, `Edited: ${asked("target", row).text}`),
      h("div", { class: "before" }, picture("source", row, false, `Source: ${asked("source", row).text}`)),
      cards.overlay(row, gallery.cell("mask_coverage", row), false),
      h("span", { class: "corner start" }, "Source"), h("span", { class: "corner finish" }, "Edited"), h("span", { class: "handle" }),
      range,
    );
    const width = gallery.cell("width", row);
    const height = gallery.cell("height", row);
    if (width && height) {
      stage.style.setProperty("--ratio", width / height);
      stage.style.aspectRatio = `${width} / ${height}`;
    }
    const cut = () => {
      stage.style.setProperty("--cut", `${range.value}%`);
      stage.classList.toggle("all-before", range.value > 92);
      stage.classList.toggle("all-after", range.value < 8);
    };
    range.addEventListener("input", cut);
    cut();
    return stage;
  }

  function sideBySide() {
    const figure = (name, ...content) => h("figure", {}, h("div", { class: "frame" }, content), h("figcaption", {}, name));
    const found = [figure("Source", picture("source", row, false, `Source: ${asked("source", row).text}`))];
    if (gallery.cell("status", row) !== "failed") {
      if (hasMask) {
        found.push(figure("Mask", cards.masked(row, gallery.cell("mask_coverage", row), false)));
      }
      found.push(figure("Edited", picture("edited", row, false, `Edited: ${asked("target", row).text}`)));
    }
    return h("div", { class: "beside" }, found);
  }

  function set(name) {
    mode = name;
    drawPictures();
  }

  function setMask(isOn) {
    hasMask = isOn;
    const stage = root.querySelector(".stage");
    if (stage) stage.classList.toggle("no-mask", !hasMask);
    else drawPictures();
    root.querySelector(".with-mask").checked = hasMask;
  }

  function describe() {
    const { parameters, carried } = gallery.meta;
    const all = { ...facts, width: gallery.cell("width", row), height: gallery.cell("height", row), run_id: gallery.cell("run_id", row) };
    const used = new Set([...parameters, ...carried, ...ABOUT, ...TEXTS, "error_stage", "error_type", "error_message"]);
    const rest = Object.keys(all).filter((name) => !used.has(name));
    const found = [];
    if (facts.error_message) {
      found.push(h("div", { class: "error" }, h("b", { class: "code" }, gallery.cell("cause", row)), h("p", { dir: "auto" }, facts.error_message)));
    }
    for (const name of ["source_note", "note"]) {
      const note = gallery.cell(name, row);
      if (note) found.push(h("p", { class: "notice", dir: "auto" }, `${name === "note" ? "Picture" : "Source"} not shown: ${note}`));
    }
    const prompts = ["source", "target"].map((side) => [`${side}_prompt`, asked(side, row).prompts]);
    const written = [...prompts, ...TEXTS.map((name) => [name, all[name]])];
    return found.concat(
      table("Prompts", written, true),
      table("Row", carried.map((name) => [name, all[name]]), true),
      table("Parameters", [...parameters, "seed"].map((name) => [name, all[name]]), true),
      table("Picture", ABOUT.map((name) => [name, all[name]]), false),
      table("Made by", rest.filter((name) => name !== "seed").map((name) => [name, all[name]]), false),
    );
  }

  function table(title, entries, isOpen) {
    const present = entries.filter(([, value]) => value !== undefined && value !== null && value !== "" && !(Array.isArray(value) && !value.length));
    if (!present.length) return [];
    const lines = present.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", { dir: "auto" }, written(value))));
    return [h("details", { open: isOpen }, h("summary", {}, title), h("table", {}, h("tbody", {}, lines)))];
  }

  function written(value) {
    if (Array.isArray(value) && value.length === 1 && value[0] === "") {
      return h("span", { class: "muted" }, "empty");
    }
    if (Array.isArray(value) && value.every((item) => typeof item === "string")) {
      return value.length === 1 ? value[0] : h("ul", {}, value.map((item) => h("li", { dir: "auto" }, item)));
    }
    return typeof value === "object" ? JSON.stringify(value) : String(value);
  }

  function press(event) {
    const isRange = event.target.classList.contains("cut");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const range = root.querySelector(".cut");
    const actions = {
      ArrowLeft: isRange ? null : () => step(-1),
      ArrowRight: isRange ? null : () => step(1),
      k: () => step(-1),
      j: () => step(1),
      m: () => setMask(!hasMask),
      s: () => set(mode === "slider" ? "side" : "slider"),
      c: () => copyLink(root.querySelector(".copy")),
      " ": event.target.closest("button, summary, [type=checkbox]") || !range ? null : () => {
        range.value = range.value > 50 ? 0 : 100;
        range.dispatchEvent(new Event("input"));
      },
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  async function copyLink(button) {
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Copy it from the address bar";
    }
    setTimeout(() => { button.textContent = before; }, 1500);
  }

  return { start, show, hide };
})();
