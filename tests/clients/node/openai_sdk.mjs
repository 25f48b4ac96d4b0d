// The official OpenAI package.
import { assert, feature, joined, key, load, main, model, url } from "./harness.mjs";

const CHAT = "/v1/chat/completions";
const RESPONSES = "/v1/responses";
const messages = [{ role: "user", content: "hello" }];
const parameters = {
  type: "object", properties: { city: { type: "string" } }, required: ["city"],
  additionalProperties: false,
};

async function client(options = {}) {
  const { default: OpenAI } = await load("openai");
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, ...options });
}

const node = (name, endpoint, run) => feature("openai Node", name, endpoint, run);

node("chat", CHAT, async () => {
  const chat = await (await client()).chat.completions.create({ model, messages });
  assert.equal(chat.choices[0].message.content, "echo: hello");
});

node("chat, stream", CHAT, async () => {
  const stream = await (await client()).chat.completions.create({ model, messages, stream: true });
  assert.equal(await joined(stream, (c) => c.choices[0]?.delta?.content), "echo: hello");
});

node("chat, stream helper", CHAT, async () => {
  const runner = (await client()).chat.completions.stream({ model, messages });
  assert.equal(await runner.finalContent(), "echo: hello");
});

node("chat, abort of a stream", CHAT, async () => {
  const stream = await (await client()).chat.completions.create({ model, messages, stream: true });
  for await (const _ of stream) break;
});

node("chat, runTools", CHAT, async () => {
  const cities = [];
  const weather = {
    name: "weather", description: "the weather", parameters, parse: JSON.parse,
    function: ({ city }) => (cities.push(city), `sunny in ${city}`),
  };
  const tools = [{ type: "function", function: weather }];
  const runner = (await client()).chat.completions.runTools({ model, messages, tools });
  assert.equal(await runner.finalContent(), "echo: hello");
  assert.deepEqual(cities, ["word"]);
});

node("chat, structured output (zod)", CHAT, async () => {
  const { z } = await load("zod");
  const { zodResponseFormat } = await load("openai/helpers/zod");
  const form = zodResponseFormat(z.object({ name: z.string(), size: z.number().int() }), "city");
  const parse = (await client()).chat.completions.parse({ model, messages, response_format: form });
  assert.deepEqual((await parse).choices[0].message.parsed, { name: "word", size: 7 });
});

node("completions", "/v1/completions", async () => {
  const text = await (await client()).completions.create({ model, prompt: "a" });
  assert.equal(text.choices[0].text, "echo: a");
});

node("embeddings", "/v1/embeddings", async () => {
  const result = await (await client()).embeddings.create({ model, input: ["a", "b"] });
  assert.deepEqual(result.data.map((item) => item.embedding.length), [4, 4]);
});

node("moderations", "/v1/moderations", async () => {
  const result = await (await client()).moderations.create({ model, input: "a" });
  assert.equal(result.results[0].flagged, false);
});

node("models", "/v1/models", async () => {
  const names = [];
  for await (const listed of (await client()).models.list()) names.push(listed.id);
  assert.ok(names.includes(model));
});

node("responses", RESPONSES, async () => {
  const response = await (await client()).responses.create({ model, input: "hello" });
  assert.equal(response.output_text, "echo: hello");
});

node("responses, stream", RESPONSES, async () => {
  const stream = await (await client()).responses.create({ model, input: "hello", stream: true });
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  assert.deepEqual([kinds[0], kinds.at(-1)], ["response.created", "response.completed"]);
});

node("responses, stream helper", RESPONSES, async () => {
  const runner = (await client()).responses.stream({ model, input: "hello" });
  assert.equal((await runner.finalResponse()).output_text, "echo: hello");
});

node("responses, structured output (zod)", RESPONSES, async () => {
  const { z } = await load("zod");
  const { zodTextFormat } = await load("openai/helpers/zod");
  const format = zodTextFormat(z.object({ name: z.string() }), "city");
  const parse = (await client()).responses.parse({ model, input: "hello", text: { format } });
  assert.deepEqual((await parse).output_parsed, { name: "word" });
});

node("responses, tools with previous_response_id", RESPONSES, async () => {
  const tools = [{ type: "function", name: "weather", parameters, strict: true }];
  const { responses } = await client();
  const first = await responses.create({ model, input: "hello", tools });
  const call = first.output.find((item) => item.type === "function_call");
  const input = [{ type: "function_call_output", call_id: call.call_id, output: "sunny" }];
  const previous_response_id = first.id;
  const second = await responses.create({ model, input, tools, previous_response_id });
  assert.equal(second.output_text, "echo: hello");
});

node("responses, retrieve and delete", `${RESPONSES}/{id}`, async () => {
  const { responses } = await client();
  const made = await responses.create({ model, input: "hello" });
  assert.equal((await responses.retrieve(made.id)).output_text, "echo: hello");
  await responses.delete(made.id);
});

node("audio transcriptions", "/v1/audio/transcriptions", async () => {
  const { toFile } = await load("openai");
  const file = await toFile(Buffer.alloc(200_000), "sound.wav", { type: "audio/wav" });
  const result = await (await client()).audio.transcriptions.create({ model, file });
  assert.equal(result.text, "heard 200000 bytes");
});

node("an error during an upload", "/v1/audio/transcriptions", async () => {
  const { default: OpenAI, toFile } = await load("openai");
  const file = await toFile(Buffer.alloc(8_000_000), "sound.wav", { type: "audio/wav" });
  const create = (await client()).audio.transcriptions.create({ model: "nope", file });
  await assert.rejects(create, OpenAI.NotFoundError);
});

node("speech", "/v1/audio/speech", async () => {
  const create = (await client()).audio.speech.create({ model, input: "hello", voice: "alloy" });
  assert.equal((await (await create).arrayBuffer()).byteLength, 2004);
});

node("images: generate", "/v1/images/generations", async () => {
  const image = await (await client()).images.generate({ model, prompt: "a cat" });
  assert.ok(image.data[0].b64_json);
});

node("typed errors", CHAT, async () => {
  const { default: OpenAI } = await load("openai");
  const create = async (more, options) =>
    (await client(options)).chat.completions.create({ model, messages, ...more });
  await assert.rejects(create({ model: "nope" }), OpenAI.NotFoundError);
  await assert.rejects(create({ messages: "x" }), OpenAI.BadRequestError);
  await assert.rejects(create({}, { apiKey: "wrong" }), OpenAI.AuthenticationError);
  const failing = [{ role: "user", content: "<<status 500>>" }];
  await assert.rejects(create({ messages: failing }), OpenAI.InternalServerError);
  const cut = [{ role: "user", content: "a b c <<cut>>" }];
  const broken = async () => joined(await create({ messages: cut, stream: true }), () => "");
  await assert.rejects(broken, OpenAI.APIError);
});

await main();
