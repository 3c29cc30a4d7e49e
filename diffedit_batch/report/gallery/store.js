"use strict";
/* The rows of the gallery: files of columns that call `gallery.receive`, since a page without a
   server may load scripts and pictures, but not fetch data.

   A column is `{all: cell}`, `{values: [...], at: [...]}` or a list of cells. */

const gallery = (() => {
  const waiting = new Map();
  // The only addresses a script may come from, enforced by the browser where it can.
  const isData = (url) => /^data\/\d+T\d+\/(rows|details)-\d+\.js$/.test(url);
  const rules = {
    createScriptURL: (url) => {
      if (!isData(url)) throw new TypeError(`not a file of this gallery: ${url}`);
      return url;
    },
  };
  const policy = window.trustedTypes ? trustedTypes.createPolicy("chunks", rules) : rules;
  const details = new Map();

  const self = {
    meta: null,
    numLoaded: 0,

    start(meta) {
      self.meta = meta;
      self.chunks = [];
      self.rowOf = new Map();
      self.texts = new Array(meta.numRows);
      self.numbers = {};
      for (const name of [...meta.scores, "finished"]) {
        self.numbers[name] = new Float64Array(meta.numRows).fill(NaN);
      }
    },

    receive(kind, number, columns) {
      const resolve = waiting.get(`${kind}-${number}`);
      if (resolve) resolve(columns);
    },

    /* Load rows from the first to the last; calls back after each file of them. */
    async loadRows(onLoaded) {
      const { numRows, indexRows } = self.meta;
      for (let number = 0; number * indexRows < numRows; number += 1) {
        self.add(number, await load("rows", number));
        onLoaded();
      }
    },

    add(number, columns) {
      const { numRows, indexRows } = self.meta;
      self.chunks[number] = columns;
      const first = number * indexRows;
      self.numLoaded = Math.min(first + indexRows, numRows);
      for (let row = first; row < self.numLoaded; row += 1) {
        self.rowOf.set(self.cell("id", row), row);
        for (const [name, values] of Object.entries(self.numbers)) {
          const value = self.cell(name, row);
          if (value !== null && value !== undefined) values[row] = Number(value);
        }
      }
    },

    cell(name, row) {
      const { indexRows } = self.meta;
      const column = self.chunks[Math.floor(row / indexRows)][name];
      return column === undefined ? null : cellAt(column, row % indexRows);
    },

    /* What is searched: id and prompts, in one spelling. */
    text(row) {
      if (self.texts[row] === undefined) {
        const parts = [self.cell("id", row)];
        for (const side of ["source", "target"]) {
          parts.push(self.cell(`${side}_concept`, row) || "");
          parts.push(...(self.cell(`${side}_prompt`, row) || []));
        }
        self.texts[row] = fold(parts.join("\n"));
      }
      return self.texts[row];
    },

    /* Every other column of a row, by name. */
    async details(row) {
      const { detailRows } = self.meta;
      const number = Math.floor(row / detailRows);
      if (!details.has(number)) details.set(number, load("details", number));
      const columns = await details.get(number);
      const names = Object.keys(columns);
      return Object.fromEntries(names.map((n) => [n, cellAt(columns[n], row % detailRows)]));
    },

    /* Address of a picture: `source`, `mask`, `map` or `edited`; empty where there is none. */
    picture(kind, row, isSmall) {
      const key = self.cell(kind, row);
      if (!key) return "";
      const suffix = kind === "mask" ? "png" : "jpg";
      return `pictures/${key.slice(0, 2)}/${key}${isSmall ? "-small" : ""}.${suffix}`;
    },
  };

  function cellAt(column, place) {
    if (Array.isArray(column)) return column[place];
    return "all" in column ? column.all : column.values[column.at[place]];
  }

  function load(kind, number) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const url = `data/${self.meta.data}/${kind}-${number}.js`;
      waiting.set(`${kind}-${number}`, resolve);
      script.onload = () => script.remove();
      script.onerror = () => reject(new Error(`${url} is missing; run the report again`));
      script.src = policy.createScriptURL(url);
      document.head.append(script);
    });
  }

  return self;
})();

/* One spelling of a text, for search. */
function fold(text) {
  return text.normalize("NFKC").toLowerCase();
}
