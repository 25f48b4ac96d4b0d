// The component boundary of a build that measures coverage, instead of `guest.js`. After each call,
// it reports in the log which branches and functions were taken for the first time; the program
// keeps these lines apart from the policy's own.

import { guest as plain } from "./plain-guest.js";

/** The marks in one line, so that lines are not cut. */
const MARKS_PER_LINE = 80;

const reported = new Set();

function report() {
  for (const [file, { f, b }] of Object.entries(globalThis.__coverage__ ?? {})) {
    const counts = Object.entries(f).map(([id, count]) => [`f${id}`, count]);
    for (const [id, paths] of Object.entries(b)) {
      paths.forEach((count, path) => counts.push([`b${id}.${path}`, count]));
    }
    const taken = counts
      .filter(([mark, count]) => count > 0 && !reported.has(`${file} ${mark}`))
      .map(([mark]) => mark);
    for (let at = 0; at < taken.length; at += MARKS_PER_LINE) {
      const line = JSON.stringify([file, ...taken.slice(at, at + MARKS_PER_LINE)]);
      log.write("info", `pointsman-coverage ${line}`);
    }
    for (const mark of taken) reported.add(`${file} ${mark}`);
  }
}

const reporting =
  (hook) =>
  (...values) => {
    try {
      return hook(...values);
    } finally {
      report();
    }
  };

const mapValues = (object, change) =>
  Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value, key)]));

/** Returns the exports of a policy's component. `describe` has no log. */
export const guest = (policy) =>
  mapValues(plain(policy), (functions) =>
    mapValues(functions, (hook, name) => (name === "describe" ? hook : reporting(hook))),
  );
