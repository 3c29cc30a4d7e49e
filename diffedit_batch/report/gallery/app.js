"use strict";
/* The state of the page, which is in its address, and what the other files make of it. */

(() => {
  const byId = (name) => document.getElementById(name);
  const { meta } = gallery;
  const KEYS = [
    ["/", "search"],
    ["arrows", "move between edits"],
    ["Enter", "open an edit"],
    ["← →", "previous and next edit"],
    ["Space", "flip between source and edited"],
    ["m", "show the mask"],
    ["s", "slider or side by side"],
    ["c", "copy a link"],
    meta && meta.variants.length
      ? ["1 2 3 4", "edits, failures, summary, variants"]
      : ["1 2 3", "edits, failures, summary"],
    ["Esc", "close"],
    ["?", "these keys"],
  ];
  let state;
  let found = { rows: [], failing: new Uint8Array(0) };
  let isLoading = true;

  if (!meta) {
    byId("main").replaceChildren(
      h(
        "p",
        { class: "notice" },
        "This gallery is not finished: data.js is missing. Run the report again.",
      ),
    );
    return;
  }

  /* Change the state; what is one step for the Back button is `isStep`. */
  function change(patch, isStep = false) {
    // What was typed a moment ago counts, too.
    state = { ...state, search: byId("search").value.trim(), ...patch };
    history[isStep ? "pushState" : "replaceState"](null, "", address.write(state));
    render(!("row" in patch));
  }

  /* Show the state: `isNew` where other rows may be asked for, `isFresh` where rows came in. */
  function render(isNew, isFresh = isNew) {
    if (isFresh) {
      found = filters.select(state);
      filters.show(state, found.failing);
      showFound();
    }
    document.body.dataset.view = state.view;
    for (const view of address.VIEWS) byId(view).hidden = view !== state.view;
    for (const button of document.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-current", button.dataset.view === state.view ? "page" : "false");
    }
    if (document.activeElement !== byId("search")) byId("search").value = state.search;
    byId("sort").value = state.sort;
    if (isNew) byId("main").scrollTop = 0;
    if (isFresh) {
      if (state.view === "edits") cards.show(found.rows, isNew);
      if (state.view === "failures")
        pages.failures(byId("failures"), (patch) => change(patch, true));
      if (state.view === "summary")
        pages.summary(byId("summary"), found.rows, found.failing, (patch) => change(patch, true));
      if (state.view === "variants") variants.show(found.rows);
    }
    showRow();
  }

  function showFound() {
    const loading = isLoading ? `, ${count(gallery.numLoaded)} loaded so far` : "";
    byId("found").textContent = filters.isActive(state)
      ? `${count(found.rows.length)} of ${count(meta.numRows)} edits${loading}`
      : `${count(meta.numRows)} edits${loading}`;
    byId("active").replaceChildren(
      ...filters.conditions(state).map(([text, patch]) =>
        h(
          "button",
          {
            type: "button",
            class: "chip",
            "aria-label": `Remove the filter ${text}`,
            on: { click: () => change(patch) },
          },
          h("span", { dir: "auto" }, text),
          " ×",
        ),
      ),
    );
    byId("cards").classList.toggle("empty", !isLoading && !found.rows.length);
    byId("cards").dataset.empty = meta.numRows
      ? "No edit matches these filters."
      : "There are no rows yet.";
  }

  function showRow() {
    if (state.row === null) {
      detail.hide();
      return;
    }
    const row = gallery.rowOf.get(state.row);
    if (row !== undefined) {
      const place = inOrder().indexOf(row);
      detail.show(
        row,
        place < 0
          ? "not among the edits found"
          : `${count(place + 1)} of ${count(inOrder().length)}`,
      );
    } else if (!isLoading) {
      byId("found").textContent = `No row has the id ${state.row}`;
      state.row = null;
    }
  }

  /* The rows found, as they follow each other on the page. */
  function inOrder() {
    return state.view === "variants" ? variants.order() : found.rows;
  }

  function step(by) {
    const rows = inOrder();
    const place = rows.indexOf(gallery.rowOf.get(state.row));
    const next = rows[place < 0 ? 0 : place + by];
    if (next !== undefined) change({ row: gallery.cell("id", next) });
  }

  function close() {
    const row = gallery.rowOf.get(state.row);
    change({ row: null });
    if (state.view === "edits") cards.reveal(row);
    if (state.view === "variants") variants.reveal(row);
  }

  function press(event) {
    const isTyping = event.target.closest("input:not([type=checkbox]):not([type=range]), select");
    if (event.key === "Escape") {
      document.body.classList.remove("filters-open");
      if (event.target === byId("search")) byId("search").blur();
    }
    if (
      isTyping ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      document.querySelector("dialog[open]")
    )
      return;
    const action = {
      "/": () => byId("search").focus(),
      "?": () => byId("help").showModal(),
      1: () => change({ view: "edits" }, true),
      2: () => change({ view: "failures" }, true),
      3: () => change({ view: "summary" }, true),
      4: meta.variants.length ? () => change({ view: "variants" }, true) : null,
      m: state.view === "variants" ? variants.switchMasks : null,
    }[event.key];
    if (action) {
      event.preventDefault();
      action();
    }
  }

  function remember(name, value) {
    try {
      localStorage.setItem(`diffedit-gallery-${name}`, value);
    } catch {
      /* a browser may keep nothing for files */
    }
  }

  function recall(name) {
    try {
      return localStorage.getItem(`diffedit-gallery-${name}`);
    } catch {
      return null;
    }
  }

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = theme[0].toUpperCase() + theme.slice(1);
    byId("theme").setAttribute(
      "aria-label",
      `Colours: ${theme === "auto" ? "as the system" : theme}`,
    );
    remember("theme", theme);
  }

  function setUp() {
    const { statuses, numAsked, isComplete } = meta;
    document.title = `Gallery: ${meta.name}`;
    byId("name").textContent = meta.name;
    const parts = STATUSES.filter((name) => statuses[name]).map(
      (name) => `${count(statuses[name])} ${name}`,
    );
    const missing = numAsked !== null && numAsked > meta.numRows ? ` of ${count(numAsked)}` : "";
    byId("standing").textContent =
      `${parts.join(", ") || "no rows"}${missing}${isComplete ? "" : ", not finished"}`;
    const orders = [
      ["id", "Id"],
      ["finished", "Finished first"],
      ["-finished", "Finished last"],
    ];
    for (const name of meta.scores) {
      orders.push(
        [name, `${SCORES[name].label}, low first`],
        [`-${name}`, `${SCORES[name].label}, high first`],
      );
    }
    byId("sort").append(...orders.map(([value, text]) => h("option", { value }, text)));
    byId("sort").addEventListener("change", () => change({ sort: byId("sort").value }));
    byId("size").value = recall("size") || (meta.hasMaps ? 110 : 140); // of one picture of a card
    byId("size").addEventListener("input", () => {
      remember("size", byId("size").value);
      cards.measure();
    });
    let timer = 0;
    byId("search").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => change({}), 120);
    });
    document.querySelector("[data-view=variants]").hidden = !meta.variants.length;
    for (const button of document.querySelectorAll("[data-view]")) {
      button.addEventListener("click", () => change({ view: button.dataset.view }, true));
    }
    setTheme(recall("theme") || "auto");
    const themes = ["auto", "light", "dark"];
    byId("theme").addEventListener("click", () =>
      setTheme(themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % 3]),
    );
    const controls = filters.build(byId("filters"), change, () => state);
    const openFilters = (isOpen) => {
      document.body.classList.toggle("filters-open", isOpen);
      byId("open-filters").setAttribute("aria-expanded", String(isOpen));
    };
    byId("open-filters").addEventListener("click", () => openFilters(true));
    controls.close.addEventListener("click", () => openFilters(false));
    byId("help").append(
      h("h2", { id: "help-title" }, "Keys"),
      h(
        "dl",
        {},
        KEYS.map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what))),
      ),
      h("button", { type: "button", on: { click: () => byId("help").close() } }, "Close"),
    );
    byId("open-help").addEventListener("click", () => byId("help").showModal());
    document.addEventListener("keydown", press);
    window.addEventListener("popstate", () => {
      state = address.read(meta);
      render(true);
    });
    cards.start({ root: byId("cards"), scroller: byId("main"), pager: byId("pager") }, (row) =>
      change({ row: gallery.cell("id", row) }, true),
    );
    variants.start(byId("variants"), (row) => change({ row: gallery.cell("id", row) }, true));
    detail.start(byId("detail"), step, close);
  }

  state = address.read(meta);
  setUp();
  gallery
    .loadRows(() => render(gallery.numLoaded <= meta.indexRows, true))
    .then(
      () => {
        isLoading = false;
        render(false, true);
        document.documentElement.dataset.ready = "true";
      },
      (error) => {
        byId("found").textContent = error.message;
      },
    );
})();
