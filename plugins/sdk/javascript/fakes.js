// Parts of the fake host: what a host derives from the body of a chat request, and the state.

const byteLength = (text) => new TextEncoder().encode(text).length;

/** Returns the parts of a message's content: texts, and null for media. */
function parts(content) {
  if (content === null || content === undefined) return [];
  if (typeof content === "string") return [content];
  return content.map((part) => (typeof part === "string" ? part : (part.text ?? null)));
}

/** Returns the text of each message. */
export const texts = (body) =>
  body.messages.map(({ content }) => parts(content).filter((part) => part !== null).join(""));

/** Returns the first occurrence of each pattern, with its offset in bytes. */
export const findAny = (patterns, texts) =>
  patterns.flatMap((text, pattern) => {
    const message = texts.findIndex((searched) => searched.includes(text));
    if (message < 0) return [];
    const before = texts[message].slice(0, texts[message].indexOf(text));
    return [{ pattern, message, offset: byteLength(before) }];
  });

/** Returns the contract's `message-info` of each message. */
export const messageInfos = (body) =>
  body.messages.map(({ role, content }) => {
    const all = parts(content);
    const media = all.filter((part) => part === null).length;
    const known = { system: "system", developer: "system", user: "user", assistant: "assistant" };
    return {
      role: known[role] ?? (role === "tool" ? "tool" : "other"),
      textBytes: all.reduce((sum, part) => sum + byteLength(part ?? ""), 0),
      parts: all.length,
      mediaParts: media,
    };
  });

/** Returns the fields of `context` that follow from the body. */
export function facts(body) {
  const infos = messageInfos(body);
  const bytes = infos.reduce((sum, info) => sum + info.textBytes, 0);
  const formats = ["json_object", "json_schema"];
  return {
    streaming: body.stream === true,
    bodyBytes: byteLength(JSON.stringify(body)),
    promptTokens: Math.ceil(bytes / 4),
    maxOutputTokens: body.max_completion_tokens ?? body.max_tokens ?? 0,
    messages: infos.length,
    hasTools: [body.tools, body.functions].some((list) => list?.length > 0),
    hasMedia: infos.some((info) => info.mediaParts > 0),
    hasGrammar:
      formats.includes(body.response_format?.type) ||
      [body.structured_outputs, body.grammar, body.json_schema].some((it) => it !== undefined),
  };
}

const MAX_KEY_BYTES = 128;
const MAX_VALUE_BYTES = 4096;

/** The state of the fake host. Errors are thrown as the bindings of a component throw them. */
export class FakeState {
  /** The time of the running call in milliseconds, by which entries expire. */
  nowMs = 0;
  #entries = new Map();

  /** Sets an entry: a number is a counter, a text or bytes are a value. */
  set(key, value) {
    const stored = typeof value === "string" ? new TextEncoder().encode(value) : value;
    this.#entries.set(key, { value: stored, expiresMs: Infinity });
  }

  get(key) {
    const value = this.#live(key)?.value ?? null;
    if (typeof value !== "number") return value;
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigInt64(0, BigInt(value), true);
    return bytes;
  }

  put(key, value, ttlMs) {
    if (byteLength(key) > MAX_KEY_BYTES || value.length > MAX_VALUE_BYTES) throw "too-long";
    this.#entries.set(key, { value: Uint8Array.from(value), expiresMs: this.#end(ttlMs) });
  }

  delete(key) {
    this.#entries.delete(key);
  }

  increment(key, by, ttlMs) {
    if (byteLength(key) > MAX_KEY_BYTES) throw "too-long";
    const entry = this.#live(key) ?? { value: 0, expiresMs: this.#end(ttlMs) };
    if (typeof entry.value !== "number") throw "not-a-counter";
    entry.value += by;
    this.#entries.set(key, entry);
    return entry.value;
  }

  #end(ttlMs) {
    return ttlMs === 0 ? Infinity : this.nowMs + ttlMs;
  }

  #live(key) {
    const entry = this.#entries.get(key);
    return entry !== undefined && entry.expiresMs > this.nowMs ? entry : undefined;
  }
}
