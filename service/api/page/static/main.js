// Starts the page: asks the service what it is, shows the tabs that its model can fill, and stays when it goes away.

import { getJson, useKey } from "./api.js";
import { askPanel } from "./ask.js";
import { chatPanel } from "./chat.js";
import { layDesk } from "./dom.js";
import { watch } from "./live.js";
import { summarizePanel } from "./summarize.js";
import { tabs } from "./tabs.js";
import { tasksPanel } from "./tasks.js";
import { writePanel } from "./write.js";

const RETRY_MS = 2000;
const by = (id) => document.getElementById(id);
document.querySelectorAll("[role=tabpanel]").forEach(layDesk);
const panels = {
  write: writePanel(by("write")),
  summarize: summarizePanel(by("summarize")),
  ask: askPanel(by("ask")),
  chat: chatPanel(by("chat")),
  tasks: tasksPanel(by("tasks")),
};
const { show } = tabs(by("tabs"));
let retry = null;

/** What the service says of itself: { openapi, info, tasks, chat, model }; the first two are null where a proxy keeps them. */
async function askFacts() {
  const [openapi, info, { tasks, chat }, models] = await Promise.all([
    unlessKept("/openapi.json"),
    unlessKept("/info"),
    getJson("/tasks"),
    getJson("/v1/models"),
  ]);
  return { openapi, info, tasks, chat, model: models.data[0].id };
}

/** A page of operations, or null where a proxy in front keeps those inside. */
async function unlessKept(path) {
  try {
    return await getJson(path);
  } catch (refusal) {
    if (refusal.status === 403 || refusal.status === 404) return null;
    throw refusal;
  }
}

const canFill = {
  write: ({ tasks }) => tasks.some(({ name, kind }) => name === "generate" && kind === "generate"),
  summarize: ({ tasks }) => tasks.some(({ name, kind }) => name === "summarize" && kind === "summarize"),
  ask: ({ tasks }) => tasks.some(({ name, kind }) => name === "qa" && kind === "qa"),
  chat: ({ chat }) => Boolean(chat),
  tasks: ({ tasks }) => tasks.length > 0,
};

async function refresh() {
  clearTimeout(retry);
  retry = null;
  let facts;
  try {
    facts = await askFacts();
  } catch (refusal) {
    return explain(refusal);
  }
  notice("");
  say("ready");
  by("model").textContent = [facts.model, facts.info?.model.version].filter(Boolean).join(" ");
  document.title = `${facts.model} · textgen`;
  for (const [name, panel] of Object.entries(panels)) {
    const can = canFill[name](facts);
    if (can) panel.update(facts);
    show(name, can);
  }
}

/** Why the service cannot be used now; tried again by itself unless a person has to act. */
function explain(refusal) {
  if (refusal.status === 401) {
    say("wants a key");
    openKey(true);
    notice(refusal.message);
    return;
  }
  say(refusal.code === "not_ready" ? "loading" : "away");
  notice(refusal.message);
  // the strip notices, too, at the same pace: it may neither add attempts nor put the next one off for ever
  retry ??= setTimeout(refresh, RETRY_MS);
}

function say(state) {
  const place = by("live-state");
  if (place.textContent !== state) place.textContent = state;
  by("live").dataset.state = state;
}

function notice(text) {
  by("away").textContent = text;
  by("away").hidden = text === "";
}

function openKey(isOpen) {
  by("key-form").hidden = !isOpen;
  by("key-button").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) by("key").focus();
}

by("key-button").addEventListener("click", () => openKey(by("key-form").hidden));
by("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(by("key").value);
  openKey(false);
  refresh();
});

refresh();
watch({ onAway: explain, onBack: refresh });
