// The tab "Chat": a conversation, by the chat endpoint where there is one, else by a task that takes a history.

import { h, part } from "./dom.js";
import { runs } from "./run.js";
import { GrowingText } from "./stream.js";

const ENDPOINT = "/v1/chat/completions";

/** How this service can chat: { path, body(turns), text(event) }, or null. */
export function dialectOf({ openapi, tasks, model }) {
  const task = tasks.find(({ kind, fields }) => kind === "generate" && fields.every((field) => ["history", "speaker"].includes(field)) && fields.includes("history"));
  if (task) return taskDialect(task);
  if (!openapi?.paths[ENDPOINT]) return null;
  return {
    path: ENDPOINT,
    schema: ENDPOINT,
    hidden: ["messages", "model"],
    body: (turns) => ({ model, messages: turns.map(({ by, text }) => ({ role: by === "you" ? "user" : "assistant", content: text })) }),
    text: ({ data }) => data.choices?.[0]?.delta?.content ?? "",
  };
}

/** A history in lines "A: …" and "B: …", and whose turn it is: what the built-in task takes. */
function taskDialect(task) {
  const line = ({ by, text }) => `${by === "you" ? "A" : "B"}: ${text.replace(/\s+/g, " ").trim()}`;
  return {
    path: `/tasks/${task.name}`,
    schema: "/tasks/{name}",
    hidden: ["n", "echo", "strategy", "num_answers", "no_answer", "grounded"],
    body: (turns) => ({
      history: turns.map(line).join("\n"),
      ...(task.fields.includes("speaker") ? { speaker: "B" } : {}),
    }),
    text: ({ type, data }) => (type === "token" ? data.text : ""),
  };
}

export function chatPanel(panel) {
  const message = panel.querySelector("[name=message]");
  const list = part(panel, "turns");
  let turns = [];
  let dialect, reply;

  const running = runs(panel, {
    verb: "Send",
    request(read) {
      const text = message.value.trim();
      if (text === "") throw Object.assign(new Error("Write a message first."), { param: "message" });
      return { path: dialect.path, body: { ...dialect.body([...turns, { by: "you", text }]), ...read } };
    },
    begin() {
      say({ by: "you", text: message.value.trim() });
      message.value = "";
      reply = new GrowingText();
      list.append(bubble("model", reply.element));
    },
    show(event) {
      const text = dialect.text(event);
      reply.append(reply.text ? text : text.trimStart()); // the space after "B:"
      list.scrollTop = list.scrollHeight;
    },
    end() {},
    ended() {
      reply.seal();
      if (reply.text.trim() === "") list.lastElementChild.remove(); // nothing was said: stopped, or refused
      else turns.push({ by: "model", text: reply.text });
      message.focus();
    },
  });

  function say(turn) {
    turns.push(turn);
    list.append(bubble("you", turn.text));
    list.scrollTop = list.scrollHeight;
  }

  message.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
    event.preventDefault();
    message.form.requestSubmit();
  });
  part(panel, "new").addEventListener("click", () => {
    running.stop();
    turns = [];
    list.replaceChildren();
    message.focus();
  });

  return {
    ...running,
    update(facts) {
      dialect = dialectOf(facts);
      if (dialect) running.useFields(facts, dialect.schema, { hidden: dialect.hidden });
    },
  };
}

const bubble = (by, ...content) =>
  h("div", { class: `turn ${by}` }, h("span", { class: "who" }, by === "you" ? "You" : "Model"), h("p", {}, content));
