"""Validates what the host itself writes against the types of the official packages.

The engine behind the host has none of these endpoints, so all bodies and events are the host's.
They must have all required fields, values of the exact types, and no other fields but those that
`ALLOWED` names: extensions that host/docs/openai.md documents.
"""

import http.client
import json
from urllib.parse import urlsplit

from harness import IMAGE, MODEL, check, feature, key, main, url

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
# Fields that the host, or the real server, adds to a type.
ALLOWED = {
    "ErrorObject": {"pointsman_code"},
    "Model": {
        "root",
        "parent",
        "max_model_len",
        "context_length",
        "context_window",
        "lanes",
        "max_context_length",
        "meta",
        "state",
        "capabilities",
        "permission",
        "endpoints",
    },
    # OpenAI's API has these, but the types of the package do not.
    "Response": {"store"},
    "ResponseFunctionCallArgumentsDoneEvent": {"name"},
    "ResponseErrorEvent": {"error"},
    # Real Ollama has the name twice.
    "ListResponse.Model": {"name"},
}
# The host gives Anthropic's libraries the fields of all others, too.
ALLOWED["ModelInfo"] = ALLOWED["Model"] | {"object", "created", "owned_by"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "the weather", "parameters": SCHEMA}


def allowed_fields(kind):
    """Returns the further fields that a type may have."""
    # Anthropic's errors have no code.
    code = {"code"} if kind.__name__.endswith("ErrorObject") else set()
    return code | ALLOWED.get(kind.__name__, set()) | ALLOWED.get(kind.__qualname__, set())


def send(method, path, body=None, **headers):
    """Returns status, content type and text of a response."""
    connection = http.client.HTTPConnection(urlsplit(url()).netloc, timeout=30)
    headers = {
        "authorization": f"Bearer {key()}",
        "content-type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, response.headers["content-type"], response.read().decode()


def unknown_fields(model, raw, path=""):
    """Yields the fields of `raw` that the types of a validated model do not have."""
    from pydantic import BaseModel

    if isinstance(model, BaseModel) and isinstance(raw, dict):
        fields = type(model).model_fields
        names = {field.alias or name: name for name, field in fields.items()}
        allowed = allowed_fields(type(model))
        for name, value in raw.items():
            if name in names:
                yield from unknown_fields(getattr(model, names[name]), value, f"{path}.{name}")
            elif name not in allowed:
                yield f"{path}.{name} of {type(model).__qualname__}"
    elif isinstance(model, (list, tuple)) and isinstance(raw, list):
        for i, (item, value) in enumerate(zip(model, raw)):
            yield from unknown_fields(item, value, f"{path}[{i}]")


def validate(kind, text):
    """Validates JSON against a type of an SDK, and returns the model."""
    from pydantic import TypeAdapter, ValidationError

    try:
        model = TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise AssertionError(f"{text[:300]}: {str(error)[:600]}") from error
    extra = list(unknown_fields(model, json.loads(text)))
    check(not extra, extra, text)
    return model


def events(text):
    """Returns names and data of server-sent events."""
    found = []
    for frame in text.split("\n\n"):
        lines = [line for line in frame.splitlines() if not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            found.append((fields.get("event"), fields["data"]))
    return found


def schema(name, endpoint):
    return feature("schemas", name, endpoint)


def check_openai_error(text):
    from openai.types.shared import ErrorObject

    body = json.loads(text)
    check(set(body) == {"error"}, text)
    validate(ErrorObject, json.dumps(body["error"]))


@schema("OpenAI errors", CHAT)
def openai_errors():
    messages = [{"role": "user", "content": "<<status 500>>"}]
    for status, path, body, headers in [
        (400, CHAT, {"model": MODEL}, {}),
        (400, CHAT, [], {}),
        (404, "/nothing", {}, {}),
        (404, CHAT, {"model": "nope", "messages": []}, {}),
        (401, CHAT, {}, {"authorization": "Bearer x"}),
        (415, CHAT, {}, {"content_type": "x/y"}),
        (502, CHAT, {"model": MODEL, "messages": messages}, {}),
    ]:
        found, _, text = send("POST", path, body, **headers)
        check(found == status, status, found, text)
        check_openai_error(text)
    check(send("GET", CHAT)[0] == 405)
    cut = [{"role": "user", "content": "a b c <<cut>>"}]
    _, _, text = send("POST", CHAT, {"model": MODEL, "messages": cut, "stream": True})
    check_openai_error(events(text)[-1][1])


@schema("OpenAI models", "/v1/models")
def openai_models():
    from openai.types import Model

    _, _, text = send("GET", "/v1/models")
    listed = json.loads(text)
    check(set(listed) <= {"object", "data", "models"} and listed["object"] == "list", text)
    for model in listed["data"]:
        validate(Model, json.dumps(model))
    validate(Model, send("GET", f"/v1/models/{MODEL}")[2])


def response_requests():
    """Yields the name of a case, and a request."""
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{IMAGE}", "detail": "auto"}
    parts = [{"type": "input_text", "text": "hello <<think>>"}, image]
    form = {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}}
    tools = {"tools": [{"type": "function", "strict": True, **FUNCTION}]}
    both = 'x <<parallel>> <<call weather {"city": "a"}>> <<call weather {"city": "b"}>>'
    yield "text", {"input": "hello", "instructions": "be brief", "metadata": {"a": "b"}}
    yield "reasoning", {"input": [{"role": "user", "content": parts}]}
    yield "incomplete", {"input": "one two three four", "max_output_tokens": 2}
    yield "structured", {"input": "hello", "text": form}
    yield "tool", {"input": "hello", **tools, "tool_choice": "required"}
    yield "parallel tools", {"input": both, **tools, "parallel_tool_calls": True}
    yield "not stored", {"input": "hello", "store": False}


@schema("responses", RESPONSES)
def responses():
    from openai.types.responses import Response

    for name, request in response_requests():
        status, _, text = send("POST", RESPONSES, {"model": MODEL, **request})
        check(status == 200, name, status, text)
        response = validate(Response, text)
        expected = "incomplete" if name == "incomplete" else "completed"
        check(response.status == expected, name, text)


@schema("events of responses", RESPONSES)
def response_events():
    from openai.types.responses import ResponseStreamEvent

    for name, request in response_requests():
        body = {"model": MODEL, "stream": True, **request}
        status, kind, text = send("POST", RESPONSES, body)
        check(status == 200 and kind.startswith("text/event-stream"), name, status, text)
        found = [event for event in events(text) if event[1] != "[DONE]"]
        models = [validate(ResponseStreamEvent, data) for _, data in found]
        check([event for event, _ in found] == [model.type for model in models], name, found)
        check([model.sequence_number for model in models] == list(range(len(models))), name)
        check(models[0].type == "response.created", name, models[0])
        last = "response.incomplete" if name == "incomplete" else "response.completed"
        check(models[-1].type == last, name, models[-1])
        check_nesting(name, models)


def check_nesting(name, models):
    """Checks that items and parts are opened and closed in order, and deltas add up."""
    open_item, open_part, text = None, None, ""
    for model in models:
        kind = model.type.removeprefix("response.")
        if kind == "output_item.added":
            check(open_item is None, name, kind)
            open_item, text = model.output_index, ""
        elif kind == "content_part.added":
            check(open_part is None and open_item == model.output_index, name, kind)
            open_part = model.content_index
        elif kind == "content_part.done":
            check(open_part == model.content_index, name, kind)
            open_part = None
        elif kind == "output_item.done":
            check(open_part is None and open_item == model.output_index, name, kind)
            open_item = None
        elif kind.endswith(".delta"):
            check(open_item == model.output_index, name, kind)
            text += model.delta
        elif kind == "output_text.done":
            check(model.text == text, name, text)
        elif kind == "function_call_arguments.done":
            check(model.arguments == text, name, text)
    check(open_item is None and open_part is None, name)


@schema("stored responses", f"{RESPONSES}/{{id}}")
def stored_responses():
    from openai.types.responses import Response, ResponseItem

    _, _, text = send("POST", RESPONSES, {"model": MODEL, "input": "hello"})
    made = validate(Response, text)
    validate(Response, send("GET", f"{RESPONSES}/{made.id}")[2])
    _, _, text = send("GET", f"{RESPONSES}/{made.id}/input_items")
    page = json.loads(text)
    check({"object", "data", "first_id", "last_id", "has_more"} == set(page), text)
    for item in page["data"]:
        validate(ResponseItem, json.dumps(item))
    status, _, text = send("GET", f"{RESPONSES}/{made.id}", authorization="Bearer other")
    check(status == 404, status, text)
    check_openai_error(text)
    status, _, text = send("DELETE", f"{RESPONSES}/{made.id}")
    expected = {"id": made.id, "object": "response", "deleted": True}
    check(status == 200 and json.loads(text) == expected, text)
    _, _, text = send("POST", RESPONSES, {"model": MODEL, "input": "hello", "background": True})
    validate(Response, text)


@schema("errors of responses", RESPONSES)
def response_errors():
    from openai.types.responses import ResponseStreamEvent

    for status, body in [
        (404, {"model": "nope", "input": "x"}),
        (400, {"model": MODEL}),
        (502, {"model": MODEL, "input": "<<status 500>>"}),
    ]:
        found, _, text = send("POST", RESPONSES, body)
        check(found == status, status, found, text)
        check_openai_error(text)
    body = {"model": MODEL, "input": "a b <<cut>>", "stream": True}
    found = events(send("POST", RESPONSES, body)[2])
    models = [validate(ResponseStreamEvent, data) for _, data in found]
    check(models[-1].type in ("error", "response.failed"), models[-1])
    check(not any(model.type == "response.completed" for model in models))


def message_requests():
    source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
    parts = [{"type": "image", "source": source}, {"type": "text", "text": "hello <<think>>"}]
    tools = {"tools": [{"name": "weather", "input_schema": SCHEMA}]}
    both = 'x <<parallel>> <<call weather {"city": "a"}>> <<call weather {"city": "b"}>>'
    yield "end_turn", {"system": "be brief"}
    yield "end_turn", {"messages": [{"role": "user", "content": parts}]}
    yield "max_tokens", {"messages": [{"role": "user", "content": "1 2 3 4"}], "max_tokens": 2}
    yield "tool_use", {**tools, "tool_choice": {"type": "any"}}
    yield "tool_use", {**tools, "messages": [{"role": "user", "content": both}]}


def message_body(request, **more):
    ask = [{"role": "user", "content": "hello"}]
    return {"model": MODEL, "max_tokens": 100, "messages": ask, **request, **more}


@schema("Anthropic messages", MESSAGES)
def messages():
    from anthropic.types import Message

    for stop_reason, request in message_requests():
        status, _, text = send("POST", MESSAGES, message_body(request))
        check(status == 200, status, text)
        check(validate(Message, text).stop_reason == stop_reason, stop_reason, text)


@schema("events of Anthropic messages", MESSAGES)
def message_events():
    from anthropic.types import RawMessageStreamEvent

    for stop_reason, request in message_requests():
        _, kind, text = send("POST", MESSAGES, message_body(request, stream=True))
        check(kind.startswith("text/event-stream"), kind, text)
        found = [event for event in events(text) if event[0] != "ping"]
        models = [validate(RawMessageStreamEvent, data) for _, data in found]
        check([event for event, _ in found] == [model.type for model in models], found)
        check(models[0].type == "message_start" and models[-1].type == "message_stop", text)
        check(models[-2].delta.stop_reason == stop_reason, text)
        check_blocks(models[1:-2])


def check_blocks(models):
    """Checks that content blocks follow each other, each with its deltas."""
    index, is_open = -1, False
    for model in models:
        if model.type == "content_block_start":
            check(not is_open and model.index == index + 1, model)
            index, is_open = model.index, True
        else:
            check(is_open and model.index == index, model)
            is_open = model.type != "content_block_stop"
    check(not is_open)


@schema("Anthropic errors", MESSAGES)
def message_errors():
    from anthropic.types import ErrorResponse

    failing = [{"role": "user", "content": "<<status 500>>"}]
    for status, body, headers in [
        (400, [], {}),
        (400, message_body({"messages": "x"}), {}),
        (404, message_body({"model": "nope"}), {}),
        (401, {}, {"authorization": "Bearer x"}),
        (502, message_body({"messages": failing}), {}),
    ]:
        found, _, text = send("POST", MESSAGES, body, **headers)
        check(found == status, status, found, text)
        validate(ErrorResponse, text)
    cut = [{"role": "user", "content": "a b c <<cut>>"}]
    found = events(send("POST", MESSAGES, message_body({"messages": cut}, stream=True))[2])
    check(found[-1][0] == "error" and not any(name == "message_stop" for name, _ in found), found)
    validate(ErrorResponse, found[-1][1])


@schema("Anthropic count_tokens", f"{MESSAGES}/count_tokens")
def count_tokens():
    from anthropic.types import MessageTokensCount

    body = message_body({})
    del body["max_tokens"]
    validate(MessageTokensCount, send("POST", f"{MESSAGES}/count_tokens", body)[2])


@schema("Anthropic models", "/v1/models")
def anthropic_models():
    from anthropic.types import ModelInfo

    _, _, text = send("GET", "/v1/models", anthropic_version="2023-06-01")
    page = json.loads(text)
    check({"data", "first_id", "last_id", "has_more"} <= set(page), text)
    for model in page["data"]:
        validate(ModelInfo, json.dumps(model))


def ollama_chat_requests():
    tools = {"tools": [{"type": "function", "function": FUNCTION}]}
    yield "stop", {}
    yield "stop", {"messages": [{"role": "user", "content": "x <<think>>"}], "think": True}
    yield "length", {"options": {"num_predict": 1}}
    yield "stop", {"format": SCHEMA}
    yield "stop", tools


def check_last(last, reason):
    check(last.done and last.done_reason == reason, last)
    for name in (
        "total_duration",
        "load_duration",
        "eval_duration",
        "eval_count",
        "prompt_eval_count",
        "prompt_eval_duration",
    ):
        check(isinstance(getattr(last, name), int), name, last)


@schema("Ollama chat and generate", "/api/chat")
def ollama_chat():
    import ollama

    for path, kind, ask in [
        ("/api/chat", ollama.ChatResponse, {"messages": [{"role": "user", "content": "hello"}]}),
        ("/api/generate", ollama.GenerateResponse, {"prompt": "hello"}),
    ]:
        requests = ollama_chat_requests() if path == "/api/chat" else [("stop", {})]
        for reason, request in requests:
            body = {"model": MODEL, **ask, **request}
            status, content_type, text = send("POST", path, {**body, "stream": False})
            check(status == 200 and content_type.startswith("application/json"), text)
            check_last(validate(kind, text), reason)
            status, content_type, text = send("POST", path, body)
            check(content_type.startswith("application/x-ndjson"), content_type)
            parts = [validate(kind, line) for line in text.splitlines()]
            check_last(parts[-1], reason)
            check(not any(part.done for part in parts[:-1]), text)


@schema("Ollama embed", "/api/embed")
def ollama_embed():
    import ollama

    _, _, text = send("POST", "/api/embed", {"model": MODEL, "input": ["a", "b"]})
    validate(ollama.EmbedResponse, text)
    _, _, text = send("POST", "/api/embeddings", {"model": MODEL, "prompt": "a"})
    validate(ollama.EmbeddingsResponse, text)


@schema("Ollama tags, ps, show, version", "/api/tags")
def ollama_models():
    import ollama

    validate(ollama.ListResponse, send("GET", "/api/tags")[2])
    validate(ollama.ProcessResponse, send("GET", "/api/ps")[2])
    validate(ollama.ShowResponse, send("POST", "/api/show", {"model": MODEL})[2])
    check(set(json.loads(send("GET", "/api/version")[2])) == {"version"})
    check(send("GET", "/")[2] == "Ollama is running")


@schema("Ollama errors", "/api/chat")
def ollama_errors():
    ask = lambda text: {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    for status, body in [
        (400, []),
        (404, {**ask("x"), "model": "nope"}),
        (502, ask("<<status 500>>")),
    ]:
        found, _, text = send("POST", "/api/chat", body)
        check(found == status and set(json.loads(text)) == {"error"}, status, found, text)
    lines = send("POST", "/api/chat", ask("a b c <<cut>>"))[2].splitlines()
    check(set(json.loads(lines[-1])) == {"error"}, lines[-1])


main()
