// Runs the responses API of the official OpenAI package against a host: `node responses_client.mjs
// PORT MODULES`. The lanes are described in responses_client.py.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [port, modules] = process.argv.slice(2);
const resolve = createRequire(path.join(modules, "package.json")).resolve;
const { default: OpenAI } = await import(pathToFileURL(resolve("openai")));
const client = new OpenAI({ baseURL: `http://127.0.0.1:${port}/v1`, apiKey: "sesame", maxRetries: 0 });

const first = await client.responses.create({ model: "a", input: "hello" });
assert.equal(first.output_text, "word0 word1 word2 word3 word4 ");
const stream = client.responses.stream({ model: "a", input: "more", previous_response_id: first.id });
let text = "";
stream.on("response.output_text.delta", (event) => (text += event.delta));
const final = await stream.finalResponse();
assert.equal(text, "word0 word1 word2 word3 word4 ");
assert.equal(final.previous_response_id, first.id);
assert.equal((await client.responses.retrieve(final.id)).status, "completed");
await client.responses.delete(final.id);
await assert.rejects(client.responses.retrieve(final.id), OpenAI.NotFoundError);
console.log("ok");
