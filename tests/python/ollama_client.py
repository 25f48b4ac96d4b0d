"""Runs the official Ollama package against a host, and prints `ok` if all responses are as expected.

    python ollama_client.py PORT KEY

The host has the lane `a`, which responds with `word0 word1 word2 `.
"""

import sys

import ollama

port, key = sys.argv[1:3]
headers = {"Authorization": f"Bearer {key}"}
client = ollama.Client(host=f"http://127.0.0.1:{port}", headers=headers)
messages = [{"role": "user", "content": "hello"}]
expected = "word0 word1 word2 "

assert [model.model for model in client.list().models] == ["a"]
assert client.show("a").modelinfo
assert client.ps().models[0].model == "a"

chat = client.chat(model="a", messages=messages)
assert chat.message.content == expected and chat.done and chat.eval_count == 3, chat
parts = list(client.chat(model="a", messages=messages, stream=True))
assert "".join(part.message.content for part in parts) == expected, parts
assert parts[-1].done and parts[-1].done_reason == "stop" and parts[-1].total_duration > 0


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


image = b"\x89PNG\r\n\x1a\n"
tools = client.chat(model="a", messages=messages, tools=[add], options={"num_predict": 2})
assert tools.done_reason == "length", tools
text = client.generate(model="a", prompt="x", system="brief", format="json", think=False)
assert text.response == expected and text.done, text
assert "".join(part.response for part in client.generate("a", "x", stream=True)) == expected
try:
    client.generate(model="a", prompt="x", images=[image])
    raise AssertionError("the model reads no images")
except ollama.ResponseError as error:
    assert error.status_code >= 400 and error.error, error
try:
    client.chat(model="unknown", messages=messages)
    raise AssertionError("the model is unknown")
except ollama.ResponseError as error:
    assert error.status_code == 404 and "unknown" in error.error, error
try:
    client.pull("a")
    raise AssertionError("models cannot be pulled")
except ollama.ResponseError as error:
    assert error.status_code == 501, error
assert client.generate(model="a", keep_alive=0).done_reason == "unload"
print("ok")
