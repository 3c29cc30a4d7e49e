"use strict";
/* Which rows are shown, in which order, and the controls that say so. */

const filters = (() => {
  const SETS = ["statuses", "causes", "reasons"]; // of names, any of which a row may match
  const controls = {};

  /* Rows that match, sorted; and for each score which rows all other conditions let through. */
  function select(state) {
    const { scores } = gallery.meta;
    const terms = fold(state.search).split(/\s+/).filter(Boolean);
    const ranges = scores.filter((name) => state.ranges[name]);
    const rows = [];
    const failing = new Uint8Array(gallery.numLoaded); // 0: none, 255: several, else 1 + which score
    for (let row = 0; row < gallery.numLoaded; row += 1) {
      if (!isAsked(state, terms, row)) {
        failing[row] = 255;
        continue;
      }
      for (const name of ranges) {
        const [low, high] = state.ranges[name];
        const value = gallery.numbers[name][row];
        if (!(value >= low && value <= high)) {
          failing[row] = failing[row] ? 255 : 1 + scores.indexOf(name);
        }
      }
      if (!failing[row]) rows.push(row);
    }
    return { rows: sort(rows, state.sort), failing };
  }

  function isAsked(state, terms, row) {
    if (state.statuses.size && !state.statuses.has(gallery.cell("status", row))) return false;
    if (state.causes.size && !state.causes.has(gallery.cell("cause", row))) return false;
    if (state.reasons.size && !reasonsOf(row).some((name) => state.reasons.has(name))) return false;
    return terms.every((term) => gallery.text(row).includes(term));
  }

  /* Why a row is not good enough; of one that failed nothing is said. */
  function reasonsOf(row) {
    const found = gallery.cell("filter_reasons", row);
    return found && !found.length ? ["passes"] : found || [];
  }

  function sort(rows, by) {
    const isDown = by.startsWith("-");
    const name = isDown ? by.slice(1) : by;
    const values = Object.hasOwn(gallery.numbers, name) ? gallery.numbers[name] : null;
    if (!values) return isDown ? rows.reverse() : rows; // rows come in the order of their ids
    const sign = isDown ? -1 : 1;
    return rows.sort((one, other) => {
      const [a, b] = [values[one], values[other]];
      if (a !== a || b !== b) return (a !== a) - (b !== b); // without a value: last
      return sign * (a - b) || one - other;
    });
  }

  /* Build the controls once. `change` takes what is new in the state. */
  function build(root, change, read) {
    const { meta } = gallery;
    root.append(
      h(
        "div",
        { class: "only-narrow closer" },
        h("h2", {}, "Filters"),
        (controls.close = h("button", { type: "button" }, "Show edits")),
      ),
    );
    const group = (title, ...children) =>
      root.append(h("fieldset", {}, h("legend", {}, title), children));
    const toggles = (key, names, label) =>
      names.map(([name, number]) => {
        const box = h("input", { type: "checkbox", value: name });
        box.addEventListener("change", () => {
          const chosen = new Set(read()[key]);
          if (box.checked) chosen.add(name);
          else chosen.delete(name);
          change({ [key]: chosen });
        });
        controls[key].push(box);
        return h(
          "label",
          { class: "check" },
          box,
          h("span", { class: label(name) }, name),
          h("span", { class: "number" }, count(number)),
        );
      });
    controls.statuses = [];
    controls.causes = [];
    controls.reasons = [];
    const present = STATUSES.filter((name) => meta.statuses[name]);
    group(
      "Status",
      toggles(
        "statuses",
        present.map((name) => [name, meta.statuses[name]]),
        (name) => `status ${name}`,
      ),
    );
    if (meta.failures.length) {
      group(
        "Cause of failure",
        toggles(
          "causes",
          meta.failures.map((cause) => [`${cause.stage}/${cause.type}`, cause.count]),
          () => "code",
        ),
      );
    }
    const reasons = Object.entries(meta.reasons);
    if (reasons.length) {
      group(
        "Filter",
        toggles("reasons", reasons, (name) => (name === "passes" ? "" : "code")),
      );
    }
    controls.ranges = {};
    for (const name of meta.scores) {
      const { label, unit, scale } = SCORES[name];
      const inputs = ["from", "to"].map((side) =>
        h("input", {
          type: "number",
          step: "any",
          inputMode: "decimal",
          placeholder: side,
          "aria-label": `${label} ${side}, ${unit}`,
          on: {
            change: () => change({ ranges: { ...read().ranges, [name]: typed(inputs, scale) } }),
          },
        }),
      );
      const plot = h("div", { class: "spark-box" });
      controls.ranges[name] = { inputs, plot };
      group(
        `${label}, ${unit}`,
        plot,
        h("div", { class: "pair" }, inputs[0], h("span", {}, "–"), inputs[1]),
      );
    }
    controls.clear = h(
      "button",
      {
        type: "button",
        class: "quiet clear",
        on: {
          click: () =>
            change({
              search: "",
              statuses: new Set(),
              causes: new Set(),
              reasons: new Set(),
              ranges: {},
            }),
        },
      },
      "Clear all filters",
    );
    root.append(controls.clear);
    return controls;
  }

  function typed(inputs, scale) {
    const [low, high] = inputs.map((input) =>
      input.value === "" ? null : Number(input.value) / scale,
    );
    if (low === null && high === null) return undefined;
    return [low ?? -Infinity, high ?? Infinity];
  }

  /* Show what the state says. */
  function show(state, failing) {
    for (const key of SETS) {
      for (const box of controls[key]) box.checked = state[key].has(box.value);
    }
    gallery.meta.scores.forEach((name, place) => {
      const { inputs, plot } = controls.ranges[name];
      const { scale } = SCORES[name];
      const chosen = state.ranges[name] || [-Infinity, Infinity];
      inputs.forEach((input, side) => {
        const value = chosen[side] * scale;
        input.value = Number.isFinite(value) ? String(Number(value.toPrecision(12))) : "";
      });
      const found = charts.histogram(
        name,
        (row) => failing[row] === 0 || failing[row] === 1 + place,
      );
      plot.replaceChildren(...(found ? [charts.spark(name, found, chosen)] : []));
    });
    controls.clear.hidden = !isActive(state);
  }

  function isActive(state) {
    const numRanges = Object.values(state.ranges).filter(Boolean).length;
    return Boolean(state.search || SETS.some((key) => state[key].size) || numRanges);
  }

  /* The conditions one by one, each with what takes it away. */
  function conditions(state) {
    const found = [];
    if (state.search) found.push([`“${state.search}”`, { search: "" }]);
    for (const key of SETS) {
      for (const name of state[key]) {
        found.push([name, { [key]: new Set([...state[key]].filter((other) => other !== name)) }]);
      }
    }
    for (const [name, range] of Object.entries(state.ranges)) {
      if (!range) continue;
      const [low, high] = range;
      const { label } = SCORES[name];
      const text = !Number.isFinite(low)
        ? `≤ ${score(name, high)}`
        : !Number.isFinite(high)
          ? `≥ ${score(name, low)}`
          : `${score(name, low)} to ${score(name, high)}`;
      found.push([`${label} ${text}`, { ranges: { ...state.ranges, [name]: undefined } }]);
    }
    return found;
  }

  return { select, build, show, conditions, isActive };
})();
