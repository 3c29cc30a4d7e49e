"use strict";
/* One edit: before and after, what changed, and everything that is known of it. */

const detail = (() => {
  const ABOUT = [
    "image",
    "width",
    "height",
    "working_width",
    "working_height",
    "num_truncated_prompts",
    "attempts",
    "attempt_errors",
    "map_mean",
    "map_max",
    "filter_reasons",
    "is_flagged",
    "kept_seed",
    "candidates",
  ];
  const TEXTS = ["caption", "negative_prompt", "source_negative_prompt"];
  let root, step, close;
  let row = -1;
  let facts = {}; // its other columns, once they are loaded

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
    const known = await gallery
      .details(newRow)
      .catch((error) => ({ error_message: error.message }));
    if (newRow !== row) return; // meanwhile another one was opened
    facts = known;
    root.querySelector(".facts").replaceChildren(...describe());
    compare.showOriginal(facts.edited_file_name);
  }

  function hide() {
    row = -1;
    if (root.open) root.close();
  }

  function draw(where) {
    facts = {};
    const held = root.contains(document.activeElement) ? document.activeElement.title : "";
    const id = gallery.cell("id", row);
    const button = (text, label, action) =>
      h(
        "button",
        {
          type: "button",
          class: "quiet",
          "aria-label": label,
          title: label,
          on: { click: action },
        },
        text,
      );
    const copy = button("Copy link", "Copy a link to this edit (c)", () => copyLink(copy));
    copy.classList.add("wide", "copy");
    root.replaceChildren(
      h(
        "div",
        { class: "sheet" },
        h(
          "header",
          {},
          h("h2", { class: "id", dir: "auto", tabIndex: -1, autofocus: true }, id),
          statusChip(row),
          h("span", { class: "muted where" }, where),
          copy,
          button("←", "Previous edit (left arrow)", () => step(-1)),
          button("→", "Next edit (right arrow)", () => step(1)),
          button("✕", "Close (Escape)", close),
        ),
        h(
          "div",
          { class: "split" },
          compare.make(row),
          h("div", { class: "known" }, changeOf(row), scores(), h("div", { class: "facts" })),
        ),
      ),
    );
    const buttons = [...root.querySelectorAll("header button")];
    if (root.open)
      (buttons.find((one) => held && one.title === held) || root.querySelector("h2")).focus();
  }

  function scores() {
    if (gallery.meta.scores.every((name) => gallery.cell(name, row) === null)) return null;
    const entries = gallery.meta.scores.map((name) => {
      const value = gallery.cell(name, row);
      return h(
        "div",
        {},
        h("dt", {}, SCORES[name].label),
        h("dd", { title: value === null ? "" : String(value) }, score(name, value)),
      );
    });
    return h("dl", { class: "scores" }, entries);
  }

  function describe() {
    const { parameters, carried } = gallery.meta;
    const all = {
      ...facts,
      width: gallery.cell("width", row),
      height: gallery.cell("height", row),
      run_id: gallery.cell("run_id", row),
      filter_reasons: gallery.cell("filter_reasons", row),
    };
    const used = new Set([
      ...parameters,
      ...carried,
      ...ABOUT,
      ...TEXTS,
      "error_stage",
      "error_type",
      "error_message",
    ]);
    const rest = Object.keys(all).filter((name) => !used.has(name));
    const found = [];
    if (facts.error_message) {
      found.push(
        h(
          "div",
          { class: "error" },
          h("b", { class: "code" }, gallery.cell("cause", row)),
          h("p", { dir: "auto" }, facts.error_message),
        ),
      );
    }
    for (const name of ["source_note", "note"]) {
      const note = gallery.cell(name, row);
      if (note)
        found.push(
          h(
            "p",
            { class: "notice", dir: "auto" },
            `${name === "note" ? "Picture" : "Source"} not shown: ${note}`,
          ),
        );
    }
    const prompts = ["source", "target"].map((side) => [
      `${side}_prompt`,
      asked(side, row).prompts,
    ]);
    const written = [...prompts, ...TEXTS.map((name) => [name, all[name]])];
    return found.concat(
      table("Prompts", written, true),
      table(
        "Row",
        carried.map((name) => [name, all[name]]),
        true,
      ),
      table(
        "Parameters",
        [...parameters, "seed"].map((name) => [name, all[name]]),
        true,
      ),
      table(
        "Picture",
        ABOUT.map((name) => [name, all[name]]),
        false,
      ),
      table(
        "Made by",
        rest.filter((name) => name !== "seed").map((name) => [name, all[name]]),
        false,
      ),
    );
  }

  function table(title, entries, isOpen) {
    const present = entries.filter(
      ([, value]) =>
        value !== undefined &&
        value !== null &&
        value !== "" &&
        !(Array.isArray(value) && !value.length),
    );
    if (!present.length) return [];
    const lines = present.map(([name, value]) =>
      h("tr", {}, h("th", { scope: "row" }, name), h("td", { dir: "auto" }, written(value))),
    );
    return [
      h(
        "details",
        { open: isOpen },
        h("summary", {}, title),
        h("table", {}, h("tbody", {}, lines)),
      ),
    ];
  }

  function written(value) {
    if (Array.isArray(value) && value.length === 1 && value[0] === "") {
      return h("span", { class: "muted" }, "empty");
    }
    if (Array.isArray(value) && value.every((item) => typeof item === "string")) {
      return value.length === 1
        ? value[0]
        : h(
            "ul",
            {},
            value.map((item) => h("li", { dir: "auto" }, item)),
          );
    }
    return typeof value === "object" ? JSON.stringify(value) : String(value);
  }

  function press(event) {
    const isRange = event.target.classList.contains("cut");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      ArrowLeft: isRange ? null : () => step(-1),
      ArrowRight: isRange ? null : () => step(1),
      k: () => step(-1),
      j: () => step(1),
      m: compare.switchMask,
      s: compare.switchMode,
      c: () => copyLink(root.querySelector(".copy")),
      " ":
        event.target.closest("button, summary, [type=checkbox]") || !compare.canFlip()
          ? null
          : compare.flip,
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
    setTimeout(() => {
      button.textContent = before;
    }, 1500);
  }

  return { start, show, hide };
})();
