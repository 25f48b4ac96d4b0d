// Makes elements. Texts are set as text and never parsed as HTML.

/** Returns an element with attributes, `onclick`-like handlers, and children. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined)
    .map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** Returns an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** Returns a table. On a phone, each row is shown as a list of heads and values. */
export function table(heads, rows, empty = "Nothing.") {
  if (rows.length === 0) return el("p", { class: "faint" }, empty);
  for (const row of rows) {
    [...row.cells].forEach((cell, index) => cell.setAttribute("data-head", heads[index] ?? ""));
  }
  const head = el("tr", {}, heads.map((text) => el("th", { scope: "col" }, text)));
  return el("div", { class: "scroll" },
    el("table", {}, el("thead", {}, head), el("tbody", {}, rows)));
}

/** Returns a list of terms and values; values that are not known are left out. */
export function terms(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", {}, known.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
}

/** Shows a short message for some seconds. */
export function notice(text, isBad = false) {
  const line = el("p", { class: isBad ? "bad" : "" }, text);
  document.getElementById("notices").append(line);
  setTimeout(() => line.remove(), isBad ? 12000 : 5000);
}

/** Asks for a confirmation; resolves to true or false. */
export function confirmed(question, verb) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-text").textContent = question;
  document.getElementById("confirm-yes").textContent = verb;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// What is drawn when the pointer is up again: a button that is replaced while it is pressed would
// not be clicked.
const waiting = new Map();
let isPressed = false;
document.addEventListener("pointerdown", () => { isPressed = true; }, true);
for (const name of ["pointerup", "pointercancel"]) {
  // After the click.
  document.addEventListener(name, () => setTimeout(() => {
    isPressed = false;
    const all = [...waiting];
    waiting.clear();
    for (const [element, children] of all) replace(element, ...children);
  }), true);
}

/** Replaces the content of an element unless it is the same; keeps the focus where it was. */
export function replace(element, ...children) {
  if (isPressed) {
    waiting.set(element, children);
    return;
  }
  const fresh = el(element.tagName, {}, ...children);
  if (fresh.innerHTML === element.innerHTML) return;
  const active = document.activeElement;
  const focus = element.contains(active) ? active.dataset.focus : undefined;
  element.replaceChildren(...fresh.childNodes);
  if (focus === undefined) return;
  element.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
}
