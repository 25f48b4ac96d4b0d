// Keys and tokens: the official packages raise the errors that belong to refused credentials.
import { assert, feature, load, main, model, url } from "./harness.mjs";

const CHAT = "/v1/chat/completions";
const MESSAGES = "/v1/messages";
const messages = [{ role: "user", content: "hello" }];
const credentials = JSON.parse(process.env.CREDENTIALS ?? "{}");
const codes = ["invalid_token", "token_expired", "token_not_allowed"];

async function openai(name, options = {}) {
  const { default: OpenAI } = await load("openai");
  const client = new OpenAI({
    baseURL: `${url}/v1`, apiKey: credentials[name], maxRetries: 0, ...options,
  });
  const ask = (more = {}) => client.chat.completions.create({ model, messages, ...more });
  return { library: OpenAI, ask, text: (chat) => chat.choices[0].message.content };
}

async function anthropic(name, options = {}) {
  const { default: Anthropic } = await load("@anthropic-ai/sdk");
  const client = new Anthropic({
    baseURL: url, authToken: credentials[name], apiKey: null, maxRetries: 0, ...options,
  });
  const ask = (more = {}) => client.messages.create({ model, max_tokens: 100, messages, ...more });
  return { library: Anthropic, ask, text: (message) => message.content[0].text };
}

/** Returns the error of a request, which must be of this class. */
async function raised(kind, request) {
  const error = await request.then(() => assert.fail("no error"), (error) => error);
  assert.equal(error.constructor.name, kind, error);
  return error;
}

/** Asks one time after another, until one fails. */
async function repeat(times, ask) {
  for (let time = 0; time < times; time++) await ask();
}

for (const [name, endpoint, connect] of [
  ["openai Node", CHAT, openai], ["anthropic Node", MESSAGES, anthropic],
]) {
  feature(name, "access, token", endpoint, async () => {
    const { ask, text } = await connect("valid");
    assert.equal(text(await ask()), "echo: hello");
  });

  feature(name, "access, refused tokens", endpoint, async () => {
    const found = [];
    for (const [token, kind] of [
      ["foreign", "AuthenticationError"], ["expired", "AuthenticationError"],
      ["stray", "PermissionDeniedError"],
    ]) {
      const { ask } = await connect(token);
      found.push((await raised(kind, ask())).headers.get("x-pointsman-code"));
    }
    assert.deepEqual(found, codes);
  });

  feature(name, "access, refused keys", endpoint, async () => {
    const past = await raised("AuthenticationError", (await connect("past")).ask());
    const narrow = await raised("PermissionDeniedError", (await connect("narrow")).ask());
    const found = [past, narrow].map((error) => error.headers.get("x-pointsman-code"));
    assert.deepEqual(found, ["api_key_expired", "model_not_allowed"]);
  });

  feature(name, "access, rate limit", endpoint, async () => {
    const { ask } = await connect("paced");
    const error = await raised("RateLimitError", repeat(3, ask));
    assert.equal(error.headers.get("x-pointsman-code"), "rate_limit_exceeded");
    const after = Number(error.headers.get("retry-after"));
    assert.ok(after >= 1 && after <= 61, String(after));
  });

  feature(name, "access, retries after a limit", endpoint, async () => {
    let sent = 0;
    const counting = (...request) => (sent++, fetch(...request));
    const once = await connect("single");
    const lingering = [{ role: "user", content: "hello <<linger 3>>" }];
    // It is in flight once its response has begun.
    const slow = await once.ask({ messages: lingering, stream: true });
    const error = await raised("RateLimitError", once.ask());
    const after = Number(error.headers.get("retry-after"));
    const counted = await connect("single", { maxRetries: 8, fetch: counting });
    const begun = Date.now();
    assert.equal(counted.text(await counted.ask()), "echo: hello");
    assert.ok(sent > 1, String(sent));
    assert.ok(Date.now() - begun >= after * 1000, String(after));
    for await (const event of slow) assert.ok(event);
  });
}

main();
