// Form controls made from what the API says of its fields. An empty control is a field that is not sent.

import { h, newId } from "./dom.js";

const SLIDER_SPAN = 100; // wider ranges have a number box only
const LABELS = { n: "samples" };

/** A control: { node, name, read(), write(value), say(message) }. */
export function control(field, limits = {}) {
  const known = { ...field, max: Math.min(field.max ?? Infinity, limits[field.name] ?? Infinity) };
  const id = newId(field.name);
  const input = inputFor(known, id);
  const slider = sliderFor(known, input);
  const problem = h("small", { class: "problem", id: `${id}-problem`, role: "alert" });
  const hint = h("small", { class: "hint", id: `${id}-hint` }, legalText(known));
  input.setAttribute("aria-describedby", `${id}-hint ${id}-problem`);
  const name = LABELS[field.name] ?? field.name.replaceAll("_", " ");
  const isCheck = field.type === "boolean";
  const label = h("label", { for: id, class: isCheck ? "check" : null }, isCheck ? [input, ` ${name}`] : name);
  const node = h("div", { class: "field" }, label, isCheck ? null : hint, slider, isCheck ? null : input, problem);
  return {
    node,
    name: field.name,
    read: () => read(known, input),
    write(value) {
      if (isCheck) input.checked = value;
      else input.value = value;
      input.dispatchEvent(new Event("input"));
    },
    say(message) {
      problem.textContent = message;
      input.toggleAttribute("aria-invalid", message !== "");
      if (message) input.setAttribute("aria-invalid", "true");
    },
    focus: () => input.focus(),
  };
}

function legalText({ legal, max, name }) {
  return ["max_new_tokens", "max_tokens"].includes(name) && max < 2 ** 20 ? `1 to ${max}` : legal;
}

function inputFor({ type, min, max, isOpenMin, choices, name, initial }, id) {
  if (choices.length)
    return h("select", { id, name }, choices.map((choice) => h("option", { selected: choice === initial }, choice)));
  if (type === "boolean") return h("input", { id, name, type: "checkbox", checked: initial === true });
  if (type === "integer" && max > Number.MAX_SAFE_INTEGER)
    return h("input", { id, name, inputmode: "numeric", pattern: "\\d{1,19}", placeholder: "any", autocomplete: "off" });
  if (type === "integer" || type === "number") {
    const step = type === "integer" ? 1 : "any";
    const bound = (value) => (Number.isFinite(value) ? value : null);
    return h("input", { id, name, type: "number", step, min: isOpenMin ? null : bound(min), max: bound(max),
      placeholder: initial ?? "default", autocomplete: "off" });
  }
  if (type === "texts") return h("textarea", { id, name, rows: 1, placeholder: "one on each line" });
  if (type === "json") return h("textarea", { id, name, rows: 1, placeholder: "JSON" });
  return h("input", { id, name, autocomplete: "off", placeholder: "default" });
}

/** A slider beside the number box of a narrow range; both show the same value. */
function sliderFor({ type, min, max, isOpenMin, name }, input) {
  const isNarrow = (type === "number" || type === "integer") && max - min <= SLIDER_SPAN;
  if (!isNarrow) return null;
  const step = type === "integer" ? 1 : (max - min) / 100;
  const slider = h("input", { type: "range", min: isOpenMin ? min + step : min, max, step, class: "unset", tabindex: -1,
    "aria-hidden": "true" });
  const rest = { temperature: 1, top_p: 1 }[name] ?? (min < 0 ? 0 : min);
  const follow = () => {
    slider.value = input.value === "" ? rest : input.value;
    slider.classList.toggle("unset", input.value === "");
  };
  slider.addEventListener("input", () => {
    input.value = Number(Number(slider.value).toFixed(2));
    slider.classList.remove("unset");
  });
  input.addEventListener("input", follow);
  follow();
  return slider;
}

function read({ type, max, choices, initial, name }, input) {
  if (type === "boolean") return input.checked === (initial === true) ? undefined : input.checked;
  if (choices.length) return input.value === initial ? undefined : input.value;
  const text = input.value;
  if (text.trim() === "") return undefined;
  if (type === "integer" && max > Number.MAX_SAFE_INTEGER) return BigInt(text.trim());
  if (type === "integer" || type === "number") return Number(text);
  if (type === "texts") return text.split("\n").filter((line) => line !== "");
  if (type === "json") return parsed(text, name);
  return text;
}

function parsed(text, name) {
  try {
    return JSON.parse(text);
  } catch {
    throw Object.assign(new Error(`${name} must be JSON`), { param: name });
  }
}

/** Controls for some fields of a route, put into `node`; what was typed before is kept. Gives Map name -> control. */
export function fill(node, fields, names, limits) {
  const before = new Map([...node.querySelectorAll("[name]")].map((input) => [input.name, input]));
  const controls = new Map(
    names.filter((name) => fields.has(name)).map((name) => [name, control(fields.get(name), limits)]),
  );
  node.replaceChildren(...[...controls.values()].map((each) => each.node));
  for (const [name, input] of before)
    controls.get(name)?.write(input.type === "checkbox" ? input.checked : input.value);
  return controls;
}
