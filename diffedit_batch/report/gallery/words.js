"use strict";
/* What was changed between two prompts, word by word. */

const words = (() => {
  const MOST = 250000; // comparisons; longer prompts are shown one after the other
  const segmenter =
    window.Intl && Intl.Segmenter ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;

  /* Words of any script, each with the white space that follows it. */
  function split(text) {
    const pieces = segmenter
      ? Array.from(segmenter.segment(text), (piece) => piece.segment)
      : text.split(/(\s+)/).filter(Boolean);
    const found = [];
    for (const piece of pieces) {
      if (!piece.trim() && found.length) found[found.length - 1].space += piece;
      else found.push({ word: piece, space: "" });
    }
    return found;
  }

  /* Lengths of the longest common subsequences of all tails. */
  function table(before, after) {
    const width = after.length + 1;
    const lengths = new Uint16Array((before.length + 1) * width);
    for (let i = before.length - 1; i >= 0; i -= 1) {
      for (let j = after.length - 1; j >= 0; j -= 1) {
        lengths[i * width + j] =
          before[i].word === after[j].word
            ? lengths[(i + 1) * width + j + 1] + 1
            : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
      }
    }
    return (i, j) => lengths[i * width + j];
  }

  /* Pieces `{kind: "same" | "del" | "ins", text}`; what went before what came. */
  function compare(source, target) {
    const before = split(source);
    const after = split(target);
    if (before.length * after.length > MOST) {
      return [
        { kind: "del", text: `${source} ` },
        { kind: "ins", text: target },
      ];
    }
    const length = table(before, after);
    const pieces = [];
    const gone = { kind: "del", text: "" };
    const come = { kind: "ins", text: "" };
    const flush = () => {
      for (const change of [gone, come]) {
        if (change.text) pieces.push({ ...change });
        change.text = "";
      }
    };
    const spaced = ({ word, space }) => word + space;
    let i = 0;
    let j = 0;
    while (i < before.length || j < after.length) {
      if (i < before.length && j < after.length && before[i].word === after[j].word) {
        flush();
        const last = pieces[pieces.length - 1];
        const text = spaced(after[j]);
        if (last && last.kind === "same") last.text += text;
        else pieces.push({ kind: "same", text });
        i += 1;
        j += 1;
      } else if (j >= after.length || (i < before.length && length(i + 1, j) >= length(i, j + 1))) {
        gone.text += spaced(before[i]);
        i += 1;
      } else {
        come.text += spaced(after[j]);
        j += 1;
      }
    }
    flush();
    return pieces;
  }

  return { compare };
})();
