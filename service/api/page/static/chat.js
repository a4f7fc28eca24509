// The tab "Chat": a conversation. How the model holds one is the service's business; here it is a list of messages.

import { h, part } from "./dom.js";
import { runs } from "./run.js";
import { GrowingText } from "./stream.js";

const PATH = "/v1/chat/completions";
const MAIN = ["max_tokens", "temperature", "top_p", "top_k", "seed"];
// What the page sends itself, what is about other kinds of answers, and second names of the same thing.
const HIDDEN = ["messages", "model", "n", "stream_options", "overflow", "user", "max_completion_tokens", "top_logprobs",
  "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"];

export function chatPanel(panel) {
  const message = panel.querySelector("[name=message]");
  const list = h("div", { class: "turns", role: "log", "aria-label": "Conversation", tabindex: 0, "data-part": "answer" });
  part(panel, "answer").remove(); // a conversation stands above what is said next
  panel.querySelector(".paper").prepend(list);
  let turns = []; // { role, content }
  let model, asked, reply;

  const running = runs(panel, {
    verb: "Send",
    request(read) {
      const content = message.value.trim();
      if (content === "") throw Object.assign(new Error("Write a message first."), { param: "message" });
      const messages = [...turns, { role: "user", content }];
      const ours = { overflow: "drop_oldest", stream_options: { include_usage: true } };
      return { path: PATH, body: { model, messages, ...ours, ...read } };
    },
    begin({ body }) {
      turns = asked = body.messages;
      list.append(bubble("you", turns.at(-1).content));
      message.value = "";
      reply = new GrowingText();
      list.append(bubble("model", reply.element));
      list.scrollTop = list.scrollHeight;
    },
    show({ data }) {
      reply.append(data.choices[0]?.delta.content ?? "");
      list.scrollTop = list.scrollHeight;
    },
    end({ usage }) {
      const count = usage.dropped_messages;
      if (count) list.append(h("p", { class: "hint" }, `${count} messages at the beginning no longer fit and were left out.`));
    },
    ended() {
      reply.seal();
      if (turns !== asked) return; // a new conversation was begun
      if (reply.text.trim() === "") takeBack();
      else turns = [...turns, { role: "assistant", content: reply.text }];
      message.focus();
    },
  });

  /** Nothing was said, because it was stopped or refused: the message is the person's again. */
  function takeBack() {
    turns = asked.slice(0, -1);
    for (const each of [...list.querySelectorAll(".turn")].slice(-2)) each.remove();
    if (message.value === "") message.value = asked.at(-1).content;
  }

  message.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
    event.preventDefault();
    message.form.requestSubmit();
  });
  function beginAnew() {
    running.stop();
    turns = [];
    list.replaceChildren();
    message.focus();
  }
  const anew = h("button", { type: "button", class: "quiet new", onclick: beginAnew }, "New conversation");
  panel.querySelector(".actions").prepend(anew);

  return {
    ...running,
    update(facts) {
      model = facts.model;
      running.useFields(facts, PATH, { main: MAIN, hidden: HIDDEN });
    },
  };
}

const bubble = (by, ...content) =>
  h("div", { class: `turn ${by}` }, h("span", { class: "who" }, by === "you" ? "You" : "Model"), h("p", {}, content));
