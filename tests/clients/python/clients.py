"""Clients: LiteLLM, huggingface_hub, llm."""

import json
import os
import subprocess
import sys
import tempfile

from harness import MODEL, check, feature, key, main, url

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hello"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


def lite(provider):
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    litellm.telemetry = False
    return litellm, {"model": f"{provider}/{MODEL}", "api_base": f"{url()}/v1", "api_key": key()}


def check_lite(provider):
    litellm, target = lite(provider)
    chat = litellm.completion(messages=USER, num_retries=0, **target)
    check(chat.choices[0].message.content == "echo: hello", chat)
    parts = litellm.completion(messages=USER, stream=True, **target)
    check("".join(part.choices[0].delta.content or "" for part in parts) == "echo: hello")
    calls = litellm.completion(messages=USER, tools=TOOLS, **target).choices[0].message.tool_calls
    check(json.loads(calls[0].function.arguments) == {"city": "word"}, calls)


@feature("LiteLLM", "openai/: chat, stream, tools", CHAT)
def lite_openai():
    check_lite("openai")


@feature("LiteLLM", "hosted_vllm/: chat, stream, tools", CHAT)
def lite_vllm():
    check_lite("hosted_vllm")


@feature("LiteLLM", "anthropic/: chat, stream, tools", "/v1/messages")
def lite_anthropic():
    litellm, target = lite("anthropic")
    target["api_base"] = url()
    chat = litellm.completion(messages=USER, **target)
    check(chat.choices[0].message.content == "echo: hello", chat)
    parts = litellm.completion(messages=USER, stream=True, **target)
    check("".join(part.choices[0].delta.content or "" for part in parts) == "echo: hello")
    calls = litellm.completion(messages=USER, tools=TOOLS, **target).choices[0].message.tool_calls
    check(json.loads(calls[0].function.arguments) == {"city": "word"}, calls)


@feature("LiteLLM", "ollama_chat/: chat, stream", "/api/chat")
def lite_ollama():
    litellm, target = lite("ollama_chat")
    target["api_base"] = url()
    chat = litellm.completion(messages=USER, **target)
    check(chat.choices[0].message.content == "echo: hello", chat)
    parts = litellm.completion(messages=USER, stream=True, **target)
    check("".join(part.choices[0].delta.content or "" for part in parts) == "echo: hello")


@feature("LiteLLM", "text completion", "/v1/completions")
def lite_text():
    litellm, target = lite("text-completion-openai")
    check(litellm.text_completion(prompt="a", **target).choices[0].text == "echo: a")


@feature("LiteLLM", "embedding", "/v1/embeddings")
def lite_embedding():
    for provider in ("openai", "hosted_vllm"):
        litellm, target = lite(provider)
        result = litellm.embedding(input=["a"], **target)
        check(len(result.data[0]["embedding"]) == 4, result)


@feature("LiteLLM", "responses, stream", "/v1/responses")
def lite_responses():
    litellm, target = lite("openai")
    response = litellm.responses(input="hello", **target)
    check(response.output[0].content[0].text == "echo: hello", response)
    kinds = [event.type for event in litellm.responses(input="hello", stream=True, **target)]
    check(kinds[-1] == "response.completed", kinds)


@feature("LiteLLM", "rerank", "/v1/rerank")
def lite_rerank():
    litellm, target = lite("hosted_vllm")
    target["api_base"] = url()
    result = litellm.rerank(query="q", documents=["a", "b"], top_n=1, **target)
    check(result.results[0]["index"] == 0, result)


@feature("LiteLLM", "transcription", "/v1/audio/transcriptions")
def lite_transcription():
    litellm, target = lite("openai")
    file = ("sound.wav", b"RIFF" + bytes(100), "audio/wav")
    check(litellm.transcription(file=file, **target).text.startswith("heard"))


def hub():
    from huggingface_hub import InferenceClient

    return InferenceClient(base_url=f"{url()}/v1", api_key=key())


@feature("huggingface_hub", "chat, stream, tools", CHAT)
def hub_chat():
    chat = hub().chat_completion(model=MODEL, messages=USER, max_tokens=50)
    check(chat.choices[0].message.content == "echo: hello", chat)
    client = hub()
    parts = client.chat_completion(model=MODEL, messages=USER, stream=True)
    check("".join(part.choices[0].delta.content or "" for part in parts) == "echo: hello")
    calls = hub().chat_completion(model=MODEL, messages=USER, tools=TOOLS).choices[0].message
    check(calls.tool_calls[0].function.name == "weather", calls)


@feature("huggingface_hub", "chat, structured output", CHAT)
def hub_structured():
    schema = {"name": "c", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    form = {"type": "json_schema", "json_schema": schema}
    chat = hub().chat_completion(model=MODEL, messages=USER, response_format=form)
    # The library turns a schema into the form of text-generation-inference, which is not OpenAI's:
    # what arrives is a request for any JSON object.
    check(isinstance(json.loads(chat.choices[0].message.content), dict), chat)


def llm_command(home, *arguments):
    with open(os.path.join(home, "extra-openai-models.yaml"), "w") as file:
        file.write(
            f"- model_id: here\n  model_name: {MODEL}\n  api_base: {url()}/v1\n"
            "  api_key_name: here\n"
        )
    env = {**os.environ, "LLM_USER_PATH": home}
    command = [sys.executable, "-m", "llm", *arguments, "--key", key()]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    check(done.returncode == 0, done.stderr)
    return done.stdout.strip()


@feature("llm", "prompt, stream and not", CHAT)
def llm_prompt():
    with tempfile.TemporaryDirectory() as home:
        check(llm_command(home, "-m", "here", "hello") == "echo: hello")
        check(llm_command(home, "-m", "here", "--no-stream", "hello") == "echo: hello")


main()
