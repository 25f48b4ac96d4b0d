// Types of `simulation.js`.

/** A golden case in a report. */
export interface CaseReport {
  name: string;
  line: number;
  hook: string;
  passed: boolean;
  differences: { what: string; expected: string; got: string }[];
  dropped: string[];
  log: { level: string; message: string }[];
}

/** An objective in a report. */
export interface ObjectiveReport {
  objective: string;
  met: boolean;
  mean: number | null;
  worst: number | null;
}

/** The report of `testPolicy`. */
export interface TestReport {
  policy: string;
  version: string;
  passed: boolean;
  warnings: string[];
  cases: CaseReport[];
  scenarios: { file: string; title: string; passed: boolean; objectives: ObjectiveReport[] }[];
}

/** The report of `simulate`. */
export interface SimulationReport {
  title: string;
  variants: { name: string; objectives: ObjectiveReport[]; runs: Record<string, unknown>[] }[];
}

export function hasPointsman(): boolean;
export function testPolicy(folder?: string): TestReport;
export function simulate(
  scenario: string,
  options?: { set?: Record<string, string | number>; seeds?: number },
): SimulationReport;
export function failures(report: TestReport | SimulationReport): string[];
