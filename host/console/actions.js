// Every request of the console that changes something, or asks an engine for something, in one
// table: the browser's test fails if it has not done one of them.

import { call, send } from "./api.js";
import { confirmed, notice } from "./dom.js";

const part = encodeURIComponent;
const lane = (command) => (name) => ["POST", `/lanes/${part(name)}/${command}`];
const policy = (command) => (name) => ["POST", `/policies/${part(name)}/${command}`];

/** Method and path of each action, by what it is done to. */
export const actions = {
  "lane-load": lane("load?wait=false"),
  "lane-unload": lane("unload?wait=false"),
  "lane-hold": lane("unload?wait=false&hold=true"),
  "lane-drain": lane("drain?wait=false"),
  "lane-resume": lane("drain?wait=false&undo=true"),
  "lane-restart": lane("restart?wait=false"),
  "request-cancel": (id) => ["DELETE", `/requests/${part(id)}`],
  "policy-promote": policy("promote"),
  "policy-rollback": policy("rollback"),
  "policy-disable": policy("disable"),
  "policy-enable": policy("enable"),
  "reload": () => ["POST", "/reload"],
  "playground-send": (endpoint) => ["POST", `/playground/${endpoint}`],
  "playground-decide": () => ["POST", "/decide"],
  "log-in": () => ["POST", "/session"],
  "log-out": () => ["DELETE", "/session"],
};

/** Does an action, and returns the JSON of the response. */
export function act(action, target, body, headers) {
  return call(...actions[action](target), body, headers);
}

/** Does an action, and returns the response. */
export function sendAction(action, target, body, headers) {
  return send(...actions[action](target), body, headers);
}

/** Does an action if the operator confirms it; `done` returns what to tell about its result. */
export async function ask(action, target, question, label, done) {
  if (!await confirmed(question, label)) return;
  try {
    notice(done(await act(action, target)));
  } catch (error) {
    notice(error.message, true);
  }
}
