"use strict";
/* Plots as inline SVG, drawn from the rows. */

const charts = (() => {
  const BINS = 30;

  /* Edges of bins for a score over all rows; the same ones whatever is filtered. */
  function edges(name) {
    if (name === "mask_coverage") return { low: 0, high: 1 };
    let low = Infinity;
    let high = -Infinity;
    for (const value of gallery.numbers[name]) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (low > high) return null;
    return low === high ? { low: low - 0.5, high: high + 0.5 } : { low, high };
  }

  /* Numbers of rows in equal bins; of rows for which `isIn` holds. */
  function histogram(name, isIn) {
    const range = edges(name);
    if (!range) return null;
    const bins = new Array(BINS).fill(0);
    const values = gallery.numbers[name];
    for (let row = 0; row < gallery.numLoaded; row += 1) {
      const value = values[row];
      if (value === value && isIn(row)) {
        const place = Math.floor(((value - range.low) / (range.high - range.low)) * BINS);
        bins[Math.min(BINS - 1, Math.max(0, place))] += 1;
      }
    }
    return { ...range, bins };
  }

  function edge(found, place) {
    return found.low + ((found.high - found.low) * place) / BINS;
  }

  /* Bars alone, for the filters; those in the chosen range are marked. */
  function spark(name, found, chosen) {
    const most = Math.max(1, ...found.bins);
    const bars = found.bins.map((number, place) => {
      const height = number ? Math.max(1, (number / most) * 32) : 0;
      const isIn = edge(found, place + 1) > chosen[0] && edge(found, place) < chosen[1];
      return svg("rect", {
        x: place * 8,
        y: 34 - height,
        width: 6.5,
        height,
        class: isIn ? "mark" : "rest",
      });
    });
    const box = {
      viewBox: `0 0 ${BINS * 8} 34`,
      preserveAspectRatio: "none",
      class: "spark",
      "aria-hidden": "true",
    };
    return svg("svg", box, bars);
  }

  /* A plot with axes: all rows pale, those found in colour; a click on a bar filters. */
  function distribution(name, all, found, onPick) {
    const { label, unit, scale, digits } = SCORES[name];
    const write = (value) => decimal(value * scale, digits);
    const number = found.bins.reduce((sum, one) => sum + one, 0);
    const plot = frame(
      Math.max(1, ...all.bins),
      `${label}: ${count(number)} rows, from ${write(all.low)} to ${write(all.high)} ${unit}`,
    );
    const width = plot.width / BINS;
    all.bins.forEach((total, place) => {
      const [low, high] = [edge(all, place), edge(all, place + 1)];
      const title = `${write(low)} to ${write(high)} ${unit}: ${count(found.bins[place])} of ${count(total)} rows`;
      plot.root.append(
        svg(
          "g",
          { class: "bar-of", on: { click: () => onPick(name, low, high) } },
          svg("title", {}, title),
          svg("rect", {
            x: plot.left + place * width,
            y: plot.top,
            width,
            height: plot.height,
            class: "hit",
          }),
          plot.bar(place * width, width - 1.5, total, "rest"),
          plot.bar(place * width, width - 1.5, found.bins[place], "mark"),
        ),
      );
    });
    for (const part of [0, 0.25, 0.5, 0.75, 1]) {
      plot.tick(
        part,
        write(all.low + (all.high - all.low) * part) + (part === 1 ? ` ${unit}` : ""),
      );
    }
    return plot.root;
  }

  /* Rows finished over the time of a run; failed ones on top of the others. */
  function throughput(run) {
    const times = [];
    for (let row = 0; row < gallery.numLoaded; row += 1) {
      const time = gallery.numbers.finished[row];
      if (time === time && gallery.cell("run_id", row) === run) {
        times.push([time, gallery.cell("status", row) === "failed"]);
      }
    }
    if (!times.length) return null;
    const record = gallery.meta.runs.find((one) => one.run_id === run);
    const first = times.reduce((least, [time]) => Math.min(least, time), Infinity);
    const low = Math.min(first, record ? Date.parse(record.started_at) : Infinity);
    const high = Math.max(
      low + 1000,
      times.reduce((most, [time]) => Math.max(most, time), -Infinity),
    );
    // Rows are committed in bundles: finer bins than there are commits would only show gaps.
    const numCommits = new Set(times.map(([time]) => time)).size;
    const numBins = Math.min(BINS, Math.max(6, Math.round(numCommits / 3)));
    const good = new Array(numBins).fill(0);
    const bad = new Array(numBins).fill(0);
    for (const [time, isFailed] of times) {
      const place = Math.min(numBins - 1, Math.floor(((time - low) / (high - low)) * numBins));
      (isFailed ? bad : good)[place] += 1;
    }
    const minutes = (high - low) / numBins / 60000;
    const most = Math.max(...good.map((number, place) => number + bad[place])) / minutes;
    const plot = frame(
      most,
      `Throughput of run ${run}: ${count(times.length)} rows in ${duration((high - low) / 1000)}`,
    );
    const width = plot.width / numBins;
    good.forEach((number, place) => {
      const title = `${clock(low + ((high - low) * place) / numBins)}: ${decimal((number + bad[place]) / minutes, 1)} rows per minute, ${count(bad[place])} failed rows`;
      plot.root.append(
        svg(
          "g",
          {},
          svg("title", {}, title),
          svg("rect", {
            x: plot.left + place * width,
            y: plot.top,
            width,
            height: plot.height,
            class: "hit",
          }),
          plot.bar(place * width, width - 1.5, (number + bad[place]) / minutes, "bad"),
          plot.bar(place * width, width - 1.5, number / minutes, "mark"),
        ),
      );
    });
    for (const part of [0, 0.5, 1]) plot.tick(part, clock(low + (high - low) * part));
    return plot.root;
  }

  /* Bars with names, the longest first. */
  function ranking(entries, label, onPick) {
    const most = Math.max(1, ...entries.map((entry) => entry.count));
    const root = svg("svg", {
      viewBox: `0 0 480 ${entries.length * 34}`,
      class: "plot",
      role: "img",
      "aria-label": label,
    });
    entries.forEach((entry, place) => {
      root.append(
        svg(
          "g",
          { class: "bar-of", on: { click: () => onPick(entry) } },
          svg("title", {}, `${entry.name}: ${count(entry.count)}`),
          svg("rect", { x: 0, y: place * 34, width: 480, height: 34, class: "hit" }),
          svg("text", { x: 0, y: place * 34 + 13, class: "axis" }, entry.name),
          svg("text", { x: 480, y: place * 34 + 13, class: "axis end" }, count(entry.count)),
          svg("rect", { x: 0, y: place * 34 + 19, width: 480, height: 6, rx: 3, class: "track" }),
          svg("rect", {
            x: 0,
            y: place * 34 + 19,
            width: Math.max(3, (entry.count / most) * 480),
            height: 6,
            rx: 3,
            class: "bad",
          }),
        ),
      );
    });
    return root;
  }

  /* Room for a plot, with lines at round numbers up to `most`. */
  function frame(most, label) {
    const [left, top, width, height] = [42, 8, 430, 150];
    const step = roundStep(most / 3);
    const above = Math.ceil(most / step) * step;
    const root = svg("svg", {
      viewBox: "0 0 480 182",
      class: "plot",
      role: "img",
      "aria-label": label,
    });
    for (let value = 0; value <= above + step / 2; value += step) {
      const y = top + height * (1 - value / above);
      root.append(
        svg("line", { x1: left, x2: left + width, y1: y, y2: y, class: "rule" }),
        svg("text", { x: left - 8, y: y + 4, class: "axis end" }, decimal(value, step < 1 ? 1 : 0)),
      );
    }
    const bar = (x, barWidth, value, kind) => {
      const barHeight = value ? Math.max(1.5, (value / above) * height) : 0;
      return svg("rect", {
        x: left + x,
        y: top + height - barHeight,
        width: barWidth,
        height: barHeight,
        class: kind,
      });
    };
    const tick = (part, text) => {
      const side = part === 0 ? "" : part === 1 ? " end" : " middle";
      root.append(
        svg("text", { x: left + width * part, y: top + height + 18, class: `axis${side}` }, text),
      );
    };
    return { root, left, top, width, height, bar, tick };
  }

  function roundStep(rough) {
    const power = 10 ** Math.floor(Math.log10(Math.max(rough, 0.1)));
    return [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  }

  function clock(time) {
    return new Date(time).toLocaleString("en-GB", {
      month: "short",
      day: "numeric",
      hour: "2-digit",
      minute: "2-digit",
      second: "2-digit",
    });
  }

  function duration(seconds) {
    if (seconds < 120) return `${decimal(seconds, 0)} s`;
    return seconds < 7200 ? `${decimal(seconds / 60, 0)} min` : `${decimal(seconds / 3600, 1)} h`;
  }

  return { histogram, spark, distribution, throughput, ranking };
})();
