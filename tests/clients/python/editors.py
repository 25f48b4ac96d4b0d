"""Requests of editors and chat pages, with the headers and bodies that these send.

They use the official packages with headers and options of their own: Roo Code openai-node,
Continue its own fetch, Open WebUI aiohttp. The requests here are sent with `http.client`.
"""

import http.client
import json
from urllib.parse import urlsplit

from harness import MODEL, check, feature, key, main, url

CHAT = "/v1/chat/completions"


def send(method, path, body=None, headers=None):
    """Returns status, headers and text of a response."""
    connection = http.client.HTTPConnection(urlsplit(url()).netloc, timeout=30)
    headers = {"authorization": f"Bearer {key()}", **(headers or {})}
    data = None if body is None else json.dumps(body).encode()
    if data is not None:
        headers.setdefault("content-type", "application/json")
    connection.request(method, path, data, headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read().decode()


def words(text):
    """Returns the text of a stream of chat chunks, and its usage."""
    events = [
        line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")
    ]
    check(events[-1] == "[DONE]", events[-1:])
    chunks = [json.loads(event) for event in events[:-1]]
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas), usage


STAINLESS = {
    "user-agent": "OpenAI/JS 5.12.2",
    "x-stainless-lang": "js",
    "x-stainless-os": "Linux",
    "x-stainless-package-version": "5.12.2",
    "x-stainless-runtime": "node",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
    "accept": "application/json",
}


@feature("Roo Code", "OpenAI compatible: chat", CHAT)
def roo_chat():
    parts = [
        {"type": "text", "text": "<task>\nhello\n</task>"},
        {"type": "text", "text": "<environment_details>\nx\n</environment_details>"},
    ]
    body = {
        "model": MODEL,
        "temperature": 0,
        "stream": True,
        "messages": [
            {"role": "system", "content": "You are Roo"},
            {"role": "user", "content": parts},
        ],
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 8192,
        "parallel_tool_calls": False,
    }
    headers = {
        **STAINLESS,
        "http-referer": "https://github.com/RooVetGit/Roo-Cline",
        "x-title": "Roo Code",
    }
    status, _, text = send("POST", CHAT, body, headers)
    check(status == 200, status, text)
    check(words(text)[0].startswith("echo: <task>") and words(text)[1], text)


@feature("Roo Code", "OpenAI compatible: native tools", CHAT)
def roo_tools():
    read = {
        "name": "read_file",
        "strict": True,
        "description": "reads",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string"}},
            "required": ["path"],
            "additionalProperties": False,
        },
    }
    body = {
        "model": MODEL,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "hello"}],
        "tool_choice": "auto",
        "tools": [{"type": "function", "function": read}],
        "parallel_tool_calls": True,
    }
    status, _, text = send("POST", CHAT, body, STAINLESS)
    check(status == 200 and '"read_file"' in text, status, text)


@feature("Roo Code", "Ollama: models and chat", "/api/chat")
def roo_ollama():
    status, _, text = send("GET", "/api/tags")
    check(status == 200, status, text)
    names = [model["name"] for model in json.loads(text)["models"]]
    check(MODEL in [name.split(":")[0] for name in names], names)
    status, _, text = send("POST", "/api/show", {"model": names[0]})
    check(status == 200 and "model_info" in json.loads(text), status, text)
    body = {
        "model": names[0],
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "options": {"temperature": 0, "num_ctx": 32768},
    }
    status, headers, text = send("POST", "/api/chat", body)
    check(status == 200 and headers["content-type"].startswith("application/x-ndjson"), status)
    lines = [json.loads(line) for line in text.splitlines()]
    check("".join(line["message"]["content"] for line in lines) == "echo: hello", text)


@feature("Continue", "openai: chat", CHAT)
def continue_chat():
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "model": MODEL,
        "max_tokens": 4096,
        "stream": True,
    }
    status, _, text = send("POST", CHAT, body, {"api-key": key(), "user-agent": "Continue/1.0"})
    check(status == 200 and words(text)[0] == "echo: hello", status, text)


@feature("Continue", "openai: autocomplete", "/v1/completions")
def continue_autocomplete():
    body = {
        "model": MODEL,
        "prompt": "def add(",
        "max_tokens": 64,
        "temperature": 0.01,
        "stop": ["\n\n"],
        "stream": True,
    }
    status, _, text = send("POST", "/v1/completions", body)
    check(status == 200 and "[DONE]" in text, status, text)


@feature("Continue", "ollama: chat, embed, show", "/api/chat")
def continue_ollama():
    status, _, text = send("POST", "/api/show", {"name": MODEL})
    check(status == 200, status, text)
    body = {
        "model": MODEL,
        "raw": None,
        "keep_alive": 1800,
        "stream": True,
        "options": {"num_predict": 2048, "stop": ["<end>"], "num_ctx": 8192},
        "messages": [{"role": "user", "content": "hello"}],
    }
    status, _, text = send("POST", "/api/chat", body)
    check(status == 200 and json.loads(text.splitlines()[-1])["done"] is True, status, text)
    status, _, text = send("POST", "/api/embed", {"model": MODEL, "input": ["a", "b"]})
    check(status == 200 and len(json.loads(text)["embeddings"]) == 2, status, text)


@feature("Continue", "rerank", "/v1/rerank")
def continue_rerank():
    body = {"query": "q", "documents": ["a", "b"], "model": MODEL}
    status, _, text = send("POST", "/v1/rerank", body)
    check(status == 200 and len(json.loads(text)["results"]) == 2, status, text)


@feature("Open WebUI", "openai: models, chat, title", CHAT)
def webui_openai():
    headers = {
        "x-openwebui-user-name": "A",
        "x-openwebui-user-role": "admin",
        "x-openwebui-chat-id": "c1",
        "accept": "*/*",
        "user-agent": "Python/3.11 aiohttp/3.12",
    }
    status, _, text = send("GET", "/v1/models", headers=headers)
    check(status == 200 and MODEL in text, status)
    body = {"stream": True, "model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    status, _, text = send("POST", CHAT, body, headers)
    check(status == 200 and words(text)[0] == "echo: hello", status, text)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "### Task: title"}],
        "stream": False,
        "max_completion_tokens": 1000,
    }
    check(send("POST", CHAT, body, headers)[0] == 200)


@feature("Open WebUI", "ollama: version, tags, chat, embed", "/api/chat")
def webui_ollama():
    for path in ("/api/version", "/api/tags", "/api/ps"):
        status, _, text = send("GET", path)
        check(status == 200, path, status, text)
    body = {
        "stream": True,
        "model": f"{MODEL}:latest",
        "options": {},
        "metadata": {"chat_id": "c"},
        "messages": [{"role": "user", "content": "hello", "images": []}],
    }
    status, _, text = send("POST", "/api/chat", body)
    check(status == 200 and json.loads(text.splitlines()[-1])["done"] is True, status, text)
    status, _, text = send("POST", "/api/embed", {"model": MODEL, "input": "a", "truncate": True})
    check(status == 200 and json.loads(text)["embeddings"], status, text)


@feature("Open WebUI", "speech and transcription", "/v1/audio/speech")
def webui_audio():
    body = {"input": "hello", "voice": "alloy", "model": MODEL}
    status, headers, _ = send("POST", "/v1/audio/speech", body)
    check(status == 200 and headers["content-type"].startswith("audio/"), status)


main()
