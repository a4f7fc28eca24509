// A document: typed, pasted, dropped or opened as a file; and shown again with parts of it marked.

import { h, newId } from "./dom.js";

const MANY = 200_000; // characters; a text box with more is slow to type in
const size = (text) => `${text.length.toLocaleString("en")} characters`;

/** Put a document's controls into `place`. Gives { text() }. */
export function documentInput(place, { label = "Document", field, rows = 10 }) {
  const id = newId("document");
  const box = h("textarea", { id, name: field, rows, "data-field": field, placeholder: "Paste a text, or drop a text file here" });
  const file = h("input", { type: "file", accept: "text/*,.md,.txt,.csv,.json,.log,.rst,.html", id: `${id}-file`, class: "hidden-file" });
  const count = h("span", { class: "hint", "aria-live": "polite" });
  const large = h("div", { class: "large", hidden: true });
  let held = null; // a text too large for the box

  place.replaceChildren(
    h("div", { class: "row" }, h("label", { for: id }, label), count,
      h("label", { for: `${id}-file`, class: "quiet button" }, "Open a file"), file),
    box, large);

  function take(text, name) {
    held = text.length > MANY ? text : null;
    box.hidden = held !== null;
    large.hidden = held === null;
    box.value = held === null ? text : "";
    if (held !== null)
      large.replaceChildren(h("p", {}, h("b", {}, name)), h("p", { class: "hint" }, `${text.slice(0, 300)} …`),
        h("button", { type: "button", class: "quiet", onclick: () => take("", "") }, "Remove"));
    tell(name);
  }

  function tell(name = "") {
    const text = held ?? box.value;
    count.textContent = text ? `${name ? `${name}, ` : ""}${size(text)}` : "";
  }

  async function open(blob) {
    const text = await blob.text();
    if (text.includes("\u0000")) {
      count.textContent = `${blob.name} is not a text file`;
      return;
    }
    take(text, blob.name);
  }

  box.addEventListener("input", () => tell());
  box.addEventListener("paste", (event) => {
    const text = event.clipboardData.getData("text");
    if (text.length <= MANY) return;
    event.preventDefault();
    take(text, "pasted text");
  });
  file.addEventListener("change", () => file.files[0] && open(file.files[0]));
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
    else take(event.dataTransfer.getData("text"), "");
  });
  return { text: () => held ?? box.value };
}

/** Offsets in code points, which the API counts in, as offsets in the browser's strings; null stays null. */
export function inUnits(text, offsets) {
  if (!/[\ud800-\udbff]/.test(text)) return offsets;
  const wanted = [...new Set(offsets.filter((offset) => offset !== null))].sort((a, b) => a - b);
  const found = new Map();
  let points = 0;
  let units = 0;
  for (const offset of wanted) {
    for (; points < offset; points += 1) units += text.codePointAt(units) > 0xffff ? 2 : 1;
    found.set(offset, units);
  }
  return offsets.map((offset) => (offset === null ? null : found.get(offset)));
}

/** A text to read, in parts that can be marked one by one. */
export class MarkedText {
  /** parts: [{ start, end }] in the browser's offsets, in order, each marked by its index. */
  constructor(text, parts, attributes = {}) {
    this.marks = [];
    const nodes = [];
    let position = 0;
    parts.forEach(({ start, end }, index) => {
      nodes.push(...pieces(text.slice(position, start)));
      const mark = h("mark", { "data-index": index }, text.slice(start, end));
      this.marks[index] = mark;
      nodes.push(mark);
      position = end;
    });
    nodes.push(...pieces(text.slice(position)));
    this.element = h("div", { class: "reading", tabindex: 0, role: "region", ...attributes }, nodes);
  }

  /** Show one part as the current one, null for none, and bring it into view within the text. */
  point(index) {
    for (const mark of this.marks) mark.classList.toggle("current", mark === this.marks[index]);
    const mark = this.marks[index];
    if (mark) this.element.scrollTop = mark.offsetTop - this.element.clientHeight / 3;
  }
}

/** Spans of some thousand characters: the browser lays out only those in view. */
function pieces(text) {
  const spans = [];
  for (let start = 0; start < text.length; start += 4000) spans.push(h("span", {}, text.slice(start, start + 4000)));
  return spans;
}
