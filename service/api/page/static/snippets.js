// A request as code to copy: curl, Python, JavaScript. The key is never in it, only where it goes.

import { address, hasKey } from "./api.js";
import { copyButton, h } from "./dom.js";

const pairs = (body) => Object.entries(body).filter(([, value]) => value !== undefined);
const literal = (value) => (typeof value === "bigint" ? `${value}` : JSON.stringify(value));

export function curl({ path, body }) {
  const json = `{${pairs(body).map(([name, value]) => `"${name}": ${literal(value)}`).join(", ")}}`;
  const key = hasKey() ? ` \\\n  -H "Authorization: Bearer $KEY"` : "";
  const stream = body.stream ? "-N " : "";
  return `curl ${stream}${shell(address(path))} -H 'Content-Type: application/json'${key} \\\n  -d ${shell(json)}`;
}

/** In single quotes nothing has a meaning but the quote itself. */
const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

export function python({ path, body }) {
  const lines = pairs(body).map(([name, value]) => `    "${name}": ${pythonLiteral(value)},`);
  const key = hasKey() ? `, headers={"Authorization": f"Bearer {os.environ['KEY']}"}` : "";
  const imports = ["import json", ...(hasKey() ? ["import os"] : []), "", "import httpx", ""];
  const call = `httpx.stream("POST", ${JSON.stringify(address(path))}, json=body${key}, timeout=None)`;
  return [...imports, "body = {", ...lines, "}", `with ${call} as reply:`, "    for line in reply.iter_lines():",
    `        if line.startswith("data: {"):`, "            print(json.loads(line[6:]))"].join("\n");
}

function pythonLiteral(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  if (value !== null && typeof value === "object")
    return `{${Object.entries(value).map(([name, each]) => `${pythonLiteral(name)}: ${pythonLiteral(each)}`).join(", ")}}`;
  return value === null ? "None" : literal(value); // JSON's strings and numbers are Python's, too
}

export function javascript({ path, body }) {
  const key = hasKey() ? `, "Authorization": \`Bearer \${process.env.KEY}\`` : "";
  const lines = pairs(body).map(([name, value]) => `"${name}": ${literal(value)}`).join(", ");
  return [`const reply = await fetch(${JSON.stringify(address(path))}, {`, `  method: "POST",`,
    `  headers: { "Content-Type": "application/json"${key} },`, `  body: ${quoted(`{${lines}}`)},`, "});",
    "for await (const piece of reply.body.pipeThrough(new TextDecoderStream())) console.log(piece);"].join("\n");
}

/** A JavaScript string; JSON's escapes are JavaScript's. */
const quoted = (text) => JSON.stringify(text);

const LANGUAGES = { curl, Python: python, JavaScript: javascript };

/** The three, one shown at a time. */
export function snippets({ path, body }) {
  const request = { path, body: { ...body, stream: true } };
  const text = h("code");
  const buttons = Object.entries(LANGUAGES).map(([name, write]) =>
    h("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: (event) => choose(event.target, write) }, name),
  );
  function choose(button, write) {
    for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
    text.textContent = write(request);
  }
  choose(buttons[0], curl);
  return h("div", { class: "snippet" },
    h("div", { class: "row" }, buttons, copyButton(() => text.textContent)),
    h("pre", { tabindex: 0, "aria-label": "The request" }, text));
}
