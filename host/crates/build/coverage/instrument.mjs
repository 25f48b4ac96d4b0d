// Instruments files in place: `node instrument.mjs REGIONS FILE…`, in the folder of the policy.
// Writes what can be taken to REGIONS, as JSON: a list of `{ file, mark, line, column, what }`.

import { readFileSync, writeFileSync } from "node:fs";

import { createInstrumenter } from "istanbul-lib-instrument";

const [output, ...files] = process.argv.slice(2);
const regions = [];

/** The names of the two paths of a branch, by its type in Istanbul. */
const PATHS = { if: ["if", "else"], "cond-expr": ["?", ":"] };

function pathName(type, path) {
  if (type in PATHS) return PATHS[type][path];
  if (type === "switch") return "case";
  if (type === "default-arg") return "default value";
  return path === 0 ? "first operand" : "further operand";
}

for (const file of files) {
  const instrumenter = createInstrumenter({
    esModules: true,
    coverageGlobalScope: "globalThis",
    coverageGlobalScopeFunc: false,
    parserPlugins: /\.m?ts$/.test(file) ? ["typescript"] : [],
  });
  const code = instrumenter.instrumentSync(readFileSync(file, "utf8"), file);
  const { fnMap, branchMap } = instrumenter.lastFileCoverage();
  const add = (mark, { line, column }, what) =>
    regions.push({ file, mark, line, column: column + 1, what });
  for (const [id, { name, decl }] of Object.entries(fnMap)) {
    const isNamed = !name.startsWith("(anonymous");
    add(`f${id}`, decl.start, isNamed ? `function ${name}` : "function");
  }
  for (const [id, { type, loc, locations }] of Object.entries(branchMap)) {
    locations.forEach(({ start }, path) => {
      // An `else` that is not written has no location.
      add(`b${id}.${path}`, start?.line === undefined ? loc.start : start, pathName(type, path));
    });
  }
  writeFileSync(file, code);
}
writeFileSync(output, JSON.stringify(regions));
