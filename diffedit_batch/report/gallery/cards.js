"use strict";
/* The grid: of any number of rows, only the cards in sight exist. */

const cards = (() => {
  const PAGE = 10000; // rows; browsers do not scroll boxes of any height
  const GAP = 16;
  const GAP_INSIDE = 2; // between pictures; two borders are as wide
  const BELOW = 112; // px of a card under its pictures, as in the style sheet
  let rows = [];
  let page = 0;
  let focused = 0; // place in `rows` that Tab reaches
  let layout = { columns: 1, side: 100, width: 300, height: 200 };
  const shown = new Map();
  let root, scroller, pager, open;

  function start(elements, onOpen) {
    ({ root, scroller, pager } = elements);
    open = onOpen;
    scroller.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    new ResizeObserver(() => measure()).observe(root);
    root.addEventListener("keydown", move);
    root.addEventListener("focusin", (event) => {
      const card = event.target.closest("[data-place]");
      if (card) focused = Number(card.dataset.place);
    });
  }

  function show(newRows, isNew) {
    if (isNew) {
      page = 0;
      focused = 0;
    }
    for (const [place, card] of shown) {
      if (isNew || newRows[place] !== rows[place]) {
        card.remove();
        shown.delete(place);
      }
    }
    rows = newRows;
    measure();
  }

  function clear() {
    for (const card of shown.values()) card.remove();
    shown.clear();
  }

  function measure() {
    const room = root.clientWidth;
    if (!room) return;
    const size = Number(document.getElementById("size").value);
    const wanted = Math.min(room, across() * (size + GAP_INSIDE));
    const columns = Math.max(1, Math.floor((room + GAP) / (wanted + GAP)));
    const width = Math.floor((room - GAP * (columns - 1)) / columns);
    const side = (width - GAP_INSIDE * across()) / across(); // borders, and gaps between pictures
    if (columns !== layout.columns || width !== layout.width) clear();
    layout = { columns, width, side, height: Math.round(side) + BELOW };
    root.style.setProperty("--side", `${side}px`);
    root.style.height = `${Math.ceil(numHere() / columns) * (layout.height + GAP)}px`;
    drawPager();
    draw();
  }

  /* Pictures on a card. */
  function across() {
    return gallery.meta.hasMaps ? 4 : 3;
  }

  function numHere() {
    return Math.min(PAGE, rows.length - page * PAGE);
  }

  function draw() {
    const line = layout.height + GAP;
    const top = scroller.scrollTop - root.offsetTop;
    const first = Math.max(0, Math.floor(top / line) - 2) * layout.columns;
    const end = Math.min(
      numHere(),
      (Math.ceil((top + scroller.clientHeight) / line) + 2) * layout.columns,
    );
    for (const [place, card] of shown) {
      if (place < page * PAGE + first || place >= page * PAGE + end) {
        if (card.contains(document.activeElement)) continue; // focus must not be lost
        card.remove();
        shown.delete(place);
      }
    }
    for (let here = first; here < end; here += 1) {
      const place = page * PAGE + here;
      if (!shown.has(place)) {
        const card = make(place);
        const column = here % layout.columns;
        card.style.width = `${layout.width}px`;
        card.style.height = `${layout.height}px`;
        card.style.transform = `translate(${column * (layout.width + GAP)}px, ${Math.floor(here / layout.columns) * line}px)`;
        shown.set(place, card);
        root.append(card);
      }
    }
  }

  function make(place) {
    const row = rows[place];
    const id = gallery.cell("id", row);
    const status = gallery.cell("status", row);
    const { text } = asked("source", row);
    const isFailed = status === "failed";
    const coverage = gallery.numbers.mask_coverage ? gallery.numbers.mask_coverage[row] : NaN;
    const contrast = gallery.numbers.map_contrast ? gallery.numbers.map_contrast[row] : NaN;
    const psnr = gallery.numbers.background_psnr ? gallery.numbers.background_psnr[row] : NaN;
    const source = h("span", { class: "cell" }, picture("source", row, true, `Source: ${text}`));
    const label = (name, value) =>
      h("span", { class: "label" }, name, value === "–" ? null : h("b", {}, value));
    const rest = isFailed
      ? [
          h(
            "span",
            { class: "cell failure" },
            h("b", { class: "code" }, gallery.cell("cause", row)),
            h("span", { dir: "auto" }, gallery.cell("message", row)),
          ),
        ]
      : [
          h("span", { class: "cell" }, masked(row, coverage, true)),
          gallery.meta.hasMaps ? h("span", { class: "cell" }, softMap(row, true)) : "",
          h(
            "span",
            { class: "cell" },
            picture("edited", row, true, `Edited: ${asked("target", row).text}`),
          ),
        ];
    const labels = [label("Source", "–")];
    if (!isFailed)
      labels.push(
        label("Mask", score("mask_coverage", coverage)),
        gallery.meta.hasMaps ? label("Soft map", score("map_contrast", contrast)) : "",
        label("Edited", score("background_psnr", psnr)),
      );
    return h(
      "article",
      {
        class: "card",
        role: "listitem",
        "data-place": place,
        "aria-posinset": place + 1,
        "aria-setsize": rows.length,
      },
      h("button", {
        type: "button",
        class: "open",
        tabIndex: place === focused ? 0 : -1,
        "aria-label": `Open ${id}, ${status}`,
        on: { click: () => open(row) },
      }),
      h("div", { class: "pictures" }, source, rest),
      h("div", { class: "labels" }, labels),
      changeOf(row),
      h(
        "footer",
        {},
        h("span", { class: "id", dir: "auto", title: id }, id),
        status === "edited" ? null : statusChip(row),
      ),
    );
  }

  /* The mask to be laid over a picture of the source. */
  function overlay(row, coverage, isSmall) {
    if (!gallery.picture("mask", row, isSmall)) return [];
    const mask = picture(
      "mask",
      row,
      isSmall,
      `Mask over the source: ${score("mask_coverage", coverage)} of the picture`,
    );
    mask.classList.add("overlay");
    return [mask];
  }

  /* The source under its mask; where it is missing, which was said beside, the mask alone. */
  function masked(row, coverage, isSmall) {
    const under = gallery.cell("source", row) ? [picture("source", row, isSmall, "")] : [];
    const over = overlay(row, coverage, isSmall);
    return over.length ? [...under, ...over] : picture("mask", row, isSmall, "");
  }

  /* The map behind the mask; none was made where the mask was given. */
  function softMap(row, isSmall) {
    if (!gallery.picture("map", row, isSmall) && !gallery.cell("note", row)) {
      return h("span", { class: "missing" }, "No map");
    }
    return picture("map", row, isSmall, "Soft map: the brighter, the more the prompts differ");
  }

  function move(event) {
    const steps = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: layout.columns,
      ArrowUp: -layout.columns,
    };
    let place = focused;
    if (event.key in steps) place += steps[event.key];
    else if (event.key === "Home") place = page * PAGE;
    else if (event.key === "End") place = page * PAGE + numHere() - 1;
    else return;
    if (place < page * PAGE || place >= page * PAGE + numHere()) return;
    event.preventDefault();
    focus(place);
  }

  function focus(place) {
    const before = shown.get(focused);
    if (before) before.querySelector(".open").tabIndex = -1;
    focused = place;
    const line = layout.height + GAP;
    const top = root.offsetTop + Math.floor((place - page * PAGE) / layout.columns) * line;
    if (top < scroller.scrollTop) scroller.scrollTop = top - GAP;
    else if (top + line > scroller.scrollTop + scroller.clientHeight) {
      scroller.scrollTop = top + line - scroller.clientHeight;
    }
    draw();
    const button = shown.get(place).querySelector(".open");
    button.tabIndex = 0;
    button.focus({ preventScroll: true });
  }

  /* Bring a row into sight, and the focus to its card. */
  function reveal(row) {
    const place = rows.indexOf(row);
    if (place < 0) return;
    if (Math.floor(place / PAGE) !== page) turn(Math.floor(place / PAGE));
    focus(place);
  }

  function turn(to) {
    page = to;
    focused = page * PAGE;
    scroller.scrollTop = 0;
    clear();
    measure();
  }

  function drawPager() {
    const numPages = Math.ceil(rows.length / PAGE);
    pager.hidden = numPages < 2;
    if (pager.hidden) return;
    const button = (text, to) =>
      h(
        "button",
        { type: "button", disabled: to < 0 || to >= numPages, on: { click: () => turn(to) } },
        text,
      );
    const [first, last] = [page * PAGE + 1, page * PAGE + numHere()];
    pager.replaceChildren(
      button("Previous", page - 1),
      h("span", {}, `${count(first)} to ${count(last)} of ${count(rows.length)}`),
      button("Next", page + 1),
    );
  }

  return { start, show, measure, overlay, masked, softMap, reveal };
})();
