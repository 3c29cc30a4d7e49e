"use strict";
/* Elements, and how values are written. Texts of the data only ever become text nodes. */

const SCORES = {
  mask_coverage: { label: "Mask coverage", unit: "%", scale: 100, digits: 1 },
  background_psnr: { label: "Background PSNR", unit: "dB", scale: 1, digits: 1 },
  map_contrast: { label: "Mask contrast", unit: "×", scale: 1, digits: 2 },
  clip_text: { label: "CLIP text fit", unit: "cosine", scale: 1, digits: 3 },
  clip_direction: { label: "CLIP direction", unit: "cosine", scale: 1, digits: 3 },
  clip_image: { label: "CLIP likeness to source", unit: "cosine", scale: 1, digits: 3 },
  lpips: { label: "Distance to source", unit: "LPIPS", scale: 1, digits: 3 },
  seconds: { label: "Duration", unit: "s", scale: 1, digits: 2 },
};
const STATUSES = ["edited", "unchanged", "failed"];

const formats = new Map();
function decimal(value, digits) {
  if (!formats.has(digits)) {
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    formats.set(digits, new Intl.NumberFormat("en", options));
  }
  return formats.get(digits).format(value);
}

function count(number) {
  return decimal(number, 0);
}

/* A number with its unit, rounded; an en dash where there is none. */
function score(name, value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const { unit, scale, digits } = SCORES[name];
  return `${decimal(value * scale, digits)}\u202f${unit}`;
}

/* An element; `props` are properties, but for `class`, `on` (listeners) and names with a dash. */
function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  fill(element, props);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== ""));
  return element;
}

/* The same of SVG, where everything is an attribute. */
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") listen(element, value);
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}

function fill(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") element.className = value;
    else if (name === "on") listen(element, value);
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
}

function listen(element, listeners) {
  for (const [type, listener] of Object.entries(listeners)) {
    element.addEventListener(type, listener);
  }
}

/* A concept, or the prompts, of one side of a row. */
function asked(side, row) {
  const concept = gallery.cell(`${side}_concept`, row);
  const prompts = gallery.cell(`${side}_prompt`, row) || [];
  return { concept, prompts, text: concept || prompts[0] || "" };
}

/* The change a row asks for, as one line of text with what went and what came. */
function changeOf(row) {
  const source = asked("source", row);
  const target = asked("target", row);
  const pieces = words.compare(source.text, target.text);
  const line = h(
    "p",
    { class: "change", dir: "auto" },
    pieces.map(({ kind, text }) => {
      const word = text.trimEnd();
      if (kind === "same") return text;
      return [h(kind, { class: word === text ? "tight" : "" }, word), text.slice(word.length)];
    }),
  );
  const most = Math.max(source.prompts.length, target.prompts.length);
  if (source.concept || target.concept) line.append(" ", h("span", { class: "tag" }, "concept"));
  else if (most > 1) line.append(" ", h("span", { class: "tag" }, `${most} prompts`));
  return line;
}

/* A picture, or a note in its place. */
function picture(kind, row, isSmall, alt) {
  const source = gallery.picture(kind, row, isSmall);
  const noteOf = (why) => h("span", { class: "missing", title: why }, why);
  if (!source) {
    const why = gallery.cell(kind === "source" ? "source_note" : "note", row);
    return noteOf(
      why ? `${kind === "source" ? "Source" : "Picture"} missing: ${why}` : "No picture",
    );
  }
  const image = h("img", { src: source, alt, decoding: "async", draggable: false });
  image.addEventListener("error", () =>
    image.replaceWith(noteOf("Picture missing: run the report again")),
  );
  return image;
}

function statusChip(row) {
  const status = gallery.cell("status", row);
  return h("span", { class: `status ${status}` }, status);
}
