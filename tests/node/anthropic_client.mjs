// Runs the official Anthropic package against a host: `node anthropic_client.mjs PORT KEY MODULES`. The
// lanes are described in anthropic_client.py.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [port, key, modules] = process.argv.slice(2);
const resolve = createRequire(path.join(modules, "package.json")).resolve;
const { default: Anthropic } = await import(pathToFileURL(resolve("@anthropic-ai/sdk")));

const client = new Anthropic({ baseURL: `http://127.0.0.1:${port}`, apiKey: key, maxRetries: 0 });
const request = (model, more = {}) => ({ model, max_tokens: 4, messages: [{ role: "user", content: "hello" }], ...more });
const tools = [{ name: "weather", description: "d", input_schema: { type: "object", properties: { city: { type: "string" } } } }];

const messages = [{ role: "user", content: "weather?" }];
const first = await client.messages.stream(request("agent", { messages, tools })).finalMessage();
assert.equal(first.stop_reason, "tool_use");
assert.deepEqual(first.content[0].input, { city: "Rome" });
messages.push({ role: "assistant", content: first.content });
messages.push({ role: "user", content: [{ type: "tool_result", tool_use_id: first.content[0].id, content: "25 C" }] });
const second = await client.messages.create(request("agent", { messages, tools }));
assert.equal(second.content[0].text, "sunny");
assert.equal(second.usage.cache_read_input_tokens, 8);

let text = "";
for await (const event of await client.messages.create(request("native", { stream: true }))) {
  if (event.type === "content_block_delta") text += event.delta.text;
}
assert.ok(text.startsWith("word0 word1 "));
assert.ok((await client.messages.countTokens({ model: "agent", messages })).input_tokens > 0);
const names = [];
for await (const model of client.models.list()) names.push(model.display_name);
assert.deepEqual(names, ["agent", "broken", "native", "truncated"]);

await assert.rejects(client.messages.create(request("nope")), Anthropic.NotFoundError);
await assert.rejects(client.messages.create(request("broken")), Anthropic.InternalServerError);
await assert.rejects(client.messages.stream(request("truncated")).finalMessage(), Anthropic.APIError);

console.log("ok");
