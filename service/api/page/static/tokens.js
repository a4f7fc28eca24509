// A choice's tokens, coloured by how likely each was, with what else could have stood there.

import { h, percent } from "./dom.js";
import { inSlices } from "./stream.js";

const BOUNDS = [0.5, 0.2, 0.05, 0.01]; // above the first: no colour

const shade = (probability) => BOUNDS.findIndex((bound) => probability >= bound);
const shown = (token) => (token === "" ? "∅" : token.replaceAll("\n", "⏎").replaceAll(" ", "␣"));

/** What the colours mean. */
export const legend = () =>
  h("p", { class: "legend" }, "How likely each token was: ",
    [...BOUNDS, 0].map((bound, index) =>
      h("span", { class: `p${index === BOUNDS.length ? "-1" : index}` },
        index === BOUNDS.length ? `below ${percent(BOUNDS.at(-1))}` : `${percent(bound)} up`)));

/**
 * Put coloured tokens into `place`, and their alternatives into `aside` when one is pointed at or reached by arrow keys.
 */
export async function colour(place, aside, text, logprobs) {
  const pieces = aligned(text, logprobs);
  place.replaceChildren();
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", "Tokens: the arrow keys go from one to the next");
  place.tabIndex = 0;
  const spans = [];
  let current = -1;
  const show = (index) => {
    spans[current]?.classList.remove("current");
    current = index;
    spans[index].classList.add("current");
    aside.replaceChildren(...alternatives(pieces[index]));
  };
  place.onpointerover = place.onclick = (event) => {
    const index = spans.indexOf(event.target);
    if (index >= 0) show(index);
  };
  place.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !spans.length) return;
    event.preventDefault();
    show(Math.min(Math.max(current + step, 0), spans.length - 1));
    spans[current].scrollIntoView({ block: "nearest" });
  };
  await inSlices(pieces, (piece) => {
    const probability = Math.exp(Math.min(...piece.scores.map(({ logprob }) => logprob ?? 0)));
    const span = h("span", { class: `t p${shade(probability)}` }, piece.text);
    spans.push(span);
    place.append(span);
  });
}

function alternatives({ scores }) {
  return scores.map(({ token, logprob, top }) =>
    h("div", { class: "chosen" },
      h("b", {}, shown(token)), ` ${percent(Math.exp(logprob ?? 0))}`,
      h("ol", {}, top.map((other) => {
        const share = Math.exp(other.logprob);
        const meter = h("span", { class: "meter" });
        meter.style.width = `${Math.max(share * 100, 1)}%`;
        return h("li", { class: other.token === token ? "is-chosen" : null },
          h("span", {}, shown(other.token)), h("span", {}, percent(share)), meter);
      }))));
}

/**
 * Give each token its part of the text. Tokens that hold parts of one character (U+FFFD each) share it; what a stop
 * string cut off has no part.
 */
export function aligned(text, logprobs) {
  const pieces = [];
  let position = 0;
  let broken = [];
  for (const score of logprobs) {
    if (position >= text.length) break;
    if (score.token.includes("\ufffd")) {
      broken.push(score);
      continue;
    }
    let start = position;
    if (broken.length) {
      start = text.indexOf(score.token, position + 1);
      if (start < 0) start = text.length;
      pieces.push({ text: text.slice(position, start), scores: broken });
      broken = [];
    }
    pieces.push({ text: text.slice(start, start + score.token.length), scores: [score] });
    position = start + score.token.length;
  }
  if (position < text.length) pieces.push({ text: text.slice(position), scores: broken.length ? broken : logprobs.slice(-1) });
  return pieces.filter((piece) => piece.text !== "" && piece.scores.length);
}
