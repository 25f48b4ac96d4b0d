"""Runs the responses API of the official OpenAI package against a host, and prints `ok`.

    python responses_client.py PORT

The host has the keys `sesame` and `poppy` of two tenants, the lane `a` (responds with `word0 word1 …`)
and the lane `slow` (takes long for each token).
"""

import sys
import time

import openai

port = sys.argv[1]
client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sesame", max_retries=0)
other = client.with_options(api_key="poppy")


def raises(kind, code, call):
    try:
        call()
    except kind as error:
        assert error.code == code, f"{error.code} instead of {code}: {error}"
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


first = client.responses.create(model="a", instructions="Be short.", input="hello", metadata={"k": "v"})
assert first.output_text == "word0 word1 word2 word3 word4 ", first
assert first.status == "completed" and first.metadata == {"k": "v"} and first.model == "a", first
assert first.usage.output_tokens == 5 and first.usage.input_tokens > 0, first
cut = client.responses.create(model="a", input="hello", max_output_tokens=2, store=False)
assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens", cut
raises(openai.NotFoundError, "not_found", lambda: client.responses.retrieve(cut.id))

# A conversation.
second = client.responses.create(
    model="a",
    previous_response_id=first.id,
    input=[{"role": "user", "content": [{"type": "input_text", "text": "more"}]}],
)
assert second.previous_response_id == first.id, second
assert second.usage.input_tokens > first.usage.input_tokens, second
again = client.responses.retrieve(second.id)
assert again.output_text == second.output_text and again.status == "completed", again
items = client.responses.input_items.list(second.id)
assert [item.content[0].text for item in items] == ["more"], items

# A stream, by its events and with the helper.
kinds = []
for event in client.responses.create(model="a", input="hello", stream=True):
    assert event.sequence_number == len(kinds), event
    kinds.append(event.type)
begin = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
end = [
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]
assert kinds == begin + ["response.output_text.delta"] * 5 + end, kinds
with client.responses.stream(model="a", input="hello", previous_response_id=second.id) as stream:
    text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    final = stream.get_final_response()
assert text == final.output_text == "word0 word1 word2 word3 word4 ", (text, final)
assert client.responses.retrieve(final.id).output_text == text

# The result of a tool.
call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1}'}
tool = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}
asked = client.responses.create(model="a", input=[{"role": "user", "content": "1+1"}, call, {"type": "function_call_output", "call_id": "c1", "output": "2"}], tools=[tool])
assert asked.output_text and asked.tools[0].name == "add", asked

# Others do not see it.
for request in [
    lambda: other.responses.retrieve(first.id),
    lambda: other.responses.delete(first.id),
    lambda: other.responses.input_items.list(first.id),
]:
    raises(openai.NotFoundError, "not_found", request)
follow = lambda client: client.responses.create(model="a", previous_response_id=first.id, input="x")
raises(openai.NotFoundError, "previous_response_not_found", lambda: follow(other))
client.responses.delete(first.id)
raises(openai.NotFoundError, "not_found", lambda: client.responses.retrieve(first.id))
raises(openai.NotFoundError, "previous_response_not_found", lambda: follow(client))

# In the background.
background = client.responses.create(model="a", input="hello", background=True)
assert background.status == "queued", background
while background.status in ("queued", "in_progress"):
    time.sleep(0.02)
    background = client.responses.retrieve(background.id)
assert background.status == "completed" and background.output_text.startswith("word0"), background
slow = client.responses.create(model="slow", input="hello", background=True)
assert client.responses.cancel(slow.id).status == "cancelled"
assert client.responses.retrieve(slow.id).status == "cancelled"
raises(openai.BadRequestError, "invalid_request", lambda: client.responses.create(model="a", input="x", conversation="conv_1"))

kept = client.responses.create(model="a", input="keep")
print(kept.id)
print("ok")
