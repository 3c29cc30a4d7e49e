"use strict";
/* Rows that stand in the manifest several times, with something different each time: a line for
   each, its variants side by side. */

const variants = (() => {
  const STEP = 50; // lines that are drawn at once
  let root, open;
  let lines = [];
  let found = new Set();
  let numDrawn = 0;
  let hasMasks = true;

  function start(element, onOpen) {
    root = element;
    open = onOpen;
  }

  /* The lines of the rows found, in their order, with all variants of each. */
  function show(rows) {
    const { variants: labels } = gallery.meta;
    const places = new Map(labels.map((label, place) => [label, place]));
    const lineOf = new Map();
    for (const row of rows) {
      const name = gallery.cell("variant_of", row);
      if (name !== null && !lineOf.has(name)) lineOf.set(name, { name, rows: [] });
    }
    for (let row = 0; row < gallery.numLoaded; row += 1) {
      const line = lineOf.get(gallery.cell("variant_of", row));
      const place = places.get(gallery.cell("variant", row));
      if (line && place !== undefined) line.rows[place] = row;
    }
    lines = [...lineOf.values()];
    found = new Set(rows);
    draw(labels);
  }

  function draw(labels) {
    const masks = h("input", {
      type: "checkbox",
      checked: hasMasks,
      on: { change: () => setMasks(masks.checked) },
    });
    const more = h("button", { type: "button", on: { click: () => drawMore(labels, more) } });
    const which = found.size < gallery.meta.numRows ? " with an edit that matches the filters" : "";
    const rows = `${count(lines.length)} ${lines.length === 1 ? "row" : "rows"}${which}`;
    root.replaceChildren(
      h(
        "div",
        { class: "line" },
        h("p", { role: "status" }, `${rows}, ${count(labels.length)} variants`),
        h("label", { class: "inline wide" }, masks, "Masks"),
      ),
      h(
        "div",
        { class: "sheet-of-variants", tabIndex: 0, role: "region", "aria-label": "Variants" },
        h(
          "table",
          {},
          h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Source"), labels.map(heading))),
          h("tbody", {}),
        ),
        more,
      ),
    );
    root.style.setProperty("--columns", labels.length);
    setMasks(hasMasks);
    numDrawn = 0;
    drawMore(labels, more);
  }

  function drawMore(labels, more) {
    const next = lines.slice(numDrawn, numDrawn + STEP);
    root.querySelector("tbody").append(...next.map((line) => drawLine(line, labels)));
    numDrawn += next.length;
    more.textContent = `Show more of ${count(lines.length)}`;
    more.hidden = numDrawn >= lines.length;
  }

  /* What is different, and how the variants found came out. */
  function heading(label, place) {
    const rows = lines.map((line) => line.rows[place]).filter((row) => found.has(row));
    const numFailed = rows.filter((row) => gallery.cell("status", row) === "failed").length;
    const medians = ["mask_coverage", "background_psnr"]
      .filter((name) => gallery.meta.scores.includes(name))
      .map((name) => score(name, pages.median(rows, name)));
    return h(
      "th",
      { scope: "col" },
      label.split(", ").map((part) => {
        const [name, ...value] = part.split("=");
        const rest = value.length ? ["=", h("wbr"), value.join("=")] : [];
        return h("span", { class: "code", dir: "auto" }, name, rest);
      }),
      h(
        "span",
        { class: "muted", title: "Medians of mask coverage and background PSNR" },
        `median ${medians.join(" · ")}`,
        numFailed ? h("b", { class: "status failed" }, ` ${count(numFailed)} failed`) : null,
      ),
    );
  }

  function drawLine({ name, rows }, labels) {
    const first = rows.find((row) => row !== undefined);
    return h(
      "tr",
      {},
      h(
        "th",
        { scope: "row" },
        h(
          "span",
          { class: "square" },
          picture("source", first, true, `Source: ${asked("source", first).text}`),
        ),
        changeOf(first),
        h("span", { class: "id", dir: "auto", title: name }, name),
      ),
      labels.map((label, place) => h("td", {}, cell(rows[place]))),
    );
  }

  function cell(row) {
    if (row === undefined) return h("span", { class: "muted" }, "not done");
    const coverage = gallery.cell("mask_coverage", row);
    const status = gallery.cell("status", row);
    const seen =
      status === "failed"
        ? h(
            "span",
            { class: "failure" },
            h("b", { class: "code" }, gallery.cell("cause", row)),
            h("span", { dir: "auto" }, gallery.cell("message", row)),
          )
        : [
            h(
              "span",
              { class: "square" },
              picture("edited", row, true, `Edited: ${asked("target", row).text}`),
            ),
            h("span", { class: "square with-mask" }, cards.masked(row, coverage, true)),
          ];
    const said = [
      ["Mask", "mask_coverage"],
      ["Background", "background_psnr"],
    ].map(([label, name]) => h("span", {}, label, h("b", {}, score(name, gallery.cell(name, row)))));
    return h(
      "button",
      {
        type: "button",
        class: found.has(row) ? "variant" : "variant faint",
        "data-row": row,
        "aria-label": `Open ${gallery.cell("id", row)}, ${status}`,
        on: { click: () => open(row) },
      },
      h("span", { class: "pair-of-pictures" }, seen),
      h(
        "span",
        { class: "numbers" },
        status === "failed" ? null : said,
        status === "edited" ? null : statusChip(row),
      ),
    );
  }

  function setMasks(isOn) {
    hasMasks = isOn;
    root.classList.toggle("no-masks", !hasMasks);
    root.querySelector("input").checked = hasMasks;
  }

  function reveal(row) {
    const button = root.querySelector(`[data-row="${row}"]`);
    if (button) button.focus();
  }

  /* The rows found, line by line. */
  function order() {
    return lines.flatMap((line) => line.rows.filter((row) => found.has(row)));
  }

  return { start, show, order, reveal, switchMasks: () => setMasks(!hasMasks) };
})();
