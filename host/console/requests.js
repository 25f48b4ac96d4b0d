// The queue and the requests in flight.

import { ask } from "./actions.js";
import { el, replace, table } from "./dom.js";
import { duration } from "./format.js";

const cancel = (id) => ask("request-cancel", id, `Cancel request ${id}? Its client gets an error.`,
  "Cancel request",
  ({ cancelled }) => `${cancelled} request${cancelled === 1 ? "" : "s"} cancelled`);

const cell = (value) => el("td", {}, value ?? "–");

function button(request) {
  return el("td", {}, el("button", { type: "button", class: "danger", "data-focus": request.id,
    "data-action": "request-cancel", onclick: () => cancel(request.id) }, "Cancel"));
}

function age(request, host) {
  return el("td", { class: "num" }, duration(Math.max(0, host.now() - request.arrived_unix_ms)));
}

/** The page of the queue and of requests in flight. */
export function requests(main, host) {
  const queue = el("div", { id: "queue" });
  const flight = el("div", { id: "in-flight" });
  main.append(el("h2", {}, "Queue"), queue, el("h2", {}, "In flight"), flight);
  const draw = () => {
    if (!host.state) return;
    const all = host.state.requests;
    const waiting = all.filter((request) => request.state === "queued")
      .sort((a, b) => (a.position ?? 0) - (b.position ?? 0));
    replace(queue, table(["Place", "Lane", "Model", "Tenant", "Waiting", "Waits for", "Id", ""],
      waiting.map((request) => el("tr", {}, cell(request.position), cell(request.lane),
        cell(request.model), cell(request.tenant), age(request, host), cell(request.why),
        cell(request.id), button(request))), "No request waits."));
    const running = all.filter((request) => request.state !== "queued");
    const heads = ["State", "Lane", "Model", "Endpoint", "Tenant", "Age", "Tokens", "Id", ""];
    replace(flight, table(heads,
      running.map((request) => el("tr", {}, cell(request.state), cell(request.lane),
        cell(request.model), cell(request.endpoint), cell(request.tenant), age(request, host),
        cell(request.tokens), cell(request.id), button(request))), "No request is in flight."));
  };
  return { state: draw, tick: draw };
}
