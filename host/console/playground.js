// Sends a request as a client would, or asks what would be decided.

import { act, sendAction } from "./actions.js";
import { call } from "./api.js";
import { el, notice } from "./dom.js";
import { explanation } from "./decisions.js";

const endpoints = ["chat/completions", "completions", "embeddings", "responses", "messages"];
const example = { messages: [{ role: "user", content: "Hello!" }], max_tokens: 32 };

async function read(response, output) {
  output.textContent = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    output.textContent = (output.textContent + value).slice(-200000);
  }
}

/** Returns the explanation of a request that has just ended; it may take a moment to appear. */
async function decided(id) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await call("GET", `/decisions/${encodeURIComponent(id)}`);
    } catch (error) {
      if (attempt === 5) throw error;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
}

/** The page of the playground. */
export function playground(main, host) {
  const endpoint = el("select", { id: "endpoint" },
    endpoints.map((path) => el("option", { value: path }, path)));
  const models = [...new Set((host.state?.lanes ?? []).flatMap((lane) => lane.models ?? []))];
  const body = el("textarea", { id: "body", spellcheck: "false" });
  body.value = JSON.stringify({ model: models[0] ?? "", ...example }, null, 2);
  const key = el("input", { id: "key", type: "password", autocomplete: "off",
    placeholder: "none" });
  const output = el("pre", { id: "response", tabindex: 0 });
  const facts = el("p", { class: "faint" });
  const decision = el("div", { id: "decision" });
  const parsed = () => {
    try {
      return JSON.parse(body.value);
    } catch (error) {
      throw new Error(`The body is not JSON: ${error.message}`);
    }
  };
  const guarded = (work) => async (event) => {
    const button = event.currentTarget;
    button.disabled = true;
    decision.replaceChildren();
    try {
      await work();
    } catch (error) {
      notice(error.message, true);
    }
    button.disabled = false;
  };
  const sendIt = guarded(async () => {
    const headers = key.value ? { "x-pointsman-client-key": key.value } : {};
    const begun = performance.now();
    const response = await sendAction("playground-send", endpoint.value, parsed(), headers);
    await read(response, output);
    const id = response.headers.get("x-request-id");
    const ms = Math.round(performance.now() - begun);
    const lane = response.headers.get("x-pointsman-lane") ?? "none";
    facts.textContent = `Status ${response.status}, lane ${lane}, ${ms} ms, request ${id}`;
    if (id) decision.replaceChildren(el("h2", {}, "Decision"), explanation(await decided(id)));
  });
  const ask = guarded(async () => {
    const headers = { "x-pointsman-decide-path": `/v1/${endpoint.value}` };
    const found = await act("playground-decide", null, parsed(), headers);
    output.textContent = "";
    facts.textContent = "Nothing was sent to an engine.";
    decision.replaceChildren(el("h2", {}, "What would be decided"), explanation(found));
  });
  main.append(el("h2", {}, "Playground"),
    el("label", { for: "endpoint" }, "Endpoint"), endpoint,
    el("label", { for: "body" }, "Body"), body,
    el("label", { for: "key" }, "API key of a client"), key,
    el("p", { class: "row" },
      el("button", { type: "button", id: "send", onclick: sendIt }, "Send"),
      el("button", { type: "button", id: "decide", onclick: ask }, "Only decide")),
    facts, output, decision);
  return {};
}
