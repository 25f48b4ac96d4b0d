"""The official Anthropic package, synchronous and asynchronous."""

from harness import IMAGE, MODEL, check, feature, key, main, raises, url

MESSAGES = "/v1/messages"
USER = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"name": "weather", "description": "the weather", "input_schema": WEATHER}]


def client(**more):
    import anthropic

    return anthropic.Anthropic(**{"base_url": url(), "api_key": key(), "max_retries": 0, **more})


def create(**more):
    return client().messages.create(**{"model": MODEL, "max_tokens": 100, "messages": USER, **more})


def python(name, endpoint=MESSAGES):
    return feature("anthropic Python", name, endpoint)


@python("messages")
def messages():
    message = create(system="be brief")
    check(message.content[0].text == "echo: hello" and message.stop_reason == "end_turn", message)
    check(message.model == MODEL and message.usage.output_tokens == 2, message)


@python("messages, system blocks and cache hints")
def system_blocks():
    cached = {"type": "ephemeral"}
    message = create(system=[{"type": "text", "text": "be brief", "cache_control": cached}])
    check(message.usage.input_tokens > 0, message.usage)


@python("messages, stop reasons")
def stop_reasons():
    ask = [{"role": "user", "content": "one two three four"}]
    check(create(messages=ask, max_tokens=2).stop_reason == "max_tokens")


@python("messages, stream")
def stream():
    events = list(create(stream=True))
    kinds = [event.type for event in events if event.type != "ping"]
    check(kinds[:2] == ["message_start", "content_block_start"], kinds)
    check(kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds)


@python("messages, stream helper")
def stream_helper():
    with client().messages.stream(model=MODEL, max_tokens=100, messages=USER) as stream:
        check("".join(stream.text_stream) == "echo: hello")
        final = stream.get_final_message()
    check(final.usage.output_tokens == 2 and final.stop_reason == "end_turn", final)


@python("messages, tools and their results")
def tools():
    first = create(tools=TOOLS)
    check(first.stop_reason == "tool_use", first)
    use = first.content[-1]
    check(use.name == "weather" and use.input == {"city": "word"}, use)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    turns = [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = create(tools=TOOLS, messages=[*USER, *turns])
    check(second.stop_reason == "end_turn", second)


@python("messages, parallel tools in a stream")
def tools_stream():
    ask = [{"role": "user", "content": "hello <<parallel>>"}]
    stream = client().messages.stream(model=MODEL, max_tokens=100, messages=ask, tools=TOOLS)
    with stream as events:
        final = events.get_final_message()
    uses = [block for block in final.content if block.type == "tool_use"]
    check([use.input for use in uses] == [{"city": "word"}] * 2, final)
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"} for use in uses]
    turns = [{"role": "assistant", "content": final.content}, {"role": "user", "content": results}]
    create(tools=TOOLS, messages=[*ask, *turns])


@python("messages, forced tool")
def tool_choice():
    message = create(tools=TOOLS, tool_choice={"type": "tool", "name": "weather"})
    check(message.content[-1].type == "tool_use", message)
    check(create(tools=TOOLS, tool_choice={"type": "none"}).stop_reason == "end_turn")


@python("messages, tool runner")
def tool_runner():
    import anthropic

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Returns the weather.

        Args:
            city: a city
        """
        return f"sunny in {city}"

    runner = client().beta.messages.tool_runner(
        model=MODEL, max_tokens=100, tools=[weather], messages=USER
    )
    kinds = [message.stop_reason for message in runner]
    check(kinds == ["tool_use", "end_turn"], kinds)


@python("messages, image")
def image():
    source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "hello"}]
    message = create(messages=[{"role": "user", "content": content}])
    check(message.content[0].text == "echo: hello", message)


@python("messages, thinking")
def thinking():
    ask = [{"role": "user", "content": "hello <<think>>"}]
    enabled = {"type": "enabled", "budget_tokens": 1024}
    first = create(messages=ask, max_tokens=2000, thinking=enabled)
    check([block.type for block in first.content] == ["thinking", "text"], first)
    turns = [{"role": "assistant", "content": first.content}, {"role": "user", "content": "more"}]
    check(create(messages=[*ask, *turns]).content[-1].text == "echo: more")


@python("messages, thinking in a stream")
def thinking_stream():
    ask = [{"role": "user", "content": "hello <<think>>"}]
    with client().messages.stream(model=MODEL, max_tokens=2000, messages=ask) as stream:
        kinds = {event.delta.type for event in stream if event.type == "content_block_delta"}
    check({"thinking_delta", "text_delta"} <= kinds, kinds)


@python("messages, structured output")
def structured():
    form = {"format": {"type": "json_schema", "schema": WEATHER}}
    check(create(output_config=form).content[0].text == '{"city": "word"}')


@python("count_tokens", f"{MESSAGES}/count_tokens")
def count_tokens():
    count = client().messages.count_tokens(model=MODEL, messages=USER, system="be brief")
    check(count.input_tokens > 0, count)


@python("models", "/v1/models")
def models():
    listed = list(client().models.list())
    check(MODEL in [model.id for model in listed] and listed[0].type == "model", listed)


@python("typed errors")
def errors():
    import anthropic

    error = raises(anthropic.NotFoundError, lambda: create(model="nope"))
    check(error.body["error"]["type"] == "not_found_error", error.body)
    raises(anthropic.BadRequestError, lambda: create(messages="hello"))
    wrong = client(api_key="wrong").messages
    call = lambda: wrong.create(model=MODEL, max_tokens=1, messages=USER)
    raises(anthropic.AuthenticationError, call)
    failing = [{"role": "user", "content": "<<status 500>>"}]
    raises(anthropic.InternalServerError, lambda: create(messages=failing))
    cut = [{"role": "user", "content": "a b c <<cut>>"}]
    raises(anthropic.APIStatusError, lambda: list(create(messages=cut, stream=True)))


@feature("anthropic Python, async", "messages, stream helper", MESSAGES)
async def async_stream():
    import anthropic

    client = anthropic.AsyncAnthropic(base_url=url(), api_key=key(), max_retries=0)
    async with client.messages.stream(model=MODEL, max_tokens=100, messages=USER) as stream:
        text = "".join([piece async for piece in stream.text_stream])
    check(text == "echo: hello", text)


@feature("anthropic Python, async", "messages, bearer token", MESSAGES)
async def async_bearer():
    import anthropic

    client = anthropic.AsyncAnthropic(base_url=url(), auth_token=key(), max_retries=0)
    message = await client.messages.create(model=MODEL, max_tokens=100, messages=USER)
    check(message.content[0].text == "echo: hello", message)


main()
