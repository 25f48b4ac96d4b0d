"""Runs the official Anthropic package against a host, and prints `ok` if all responses are as expected.

    python anthropic_client.py PORT KEY

The host has the lanes `agent` (its engine has chat completions only, and calls the first tool until it
has a result), `native` (its engine has messages), `truncated` (its streams end early) and `broken` (its
engine responds 500); the last two have chat completions only.
"""

import asyncio
import sys

import anthropic

port, key = sys.argv[1:3]
options = {"base_url": f"http://127.0.0.1:{port}", "api_key": key, "max_retries": 0}
client = anthropic.Anthropic(**options)
tools = [{"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]


def raises(kind, call):
    try:
        call()
    except kind as error:
        assert type(error) is kind, f"{type(error)} instead of {kind}"
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def arguments(model, **more):
    return {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}], **more}


# A loop with a tool, plain and streamed.
for streamed in (False, True):
    messages = [{"role": "user", "content": "weather?"}]
    for turn in range(2):
        request = arguments("agent", messages=messages, tools=tools, system="be kind")
        if streamed:
            with client.messages.stream(**request) as stream:
                message = stream.get_final_message()
        else:
            message = client.messages.create(**request)
        assert message.model == "agent" and message.id.startswith("msg_"), message
        assert message.usage.input_tokens == 4 and message.usage.cache_read_input_tokens == 8, message.usage
        messages.append({"role": "assistant", "content": message.content})
        if turn == 0:
            [call] = message.content
            assert message.stop_reason == "tool_use" and call.input == {"city": "Rome"}, message
            messages.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "25 C"}]})
    assert message.stop_reason == "end_turn" and message.content[0].text == "sunny", message

native = client.messages.create(**arguments("native"))
assert native.model == "native" and native.content[0].text.startswith("word0 "), native
with client.messages.stream(**arguments("native")) as stream:
    assert "".join(stream.text_stream).startswith("word0 word1 ")
raw = client.messages.with_raw_response.create(**arguments("agent"))
assert raw.headers["request-id"] and raw.headers["x-pointsman-lane"] == "agent", raw.headers
assert raw.parse()._request_id == raw.headers["request-id"]

count = {name: value for name, value in arguments("agent").items() if name != "max_tokens"}
assert client.messages.count_tokens(**count).input_tokens > 0
assert client.messages.count_tokens(**{**count, "model": "native"}).input_tokens > 0
models = list(client.models.list())
assert [model.id for model in models] == ["agent", "broken", "native", "truncated"], models
assert models[0].type == "model" and models[0].created_at.year > 2000, models[0]
assert client.models.retrieve("agent").display_name == "agent"

create = client.messages.create
raises(anthropic.NotFoundError, lambda: create(**arguments("nope")))
raises(anthropic.InternalServerError, lambda: create(**arguments("broken")))
raises(anthropic.AuthenticationError, lambda: client.with_options(api_key="wrong").messages.create(**arguments("agent")))
search = [{"type": "web_search_20250305", "name": "web_search"}]
raises(anthropic.BadRequestError, lambda: create(**arguments("agent", tools=search)))


def truncated():
    with client.messages.stream(**arguments("truncated")) as stream:
        stream.get_final_message()


try:
    truncated()
except anthropic.APIStatusError as error:
    assert error.body["error"]["type"], error
else:
    raise AssertionError("a stream that broke looks complete")


async def asynchronous():
    async with anthropic.AsyncAnthropic(**options) as other:
        async with other.messages.stream(**arguments("native")) as stream:
            message = await stream.get_final_message()
        assert message.stop_reason == "max_tokens", message


asyncio.run(asynchronous())
print("ok")
