// The tab "Summarize": a document of any length, its summary, and which part of it each sentence comes from.

import { documentInput, inUnits, MarkedText } from "./document.js";
import { copyButton, h, part } from "./dom.js";
import { MAIN, runs } from "./run.js";
import { GrowingText } from "./stream.js";

export function summarizePanel(panel) {
  const source = documentInput(part(panel, "document"), { field: "text" });
  const answer = part(panel, "answer");
  let summary, plan, planned, asked;

  const running = runs(panel, {
    verb: "Summarize",
    request: (read) => ({ path: "/summarize", body: { text: source.text(), ...read } }),
    begin({ body }) {
      asked = body.text;
      summary = new GrowingText();
      plan = h("p", { class: "hint" });
      answer.replaceChildren(plan, h("article", { class: "card" }, h("p", { class: "text" }, summary.element)));
    },
    show({ type, data }) {
      if (type === "plan") {
        planned = { text: planText(data), count: data.num_chunks, done: 0 };
        plan.textContent = planned.text;
      }
      if (type === "token") summary.append(data.text);
      if (type === "chunk") plan.textContent = `${planned.text} ${(planned.done += 1)} of ${planned.count} are done.`;
    },
    end(reply) {
      summary.seal();
      plan.textContent = planned.text;
      answer.replaceChildren(plan, summaryMap(asked, summary.text, reply.chunks));
    },
  });

  return { ...running, update: (facts) => running.useFields(facts, "/summarize", { main: ["strategy", ...MAIN], hidden: ["text"] }) };
}

const planText = ({ strategy, num_chunks: count }) =>
  count === 1 ? "Read as a whole." : `Read in ${count} parts, side by side (${strategy.replace("_", "-")}).`;

/** The summary by sentences beside the document by parts; pointing at one shows the other. */
export function summaryMap(text, summary, chunks) {
  const offsets = inUnits(text, chunks.flatMap(({ start, end }) => [start, end]));
  const parts = chunks.map((chunk, index) => ({ ...chunk, start: offsets[2 * index], end: offsets[2 * index + 1] }));
  const sources = sentencesOf(summary).map((sentence) => ({ sentence, ...sourceOf(sentence, text, parts) }));
  const spans = withoutOverlaps(sources.filter(({ start }) => start !== undefined));
  const reading = new MarkedText(text, spans, { "aria-label": "The document" });
  const where = h("p", { class: "hint", role: "status" }, "Point at a sentence to see where it comes from.");
  const bar = h("div", { class: "bar-map", "aria-hidden": "true" }, parts.map((each) => {
    const block = h("span", { title: each.summary });
    block.style.flexGrow = Math.max(each.end - each.start, 1);
    return block;
  }));
  const show = (source) => {
    reading.point(spans.indexOf(source));
    [...bar.children].forEach((block, index) => block.classList.toggle("current", source.chunks.includes(index)));
    where.textContent = whereText(source, parts.length);
  };
  const sentences = sources.map((source) =>
    h("span", { role: "button", tabindex: 0, class: "sentence", onpointerenter: () => show(source), onfocus: () => show(source), onclick: () => show(source) },
      source.sentence));
  return h("div", { class: "summary-map" },
    h("article", { class: "card" }, h("p", { class: "text" }, sentences), h("footer", {}, copyButton(() => summary))),
    where, bar, parts.length > 1 ? partList(parts, bar) : null, reading.element);
}

function whereText({ chunks, start }, count) {
  const place = count === 1 ? "the document" : `part ${chunks.map((index) => index + 1).join(", ")} of ${count}`;
  return start === undefined ? `In the model's words, from ${place}.` : `Word for word in ${place}.`;
}

const partList = (parts) =>
  h("details", {}, h("summary", {}, `What each of the ${parts.length} parts says`),
    h("ol", { class: "parts" }, parts.map(({ summary }) => h("li", {}, summary))));

const sentencesOf = (text) =>
  !Intl.Segmenter ? [text] : [...new Intl.Segmenter(undefined, { granularity: "sentence" }).segment(text)].map(({ segment }) => segment);

/** Where a sentence comes from: the parts it may be from, and its place if it stands there word for word. */
function sourceOf(sentence, text, parts) {
  const words = sentence.trim();
  const own = parts.flatMap(({ summary }, index) => (words && summary.includes(words) ? [index] : []));
  const chunks = own.length ? own : parts.map((_, index) => index);
  if (words === "") return { chunks };
  for (const index of chunks) {
    const found = asWritten(words).exec(text.slice(parts[index].start, parts[index].end));
    if (!found) continue;
    const start = parts[index].start + found.index;
    return { chunks: [index], start, end: start + found[0].length };
  }
  return { chunks };
}

/** Finds a sentence whose line breaks and spaces may differ in the document. */
const asWritten = (sentence) => new RegExp(sentence.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/\s+/g, "\\s+"));

function withoutOverlaps(spans) {
  const sorted = [...spans].sort((a, b) => a.start - b.start);
  return sorted.filter((span, index) => index === 0 || span.start >= sorted[index - 1].end);
}
