"""Plays Cortex's backend with the settings of its specification: addresses, model names, health checks and reconnects.

    python cortex_backend.py

It reads from its standard input what happens to the router, one word a line: `steady`, `crash` (an engine is
killed), `restart` (the router is stopped and started) and `stop`. It repeats each word, so that nothing happens before
it knows. At the end it prints one line of JSON: what was answered, and every error that was not allowed meanwhile.
"""

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from collections import Counter

import openai

try:
    os.environ["LANGSMITH_TRACING"] = "false"
    from typing import TypedDict

    from langchain_openai import ChatOpenAI
    from langgraph.graph import END, START, StateGraph
except ImportError:
    StateGraph = None

# The backend's settings, as they are.
LLM_BASE_URL = "http://localhost:11434/v1"
LLM_MODEL_NAME = "DeepSeek-R1-Distill-Qwen-32B"
VLLM = "http://inference-vllm:8000/v1"
LANES = {
    "orchestrator": (VLLM, "DeepSeek-R1-Distill-Qwen-32B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"),
    "coder": (VLLM, "Qwen2.5-Coder-32B-Instruct", "Qwen/Qwen2.5-Coder-32B-Instruct"),
    "fast_rag": (VLLM, "Llama-3.2-11B-Vision-Instruct", "meta-llama/Llama-3.2-11B-Vision-Instruct"),
    "super_reader": ("http://localhost:8080/v1", "super_reader", "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf"),
    "governance": ("http://localhost:8081/v1", "governance", "any-model"),
}
HEALTH_URL = "http://localhost:8000/health"
RECONNECT_SECONDS = 5
HEALTH_SECONDS = 1
PAUSE_SECONDS = 0.2

# What may go wrong, by what happens to the router. `refused`: no connection, or it ended before the response.
# `unavailable`: 503 with Retry-After. `stream_error`: an explicit error event.
ALLOWED = {"steady": set(), "crash": {"stream_error"}, "restart": {"refused", "unavailable", "stream_error"}}
TOOL = {
    "type": "function",
    "function": {"name": "search", "description": "Searches the files.", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}},
}
MESSAGES = [{"role": "system", "content": "You are a part of Cortex."}, {"role": "user", "content": "Say hello."}]

phases = ["steady"]
stopping = False
answered, retried, health, wrong = Counter(), Counter(), Counter(), Counter()


def say(text):
    wrong[text] += 1


def client(lane):
    return openai.AsyncOpenAI(base_url=LANES[lane][0], api_key="none", max_retries=0, timeout=120)


def kind_of(error, streaming):
    if isinstance(error, openai.APIStatusError):
        return "unavailable" if error.status_code == 503 and "retry-after" in error.response.headers else f"status {error.status_code}"
    if isinstance(error, openai.APITimeoutError):
        return "timeout"
    if isinstance(error, openai.APIConnectionError):
        return "refused"
    if type(error) is openai.APIError and streaming and error.code:
        return "stream_error"
    return type(error).__name__


async def attempt(lane, how, call, streaming=False):
    """Makes a call until it is answered, with a pause after an error."""
    while not stopping:
        first = len(phases) - 1
        try:
            result = await call()
            answered[lane, how] += 1
            return result
        except Exception as error:
            kind, during = kind_of(error, streaming), phases[first:]
            if not any(kind in ALLOWED[phase] for phase in during):
                say(f"{lane}, {how}, {kind} during {during}: {error!r}")
            retried[lane, how, kind] += 1
        await asyncio.sleep(RECONNECT_SECONDS)


def expect_model(asked, got):
    if asked != got:
        say(f"asked for {asked}, the response says {got}")


async def plain(lane, model, tools=False):
    more = {"tools": [TOOL], "tool_choice": "auto"} if tools else {}

    async def call():
        chat = await client(lane).chat.completions.create(model=model, messages=MESSAGES, max_tokens=10, **more)
        assert chat.choices[0].message.content and chat.usage.completion_tokens == 10, chat
        expect_model(model, chat.model)

    await attempt(lane, "tools" if tools else "plain", call)


async def stream(lane, model, url=None):
    async def call():
        source = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) if url else client(lane)
        words, finish = "", None
        async for chunk in await source.chat.completions.create(model=model, messages=MESSAGES, max_tokens=20, stream=True):
            expect_model(model, chunk.model)
            if chunk.choices:
                words += chunk.choices[0].delta.content or ""
                finish = chunk.choices[0].finish_reason or finish
        assert words and finish == "length", (words, finish)

    await attempt(lane, "stream", call, streaming=True)


async def without_model(lane):
    """llama.cpp answers to any model name, and to none."""

    def post():
        body = json.dumps({"messages": MESSAGES, "max_tokens": 3}).encode()
        request = urllib.request.Request(LANES[lane][0] + "/chat/completions", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code == 503 and error.headers["retry-after"]:
                raise openai.APIConnectionError(message="503", request=None) from error
            raise
        except (urllib.error.URLError, OSError) as error:
            raise openai.APIConnectionError(message=str(error), request=None) from error

    async def call():
        chat = await asyncio.to_thread(post)
        assert chat["choices"][0]["message"]["content"], chat

    await attempt(lane, "no model", call)


async def agent(step):
    while not stopping:
        await step()
        await asyncio.sleep(PAUSE_SECONDS)


async def plan_and_write():
    """An agent without LangGraph: it plans, writes with tools, looks up, reads and asks for permission."""
    await plain("orchestrator", LANES["orchestrator"][1])
    await plain("coder", LANES["coder"][1], tools=True)
    await stream("fast_rag", LANES["fast_rag"][1])
    await plain("super_reader", LANES["super_reader"][1])
    await plain("governance", LANES["governance"][1])


def graph():
    """The same agent as a graph of LangGraph, whose nodes have different lanes."""

    class State(TypedDict):
        texts: list

    def node(lane, tools=False, streaming=False):
        url, model, _ = LANES[lane]
        chat = ChatOpenAI(base_url=url, model=model, api_key="none", max_retries=0, timeout=120, max_tokens=10)
        chat = chat.bind_tools([TOOL], tool_choice="auto") if tools else chat

        async def run(state):
            async def call():
                if not streaming:
                    return await chat.ainvoke("Say hello.")
                whole = None
                async for part in chat.astream("Say hello."):
                    whole = part if whole is None else whole + part
                return whole

            message = await attempt(lane, "LangGraph", call, streaming)
            if message is None:
                return {"texts": state["texts"]}
            expect_model(model, message.response_metadata["model_name"])
            assert message.content, message
            return {"texts": [*state["texts"], message.content]}

        return run

    builder = StateGraph(State)
    builder.add_node("plan", node("orchestrator"))
    builder.add_node("write", node("coder", tools=True))
    builder.add_node("look_up", node("fast_rag", streaming=True))
    builder.add_node("read", node("super_reader"))
    builder.add_node("permit", node("governance"))
    edges = [START, "plan", "write", "look_up", "read", "permit", END]
    for source, target in zip(edges, edges[1:]):
        builder.add_edge(source, target)
    compiled = builder.compile()
    return lambda: compiled.ainvoke({"texts": []})


async def assistant():
    await stream("orchestrator", LLM_MODEL_NAME, LLM_BASE_URL)


async def prefixed():
    for lane in ["coder", "fast_rag", "orchestrator"]:
        await stream(lane, LANES[lane][2])


async def llama_cpp():
    for lane in ["super_reader", "governance"]:
        await stream(lane, LANES[lane][2])
        await without_model(lane)


def list_models():
    with urllib.request.urlopen("http://localhost:11434/v1/models", timeout=10) as response:
        models = {model["id"]: model for model in json.load(response)["data"]}
    for lane in ["orchestrator", "coder", "fast_rag"]:
        for name in LANES[lane][1:]:
            if name not in models:
                say(f"{name} is not listed")
            elif models[name]["owned_by"] != "vllm":
                say(f"{name} is owned by {models[name]['owned_by']}")


def poll_health():
    try:
        with urllib.request.urlopen(HEALTH_URL, timeout=10) as response:
            body = json.load(response)
            return 200 if body.get("status") == "ok" else f"200 {body}"
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return "refused"


async def docker():
    """Checks the health as Docker does, more often."""
    while True:
        first = len(phases) - 1
        status = await asyncio.to_thread(poll_health)
        during = phases[first:]
        health[str(status)] += 1
        if status not in (200, 503) and not (status == "refused" and "restart" in during):
            say(f"/health was {status} during {during}")
        await asyncio.sleep(HEALTH_SECONDS)


async def main():
    global stopping
    list_models()
    polls = asyncio.create_task(docker())
    steps = [graph() if StateGraph else plan_and_write, plan_and_write, assistant, prefixed, llama_cpp]
    agents = [asyncio.create_task(agent(step)) for step in steps]
    while True:
        word = (await asyncio.to_thread(sys.stdin.readline)).strip()
        if word in ("stop", ""):
            break
        phases.append(word)
        print(word, flush=True)
    stopping = True
    for outcome in await asyncio.gather(*agents, return_exceptions=True):
        if isinstance(outcome, BaseException):
            say(f"an agent ended: {outcome!r}")
    polls.cancel()
    rows = []
    for lane, how in sorted(answered.keys() | {key[:2] for key in retried}):
        kinds = {kind: count for (*key, kind), count in retried.items() if key == [lane, how]}
        rows.append({"lane": lane, "how": how, "answered": answered[lane, how], "retried": kinds})
    print(json.dumps({"rows": rows, "health": health, "langgraph": StateGraph is not None, "wrong": wrong.most_common(20)}))


asyncio.run(main())
