// The tab "Ask": a document and a question; the answer marked in the text, the other candidates with their scores.

import { documentInput, inUnits, MarkedText } from "./document.js";
import { h, part } from "./dom.js";
import { runs } from "./run.js";

const NUM_CANDIDATES = 5;

export function askPanel(panel) {
  const source = documentInput(part(panel, "document"), { field: "context" });
  const question = panel.querySelector("[name=question]");
  const answer = part(panel, "answer");
  let asked;

  const running = runs(panel, {
    verb: "Ask",
    request: (read) => ({
      path: "/qa",
      body: { question: question.value, context: source.text(), ...read },
    }),
    begin({ body }) {
      asked = body.context;
      answer.replaceChildren();
    },
    show() {},
    end: (reply) => answer.replaceChildren(...answerView(asked, reply)),
  });

  return {
    ...running,
    update: (facts) =>
      running.useFields(facts, "/qa", {
        main: ["num_answers", "no_answer", "grounded"],
        hidden: ["question", "context"],
        values: { num_answers: NUM_CANDIDATES },
      }),
  };
}

/** The answer, its candidates, and the text with all of them marked. */
export function answerView(text, reply) {
  const candidates = (reply.answers ?? [reply]).map((each) => ({ answer: reply.answer, ...each }));
  const [best] = candidates;
  const topScore = Math.max(...candidates.map(({ score }) => score));
  const units = inUnits(text, candidates.flatMap(({ start, end }) => [start, end]));
  const placed = candidates.map((each, index) => ({ ...each, start: units[2 * index], end: units[2 * index + 1] }));
  const marked = marksOf(placed);
  const reading = new MarkedText(text, marked, { "aria-label": "The document, answers marked" });
  reading.marks[marked.indexOf(placed[0])]?.classList.add("best");
  const list = h("ol", { class: "candidates" }, placed.map((each) => candidateRow(each, topScore, () => reading.point(marked.indexOf(each)))));
  requestAnimationFrame(() => reading.point(marked.indexOf(placed[0])));
  return [
    h("article", { class: "card" }, headline(best, candidates.length > 1)),
    placed.length > 1 ? h("h2", {}, "Candidates, and how likely each is beside the best") : null,
    placed.length > 1 ? list : null,
    reading.element,
  ].filter(Boolean);
}

function headline({ answer, score }, hasOthers) {
  const certainty = `Score ${score.toFixed(1)}: ${score >= 0 ? "above" : "below"} 0 means the text answers ${score >= 0 ? "it" : "it less likely than not"}.`;
  if (answer) return [h("p", { class: "text answer-text" }, answer), h("footer", {}, certainty)];
  return [
    h("p", { class: "text" }, "The text does not answer this."),
    h("footer", {}, `Score ${score.toFixed(1)}: the best candidate is less likely than no answer${hasOthers ? "; see for yourself below" : ""}.`),
  ];
}

function candidateRow({ answer, score }, topScore, point) {
  const meter = h("span", { class: "meter" });
  meter.style.width = `${100 * Math.exp(score - topScore)}%`; // a score is a logarithm of odds
  return h("li", {}, h("button", { type: "button", onclick: point, onfocus: point, onpointerenter: point, disabled: answer === "" },
    h("span", {}, answer || "no answer"), h("span", { class: "figure" }, score.toFixed(1)), meter));
}

/** Those with a place, in the text's order, without overlaps; better ones win. */
function marksOf(candidates) {
  const kept = [];
  for (const each of candidates)
    if (each.start !== null && kept.every(({ start, end }) => each.end <= start || each.start >= end)) kept.push(each);
  return kept.sort((a, b) => a.start - b.start);
}
