// Policies: versions, what they have done, and what operators do with them.

import { call } from "./api.js";
import { confirmed, el, notice, replace, table, terms } from "./dom.js";
import { explain } from "./decisions.js";
import { duration, time } from "./format.js";

const actions = [
  ["promote", "Promote", "Let the candidate of policy"],
  ["rollback", "Roll back", "Go back to the earlier version of policy"],
  ["disable", "Disable", "Leave out policy"],
  ["enable", "Enable", "Ask again policy"],
];

const mode = ({ mode: name, share_permille: share }) =>
  (share ? `${name} of ${share / 10} % of the requests` : name);

function agreement({ agreed, differed, failed }) {
  const all = agreed + differed + failed;
  return all ? `${Math.round(100 * agreed / all)} % of ${all} decisions` : "no decisions yet";
}

async function act(name, command, question, label) {
  if (!await confirmed(`${question} ${name}?`, label)) return;
  try {
    await call("POST", `/policies/${encodeURIComponent(name)}/${command}`);
    notice(`${label}: ${name}`);
  } catch (error) {
    notice(error.message, true);
  }
}

function card(policy) {
  const candidate = policy.candidate;
  const isDisabled = policy.state === "disabled";
  const has = { promote: candidate, enable: isDisabled, disable: !isDisabled,
    rollback: candidate || policy.history.length > 0 };
  const buttons = actions.filter(([command]) => has[command]).map(([command, label, question]) =>
    el("button", { type: "button", "data-focus": `${policy.name}/${command}`,
      "data-action": command, onclick: () => act(policy.name, command, question, label) }, label));
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

async function reload() {
  if (!await confirmed("Reload changed files now?", "Reload")) return;
  try {
    await call("POST", "/reload");
    notice("Reloaded");
  } catch (error) {
    notice(error.message, true);
  }
}

/** The page of policies. */
export function policies(main, host, name) {
  if (name) { details(main, name); return {}; }
  const cards = el("div", { class: "cards" });
  const empty = el("p", { class: "faint" });
  main.append(el("h2", {}, "Policies"), cards, empty,
    el("p", {}, el("button", { type: "button", id: "reload", onclick: reload },
      "Reload changed files")));
  return {
    state() {
      if (!host.state) return;
      replace(cards, host.state.policies.map(card));
      empty.textContent = host.state.policies.length ? "" : "No policies: built-in routing.";
    },
  };
}
