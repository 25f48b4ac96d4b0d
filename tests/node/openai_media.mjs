// Uses audio and images with the official OpenAI package: `node openai_media.mjs PORT KEY MODULES`.
// The lane is described in openai_media.py.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [port, key, modules] = process.argv.slice(2);
const resolve = createRequire(path.join(modules, "package.json")).resolve;
const { default: OpenAI, toFile } = await import(pathToFileURL(resolve("openai")));

const options = { baseURL: `http://127.0.0.1:${port}/v1`, apiKey: key, maxRetries: 0 };
const client = new OpenAI(options);
const audio = (size) => toFile(Buffer.alloc(size, "RIFF"), "a.wav", { type: "audio/wav" });
const text = "word0 word1 word2 word3 word4";

for (const size of [10, 100_000, 5_000_000]) {
  const transcript = await client.audio.transcriptions.create({ model: "whisper", file: await audio(size) });
  assert.equal(transcript.text, text);
}
const stream = await client.audio.transcriptions.create({ model: "whisper", file: await audio(10), stream: true });
let words = "";
for await (const chunk of stream) words += chunk.choices[0].delta.content;
assert.equal(words.trim(), text);

// A response before the upload has been read is not a connection error.
const size = 20_000_000;
const wrong = new OpenAI({ ...options, apiKey: "wrong" });
await assert.rejects(wrong.audio.transcriptions.create({ model: "whisper", file: await audio(size) }), OpenAI.AuthenticationError);
await assert.rejects(client.files.create({ purpose: "batch", file: await audio(size) }), OpenAI.NotFoundError);
await assert.rejects(client.audio.transcriptions.create({ model: "nope", file: await audio(size) }), OpenAI.NotFoundError);

const speech = await client.audio.speech.create({ model: "whisper", voice: "alloy", input: "hello" });
assert.equal((await speech.arrayBuffer()).byteLength, 5 * 4096);

const image = await toFile(Buffer.alloc(100), "a.png", { type: "image/png" });
const edited = await client.images.edit({ model: "whisper", image, prompt: "a pixel" });
assert.ok(edited.data[0].b64_json);
const events = [];
for await (const event of await client.images.generate({ model: "whisper", prompt: "a pixel", stream: true })) events.push(event.type);
assert.equal(events.at(-1), "image_generation.completed");

console.log("ok");
