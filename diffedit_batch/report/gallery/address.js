"use strict";
/* What is shown, as the part of an address behind its #, for others to open. */

const address = (() => {
  const VIEWS = ["edits", "failures", "summary", "variants"];

  /* What is shown where an address says nothing. */
  const home = (meta) => (meta.variants.length ? "variants" : "edits");

  /* The state an address stands for. */
  function read(meta) {
    const given = new URLSearchParams(location.hash.slice(1));
    const names = (key) => new Set((given.get(key) || "").split(",").filter(Boolean));
    const ranges = {};
    for (const name of meta.scores) {
      const [low, high] = (given.get(name) || "").split("..");
      if (high !== undefined) {
        const limits = [
          low === "" ? -Infinity : Number(low),
          high === "" ? Infinity : Number(high),
        ];
        if (!limits.some(Number.isNaN)) ranges[name] = limits;
      }
    }
    const view = given.get("view");
    const isView = VIEWS.includes(view) && (view !== "variants" || meta.variants.length);
    return {
      view: isView ? view : home(meta),
      search: given.get("q") || "",
      statuses: names("status"),
      causes: names("cause"),
      reasons: names("filter"),
      ranges,
      sort: given.get("sort") || "id",
      row: given.get("row"),
    };
  }

  function write(state) {
    const said = new URLSearchParams();
    if (state.view !== home(gallery.meta)) said.set("view", state.view);
    if (state.search) said.set("q", state.search);
    if (state.statuses.size) said.set("status", [...state.statuses].join(","));
    if (state.causes.size) said.set("cause", [...state.causes].join(","));
    if (state.reasons.size) said.set("filter", [...state.reasons].join(","));
    for (const [name, range] of Object.entries(state.ranges)) {
      if (range)
        said.set(name, range.map((limit) => (Number.isFinite(limit) ? limit : "")).join(".."));
    }
    if (state.sort !== "id") said.set("sort", state.sort);
    if (state.row !== null) said.set("row", state.row);
    return `#${said}`;
  }

  return { VIEWS, read, write };
})();
