"""Frameworks for agents and retrieval: LangChain, LangGraph, LlamaIndex, instructor."""

from harness import MODEL, check, feature, key, main, url

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
MESSAGES = "/v1/messages"


def base():
    return {"base_url": f"{url()}/v1", "api_key": key()}


def weather_tool():
    from langchain_core.tools import tool

    @tool
    def weather(city: str) -> str:
        """Returns the weather."""
        return f"sunny in {city}"

    return weather


def schema():
    from pydantic import BaseModel

    class City(BaseModel):
        """A city."""

        name: str
        size: int

    return City


def check_langchain(llm):
    """Checks what all chat models of LangChain have."""
    check(llm.invoke("hello").text == "echo: hello")
    check("".join(chunk.text for chunk in llm.stream("hello")) == "echo: hello")
    calls = llm.bind_tools([weather_tool()]).invoke("hello").tool_calls
    check(
        [(call["name"], call["args"]) for call in calls] == [("weather", {"city": "word"})], calls
    )


@feature("LangChain", "ChatOpenAI: chat, stream, tools", CHAT)
def langchain_chat():
    from langchain_openai import ChatOpenAI

    check_langchain(ChatOpenAI(model=MODEL, max_retries=0, **base()))


@feature("LangChain", "ChatOpenAI: structured output", CHAT)
def langchain_structured():
    from langchain_openai import ChatOpenAI

    llm = ChatOpenAI(model=MODEL, max_retries=0, **base())
    for method in ("json_schema", "function_calling"):
        found = llm.with_structured_output(schema(), method=method).invoke("hello")
        check(found.name == "word" and found.size == 7, method, found)


@feature("LangChain", "ChatOpenAI: responses API", RESPONSES)
def langchain_responses():
    from langchain_openai import ChatOpenAI

    check_langchain(ChatOpenAI(model=MODEL, max_retries=0, use_responses_api=True, **base()))


@feature("LangChain", "OpenAIEmbeddings", EMBEDDINGS)
def langchain_embeddings():
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, **base())
    vectors = embeddings.embed_documents(["a", "b"])
    check([len(vector) for vector in vectors] == [4, 4], vectors)


@feature("LangChain", "OpenAI: completions", "/v1/completions")
def langchain_completions():
    from langchain_openai import OpenAI

    check(OpenAI(model=MODEL, max_retries=0, **base()).invoke("a") == "echo: a")


@feature("LangChain", "ChatAnthropic: chat, stream, tools", MESSAGES)
def langchain_anthropic():
    from langchain_anthropic import ChatAnthropic

    check_langchain(ChatAnthropic(model=MODEL, max_retries=0, base_url=url(), api_key=key()))


def check_agent(llm):
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    model = llm.bind_tools([weather_tool()])
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([weather_tool()]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    task = 'do it <<call weather {"city": "Rome"}>> <<call weather {"city": "Oslo"}>>'
    messages = graph.compile().invoke({"messages": [("user", task)]})["messages"]
    results = [message.content for message in messages if message.type == "tool"]
    check(results == ["sunny in Rome", "sunny in Oslo"], results)
    check(messages[-1].text.startswith("echo: do it"), messages[-1])


@feature("LangGraph", "agent with tools, chat", CHAT)
def langgraph_chat():
    from langchain_openai import ChatOpenAI

    check_agent(ChatOpenAI(model=MODEL, max_retries=0, **base()))


@feature("LangGraph", "agent with tools, messages", MESSAGES)
def langgraph_messages():
    from langchain_anthropic import ChatAnthropic

    check_agent(ChatAnthropic(model=MODEL, max_retries=0, base_url=url(), api_key=key()))


@feature("LangGraph", "agent with tools, responses", RESPONSES)
def langgraph_responses():
    from langchain_openai import ChatOpenAI

    check_agent(ChatOpenAI(model=MODEL, max_retries=0, use_responses_api=True, **base()))


@feature("LlamaIndex", "OpenAILike: chat, stream, complete", CHAT)
def llamaindex_chat():
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model=MODEL,
        api_base=f"{url()}/v1",
        api_key=key(),
        is_chat_model=True,
        context_window=4096,
        max_retries=0,
    )
    ask = [ChatMessage(role="user", content="hello")]
    check(llm.chat(ask).message.content == "echo: hello")
    check("".join(part.delta for part in llm.stream_chat(ask)) == "echo: hello")
    check(str(llm.complete("hello")) == "echo: hello")


@feature("LlamaIndex", "OpenAILike: completions", "/v1/completions")
def llamaindex_completions():
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model=MODEL,
        api_base=f"{url()}/v1",
        api_key=key(),
        is_chat_model=False,
        context_window=4096,
        max_retries=0,
    )
    check(str(llm.complete("a")) == "echo: a")


@feature("LlamaIndex", "OpenAIEmbedding", EMBEDDINGS)
def llamaindex_embeddings():
    from llama_index.embeddings.openai import OpenAIEmbedding

    embedding = OpenAIEmbedding(model_name=MODEL, api_base=f"{url()}/v1", api_key=key())
    check(len(embedding.get_text_embedding("a")) == 4)


@feature("instructor", "JSON and tools modes", CHAT)
def instructor_chat():
    import instructor
    import openai

    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        client = instructor.from_openai(openai.OpenAI(**base()), mode=mode)
        ask = [{"role": "user", "content": "hello"}]
        create = client.chat.completions.create
        found = create(model=MODEL, messages=ask, response_model=schema(), max_retries=1)
        check(found.name == "word" and found.size == 7, mode, found)


@feature("instructor", "tools mode, messages", MESSAGES)
def instructor_messages():
    import anthropic
    import instructor

    client = instructor.from_anthropic(anthropic.Anthropic(base_url=url(), api_key=key()))
    ask = [{"role": "user", "content": "hello"}]
    found = client.messages.create(
        model=MODEL, messages=ask, max_tokens=100, response_model=schema(), max_retries=1
    )
    check(found.name == "word", found)


main()
