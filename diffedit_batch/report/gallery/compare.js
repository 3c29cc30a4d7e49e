"use strict";
/* Before and after: one over the other with a slider, or side by side. */

const compare = (() => {
  let root;
  let row = -1;
  let mode = "slider";
  let hasMask = false;

  /* The pictures of a row, and the controls for them. */
  function make(newRow) {
    row = newRow;
    const choose = (name, text) =>
      h(
        "button",
        {
          type: "button",
          "data-mode": name,
          disabled: name === "slider" && !canSlide(),
          on: { click: () => set(name) },
        },
        text,
      );
    const box = h("input", {
      type: "checkbox",
      class: "with-mask",
      disabled: !gallery.cell("mask", row),
      on: { change: () => setMask(box.checked) },
    });
    root = h(
      "div",
      { class: "viewer" },
      h("div", { class: "seen" }),
      h(
        "div",
        { class: "controls" },
        h(
          "div",
          { class: "segmented", role: "group", "aria-label": "How to compare" },
          choose("slider", "Slider"),
          choose("side", "Side by side"),
        ),
        h("label", { class: "inline" }, box, "Mask"),
        h(
          "a",
          { class: "wide original", hidden: true, target: "_blank", rel: "noopener" },
          "Original file",
        ),
      ),
    );
    drawPictures();
    return root;
  }

  function canSlide() {
    return Boolean(gallery.cell("source", row) && gallery.cell("edited", row));
  }

  function drawPictures() {
    const seen = root.querySelector(".seen");
    const isSlider = mode === "slider" && canSlide();
    const hadFocus = seen.contains(document.activeElement);
    seen.replaceChildren(isSlider ? slider() : sideBySide());
    for (const button of root.querySelectorAll("[data-mode]")) {
      button.setAttribute("aria-pressed", String((button.dataset.mode === "slider") === isSlider));
    }
    root.querySelector(".with-mask").checked = hasMask;
    // Keys reach a dialog only while the focus is inside it.
    if (hadFocus) (seen.querySelector(".cut") || root.querySelector("[aria-pressed=true]")).focus();
  }

  /* A link to the file in the output, where the gallery stands inside it. */
  function showOriginal(fileName) {
    const { output } = gallery.meta;
    if (!fileName || !output) return;
    const link = root.querySelector(".original");
    link.href = output + fileName.split("/").map(encodeURIComponent).join("/");
    link.hidden = false;
  }

  function slider() {
    const range = h("input", {
      type: "range",
      min: 0,
      max: 100,
      step: 0.5,
      value: 50,
      class: "cut",
      "aria-label": "Share of the picture that shows the source",
    });
    const stage = h(
      "div",
      { class: hasMask ? "stage" : "stage no-mask" },
      picture("edited", row, false, `Edited: ${asked("target", row).text}`),
      h(
        "div",
        { class: "before" },
        picture("source", row, false, `Source: ${asked("source", row).text}`),
      ),
      cards.overlay(row, gallery.cell("mask_coverage", row), false),
      h("span", { class: "corner start" }, "Source"),
      h("span", { class: "corner finish" }, "Edited"),
      h("span", { class: "handle" }),
      range,
    );
    const width = gallery.cell("width", row);
    const height = gallery.cell("height", row);
    if (width && height) {
      stage.style.setProperty("--ratio", width / height);
      stage.style.aspectRatio = `${width} / ${height}`;
    }
    const cut = () => {
      stage.style.setProperty("--cut", `${range.value}%`);
      stage.classList.toggle("all-before", range.value > 92);
      stage.classList.toggle("all-after", range.value < 8);
    };
    range.addEventListener("input", cut);
    cut();
    return stage;
  }

  function sideBySide() {
    const figure = (name, ...content) =>
      h("figure", {}, h("div", { class: "frame" }, content), h("figcaption", {}, name));
    const found = [
      figure("Source", picture("source", row, false, `Source: ${asked("source", row).text}`)),
    ];
    if (gallery.cell("status", row) !== "failed") {
      if (hasMask) {
        found.push(figure("Mask", cards.masked(row, gallery.cell("mask_coverage", row), false)));
        if (gallery.cell("map", row)) found.push(figure("Soft map", cards.softMap(row, false)));
      }
      found.push(
        figure("Edited", picture("edited", row, false, `Edited: ${asked("target", row).text}`)),
      );
    }
    return h("div", { class: "beside" }, found);
  }

  function flip() {
    const range = root.querySelector(".cut");
    range.value = range.value > 50 ? 0 : 100;
    range.dispatchEvent(new Event("input"));
  }

  function set(name) {
    mode = name;
    drawPictures();
  }

  function setMask(isOn) {
    hasMask = isOn;
    const stage = root.querySelector(".stage");
    if (stage) stage.classList.toggle("no-mask", !hasMask);
    else drawPictures();
    root.querySelector(".with-mask").checked = hasMask;
  }

  return {
    make,
    showOriginal,
    flip,
    canFlip: () => Boolean(root.querySelector(".cut")),
    switchMode: () => set(mode === "slider" ? "side" : "slider"),
    switchMask: () => setMask(!hasMask),
  };
})();
