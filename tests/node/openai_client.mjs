// Runs the official OpenAI package against a host: `node openai_client.mjs PORT KEY MODULES`. The
// lanes are described in openai_client.py.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [port, key, modules] = process.argv.slice(2);
const resolve = createRequire(path.join(modules, "package.json")).resolve;
const { default: OpenAI } = await import(pathToFileURL(resolve("openai")));

const client = new OpenAI({ baseURL: `http://127.0.0.1:${port}/v1`, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];

const chat = await client.chat.completions.create({ model: "a", messages, max_tokens: 2 });
assert.equal(chat.choices[0].message.content, "word0 word1 ");

let words = "";
for await (const chunk of await client.chat.completions.create({ model: "a", messages, max_tokens: 3, stream: true })) {
  words += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(words, "word0 word1 word2 ");

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.deepEqual(names, ["a", "broken", "busy", "slow", "truncated"]);

await assert.rejects(client.chat.completions.create({ model: "nope", messages }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model: "broken", messages }), OpenAI.InternalServerError);
await assert.rejects(async () => {
  for await (const _ of await client.chat.completions.create({ model: "truncated", messages, stream: true }));
}, OpenAI.APIError);

// Base URLs as they are written in settings.
for (const base of ["", "/", "/v1/", "//v1"]) {
  const other = new OpenAI({ baseURL: `http://127.0.0.1:${port}${base}`, apiKey: key, maxRetries: 0 });
  const chat = await other.chat.completions.create({ model: "a", messages, max_tokens: 1 });
  assert.equal(chat.model, "a");
}

console.log("ok");
