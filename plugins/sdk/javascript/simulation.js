// Golden cases and scenarios in the test suite of a policy: runs the built component in the program
// `pointsman`, which is on the PATH or named by the environment variable `POINTSMAN`.

import { spawnSync } from "node:child_process";

/** Maximum size of a report in bytes. */
const MAX_REPORT_BYTES = 256 << 20;

/** Returns the program to run. */
function program() {
  return process.env.POINTSMAN || "pointsman";
}

/** Returns true if the program can be run, so that tests can be skipped where it cannot. */
export function hasPointsman() {
  return spawnSync(program(), ["--version"], { stdio: "ignore" }).status === 0;
}

/**
 * Runs the golden cases and the scenarios of the policy in `folder`, and returns the report of
 * `pointsman policy test --format json`.
 */
export function testPolicy(folder = ".") {
  return run(["policy", "test", folder, "--format", "json"]);
}

/**
 * Simulates a scenario, and returns the report of `pointsman simulate --json -`. `set` overrides
 * keys of the scenario.
 */
export function simulate(scenario, { set = {}, seeds = undefined } = {}) {
  const overrides = Object.entries(set).flatMap(([key, value]) => ["--set", `${key}=${value}`]);
  const repeated = seeds === undefined ? [] : ["--seeds", String(seeds)];
  return run(["simulate", scenario, "--quiet", "--json", "-", ...overrides, ...repeated]);
}

/** Describes each golden case and each objective of a report that failed. Empty if none has. */
export function failures(report) {
  const cases = (report.cases ?? []).filter((one) => !one.passed);
  const lines = cases.flatMap((one) =>
    one.differences.map(
      ({ what, expected, got }) => `${one.name}: ${what}: expected ${expected}, got ${got}`,
    ),
  );
  // A scenario has objectives; so has each variant of a simulation.
  for (const run of [...(report.scenarios ?? []), ...(report.variants ?? [])]) {
    const unmet = run.objectives.filter((objective) => !objective.met);
    lines.push(
      ...unmet.map(
        ({ objective, mean }) => `${run.title ?? run.name}: ${objective}: not met, mean ${mean}`,
      ),
    );
  }
  return lines;
}

function run(args) {
  const options = { encoding: "utf8", maxBuffer: MAX_REPORT_BYTES };
  const { status, stdout, stderr, error } = spawnSync(program(), args, options);
  if (error) throw error;
  // 1 is the status of cases that differ and of objectives that are not met.
  if (status !== 0 && status !== 1) {
    throw new Error(`${program()} ${args.join(" ")} failed (${status}):\n${stderr}`);
  }
  // What the simulator cannot represent.
  if (stderr) process.emitWarning(stderr.trimEnd());
  try {
    return JSON.parse(stdout);
  } catch {
    throw new Error(`${program()} ${args.join(" ")} failed (${status}):\n${stderr}${stdout}`);
  }
}
