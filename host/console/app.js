// The frame of the console: pages, session, events.

import { act } from "./actions.js";
import { call, events, session } from "./api.js";
import { el, notice } from "./dom.js";
import { keys } from "./keys.js";
import { lanes } from "./lanes.js";
import { requests } from "./requests.js";
import { decisions } from "./decisions.js";
import { policies } from "./policies.js";
import { usage } from "./usage.js";
import { log } from "./log.js";
import { playground } from "./playground.js";
import { hosts } from "./hosts.js";

// Each page: `show(main, host, rest)` draws it and returns what to do at changes.
const pages = { lanes, requests, decisions, policies, keys, usage, log, playground, hosts };
const titles = {
  lanes: "Lanes", requests: "Requests", decisions: "Decisions", policies: "Policies",
  keys: "Keys", usage: "Usage", log: "Log", playground: "Playground", hosts: "Hosts",
};
const MAX_LINES = 1000;
const MAX_ROWS = 200;

// What is known of the host.
const host = {
  state: null, keys: null, skew: 0, log: [], lost: 0, decisions: [], history: [],
  now() { return Date.now() + this.skew; },
};
let current = null;
let source = null;

const main = () => document.getElementById("main");

function show() {
  const [name, ...rest] = decodeURI(location.hash.slice(1) || "lanes").split("/");
  const page = pages[name] ? name : "lanes";
  for (const link of document.querySelectorAll("#nav a")) {
    if (link.dataset.page === page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${titles[page]} · Pointsman`;
  main().replaceChildren();
  current = pages[page](main(), host, rest.join("/")) ?? {};
  current.state?.();
}

/** Notes the states of lanes, for the time line. */
function remember(state) {
  const last = new Map(host.history.map((change) => [change.lane, change.state]));
  for (const lane of state.lanes) {
    if (last.get(lane.name) === lane.state) continue;
    host.history.push({ unix_ms: state.unix_ms, lane: lane.name, state: lane.state });
  }
  host.history.splice(0, Math.max(0, host.history.length - 2000));
}

const handlers = {
  state(state) {
    host.state = state;
    host.skew = state.unix_ms - Date.now();
    remember(state);
    current?.state?.();
  },
  keys(found) {
    host.keys = found;
    current?.keys?.();
  },
  decision(row) {
    host.decisions.unshift(row);
    host.decisions.length = Math.min(host.decisions.length, MAX_ROWS);
    current?.decision?.(row);
  },
  log(line) {
    host.log.push(line);
    if (host.log.length > MAX_LINES) host.log.shift();
    current?.log?.(line);
  },
  lost({ stream, count }) {
    host.lost += count;
    notice(`${count} events were lost (${stream}): this browser was too slow`, true);
  },
};

function connected(isUp) {
  const status = document.getElementById("connection");
  status.textContent = isUp ? "live" : "connecting…";
  status.className = isUp ? "" : "down";
}

async function start(found) {
  const nav = document.getElementById("nav");
  nav.replaceChildren(...Object.entries(titles).map(([page, title], index) =>
    el("a", { href: `#${page}`, "data-page": page, title: `Key ${index + 1}` }, title)));
  const logout = document.getElementById("logout");
  logout.hidden = !found.needs_token;
  logout.title = found.operator ?? "";
  host.log = [];
  const history = await call("GET", "/lane-history").catch(() => ({ changes: [] }));
  host.history = history.changes;
  source?.close();
  source = events(handlers, connected);
  show();
}

function login() {
  source?.close();
  source = null;
  current = null;
  document.getElementById("nav").replaceChildren();
  document.getElementById("logout").hidden = true;
  document.getElementById("connection").textContent = "";
  const token = el("input", { id: "token", type: "password", autocomplete: "current-password",
    required: true });
  const name = el("input", { id: "operator", type: "text", autocomplete: "username",
    maxlength: 64 });
  const failure = el("p", { class: "bad", role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    failure.textContent = "";
    try {
      await act("log-in", null, { token: token.value, operator: name.value || null });
      await start(await session());
    } catch (error) {
      const isWrong = error.code === "invalid_api_key";
      failure.textContent = isWrong ? "The token is wrong." : error.message;
      token.value = "";
    }
  };
  main().replaceChildren(el("form", { class: "login card", onsubmit: submit },
    el("h2", {}, "Log in"),
    el("label", { for: "operator" }, "Your name, for the log of actions"), name,
    el("label", { for: "token" }, "Token of the admin API"), token,
    el("p", {}, el("button", { type: "submit" }, "Log in")), failure));
  name.focus();
}

document.addEventListener("session-ended", login);
window.addEventListener("hashchange", () => { if (source) { show(); main().focus(); } });
document.getElementById("logout").addEventListener("click", async () => {
  await act("log-out").catch((error) => notice(error.message, true));
  login();
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input, textarea, select, dialog");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !source) return;
  const page = Object.keys(pages)[Number(event.key) - 1];
  if (page) location.hash = `#${page}`;
});
setInterval(() => current?.tick?.(), 1000);

session().then((found) => (found.authenticated ? start(found) : login()))
  .catch((error) => notice(error.message, true));
