// Policies: versions, what they have done, and what operators do with them.

import { ask } from "./actions.js";
import { call } from "./api.js";
import { el, replace, table, terms } from "./dom.js";
import { explain } from "./decisions.js";
import { duration, time } from "./format.js";

const actions = [
  ["policy-promote", "Promote", "Let the candidate decide from now on, of policy"],
  ["policy-rollback", "Roll back", "Go back to the earlier version of policy"],
  ["policy-disable", "Disable", "Leave out policy"],
  ["policy-enable", "Enable", "Ask again policy"],
];

const mode = ({ mode: name, share_permille: share }) =>
  (share ? `${name} of ${share / 10} % of the requests` : name);

function agreement({ agreed, differed, failed }) {
  const all = agreed + differed + failed;
  return all ? `${Math.round(100 * agreed / all)} % of ${all} decisions` : "no decisions yet";
}

function card(policy) {
  const candidate = policy.candidate;
  const isDisabled = policy.state === "disabled";
  const has = { "policy-promote": candidate, "policy-enable": isDisabled,
    "policy-disable": !isDisabled, "policy-rollback": candidate || policy.history.length > 0 };
  const buttons = actions.filter(([action]) => has[action]).map(([action, label, question]) =>
    el("button", { type: "button", "data-focus": `${policy.name}/${action}`,
      "data-action": action,
      onclick: () => ask(action, policy.name, `${question} ${policy.name}?`, label,
        () => `${label}: ${policy.name}`) }, label));
  return el("section", { class: "card", "data-policy": policy.name },
    el("h3", {}, policy.name, el("span", { class: `state ${policy.state}` }, policy.state)),
    terms([
      ["version", policy.version],
      ["calls", `${policy.calls}, ${policy.faults} faults, ${policy.slow} slow`],
      ["probation", policy.probation ? `${duration(policy.probation.left_ms)} left, `
        + `${policy.probation.faults} faults in ${policy.probation.calls} calls` : null],
      ["candidate", candidate ? `${candidate.version}, ${mode(candidate)}` : null],
      ["agreement", candidate?.mode === "shadow" ? agreement(candidate) : null],
      ["earlier", policy.history.map((earlier) => earlier.version).join("; ")],
      ["rejected", policy.rejected.map((one) => `${one.version}: ${one.reason}`).join("; ")],
      ["error", policy.error?.message],
    ]),
    el("div", { class: "row" }, buttons,
      el("a", { href: `#policies/${encodeURI(policy.name)}` }, "Details")));
}

async function details(main, name) {
  main.append(el("p", {}, el("a", { href: "#policies" }, "All policies")),
    el("h2", {}, `Policy ${name}`));
  try {
    const policy = await call("GET", `/policies/${encodeURIComponent(name)}`);
    const { events, ...rest } = policy;
    main.append(explain(rest), el("h2", {}, "History"),
      table(["Time", "Event", "Version", "By", "Reason"], (events ?? []).map((event) =>
        el("tr", {}, el("td", { class: "num" }, time(event.at_ms)),
          [event.event, event.version, event.by, event.reason ?? event.code ?? "–"]
            .map((value) => el("td", {}, value)))), "No events."));
  } catch (error) {
    main.append(el("p", { class: "bad" }, error.message));
  }
}

const reload = () =>
  ask("reload", null, "Reload changed files now?", "Reload", () => "Reloaded");

/** The page of policies. */
export function policies(main, host, name) {
  if (name) { details(main, name); return {}; }
  const cards = el("div", { class: "cards" });
  const empty = el("p", { class: "faint" });
  main.append(el("h2", {}, "Policies"), cards, empty,
    el("p", {}, el("button", { type: "button", "data-action": "reload", onclick: reload },
      "Reload changed files")));
  return {
    state() {
      if (!host.state) return;
      replace(cards, host.state.policies.map(card));
      empty.textContent = host.state.policies.length ? "" : "No policies: built-in routing.";
    },
  };
}
