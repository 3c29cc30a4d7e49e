"use strict";
/* Failures by cause, and the summary. */

const pages = (() => {
  const EXAMPLES = 6;

  function failures(root, change) {
    const { meta } = gallery;
    if (!meta.failures.length) {
      root.replaceChildren(h("p", { class: "empty" }, "No row failed."));
      return;
    }
    const total = meta.statuses.failed;
    root.replaceChildren(
      h(
        "p",
        { class: "line" },
        `${count(total)} of ${count(meta.numRows)} rows failed, for ${count(meta.failures.length)} ${meta.failures.length === 1 ? "reason" : "reasons"}.`,
      ),
      ...meta.failures.map((cause) => {
        const name = `${cause.stage}/${cause.type}`;
        const more = cause.numMessages - cause.messages.length;
        return h(
          "section",
          { class: "cause" },
          h(
            "header",
            {},
            h("h2", { class: "code" }, name),
            h(
              "span",
              { class: "number" },
              `${count(cause.count)} ${cause.count === 1 ? "row" : "rows"}, ${decimal((100 * cause.count) / total, 0)}\u202f%`,
            ),
          ),
          h(
            "ul",
            {},
            cause.messages.map(([message, number]) =>
              h(
                "li",
                {},
                h("span", { dir: "auto" }, message),
                h("span", { class: "number" }, number > 1 ? `× ${count(number)}` : ""),
              ),
            ),
          ),
          more > 0 ? h("p", { class: "muted" }, `and ${count(more)} other messages`) : null,
          examples(name),
          h(
            "button",
            {
              type: "button",
              on: {
                click: () =>
                  change({
                    view: "edits",
                    statuses: new Set(),
                    search: "",
                    ranges: {},
                    causes: new Set([name]),
                    reasons: new Set(),
                  }),
              },
            },
            "Show these rows",
          ),
        );
      }),
    );
  }

  function examples(name) {
    const found = [];
    for (let row = 0; row < gallery.numLoaded && found.length < EXAMPLES; row += 1) {
      if (gallery.cell("cause", row) === name && gallery.cell("source", row)) found.push(row);
    }
    if (!found.length) return null;
    return h(
      "div",
      { class: "examples" },
      found.map((row) => picture("source", row, true, `Source of ${gallery.cell("id", row)}`)),
    );
  }

  function summary(root, rows, failing, change) {
    const { meta } = gallery;
    const isFound = (row) => failing[row] === 0;
    const isAll = rows.length === meta.numRows;
    const tiles = [["Rows", count(rows.length)]];
    for (const status of STATUSES) {
      const number = rows.filter((row) => gallery.cell("status", row) === status).length;
      tiles.push([status[0].toUpperCase() + status.slice(1), count(number)]);
    }
    for (const name of meta.scores)
      tiles.push([`${SCORES[name].label}, median`, score(name, median(rows, name))]);
    const panels = meta.scores.map((name) => {
      const all = charts.histogram(name, () => true);
      if (!all) return null;
      const found = charts.histogram(name, isFound);
      const pick = (score_, low, high) =>
        change({ view: "edits", ranges: { [score_]: [low, high] } });
      return panel(
        SCORES[name].label,
        "rows; click a bar to see them",
        charts.distribution(name, all, found, pick),
      );
    });
    panels.push(throughput());
    if (meta.failures.length) {
      const entries = meta.failures.map((cause) => ({
        name: `${cause.stage}/${cause.type}`,
        count: cause.count,
      }));
      const pick = (entry) =>
        change({ view: "edits", statuses: new Set(), causes: new Set([entry.name]) });
      panels.push(
        panel(
          "Failures by stage and type",
          "all rows; click to see them",
          charts.ranking(entries, "Failures by stage and type", pick),
        ),
      );
    }
    root.replaceChildren(
      isAll
        ? h("p", { class: "line" }, "All rows.")
        : h(
            "p",
            { class: "line" },
            `${count(rows.length)} of ${count(meta.numRows)} rows match the filters; all rows are shown pale behind them.`,
          ),
      h(
        "dl",
        { class: "tiles" },
        tiles.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
      ),
      h("div", { class: "panels" }, panels.filter(Boolean)),
      runs(),
    );
  }

  function median(rows, name) {
    const values = rows.map((row) => gallery.numbers[name][row]).filter((value) => value === value);
    if (!values.length) return NaN;
    values.sort((one, other) => one - other);
    const middle = Math.floor(values.length / 2);
    return values.length % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  }

  function panel(title, note, ...content) {
    return h(
      "section",
      { class: "panel" },
      h("h2", {}, title),
      h("p", { class: "muted" }, note),
      content,
    );
  }

  function throughput() {
    const names = new Set();
    for (const chunk of gallery.chunks) {
      const column = chunk.run_id;
      const cells = Array.isArray(column) ? column : "all" in column ? [column.all] : column.values;
      cells.forEach((name) => names.add(name));
    }
    const known = [...names].sort().reverse();
    const room = h("div", {});
    const choice = h(
      "select",
      { "aria-label": "Run", on: { change: () => draw() } },
      known.map((name) => h("option", { value: name }, name)),
    );
    const draw = () => room.replaceChildren(charts.throughput(choice.value) || "");
    if (known.length) draw();
    return panel(
      "Throughput",
      "rows per minute over the time of a run, failed ones in red",
      known.length > 1 ? choice : null,
      room,
    );
  }

  function runs() {
    const { meta } = gallery;
    const head = ["Run", "Started", "Outcome", ...STATUSES].map((name) =>
      h("th", { scope: "col" }, name),
    );
    const lines = [...meta.runs].reverse().map((run) =>
      h(
        "tr",
        {},
        h("td", { class: "code" }, run.run_id),
        h("td", {}, (run.started_at || "").replace("T", " ")),
        h("td", {}, run.outcome || ""),
        STATUSES.map((status) =>
          h("td", { class: "number" }, run.counts ? count(run.counts[status] || 0) : ""),
        ),
      ),
    );
    const models = meta.models
      .map(([id, revision]) => `${id}${revision ? ` at ${revision}` : ""}`)
      .join(", ");
    return h(
      "section",
      { class: "panel wide-panel" },
      h("h2", {}, "Runs"),
      lines.length
        ? h(
            "div",
            { class: "scroll" },
            h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, lines)),
          )
        : h("p", { class: "muted" }, "No run has ended yet."),
      h(
        "p",
        { class: "muted" },
        `Model: ${models}. Gallery made ${meta.createdAt.replace("T", " ")} by diffedit_batch ${meta.version}.`,
      ),
    );
  }

  return { failures, summary, median };
})();
