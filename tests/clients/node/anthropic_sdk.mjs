// The official Anthropic package.
import { assert, feature, key, load, main, model, url } from "./harness.mjs";

const MESSAGES = "/v1/messages";
const messages = [{ role: "user", content: "hello" }];
const input_schema = {
  type: "object", properties: { city: { type: "string" } }, required: ["city"],
};
const tools = [{ name: "weather", description: "the weather", input_schema }];

async function client(options = {}) {
  const { default: Anthropic } = await load("@anthropic-ai/sdk");
  return new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0, ...options });
}

const create = async (more = {}, options = {}) =>
  (await client(options)).messages.create({ model, max_tokens: 100, messages, ...more });
const node = (name, run, endpoint = MESSAGES) => feature("anthropic Node", name, endpoint, run);

node("messages", async () => {
  const message = await create({ system: "be brief" });
  assert.equal(message.content[0].text, "echo: hello");
  assert.equal(message.stop_reason, "end_turn");
});

node("messages, stream", async () => {
  const kinds = [];
  for await (const event of await create({ stream: true })) kinds.push(event.type);
  assert.deepEqual([kinds[0], kinds.at(-1)], ["message_start", "message_stop"]);
});

node("messages, stream helper", async () => {
  const stream = (await client()).messages.stream({ model, max_tokens: 100, messages });
  assert.equal(await stream.finalText(), "echo: hello");
});

node("messages, tools and their results", async () => {
  const first = await create({ tools });
  const use = first.content.find((block) => block.type === "tool_use");
  assert.deepEqual(use.input, { city: "word" });
  const result = { type: "tool_result", tool_use_id: use.id, content: "sunny" };
  const turns = [
    { role: "assistant", content: first.content }, { role: "user", content: [result] },
  ];
  const second = await create({ tools, messages: [...messages, ...turns] });
  assert.equal(second.stop_reason, "end_turn");
});

node("messages, parallel tools in a stream", async () => {
  const ask = [{ role: "user", content: "hello <<parallel>>" }];
  const options = { model, max_tokens: 100, messages: ask, tools };
  const final = await (await client()).messages.stream(options).finalMessage();
  const inputs = final.content.filter((block) => block.type === "tool_use").map((use) => use.input);
  assert.deepEqual(inputs, [{ city: "word" }, { city: "word" }]);
});

node("messages, thinking", async () => {
  const ask = [{ role: "user", content: "hello <<think>>" }];
  const thinking = { type: "enabled", budget_tokens: 1024 };
  const message = await create({ messages: ask, max_tokens: 2000, thinking });
  assert.deepEqual(message.content.map((block) => block.type), ["thinking", "text"]);
});

node("count_tokens", async () => {
  const count = await (await client()).messages.countTokens({ model, messages });
  assert.ok(count.input_tokens > 0);
}, `${MESSAGES}/count_tokens`);

node("models", async () => {
  const names = [];
  for await (const listed of (await client()).models.list()) names.push(listed.id);
  assert.ok(names.includes(model));
}, "/v1/models");

node("typed errors", async () => {
  const { default: Anthropic } = await load("@anthropic-ai/sdk");
  await assert.rejects(create({ model: "nope" }), Anthropic.NotFoundError);
  await assert.rejects(create({ messages: "x" }), Anthropic.BadRequestError);
  await assert.rejects(create({}, { apiKey: "wrong" }), Anthropic.AuthenticationError);
  const failing = [{ role: "user", content: "<<status 500>>" }];
  await assert.rejects(create({ messages: failing }), Anthropic.InternalServerError);
  const cut = [{ role: "user", content: "a b c <<cut>>" }];
  await assert.rejects(async () => {
    for await (const _ of await create({ messages: cut, stream: true }));
  }, Anthropic.APIError);
});

await main();
