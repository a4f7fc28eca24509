// A panel that runs requests: its button, its clock, its errors, its request as code. Panels say what to send and show.

import { Refusal, events } from "./api.js";
import { h, newId, part } from "./dom.js";
import { fieldsOf } from "./schema.js";
import { fill } from "./fields.js";
import { snippets } from "./snippets.js";

export const MAIN = ["max_new_tokens", "temperature", "top_p", "top_k", "seed"];
const OURS = ["stream", "logprobs"]; // the page sets these itself

/**
 * Wire up a panel.
 *
 * panel: its section.
 * verb: what its button says.
 * request(read): gives { path, body }; `read` holds the fields that were set. It may throw an Error with a `param`.
 * begin(request): clears what the last request left.
 * show(event, clock): one event of the stream that is not the last one.
 * end(reply, clock): the last event; what it shows may take a while, then it gives a promise.
 *
 * Gives { useFields, run, stop, write }.
 */
export function runs(panel, { verb, request, begin, show, end, ended = () => {} }) {
  const form = panel.querySelector("form");
  const button = h("button", { class: "primary" }, verb);
  const status = h("p", { class: "status", role: "status" });
  const problem = h("p", { class: "problem", role: "alert", id: newId("problem") });
  const result = part(panel, "answer"); // busy from a request to the last of its answer
  const code = h("details", { class: "code", hidden: true }, h("summary", {}, "This request as code"));
  panel.querySelector(".actions").append(button, status);
  panel.querySelector(".actions").after(problem);
  panel.querySelector(".paper").append(code);
  let controls = new Map();
  let under = null; // the AbortController of the request under way

  async function run() {
    forget();
    let asked;
    try {
      asked = request(readAll());
    } catch (error) {
      return complain(error);
    }
    begin(asked);
    const clock = new Clock();
    under = new AbortController();
    result.setAttribute("aria-busy", "true");
    button.textContent = "Stop";
    button.classList.add("stop");
    status.textContent = "Waiting for the first token";
    try {
      await follow(asked, clock);
    } catch (error) {
      if (error.name === "AbortError") status.textContent = `Stopped. ${clock.figures()}`;
      else complain(error);
    } finally {
      under = null;
      button.textContent = verb;
      button.classList.remove("stop");
      remember(asked);
      result.removeAttribute("aria-busy");
      ended();
    }
  }

  async function follow({ path, body }, clock) {
    let last = {};
    for await (const event of events(path, body, under.signal)) {
      if (event.type === "done") {
        clock.stop(event.data.usage);
        last = event.data;
        break;
      }
      if (clock.sees(event)) status.textContent = "Writing";
      show(event, clock);
      if (event.data.usage) last = event.data; // chat completions tell in the last chunk
    }
    clock.stop(last.usage);
    status.textContent = clock.figures();
    await end(last, clock);
  }

  function remember(asked) {
    code.replaceChildren(code.firstElementChild, snippets(asked));
    code.hidden = false;
  }

  function readAll() {
    const pairs = [...controls].map(([name, each]) => [name, each.read()]);
    return Object.fromEntries(pairs.filter(([, value]) => value !== undefined));
  }

  function forget() {
    problem.textContent = "";
    for (const each of controls.values()) each.say("");
    for (const input of panel.querySelectorAll("[data-field]")) input.removeAttribute("aria-invalid");
  }

  function complain(error) {
    if (!(error instanceof Refusal) && !error.param) throw error;
    status.textContent = "";
    problem.textContent = error.message;
    if (!error.param) return;
    const name = error.param.split(".")[0];
    const input = panel.querySelector(`[data-field="${CSS.escape(name)}"]`);
    const control = controls.get(name);
    control?.node.closest("details")?.setAttribute("open", "");
    control?.say(error.message);
    input?.setAttribute("aria-invalid", "true");
    input?.setAttribute("aria-describedby", problem.id);
    (input ?? control)?.focus();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (under) under.abort();
    else run();
  });
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !under) form.requestSubmit();
    if (event.key === "Escape" && under) under.abort();
  });

  return {
    run,
    stop: () => under?.abort(),
    write: (name, value) => controls.get(name)?.write(value),
    /** Make the controls: `main` ones in sight, `hidden` ones not at all; `values` are there at first. */
    useFields(facts, path, { main = MAIN, hidden = [], values = {} } = {}) {
      const fields = fieldsOf(facts.openapi, path);
      const window = facts.info?.limits.n_positions;
      const limits = { max_new_tokens: window, max_tokens: window };
      const shown = [...fields.keys()].filter((name) => ![...OURS, ...hidden].includes(name));
      const more = shown.filter((name) => !main.includes(name));
      const isFirst = controls.size === 0;
      controls = new Map([
        ...fill(panel.querySelector('[data-part="main-fields"]'), fields, main.filter((name) => shown.includes(name)), limits),
        ...fill(panel.querySelector('[data-part="more-fields"]'), fields, more, limits),
      ]);
      panel.querySelector(".settings").hidden = fields.size === 0;
      if (isFirst) for (const [name, value] of Object.entries(values)) controls.get(name)?.write(value);
    },
  };
}

/** The time of one request, as its reader sees it. */
class Clock {
  #start = performance.now();
  #first = null;
  #last = null;
  #events = 0;
  #usage = null;

  /** Note an event; true for the first text. */
  sees({ type }) {
    if (type === "plan") return false;
    this.#events += 1;
    this.#last = performance.now();
    if (this.#first !== null) return false;
    this.#first = this.#last;
    return true;
  }

  stop(usage) {
    this.#usage ??= usage;
    this.#last = performance.now();
  }

  figures() {
    if (this.#first === null && this.#usage === null) return "Nothing came.";
    const parts = [];
    if (this.#first !== null) parts.push(`first token ${ms(this.#first - this.#start)}`);
    const tokens = this.#usage?.completion_tokens;
    const since = this.#events > 1 ? this.#first : this.#start; // what comes at once was all computed before
    const seconds = (this.#last - since) / 1000;
    if (tokens > 1 && seconds > 0.001) parts.push(`${Math.round(tokens / seconds).toLocaleString("en")} tokens/s`);
    if (tokens !== undefined) parts.push(`${tokens.toLocaleString("en")} ${tokens === 1 ? "token" : "tokens"}`);
    parts.push(`${ms(this.#last - this.#start)} in all`);
    return parts.join(" · ");
  }
}

const ms = (time) => (time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(1)} s`);
