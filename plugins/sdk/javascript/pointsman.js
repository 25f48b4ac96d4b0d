// The Pointsman SDK for JavaScript. See README.md; the types are in pointsman.d.ts.

export { Advice, any, avoid, blend, edits, only, ordered, reject, scores } from "./advice.js";
export { Config, PolicyError, invalidConfig, unsupported } from "./config.js";
export { Lanes } from "./lanes.js";
export { Random } from "./random.js";
export { StateError } from "./state.js";
