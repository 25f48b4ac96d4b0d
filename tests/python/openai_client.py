"""Runs the official OpenAI package against a host, and prints `ok` if all responses are as expected.

    python openai_client.py PORT KEY

The host has the lanes `a` (responds with `word0 word1 …`), `broken` (its engine responds 500), `busy`
(503), `slow` (never responds in time) and `truncated` (its streams end early).
"""

import sys

import openai

port, key = sys.argv[1:3]
client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)
messages = [{"role": "user", "content": "hello"}]


def raises(kind, code, call):
    try:
        call()
    except kind as error:
        assert type(error) is kind, f"{type(error)} instead of {kind}"
        if code:
            assert error.code == code, f"{error.code} instead of {code}: {error}"
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


chat = client.chat.completions.create(model="a", messages=messages, max_tokens=3)
assert chat.choices[0].message.content == "word0 word1 word2 ", chat
assert chat.usage.completion_tokens == 3
raw = client.chat.completions.with_raw_response.create(model="a", messages=messages)
assert raw.headers["x-pointsman-lane"] == "a" and raw.headers["x-pointsman-policy"] == "built-in", raw.headers

text = client.completions.create(model="a", prompt="hello", max_tokens=2)
assert text.choices[0].text == "word0 word1 ", text

options = {"include_usage": True}
chunks = list(client.chat.completions.create(model="a", messages=messages, max_tokens=4, stream=True, stream_options=options))
words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert words == "word0 word1 word2 word3 ", words
assert chunks[-1].usage.completion_tokens == 4
chunks = list(client.completions.create(model="a", prompt="hello", max_tokens=2, stream=True))
assert "".join(chunk.choices[0].text for chunk in chunks) == "word0 word1 ", chunks

names = [model.id for model in client.models.list()]
assert names == ["a", "broken", "busy", "slow", "truncated"], names
assert client.models.retrieve("a").id == "a"

create = client.chat.completions.create
raises(openai.NotFoundError, "model_not_found", lambda: create(model="nope", messages=messages))
raises(openai.NotFoundError, "model_not_found", lambda: client.models.retrieve("nope"))
raises(openai.BadRequestError, None, lambda: create(model="a", messages="hello"))
raises(openai.InternalServerError, "engine_error", lambda: create(model="broken", messages=messages))
busy = raises(openai.InternalServerError, "engine_overloaded", lambda: create(model="busy", messages=messages))
assert busy.status_code == 503 and int(busy.response.headers["retry-after"]) >= 1
raises(openai.InternalServerError, "engine_timeout", lambda: create(model="slow", messages=messages, stream=True))
raises(openai.AuthenticationError, "invalid_api_key", lambda: client.with_options(api_key="wrong").models.list())
chunks_before_error = []
error = raises(openai.APIError, "engine_error", lambda: chunks_before_error.extend(create(model="truncated", messages=messages, stream=True)))
assert chunks_before_error, "the chunks before the error"

# Base URLs as they are written in settings.
for base in ["", "/", "/v1/", "//v1"]:
    other = openai.OpenAI(base_url=f"http://127.0.0.1:{port}{base}", api_key=key, max_retries=0)
    assert other.chat.completions.create(model="a", messages=messages, max_tokens=1).model == "a"
    assert other.models.retrieve("a").id == "a"

print("ok")
