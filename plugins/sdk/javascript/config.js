// Reading the operator's configuration, with sentences that name the key.

/** Why a policy gives no advice, or cannot be configured. Thrown; the host sees the contract's `policy-error`. */
export class PolicyError extends Error {
  constructor(tag, message) {
    super(message);
    this.name = "PolicyError";
    this.tag = tag;
  }
}

/** The configuration does not fit. */
export const invalidConfig = (message) => new PolicyError("invalid-config", message);
/** The request is of a kind that this policy does not know. */
export const unsupported = (message) => new PolicyError("unsupported", message);

const MOST = 4294967295;

/** An object of the configuration. Read all keys, then call `end()`, which refuses those that nobody read. */
export class Config {
  #object;
  #path;
  #read = new Set();

  /** The whole configuration, from its JSON text. */
  static parse(json) {
    let value;
    try {
      value = JSON.parse(json);
    } catch {
      throw invalidConfig("the configuration is no JSON");
    }
    return new Config(value, "");
  }

  constructor(value, path) {
    if (!isObject(value)) {
      throw invalidConfig(path === "" ? "the configuration must be an object" : `\`${path}\` must be an object`);
    }
    this.#object = value;
    this.#path = path;
  }

  /** A text; `otherwise` where there is none. */
  text(key, otherwise = null) {
    return this.#value(key, otherwise, isText, "a text");
  }

  /** `true` or `false`. */
  flag(key, otherwise = null) {
    return this.#value(key, otherwise, (value) => typeof value === "boolean", "true or false");
  }

  /** A whole number within bounds. */
  integer(key, otherwise = null, { from = 0, to = MOST } = {}) {
    const fits = (value) => Number.isInteger(value) && from <= value && value <= to;
    return this.#value(key, otherwise, fits, `a whole number from ${from} to ${to}`);
  }

  /** A list of texts. */
  texts(key, otherwise = null) {
    return this.#value(key, otherwise, (value) => Array.isArray(value) && value.every(isText), "a list of texts");
  }

  /** An object whose values are texts, as a `Map`; empty where there is none. */
  textMap(key) {
    const section = this.section(key);
    const map = new Map();
    for (const name of Object.keys(section.#object)) map.set(name, section.text(name));
    return map;
  }

  /** An object within this one; empty where there is none. */
  section(key) {
    this.#read.add(key);
    return new Config(Object.hasOwn(this.#object, key) ? this.#object[key] : {}, this.#name(key));
  }

  /** Nothing else is expected. */
  end() {
    for (const key of Object.keys(this.#object)) {
      if (!this.#read.has(key)) throw invalidConfig(`there is no key \`${this.#name(key)}\``);
    }
  }

  #name(key) {
    return this.#path === "" ? key : `${this.#path}.${key}`;
  }

  #value(key, otherwise, fits, what) {
    this.#read.add(key);
    if (!Object.hasOwn(this.#object, key)) return otherwise;
    const value = this.#object[key];
    if (!fits(value)) throw invalidConfig(`\`${this.#name(key)}\` must be ${what}`);
    return value;
  }
}

const isText = (value) => typeof value === "string";
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
