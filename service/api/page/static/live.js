// The strip that tells what the service is doing, from /metrics; and who notices that it went away and came back.

import { getText } from "./api.js";

const EVERY_MS = 2000;
const KEPT = 60; // speeds in the line

const metric = (text, name) => {
  let sum = null;
  for (const [, value] of text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? ([0-9.e+-]+)`, "gm"))) sum = (sum ?? 0) + Number(value);
  return sum;
};

/**
 * Look every two seconds while the page is in sight.
 *
 * onAway(refusal): nobody answered, or not as expected. onBack(): somebody does again, perhaps a new process.
 */
export function watch({ onAway, onBack }) {
  const by = (name) => document.getElementById(`live-${name}`);
  const speeds = Array(KEPT).fill(0);
  let last = null; // { at, tokens }
  let isAway = false;

  async function look() {
    if (document.hidden) return;
    let text;
    try {
      text = await getText("/metrics");
    } catch (refusal) {
      last = null;
      isAway = isAway || refusal.status === 0;
      if (refusal.status === 0) onAway(refusal); // a key, or a proxy, may keep the figures: nothing is wrong then
      else showFigures(false);
      return;
    }
    const tokens = metric(text, "textgen_generation_tokens_total") ?? 0;
    const isNew = last !== null && tokens < last.tokens;
    if (isAway || isNew) onBack();
    isAway = false;
    showFigures(true);
    show(text, tokens);
  }

  function showFigures(areKnown) {
    for (const figure of document.querySelectorAll("#live > :not(.state)")) figure.hidden = !areKnown;
  }

  function show(text, tokens) {
    const at = performance.now();
    const speed = last ? Math.max(0, ((tokens - last.tokens) * 1000) / (at - last.at)) : 0;
    last = { at, tokens };
    speeds.push(speed);
    speeds.shift();
    by("running").textContent = metric(text, "textgen_requests_running") ?? "–";
    by("waiting").textContent = metric(text, "textgen_requests_waiting") ?? "–";
    by("speed").textContent = Math.round(speed).toLocaleString("en");
    const used = metric(text, "textgen_kv_blocks_used_ratio");
    by("kv").textContent = used === null ? "–" : `${Math.round(used * 100)} %`;
    const top = Math.max(...speeds, 1);
    const points = speeds.map((each, index) => `${index},${15 - (each / top) * 13}`);
    by("line").firstElementChild.setAttribute("points", points.join(" "));
  }

  look();
  setInterval(look, EVERY_MS);
  document.addEventListener("visibilitychange", look);
}
