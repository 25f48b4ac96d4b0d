// Vercel's AI SDK, with its providers for the APIs that the host has, and Ollama's own package.
import { assert, feature, joined, key, load, main, model, url } from "./harness.mjs";

const CHAT = "/v1/chat/completions";
const RESPONSES = "/v1/responses";
const MESSAGES = "/v1/messages";
const options = { baseURL: `${url}/v1`, apiKey: key };
const openai = async () => (await load("@ai-sdk/openai")).createOpenAI(options);
const compatible = async () =>
  (await load("@ai-sdk/openai-compatible")).createOpenAICompatible({
    name: "here", supportsStructuredOutputs: true, ...options,
  });

// The default model of each provider: responses for OpenAI, messages for Anthropic.
const PROVIDERS = [
  ["openai (default)", RESPONSES, async () => (await openai())(model)],
  ["openai.chat", CHAT, async () => (await openai()).chat(model)],
  ["openai-compatible", CHAT, async () => (await compatible())(model)],
  ["anthropic", MESSAGES, async () => {
    return (await load("@ai-sdk/anthropic")).createAnthropic(options)(model);
  }],
];

for (const [name, endpoint, target] of PROVIDERS) {
  const vercel = (what, run) => feature("Vercel AI SDK", `${name}: ${what}`, endpoint, run);

  vercel("generateText", async () => {
    const { generateText } = await load("ai");
    const { text } = await generateText({ model: await target(), prompt: "hello", maxRetries: 0 });
    assert.equal(text, "echo: hello");
  });

  vercel("streamText", async () => {
    const { streamText } = await load("ai");
    let failure;
    const onError = ({ error }) => { failure = error; };
    const made = streamText({ model: await target(), prompt: "hello", maxRetries: 0, onError });
    const text = await joined(made.textStream, (part) => part);
    if (failure) throw failure;
    assert.equal(text, "echo: hello");
  });

  vercel("tools in steps", async () => {
    const { generateText, stepCountIs, tool } = await load("ai");
    const { z } = await load("zod");
    const weather = tool({
      description: "the weather", inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => `sunny in ${city}`,
    });
    const made = await generateText({
      model: await target(), prompt: "hello", tools: { weather }, stopWhen: stepCountIs(4),
      maxRetries: 0,
    });
    assert.equal(made.steps.length, 2);
    assert.equal(made.text, "echo: hello");
  });

  vercel("generateObject", async () => {
    const { generateObject } = await load("ai");
    const { z } = await load("zod");
    const schema = z.object({ name: z.string(), size: z.number().int() });
    const made = await generateObject({
      model: await target(), schema, prompt: "Answer as JSON: hello", maxRetries: 0,
    });
    assert.deepEqual(made.object, { name: "word", size: 7 });
  });
}

feature("Vercel AI SDK", "openai: embed", "/v1/embeddings", async () => {
  const { embed } = await load("ai");
  const { embedding } = await embed({
    model: (await openai()).textEmbeddingModel(model), value: "a", maxRetries: 0,
  });
  assert.equal(embedding.length, 4);
});

feature("Vercel AI SDK", "openai: transcribe and speech", "/v1/audio/transcriptions", async () => {
  const { experimental_generateSpeech, experimental_transcribe } = await load("ai");
  const provider = await openai();
  const audio = Buffer.concat([Buffer.from("RIFF\0\0\0\0WAVE"), Buffer.alloc(200)]);
  const heard = await experimental_transcribe({
    model: provider.transcription(model), audio, maxRetries: 0,
  });
  assert.match(heard.text, /^heard/);
  const made = await experimental_generateSpeech({
    model: provider.speech(model), text: "hello", maxRetries: 0,
  });
  assert.equal(made.audio.uint8Array.length, 2004);
});

async function ollama() {
  const { Ollama } = await load("ollama");
  return new Ollama({ host: url, headers: { authorization: `Bearer ${key}` } });
}

const messages = [{ role: "user", content: "hello" }];

feature("ollama Node", "chat, stream", "/api/chat", async () => {
  const chat = await (await ollama()).chat({ model, messages });
  assert.equal(chat.message.content, "echo: hello");
  const stream = await (await ollama()).chat({ model, messages, stream: true });
  assert.equal(await joined(stream, (part) => part.message.content), "echo: hello");
});

feature("ollama Node", "generate, embed, list", "/api/generate", async () => {
  const client = await ollama();
  assert.equal((await client.generate({ model, prompt: "hello" })).response, "echo: hello");
  assert.equal((await client.embed({ model, input: "a" })).embeddings.length, 1);
  assert.ok((await client.list()).models.length > 0);
});

await main();
