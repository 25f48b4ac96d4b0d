"""The official Ollama package."""

from harness import IMAGE, MODEL, check, feature, key, main, raises, url

USER = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "the weather", "parameters": WEATHER},
    }
]


def client():
    import ollama

    return ollama.Client(host=url(), headers={"authorization": f"Bearer {key()}"})


def python(name, endpoint):
    return feature("ollama Python", name, endpoint)


@python("chat", "/api/chat")
def chat():
    response = client().chat(model=MODEL, messages=USER, options={"temperature": 0})
    check(response.message.content == "echo: hello" and response.done, response)
    check(response.done_reason == "stop" and response.eval_count == 2, response)


@python("chat, stream", "/api/chat")
def chat_stream():
    parts = list(client().chat(model=MODEL, messages=USER, stream=True))
    check("".join(part.message.content or "" for part in parts) == "echo: hello", parts)
    check(parts[-1].done and not parts[0].done, parts)


@python("chat, tools and their results", "/api/chat")
def chat_tools():
    first = client().chat(model=MODEL, messages=USER, tools=TOOLS).message
    check(first.tool_calls[0].function.arguments == {"city": "word"}, first)
    result = {"role": "tool", "content": "sunny", "tool_name": "weather"}
    second = client().chat(model=MODEL, messages=[*USER, first, result], tools=TOOLS).message
    check(second.content == "echo: hello", second)


@python("chat, tools in a stream", "/api/chat")
def chat_tools_stream():
    parts = list(client().chat(model=MODEL, messages=USER, tools=TOOLS, stream=True))
    calls = [call for part in parts for call in part.message.tool_calls or []]
    check([call.function.name for call in calls] == ["weather"], calls)


@python("chat, format with a schema", "/api/chat")
def chat_format():
    message = client().chat(model=MODEL, messages=USER, format=WEATHER).message
    check(message.content == '{"city": "word"}', message)


@python("chat, image", "/api/chat")
def chat_image():
    ask = {"role": "user", "content": "hello", "images": [IMAGE]}
    check(client().chat(model=MODEL, messages=[ask]).message.content == "echo: hello")


@python("chat, thinking", "/api/chat")
def chat_thinking():
    ask = [{"role": "user", "content": "hello <<think>>"}]
    message = client().chat(model=MODEL, messages=ask, think=True).message
    check(message.thinking.strip() == "some thought", message)


@python("generate", "/api/generate")
def generate():
    response = client().generate(model=MODEL, prompt="hello", system="be brief")
    check(response.response == "echo: hello" and response.done, response)


@python("generate, stream", "/api/generate")
def generate_stream():
    parts = list(client().generate(model=MODEL, prompt="hello", stream=True))
    check("".join(part.response for part in parts) == "echo: hello", parts)


@python("embed", "/api/embed")
def embed():
    response = client().embed(model=MODEL, input=["a", "b"])
    check([list(vector) for vector in response.embeddings] == [[0.25] * 4, [0.5] * 4], response)


@python("embeddings", "/api/embeddings")
def embeddings():
    check(list(client().embeddings(model=MODEL, prompt="a").embedding) == [0.25] * 4)


@python("list", "/api/tags")
def tags():
    names = [model.model for model in client().list().models]
    check(any(name.split(":")[0] == MODEL for name in names), names)


@python("ps", "/api/ps")
def running():
    check(client().ps().models is not None)


@python("show", "/api/show")
def show():
    check("completion" in client().show(MODEL).capabilities)


@python("typed errors", "/api/chat")
def errors():
    import ollama

    error = raises(ollama.ResponseError, lambda: client().chat(model="nope", messages=USER))
    check(error.status_code == 404, error)
    failing = [{"role": "user", "content": "<<status 500>>"}]
    error = raises(ollama.ResponseError, lambda: client().chat(model=MODEL, messages=failing))
    check(error.status_code == 502, error)
    cut = [{"role": "user", "content": "a b c <<cut>>"}]
    broken = lambda: list(client().chat(model=MODEL, messages=cut, stream=True))
    raises(ollama.ResponseError, broken)
    raises(ollama.ResponseError, lambda: client().pull("x"))


main()
