// Making elements. Text is only ever set as text, so nothing that a model writes can become markup.

/** An element: h("button", { class: "quiet", onclick: act }, "Copy"). False and null values are left out. */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

/** The element that plays a part in a panel: `data-part="answer"`. */
export const part = (panel, name) => panel.querySelector(`[data-part="${name}"]`);

/** Lay what a panel asks for on a desk: its button, its answer and its options around it. */
export function layDesk(panel) {
  const desk = document.getElementById("desk").content.cloneNode(true);
  desk.querySelector("slot").replaceWith(...panel.childNodes);
  panel.append(desk);
}

let lastId = 0;
export const newId = (prefix) => `${prefix}-${++lastId}`;

/** A button that copies what `text()` gives, and says so. */
export function copyButton(text, label = "Copy") {
  const button = h("button", { type: "button", class: "quiet" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser does not allow it"; // plain http on another host: there is no clipboard
    }
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

export const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
