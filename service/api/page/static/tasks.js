// The tab "Tasks": a form for each task that the served model declares.

import { answerView } from "./ask.js";
import { copyButton, h, newId, part, percent } from "./dom.js";
import { MAIN, runs } from "./run.js";
import { GrowingText } from "./stream.js";
import { summaryMap } from "./summarize.js";

const OPTIONS = {
  generate: ["n", "echo"],
  summarize: ["strategy"],
  qa: ["num_answers", "no_answer", "grounded"],
  choice: [],
};
const ALL_OPTIONS = Object.values(OPTIONS).flat();

export function tasksPanel(panel) {
  const name = panel.querySelector("[name=task]");
  const inputs = part(panel, "task-fields");
  const answer = part(panel, "answer");
  let facts, asked, texts;
  const task = () => facts.tasks.find((each) => each.name === name.value);

  const running = runs(panel, {
    verb: "Run",
    request: (read) => ({ path: `/tasks/${task().name}`, body: { ...fieldValues(), ...read } }),
    begin({ body }) {
      asked = { task: task(), fields: fieldValues() };
      texts = Array.from({ length: body.n ?? 1 }, () => new GrowingText());
      answer.replaceChildren(...texts.map((text) =>
        h("article", { class: "card" }, h("p", { class: "text" }, text.element), h("footer", {}, copyButton(() => text.text)))));
    },
    show({ type, data }) {
      if (type === "token") texts[data.index ?? 0].append(data.text);
    },
    end(reply) {
      texts.forEach((text) => text.seal());
      answer.replaceChildren(...view(asked, reply, texts));
    },
  });

  const fieldValues = () => Object.fromEntries([...inputs.querySelectorAll("textarea")].map((box) => [box.name, box.value]));

  function choose() {
    const { kind, fields, labels, description } = task();
    part(panel, "description").textContent = labels.length ? `${description} One of: ${labels.join(", ")}.` : description;
    inputs.replaceChildren(...fields.flatMap((field) => {
      const id = newId(field);
      return [h("label", { for: id }, field.replaceAll("_", " ")), h("textarea", { id, name: field, rows: fields.length > 1 ? 3 : 5, "data-field": field })];
    }));
    answer.replaceChildren();
    running.useFields(facts, "/tasks/{name}", { main: [...OPTIONS[kind], ...MAIN], hidden: ALL_OPTIONS.filter((each) => !OPTIONS[kind].includes(each)) });
  }

  name.addEventListener("change", choose);
  return {
    ...running,
    update(newFacts) {
      const before = name.value;
      const isSame = JSON.stringify(facts?.tasks) === JSON.stringify(newFacts.tasks);
      facts = newFacts;
      if (isSame) return;
      name.replaceChildren(...facts.tasks.map((each) => h("option", { value: each.name }, each.name)));
      if (facts.tasks.some((each) => each.name === before)) name.value = before;
      choose();
    },
  };
}

function view({ task, fields }, reply, texts) {
  if (task.kind === "choice") return [bars(reply)];
  if (task.kind === "summarize") return [summaryMap(fields.text, texts[0].text, reply.chunks)];
  if (task.kind === "qa") return answerView(fields.context, { answer: texts[0].text, ...reply });
  return texts.map((text, index) =>
    h("article", { class: "card" }, h("p", { class: "text" }, text.text),
      h("footer", {}, reply.choices[index].finish_reason === "length" ? "ended at its length" : "ended by itself", copyButton(() => text.text))));
}

/** A choice's scores, the label that won first in sight by its weight, in the task's own order. */
export function bars({ label, scores }) {
  return h("table", { class: "bars" }, h("caption", {}, "Answer: ", h("b", {}, label)),
    h("tbody", {}, Object.entries(scores).map(([name, share]) => {
      const meter = h("span", { class: "meter" });
      meter.style.width = `${share * 100}%`;
      return h("tr", { class: name === label ? "best" : null }, h("th", { scope: "row" }, name), h("td", {}, percent(share)), h("td", { class: "track" }, meter));
    })));
}
