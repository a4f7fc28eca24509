// The tab "Write": a prompt goes on, once or several times side by side.

import { copyButton, h, part } from "./dom.js";
import { MAIN, runs } from "./run.js";
import { GrowingText } from "./stream.js";
import { colour, legend } from "./tokens.js";

const NUM_ALTERNATIVES = 5;

export function writePanel(panel) {
  const prompt = panel.querySelector("[name=prompt]");
  const colours = h("input", { type: "checkbox", name: "colours", checked: true });
  part(panel, "main-fields").after(h("label", { class: "check" }, colours, " Colour tokens by probability"));
  const answer = part(panel, "answer");
  let cards = [];

  const running = runs(panel, {
    verb: "Write",
    request: (read) => ({
      path: "/generate",
      body: { prompt: prompt.value, ...read, ...(colours.checked ? { logprobs: NUM_ALTERNATIVES } : {}) },
    }),
    begin({ body }) {
      cards = Array.from({ length: body.n ?? 1 }, (_, index) => card(index, body));
      answer.className = `answer ${cards.length > 1 ? "several" : ""}`;
      answer.replaceChildren(...cards.map(({ node }) => node));
    },
    show({ type, data }) {
      if (type === "token") cards[data.index].text.append(data.text);
    },
    async end(reply) {
      const again = h("button", { type: "button", class: "quiet", onclick: () => running.write("seed", reply.seed) }, "Use it again");
      answer.append(h("p", { class: "seed" }, `Seed ${reply.seed} `, again));
      if (reply.choices.some((choice) => choice.logprobs)) answer.append(legend());
      await finishAll(cards, reply.choices);
    },
  });

  function card(index, body) {
    const isOne = (body.n ?? 1) === 1;
    const text = new GrowingText({ class: "continuation" });
    const opening = isOne && !body.echo ? h("span", { class: "opening" }, body.prompt) : null;
    const foot = h("footer", {}, isOne ? null : `${index + 1}`);
    const aside = h("div", { class: "alternatives", role: "status" });
    const node = h("article", { class: "card" }, h("p", { class: "text" }, opening, text.element), aside, foot);
    foot.append(copyButton(() => (opening ? body.prompt : "") + text.text));
    return { node, text, foot, aside };
  }

  return {
    ...running,
    update: (facts) => running.useFields(facts, "/generate", { main: ["n", ...MAIN], hidden: ["prompt"] }),
  };
}

/** One card after the other: side by side, their tokens would all be made in the same frame. */
async function finishAll(cards, choices) {
  for (const { index, ...choice } of choices) await finish(cards[index], choice);
}

async function finish({ text, aside, foot }, { finish_reason: reason, logprobs }) {
  foot.prepend(h("span", {}, reason === "length" ? "ended at its length" : "ended by itself"));
  text.seal();
  if (logprobs) await colour(text.element, aside, text.text, logprobs);
}
