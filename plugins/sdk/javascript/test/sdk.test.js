import assert from "node:assert/strict";
import test from "node:test";

import {
  Config,
  Lanes,
  Random,
  any,
  blend,
  edits,
  only,
  reject,
  scores,
  unsupported,
} from "../pointsman.js";
import { configure, fakeFinished, fakeFleet, fakeRequest } from "../testing.js";
import { Decoder, Encoder } from "../text.js";

const fleet = fakeFleet(["alpha", { name: "beta", labels: { tier: "cheap" } }]);

/** Returns a policy with this `advise` function. */
const policy = (advise, more = {}) => ({
  name: "p",
  version: "1",
  configure: () => ({ advise, ...more }),
});

test("random numbers are the same in all SDKs", () => {
  const random = new Random(1234567);
  assert.deepEqual(
    [random.next(), random.next(), random.next()],
    [6457827717110365317n, 3203168211198807973n, 9817491932198370423n],
  );
  assert.deepEqual(
    [1, 2, 3].map(() => new Random(42).below(6)),
    [4, 4, 4],
  );
  assert.equal(new Random(1).below(0), 0);
});

test("advice has exactly the fields of the contract's record", () => {
  const advice = only([1])
    .withReason("so")
    .withNote("count", 3)
    .withNote("sure", true)
    .withHint("h", "x")
    .withPriority(5)
    .withFlow("f")
    .withMaxWait(100, "reject")
    .withFallback([0, { lane: 1, edits: [edits.capOutputTokens(5)] }], {
      on: { overloaded: true },
      firstTokenMs: 9,
    })
    .withSwitching("never")
    .withEdits(edits.setField("/a", { b: 1 }), edits.setHeader("x", "y"));
  assert.deepEqual(
    { ...advice },
    {
      reject: null,
      lanes: { tag: "only", val: [1] },
      switching: "never",
      queue: { priority: 5, flow: "f", maxWaitMs: 100, onTimeout: "reject" },
      fallback: {
        on: {
          queueTimeout: false,
          connectError: false,
          overloaded: true,
          serverError: false,
          engineRestart: false,
          firstTokenTimeout: false,
        },
        steps: [
          { lane: 0, edits: [] },
          { lane: 1, edits: [{ tag: "cap-output-tokens", val: 5 }] },
        ],
        firstTokenMs: 9,
      },
      edits: [
        { tag: "set-field", val: ["/a", '{"b":1}'] },
        { tag: "set-header", val: ["x", "y"] },
      ],
      notes: [
        { key: "why", value: { tag: "text", val: "so" } },
        { key: "count", value: { tag: "int", val: 3 } },
        { key: "sure", value: { tag: "flag", val: true } },
      ],
      hints: [{ key: "h", value: { tag: "text", val: "x" } }],
    },
  );
  assert.throws(() => any().withNote("half", 0.5), /`half`/);
  assert.deepEqual(blend({ "est-wait": 7 }).lanes, {
    tag: "blend",
    val: [{ metric: "est-wait", weight: 7 }],
  });
  assert.deepEqual(scores(new Map([[1, 900]])).lanes.val, [{ lane: 1, score: 900 }]);
  assert.deepEqual(reject(429, "slow_down", "later", { retryAfterS: 3 }).reject, {
    status: 429,
    code: "slow_down",
    message: "later",
    retryAfterS: 3,
  });
});

test("configuration errors name the key", () => {
  const read = (config) => {
    config.string("name");
    config.integer("count", 1, { min: 1, max: 9 });
    config.boolean("on");
    config.strings("list");
    config.stringMap("map");
    config.integerMap("budgets", { max: 9 });
    const inner = config.section("inner");
    inner.boolean("deep");
    inner.finish();
    config.finish();
  };
  for (const [json, message] of [
    ["{", "invalid JSON"],
    ["[]", "expected an object, found a list"],
    ['{"other": 1}', "other: unknown key"],
    ['{"name": 5}', "name: expected a string, found 5"],
    ['{"name": null}', "name: expected a string, found null"],
    ['{"count": 10}', "count: expected an integer from 1 to 9, found 10"],
    ['{"count": 1.5}', "count: expected an integer from 1 to 9, found 1.5"],
    ['{"on": "yes"}', 'on: expected a boolean, found "yes"'],
    ['{"list": ["a", 5]}', "list: expected a list of strings, found a list"],
    ['{"map": {"a": 5}}', "map.a: expected a string, found 5"],
    ['{"budgets": {"a": 10}}', "budgets.a: expected an integer from 0 to 9, found 10"],
    ['{"inner": {"shallow": true}}', "inner.shallow: unknown key"],
    ['{"inner": []}', "inner: expected an object, found a list"],
  ]) {
    assert.throws(() => read(Config.parse(json)), { tag: "invalid-config", message });
  }
  read(
    Config.parse(
      '{"name": "", "count": 9, "on": false, "list": [], "map": {}, "inner": {"deep": true}}',
    ),
  );
  const config = Config.parse('{"budgets": {"a": 1, "b": 2}}');
  assert.deepEqual(config.keys(), ["budgets"]);
  assert.deepEqual([...config.integerMap("budgets")], [["a", 1], ["b", 2]]);
});

test("exceptions become contract errors", () => {
  const thrown = (advise) => {
    try {
      configure(policy(advise)).advise(fakeRequest("hi"), fleet);
    } catch (error) {
      return error;
    }
    return null;
  };
  assert.deepEqual(
    thrown(() => {
      throw unsupported("no media");
    }),
    { tag: "unsupported", val: "no media" },
  );
  assert.deepEqual(
    thrown(() => {
      throw { tag: "out-of-budget" };
    }),
    { tag: "out-of-budget" },
  );
  assert.deepEqual(thrown(() => undefined.x).tag, "other");
});

test("lane ids are cached per topology", () => {
  let lookups = 0;
  const lanes = new Lanes();
  const find = (name) => {
    lookups += 1;
    return name === "a" ? 0 : null;
  };
  const call = (topology) => ({ context: { topology }, fleet: { find } });
  for (const topology of [1, 1, 2]) {
    assert.equal(lanes.find(call(topology), "a"), 0);
    assert.equal(lanes.find(call(topology), "b"), null);
  }
  assert.equal(lookups, 4);
});

test("fakes behave as the contract specifies", () => {
  let received;
  const advisor = configure(
    policy((call) => {
      received = call;
      return any();
    }),
  );
  advisor.advise(fakeRequest("héllo FN main", { headers: { "X-A": "1" }, tenant: "t" }), fleet);
  const { request, fleet: lanes, context } = received;
  assert.equal(context.promptTokens, 4);
  assert.equal(request.header("x-a"), "1");
  assert.equal(request.text(0, 2, 4), "llo");
  assert.equal(request.text(9, 0, 4), "");
  assert.ok(request.contains("fn main", true) && !request.contains("fn main", false));
  assert.deepEqual(request.field("/messages/0/role", 10), { tag: "json", val: '"user"' });
  assert.deepEqual(request.field("/messages/0/content", 2).tag, "too-large");
  assert.deepEqual(request.field("/nothing", 2), { tag: "absent" });
  assert.deepEqual(lanes.withLabel("tier", "cheap"), [1]);
  assert.deepEqual(lanes.candidates(), [0, 1]);
  assert.equal(lanes.stat(7), null);
});

test("missing hooks do nothing", () => {
  const advisor = configure(policy(any));
  assert.deepEqual(advisor.recover(fakeRequest("hi"), fleet, {}), { tag: "planned" });
  assert.deepEqual(advisor.tick(0, 0), []);
  assert.equal(advisor.observe(0, []), undefined);
});

test("a fake request has the endpoint that the test chooses", () => {
  let seen;
  const { advise } = configure(
    policy((call) => {
      seen = [call.request.endpointKind(), call.context.endpoint];
      return any();
    }),
  );
  advise(fakeRequest("hi"), fleet);
  assert.deepEqual(seen, ["chat-completions", "chat-completions"]);
  advise(fakeRequest("hi", { endpointKind: "rerank" }), fleet);
  assert.deepEqual(seen, ["rerank", "other"]);
});

test("a fake request has the key and the limits that the test chooses", () => {
  let seen;
  const { advise } = configure(
    policy(({ request }) => {
      seen = [request.keyGroup(), request.keyName(), request.allowance()];
      return any();
    }),
  );
  const none = { requests: null, tokens: null, budget: null };
  advise(fakeRequest("hi"), fleet);
  assert.deepEqual(seen, [null, null, none]);
  const budget = { limit: 1000, left: 50, resetMs: 60000 };
  advise(fakeRequest("hi", { keyGroup: "staff", keyName: "k_1", allowance: { budget } }), fleet);
  assert.deepEqual(seen, ["staff", "k_1", { ...none, budget }]);
});

const reports = (advisor) =>
  advisor.log
    .map(({ message }) => message.split("\t"))
    .filter(([prefix]) => prefix === "pointsman:fault/1");

test("an exception is reported with message, file, line and stack", () => {
  const deep = (value) => value.missing.field;
  const advisor = configure(policy(() => deep({})));
  assert.throws(() => advisor.advise(fakeRequest("hi"), fleet), { tag: "other" });
  const [[, file, line, message, ...stack]] = reports(advisor);
  assert.match(file, /sdk\.test\.js$/);
  assert.ok(Number(line) > 0);
  assert.match(message, /^TypeError: /);
  assert.match(stack[0], /^deep \(.*sdk\.test\.js:\d+\)$/);
});

test("an exception of a background hook is reported and thrown", () => {
  const observe = () => {
    throw new Error("cannot observe");
  };
  const advisor = configure(policy(any, { observe }));
  assert.throws(() => advisor.observe(0, []), /cannot observe/);
  assert.equal(reports(advisor)[0][3], "Error: cannot observe");
});

test("results that are not advice are errors that name the hook", () => {
  const error = (advise) => {
    const advisor = configure(policy(advise));
    assert.throws(() => advisor.advise(fakeRequest("hi"), fleet), { tag: "other" });
    return reports(advisor)[0][3];
  };
  for (const [advise, expected] of [
    [() => undefined, /advise returned undefined/],
    [() => "lane", /advise returned a string/],
    [async () => any(), /advise returned a promise/],
  ]) {
    assert.match(error(advise), expected);
  }
  const without = { name: "p", version: "1", configure: () => ({}) };
  assert.throws(() => configure(without), (thrown) => /`advise`/.test(thrown.val));
});

test("state has texts, counters, expiry and limits", () => {
  let state;
  const keep = policy((call) => {
    state = call.state;
    return any();
  });
  const advisor = configure(keep, {}, { state: { seen: 7, name: "é" } });
  advisor.advise(fakeRequest("hi"), fleet);
  assert.deepEqual([state.getCounter("seen"), state.getText("name")], [7, "é"]);
  assert.deepEqual([...state.get("seen")], [7, 0, 0, 0, 0, 0, 0, 0]);
  state.put("short", "text", 1000);
  assert.equal(state.increment("hits", 2, 1000), 2);
  assert.throws(() => state.increment("name"), { name: "StateError", code: "not-a-counter" });
  assert.throws(() => state.put("k".repeat(129), "x"), { code: "too-long" });
  advisor.advise(fakeRequest("hi", { context: { nowMs: 1000 } }), fleet);
  assert.deepEqual([state.get("short"), state.getCounter("hits")], [null, null]);
});

test("facts follow from the body", () => {
  let seen;
  const advisor = configure(
    policy((call) => {
      seen = [call.context, call.request.messages()[0]];
      return any();
    }),
  );
  const content = [{ type: "text", text: "héllo" }, { type: "image_url", image_url: {} }];
  const format = { response_format: { type: "json_object" } };
  const body = { stream: true, tools: [{}], max_tokens: 9, ...format };
  advisor.advise(fakeRequest([{ role: "user", content }], { body }), fleet);
  const { streaming, hasTools, hasMedia, hasGrammar, maxOutputTokens, promptTokens } = seen[0];
  assert.deepEqual([streaming, hasTools, hasMedia, hasGrammar], [true, true, true, true]);
  assert.deepEqual([maxOutputTokens, promptTokens], [9, 2]);
  assert.deepEqual(seen[1], { role: "user", textBytes: 6, parts: 2, mediaParts: 1 });
});

test("encoder and decoder agree with those of Node", () => {
  const texts = ["", "aé€😀\u0000", "\ud800x", "\udc00"];
  for (const text of texts) {
    assert.deepEqual([...new Encoder().encode(text)], [...new TextEncoder().encode(text)]);
  }
  const samples = [[0xc3], [0xe2, 0x82], [0xff, 0x41], [0xed, 0xa0, 0x80]];
  const invalid = [[0xc0, 0x80], [0xf4, 0x90, 0x80, 0x80], [0xe2, 0x28, 0xa1]];
  const all = [...samples, [0xf0, 0x9f, 0x98, 0x80], ...invalid];
  for (const bytes of all) {
    const input = Uint8Array.from(bytes);
    assert.equal(new Decoder().decode(input), new TextDecoder().decode(input), String(bytes));
  }
});

test("policy learns all attempts and its own notes", () => {
  const learn = (nowMs, done, host) => {
    for (const { attempts, notes, outcome } of done) {
      const failed = attempts.filter(({ ended }) => ended !== "ok").map(({ status }) => status);
      host.metrics.add(`${notes[0].value.val}: ${failed} of ${outcome.tries}`, nowMs);
    }
  };
  const advisor = configure(policy(() => any(), { learn }));
  const attempts = [
    { lane: 0, ended: "server-error", status: 500 },
    { lane: 1, ended: "ok", status: 200 },
  ];
  advisor.learn(7, [fakeFinished({ lane: 1 }, { attempts, notes: { session: "s1" } })]);
  assert.equal(advisor.counters.get("s1: 500 of 2"), 7);
  assert.deepEqual(fakeFinished({ totalMs: 9 }).attempts, [
    { lane: 0, ended: "ok", status: 200, queueMs: 0, tookMs: 9 },
  ]);
});

test("request has a deadline and finds patterns, and the fleet the lanes that are left", () => {
  let seen;
  const advisor = configure(
    policy(({ request, fleet }) => {
      const found = (ignoreCase) =>
        request
          .findAny(["dog", "CATS", "cat"], ignoreCase)
          .map(({ pattern, message, offset }) => [pattern, message, offset]);
      seen = [request.deadlineMs(), found(false), found(true), fleet.lanesLeft()];
      return any();
    }),
  );
  const request = fakeRequest("é: cats", { deadlineMs: 900 });
  advisor.advise(request, fakeFleet(["a", "b"], 1, ["b"]));
  const found = [
    [1, 0, 4],
    [2, 0, 4],
  ];
  assert.deepEqual(seen, [900, [[2, 0, 4]], found, [1]]);
  advisor.advise(fakeRequest("x"), fakeFleet(["a", "b"]));
  assert.deepEqual(seen, [null, [], [], [0, 1]]);
});
