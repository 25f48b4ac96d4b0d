"""The official OpenAI package, synchronous and asynchronous."""

import io
import wave

from harness import IMAGE, MODEL, check, feature, key, main, raises, url

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
USER = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
RESPONSE_TOOLS = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]


def client(**more):
    import openai

    return openai.OpenAI(**{"base_url": f"{url()}/v1", "api_key": key(), "max_retries": 0, **more})


def a_client():
    import openai

    return openai.AsyncOpenAI(base_url=f"{url()}/v1", api_key=key(), max_retries=0)


def sound():
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(1600))
    return ("sound.wav", file.getvalue(), "audio/wav")


def python(name, endpoint):
    return feature("openai Python", name, endpoint)


@python("chat", CHAT)
def chat():
    chat = client().chat.completions.create(model=MODEL, messages=USER)
    check(chat.choices[0].message.content == "echo: hello" and chat.model == MODEL, chat)
    check(chat.usage.completion_tokens == 2, chat.usage)


@python("chat, stream with usage", CHAT)
def chat_stream():
    options = {"include_usage": True}
    create = client().chat.completions.create
    chunks = list(create(model=MODEL, messages=USER, stream=True, stream_options=options))
    words = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check(words == "echo: hello" and chunks[-1].usage.completion_tokens == 2, chunks)


@python("chat, stream helper", CHAT)
def chat_stream_helper():
    with client().chat.completions.stream(model=MODEL, messages=USER) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    check("content.done" in kinds, kinds)
    check(final.choices[0].message.content == "echo: hello", final)


@python("chat, tools and their results", CHAT)
def chat_tools():
    create = client().chat.completions.create
    first = create(model=MODEL, messages=USER, tools=TOOLS).choices[0]
    check(first.finish_reason == "tool_calls", first)
    call = first.message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    assistant = first.message.model_dump(exclude_none=True, exclude={"annotations"})
    second = create(model=MODEL, messages=[*USER, assistant, result], tools=TOOLS).choices[0]
    check(second.finish_reason == "stop", second)


@python("chat, parallel tools in a stream", CHAT)
def chat_tools_stream():
    ask = [{"role": "user", "content": "hello <<parallel>>"}]
    with client().chat.completions.stream(model=MODEL, messages=ask, tools=TOOLS) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    check([call.function.name for call in calls] == ["weather", "weather"], calls)


@python("chat, structured output (parse)", CHAT)
def chat_parse():
    from pydantic import BaseModel

    class City(BaseModel):
        name: str
        size: int

    parse = client().chat.completions.parse
    message = parse(model=MODEL, messages=USER, response_format=City).choices[0].message
    check(message.parsed == City(name="word", size=7), message)


@python("chat, image", CHAT)
def chat_image():
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}}
    content = [{"type": "text", "text": "hello"}, image]
    create = client().chat.completions.create
    chat = create(model=MODEL, messages=[{"role": "user", "content": content}])
    check(chat.choices[0].message.content == "echo: hello", chat)


@python("chat, logprobs and n", CHAT)
def chat_logprobs():
    create = client().chat.completions.create
    chat = create(model=MODEL, messages=USER, logprobs=True, top_logprobs=1, n=2)
    check(len(chat.choices) == 2 and chat.choices[1].logprobs.content, chat)


@python("completions", "/v1/completions")
def completions():
    text = client().completions.create(model=MODEL, prompt=["a", "b"])
    check([choice.text for choice in text.choices] == ["echo: a", "echo: b"], text)


@python("completions, stream", "/v1/completions")
def completions_stream():
    chunks = client().completions.create(model=MODEL, prompt="a b", stream=True)
    check("".join(chunk.choices[0].text for chunk in chunks) == "echo: a b")


@python("embeddings (base64)", "/v1/embeddings")
def embeddings():
    result = client().embeddings.create(model=MODEL, input=["a", "b"], dimensions=8)
    check([len(item.embedding) for item in result.data] == [8, 8], result)
    check(result.model == MODEL and result.usage.prompt_tokens == 5, result)


@python("embeddings (float)", "/v1/embeddings")
def embeddings_float():
    result = client().embeddings.create(model=MODEL, input="a", encoding_format="float")
    check(result.data[0].embedding == [0.25] * 4, result)


@python("moderations", "/v1/moderations")
def moderations():
    result = client().moderations.create(model=MODEL, input="a")
    check(result.results[0].flagged is False, result)


@python("models", "/v1/models")
def models():
    check(MODEL in [model.id for model in client().models.list()])
    check(client().models.retrieve(MODEL).id == MODEL)


@python("responses", RESPONSES)
def responses():
    response = client().responses.create(model=MODEL, input="hello", instructions="be brief")
    check(response.output_text == "echo: hello" and response.status == "completed", response)
    check(response.usage.output_tokens == 2 and response.model == MODEL, response)


@python("responses, stream", RESPONSES)
def responses_stream():
    events = list(client().responses.create(model=MODEL, input="hello", stream=True))
    check(events[0].type == "response.created", events[0])
    check(events[-1].type == "response.completed", events[-1])
    check([event.sequence_number for event in events] == list(range(len(events))), events)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    check("".join(deltas) == "echo: hello", deltas)


@python("responses, stream helper", RESPONSES)
def responses_stream_helper():
    with client().responses.stream(model=MODEL, input="hello") as stream:
        for _ in stream:
            pass
        check(stream.get_final_response().output_text == "echo: hello")


@python("responses, structured output (parse)", RESPONSES)
def responses_parse():
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    response = client().responses.parse(model=MODEL, input="hello", text_format=City)
    check(response.output_parsed == City(name="word"), response)


@python("responses, tools with previous_response_id", RESPONSES)
def responses_tools():
    create = client().responses.create
    first = create(model=MODEL, input="hello", tools=RESPONSE_TOOLS)
    call = next(item for item in first.output if item.type == "function_call")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = create(
        model=MODEL, input=[result], tools=RESPONSE_TOOLS, previous_response_id=first.id
    )
    check(second.output_text == "echo: hello", second)


@python("responses, tools in a stream", RESPONSES)
def responses_tools_stream():
    with client().responses.stream(model=MODEL, input="hello", tools=RESPONSE_TOOLS) as stream:
        kinds = [event.type for event in stream]
        output = stream.get_final_response().output
    check("response.function_call_arguments.done" in kinds, kinds)
    check([item.type for item in output] == ["function_call"], output)


@python("responses, image and reasoning", RESPONSES)
def responses_image():
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{IMAGE}", "detail": "auto"}
    content = [{"type": "input_text", "text": "hello <<think>>"}, image]
    response = client().responses.create(model=MODEL, input=[{"role": "user", "content": content}])
    check([item.type for item in response.output] == ["reasoning", "message"], response.output)


@python("responses, retrieve, input items, delete", f"{RESPONSES}/{{id}}")
def responses_stored():
    import openai

    responses = client().responses
    made = responses.create(model=MODEL, input="hello")
    check(responses.retrieve(made.id).output_text == "echo: hello")
    items = list(responses.input_items.list(made.id))
    check(items[0].content[0].text == "hello", items)
    responses.delete(made.id)
    raises(openai.NotFoundError, lambda: responses.retrieve(made.id))


@python("responses, background and cancel", f"{RESPONSES}/{{id}}")
def responses_background():
    responses = client().responses
    made = responses.create(model=MODEL, input="hello", background=True)
    check(made.status in ("queued", "in_progress", "completed"), made)
    while (made := responses.retrieve(made.id)).status in ("queued", "in_progress"):
        pass
    check(made.output_text == "echo: hello", made)
    check(responses.cancel(made.id).status in ("completed", "cancelled"))


@python("audio transcriptions", "/v1/audio/transcriptions")
def transcriptions():
    create = client().audio.transcriptions.create
    check(create(model=MODEL, file=sound()).text.startswith("heard 16"))
    check("heard" in create(model=MODEL, file=sound(), response_format="text"))


@python("audio translations", "/v1/audio/translations")
def translations():
    check(client().audio.translations.create(model=MODEL, file=sound()).text.startswith("heard"))


@python("speech", "/v1/audio/speech")
def speech():
    create = client().audio.speech.create
    check(len(create(model=MODEL, input="hello", voice="alloy").read()) == 2004)


@python("images: generate", "/v1/images/generations")
def images():
    image = client().images.generate(model=MODEL, prompt="a cat")
    check(image.data[0].b64_json, image)


@python("images: edit", "/v1/images/edits")
def images_edit():
    image = client().images.edit(model=MODEL, image=("a.png", b"\x89PNG", "image/png"), prompt="x")
    check(image.data[0].b64_json, image)


@python("typed errors", CHAT)
def errors():
    import openai

    create = client().chat.completions.create
    error = raises(openai.NotFoundError, lambda: create(model="nope", messages=USER))
    check(error.code == "model_not_found", error.body)
    raises(openai.BadRequestError, lambda: create(model=MODEL, messages="hello"))
    wrong = client(api_key="wrong")
    raises(openai.AuthenticationError, lambda: wrong.models.list())
    failing = [{"role": "user", "content": "<<status 500>>"}]
    raises(openai.InternalServerError, lambda: create(model=MODEL, messages=failing))
    cut = [{"role": "user", "content": "a b c <<cut>>"}]
    broken = lambda: list(create(model=MODEL, messages=cut, stream=True))
    check(raises(openai.APIError, broken).code == "engine_error")


@python("typed errors of responses", RESPONSES)
def errors_responses():
    import openai

    create = client().responses.create
    raises(openai.NotFoundError, lambda: create(model="nope", input="hello"))
    raises(openai.InternalServerError, lambda: create(model=MODEL, input="<<status 500>>"))
    raises(openai.APIError, lambda: list(create(model=MODEL, input="a b <<cut>>", stream=True)))


@python("rerank, score and others as extra requests", "/v1/rerank")
def extra():
    post = lambda path, body: client().post(path, cast_to=object, body={"model": MODEL, **body})
    ranked = post("/rerank", {"query": "q", "documents": ["a", "b"], "top_n": 1})
    check(ranked["results"][0]["index"] == 0 and len(ranked["results"]) == 1, ranked)
    check(post("/score", {"text_1": "a", "text_2": "b"})["data"][0]["score"] == 0.5)


@feature("openai Python, async", "chat", CHAT)
async def async_chat():
    chat = await a_client().chat.completions.create(model=MODEL, messages=USER)
    check(chat.choices[0].message.content == "echo: hello", chat)


@feature("openai Python, async", "chat, stream", CHAT)
async def async_stream():
    stream = await a_client().chat.completions.create(model=MODEL, messages=USER, stream=True)
    words = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    check(words == "echo: hello", words)


@feature("openai Python, async", "embeddings", "/v1/embeddings")
async def async_embeddings():
    result = await a_client().embeddings.create(model=MODEL, input="a")
    check(len(result.data[0].embedding) == 4, result)


@feature("openai Python, async", "responses, stream", RESPONSES)
async def async_responses():
    async with a_client().responses.stream(model=MODEL, input="hello") as stream:
        check((await stream.get_final_response()).output_text == "echo: hello")


@feature("openai Python, async", "audio transcriptions", "/v1/audio/transcriptions")
async def async_audio():
    result = await a_client().audio.transcriptions.create(model=MODEL, file=sound())
    check(result.text.startswith("heard"), result)


main()
