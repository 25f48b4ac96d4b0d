// A reader for a policy's configuration. Every error names its key.

/** Why a policy has no advice, or an invalid configuration: the contract's `policy-error`. */
export class PolicyError extends Error {
  constructor(tag, message) {
    super(message);
    this.name = "PolicyError";
    this.tag = tag;
  }
}

/** Returns the error for an invalid configuration. */
export const invalidConfig = (message) => new PolicyError("invalid-config", message);
/** Returns the error for a kind of request that the policy does not support. */
export const unsupported = (message) => new PolicyError("unsupported", message);

const MAX_U32 = 4294967295;
const MAX_FOUND_CHARS = 60;

/** An object of the configuration. Read all keys, then call `finish()` to reject all others. */
export class Config {
  #object;
  #path;
  #read = new Set();

  /** Parses the configuration from its JSON text. */
  static parse(json) {
    let value;
    try {
      value = JSON.parse(json);
    } catch {
      throw invalidConfig("invalid JSON");
    }
    return new Config(value, "");
  }

  constructor(value, path) {
    if (!isObject(value)) throw expected(path, "an object", value);
    this.#object = value;
    this.#path = path;
  }

  /** Reads a string; returns `defaultValue` if the key is absent. */
  string(key, defaultValue = null) {
    return this.#value(key, defaultValue, isString, "a string");
  }

  /** Reads a boolean; returns `defaultValue` if the key is absent. */
  boolean(key, defaultValue = null) {
    return this.#value(key, defaultValue, (value) => typeof value === "boolean", "a boolean");
  }

  /** Reads an integer from `min` to `max`; returns `defaultValue` if the key is absent. */
  integer(key, defaultValue = null, { min = 0, max = MAX_U32 } = {}) {
    const isValid = (value) => Number.isInteger(value) && min <= value && value <= max;
    return this.#value(key, defaultValue, isValid, `an integer from ${min} to ${max}`);
  }

  /** Reads a list of strings; returns `defaultValue` if the key is absent. */
  strings(key, defaultValue = null) {
    const isValid = (value) => Array.isArray(value) && value.every(isString);
    return this.#value(key, defaultValue, isValid, "a list of strings");
  }

  /** Reads an object with string values as a `Map`, which is empty if the key is absent. */
  stringMap(key) {
    const section = this.section(key);
    const map = new Map();
    for (const name of Object.keys(section.#object)) map.set(name, section.string(name));
    return map;
  }

  /** Reads an object with integers from `min` to `max` as a `Map`, which may be empty, too. */
  integerMap(key, bounds = {}) {
    const section = this.section(key);
    const map = new Map();
    for (const name of section.keys()) map.set(name, section.integer(name, null, bounds));
    return map;
  }

  /** Returns all keys. Those that are not read are rejected by `finish()`. */
  keys() {
    return Object.keys(this.#object);
  }

  /** Returns a nested object, which is empty if the key is absent. */
  section(key) {
    this.#read.add(key);
    return new Config(Object.hasOwn(this.#object, key) ? this.#object[key] : {}, this.#pathOf(key));
  }

  /** Rejects keys that were not read. */
  finish() {
    for (const key of Object.keys(this.#object)) {
      if (!this.#read.has(key)) throw invalidConfig(`${this.#pathOf(key)}: unknown key`);
    }
  }

  #pathOf(key) {
    return this.#path === "" ? key : `${this.#path}.${key}`;
  }

  #value(key, defaultValue, isValid, what) {
    this.#read.add(key);
    if (!Object.hasOwn(this.#object, key)) return defaultValue;
    const value = this.#object[key];
    if (!isValid(value)) throw expected(this.#pathOf(key), what, value);
    return value;
  }
}

// Returns the error `PATH: expected X, found Y`. Long values are truncated for the log.
function expected(path, what, value) {
  let found = Array.isArray(value)
    ? "a list"
    : isObject(value)
      ? "an object"
      : JSON.stringify(value);
  if (found.length > MAX_FOUND_CHARS) found = `${found.slice(0, MAX_FOUND_CHARS)}…`;
  const prefix = path === "" ? "" : `${path}: `;
  return invalidConfig(`${prefix}expected ${what}, found ${found}`);
}

const isString = (value) => typeof value === "string";
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
