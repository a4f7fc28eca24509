// Talking to the service: relative to where the page came from, so a proxy's sub-path does not matter.

const root = new URL("..", import.meta.url);
const KEY = "textgen-key"; // in sessionStorage: this tab only

export const address = (path) => new URL(path.replace(/^\//, ""), root).href;

let key = sessionStorage.getItem(KEY) ?? "";
export const hasKey = () => key !== "";

export function useKey(value) {
  key = value.trim();
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** What the service refused, in its own words. `param` names the field, `status` is 0 when nobody answered. */
export class Refusal extends Error {
  constructor(message, { status = 0, code = "", param = null, requestId = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, param, requestId });
  }
}

/** JSON with whole numbers of any size, which the browser's own cannot write: seeds go up to 2^63. */
export function encode(body) {
  const pairs = Object.entries(body).map(
    ([name, value]) => `${JSON.stringify(name)}: ${typeof value === "bigint" ? value : JSON.stringify(value)}`,
  );
  return `{${pairs.join(", ")}}`;
}

async function send(path, { body, signal } = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, body: body && encode(body), signal, cache: "no-store" };
  let response;
  try {
    response = await fetch(address(path), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The service does not answer. It may be restarting; what you typed is kept.");
  }
  if (!response.ok) throw await refusalOf(response);
  return response;
}

async function refusalOf(response) {
  const status = response.status;
  const requestId = response.headers.get("X-Request-ID") ?? "";
  try {
    const { code, message, param } = (await response.json()).error;
    const wait = response.headers.get("Retry-After");
    return new Refusal(wait ? `${message} (try again in ${wait} s)` : message, { status, code, param, requestId });
  } catch {
    return new Refusal(`Something in front of the service answered ${status} ${response.statusText}`, { status });
  }
}

export const getJson = async (path) => (await send(path)).json();
export const getText = async (path) => (await send(path)).text();
export const post = async (path, body, signal) => (await send(path, { body, signal })).json();

/** The events of a streamed reply: { type, data }; `error` events are thrown, the last one is `done`. */
export async function* events(path, body, signal) {
  const response = await send(path, { body: { ...body, stream: true }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const isOpenAI = path.startsWith("/v1/");
  for await (const frame of frames(reader)) {
    const lines = frame.split("\n");
    const type = lines.find((line) => line.startsWith("event: "))?.slice(7) ?? "message";
    const text = lines.find((line) => line.startsWith("data: "))?.slice(6);
    if (text === undefined) continue; // a comment: the stream is idle
    if (text === "[DONE]") return;
    const data = JSON.parse(text);
    if (type === "error" || data.error) {
      const { code, message, param, request_id: requestId } = data.error;
      throw new Refusal(message, { status: 200, code, param, requestId });
    }
    yield { type, data };
    if (type === "done") return;
  }
  throw new Refusal(
    isOpenAI ? "The answer ended early." : "The connection ended before the answer was complete. What came is kept.",
  );
}

/** Frames between empty lines; each character is looked at once, however large a frame is. */
async function* frames(reader) {
  let pieces = [];
  for (;;) {
    let next;
    try {
      next = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      return; // cut off: whoever reads the events says what is missing
    }
    if (next.done) return;
    let start = 0;
    const chunk = endsInNewline(pieces) && next.value.startsWith("\n") ? joinBreak(pieces, next.value) : next.value;
    for (let end; (end = chunk.indexOf("\n\n", start)) >= 0; start = end + 2) {
      pieces.push(chunk.slice(start, end));
      yield pieces.join("");
      pieces = [];
    }
    if (start < chunk.length) pieces.push(chunk.slice(start));
  }
}

const endsInNewline = (pieces) => pieces.length > 0 && pieces.at(-1).endsWith("\n");

/** The empty line may fall between two chunks: move its first half into the second one. */
function joinBreak(pieces, chunk) {
  pieces[pieces.length - 1] = pieces.at(-1).slice(0, -1);
  return `\n${chunk}`;
}
