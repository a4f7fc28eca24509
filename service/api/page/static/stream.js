// Text that grows: appended once a frame however many events come, so that 10,000 tokens do not hold up the page.

import { h } from "./dom.js";

export class GrowingText {
  #waiting = "";
  #isScheduled = false;
  #isSealed = false;
  #text = "";
  #node;

  constructor(attributes = {}) {
    this.element = h("span", attributes);
    this.#node = document.createTextNode("");
    this.element.append(this.#node);
  }

  get text() {
    return this.#text;
  }

  append(text) {
    this.#text += text;
    this.#waiting += text;
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    schedule(() => this.#flush());
  }

  /** Put in what still waits; whoever changes the element afterwards has it for themselves. */
  seal() {
    this.#flush();
    this.#isSealed = true;
  }

  #flush() {
    this.#isScheduled = false;
    if (this.#isSealed) return;
    if (this.#node.length > 8000) {
      this.#node = document.createTextNode(""); // a long node is laid out anew at each change
      this.element.append(this.#node);
    }
    this.#node.appendData(this.#waiting);
    this.#waiting = "";
  }
}

/** At the next frame; a page in the background has none, and goes on by a timer. */
function schedule(act) {
  if (document.hidden) setTimeout(act, 100);
  else requestAnimationFrame(act);
}

/** Do `step(item)` for each item, some a frame. */
export async function inSlices(items, step, size = 500) {
  for (let start = 0; start < items.length; start += size) {
    if (start) await new Promise(schedule);
    items.slice(start, start + size).forEach((item, index) => step(item, start + index));
  }
}
