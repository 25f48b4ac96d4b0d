"""A scripted engine with the API of vLLM, for the tests of client libraries.

    python engine.py PORT_FILE

It has no endpoint of Anthropic's API, of Ollama's, and not the one of responses, so that the host
translates these. Like vLLM, it rejects what it does not know: a request that the host has
translated wrongly is 400. What it responds depends on the last message of the user:

* `<<call NAME {...}>>`: the model calls these tools, one after another (with `<<parallel>>` all in
  one message), and writes text once it has a result for each of them;
* `<<think>>`: the response has reasoning;
* `<<status N>>`: an error with this status;
* `<<linger N>>`: a stream goes on for N seconds after its text;
* `<<cut>>`: a stream ends in the middle;
* tools without `<<call`: the first tool, or the one of `tool_choice`, is called with arguments that
  match its schema;
* a `response_format` with a schema: JSON that matches it;
* otherwise, `echo: ` and the text.
"""

import asyncio
import base64
import json
import re
import struct
import sys

ROLES = {"system", "developer", "user", "assistant", "tool"}
PARTS = {"text", "image_url", "input_audio", "refusal", "video_url", "audio_url"}
CALL = re.compile(r"<<call (\S+) (\{.*?\})>>", re.S)


class Invalid(Exception):
    """A request that vLLM would reject."""


def require(condition, message):
    if not condition:
        raise Invalid(message)


def text_of(content):
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part["text"] for part in content if "text" in part)


def check_messages(messages):
    require(isinstance(messages, list) and messages, "messages must be a list")
    open_calls = set()
    for message in messages:
        role = message.get("role")
        require(role in ROLES, f"unknown role {role!r}")
        content = message.get("content")
        require(
            content is None or isinstance(content, (str, list)), "content must be text or parts"
        )
        require(content is not None or role == "assistant", f"a {role} message needs content")
        for part in content if isinstance(content, list) else []:
            require(part.get("type") in PARTS, f"unknown part {part.get('type')!r}")
            if part["type"] == "image_url":
                url = part["image_url"]["url"]
                require(url.startswith(("data:image/", "http://", "https://")), "invalid image")
        if role == "tool":
            require(message.get("tool_call_id") in open_calls, "a result without a call")
            open_calls.remove(message["tool_call_id"])
            continue
        require(not open_calls, f"calls without results: {sorted(open_calls)}")
        for call in message.get("tool_calls") or []:
            require(call["type"] == "function", "calls are functions")
            arguments = json.loads(call["function"]["arguments"])
            require(isinstance(arguments, dict), "arguments must be an object")
            open_calls.add(call["id"])
    require(not open_calls, f"calls without results: {sorted(open_calls)}")


def sample(schema, root=None):
    """Returns a value that matches a JSON schema."""
    root = root or schema
    if "$ref" in schema:
        target = root
        for key in schema["$ref"].split("/")[1:]:
            target = target[key]
        return sample(target, root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if "enum" in schema:
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return sample(schema[key][0], root)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        names = schema.get("required", list(properties))
        return {name: sample(properties[name], root) for name in names}
    if kind == "array":
        return [sample(schema.get("items", {}), root)]
    return {"integer": 7, "number": 1.5, "boolean": True, "null": None}.get(kind, "word")


def next_calls(request):
    """Returns names and arguments of the tools that the model calls now."""
    tools = {tool["function"]["name"]: tool["function"] for tool in request.get("tools") or []}
    choice = request.get("tool_choice") or ("auto" if tools else "none")
    if not tools or choice == "none":
        return []
    messages = request["messages"]
    asked = [text_of(message["content"]) for message in messages if message["role"] == "user"]
    script = CALL.findall("\n".join(asked))
    results = sum(message["role"] == "tool" for message in messages)
    if script:
        script = [(name, json.loads(arguments)) for name, arguments in script if name in tools]
        todo = script[results:]
        return todo if "<<parallel>>" in "\n".join(asked) else todo[:1]
    if messages[-1]["role"] == "tool" and choice == "auto":
        return []
    name = choice["function"]["name"] if isinstance(choice, dict) else next(iter(tools))
    require(name in tools, f"tool_choice names the unknown tool {name!r}")
    call = (name, sample(tools[name].get("parameters") or {}))
    return [call, call] if asked and "<<parallel>>" in asked[-1] else [call]


def answer(request):
    """Returns text, reasoning, calls and finish reason."""
    users = [message for message in request["messages"] if message["role"] == "user"]
    text = text_of(users[-1]["content"]) if users else ""
    calls = next_calls(request)
    reasoning = "some thought" if "<<think>>" in text else None
    if calls:
        return None, reasoning, calls, "tool_calls"
    form = request.get("response_format") or {}
    if form.get("type") == "json_schema":
        words = json.dumps(sample(form["json_schema"]["schema"]))
    elif form.get("type") == "json_object":
        words = '{"ok": true}'
    else:
        words = f"echo: {text}"
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    pieces = re.findall(r"\S+\s*", words)
    if limit and len(pieces) > limit:
        return "".join(pieces[:limit]), reasoning, [], "length"
    for stop in (
        [request["stop"]] if isinstance(request.get("stop"), str) else request.get("stop") or []
    ):
        words = words.split(stop)[0]
    return words, reasoning, [], "stop"


def usage_of(request, text):
    prompt = (
        len(json.dumps(request["messages"] if "messages" in request else request.get("prompt")))
        // 4
    )
    completion = max(1, len((text or "call").split()))
    details = {"cached_tokens": min(4, prompt)}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": details,
    }


def logprobs_of(text):
    def entry(token):
        return {"token": token, "logprob": -0.5, "bytes": list(token.encode())}

    return {
        "content": [
            {**entry(t), "top_logprobs": [entry(t)]} for t in re.findall(r"\S+\s*", text or "")
        ]
    }


def call_objects(calls, number):
    return [
        {
            "id": f"chatcmpl-tool-{number}-{i}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for i, (name, arguments) in enumerate(calls)
    ]


class Engine:
    """The routes, and what is counted."""

    def __init__(self):
        self.count = 0
        self.requests = []

    async def chat(self, request, reply):
        check_messages(request.get("messages"))
        for tool in request.get("tools") or []:
            require(tool.get("type") == "function" and "name" in tool["function"], "invalid tool")
        self.count += 1
        every = json.dumps(request["messages"])
        if status := re.search(r"<<status (\d+)>>", every):
            return await reply.error(int(status[1]), "scripted")
        text, reasoning, calls, finish = answer(request)
        number = self.count
        head = {"id": f"chatcmpl-{number}", "created": 1_700_000_000, "model": request["model"]}
        objects = call_objects(calls, number)
        usage = usage_of(request, text)
        n = request.get("n") or 1
        if not request.get("stream"):
            message = {
                "role": "assistant",
                "content": text,
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                "tool_calls": objects,
                "reasoning": reasoning,
            }
            logprobs = logprobs_of(text) if request.get("logprobs") else None
            choices = [
                {
                    "index": i,
                    "message": message,
                    "logprobs": logprobs,
                    "finish_reason": finish,
                    "stop_reason": None,
                }
                for i in range(n)
            ]
            return await reply.json(
                200,
                {
                    **head,
                    "object": "chat.completion",
                    "choices": choices,
                    "service_tier": None,
                    "system_fingerprint": None,
                    "usage": usage,
                    "prompt_logprobs": None,
                },
            )
        await reply.start_stream()

        async def send(choices, **more):
            await reply.event(
                {**head, "object": "chat.completion.chunk", "choices": choices, **more}
            )

        async def delta(i, value, finish=None, **more):
            choice = {"index": i, "delta": value, "logprobs": None, "finish_reason": finish, **more}
            await send([choice])

        for i in range(n):
            await delta(i, {"role": "assistant", "content": ""})
            for piece in re.findall(r"\S+\s*", reasoning or ""):
                await delta(i, {"reasoning": piece})
            for k, piece in enumerate(re.findall(r"\S+\s*", text or "")):
                if "<<cut>>" in every and k == 1:
                    return await reply.cut()
                more = {"logprobs": logprobs_of(piece)} if request.get("logprobs") else {}
                await delta(i, {"content": piece}, **more)
            for k, call in enumerate(objects):
                function = call["function"]
                opening = {
                    **call,
                    "index": k,
                    "function": {"name": function["name"], "arguments": ""},
                }
                await delta(i, {"tool_calls": [opening]})
                for part in re.findall(r".{1,12}", function["arguments"], re.S):
                    await delta(i, {"tool_calls": [{"index": k, "function": {"arguments": part}}]})
            if linger := re.search(r"<<linger (\d+)>>", every):
                await asyncio.sleep(int(linger[1]))
            await delta(i, {}, finish, stop_reason=None)
        if (request.get("stream_options") or {}).get("include_usage"):
            await send([], usage=usage)
        await reply.end_stream()

    async def completions(self, request, reply):
        prompts = request["prompt"]
        prompts = [prompts] if isinstance(prompts, str) or isinstance(prompts[0], int) else prompts
        texts = [f"echo: {prompt}" for prompt in prompts]
        head = {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": request["model"],
        }
        usage = usage_of(request, " ".join(texts))

        def choice(i, text, finish):
            return {"index": i, "text": text, "logprobs": None, "finish_reason": finish}

        if not request.get("stream"):
            choices = [choice(i, text, "stop") for i, text in enumerate(texts)]
            return await reply.json(200, {**head, "choices": choices, "usage": usage})
        await reply.start_stream()
        for i, text in enumerate(texts):
            for piece in re.findall(r"\S+\s*", text):
                await reply.event({**head, "choices": [choice(i, piece, None)]})
            await reply.event({**head, "choices": [choice(i, "", "stop")]})
        if (request.get("stream_options") or {}).get("include_usage"):
            await reply.event({**head, "choices": [], "usage": usage})
        await reply.end_stream()

    async def embeddings(self, request, reply):
        inputs = request["input"]
        inputs = [inputs] if isinstance(inputs, str) or isinstance(inputs[0], int) else inputs
        size = request.get("dimensions") or 4
        vectors = [[0.25 * (i + 1)] * size for i in range(len(inputs))]
        if request.get("encoding_format") == "base64":
            vectors = [base64.b64encode(struct.pack(f"<{size}f", *v)).decode() for v in vectors]
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0}
        await reply.json(
            200,
            {
                "id": "embd-1",
                "object": "list",
                "created": 1,
                "model": request["model"],
                "data": data,
                "usage": usage,
            },
        )

    async def rerank(self, request, reply):
        documents = request["documents"]
        texts = [d if isinstance(d, str) else d["text"] for d in documents]
        results = [
            {"index": i, "document": {"text": text}, "relevance_score": 1.0 / (i + 1)}
            for i, text in enumerate(texts)
        ][: request.get("top_n") or None]
        await reply.json(
            200,
            {
                "id": "rerank-1",
                "model": request["model"],
                "usage": {"total_tokens": 9},
                "results": results,
            },
        )

    async def score(self, request, reply):
        require("text_1" in request or "queries" in request, "no text")
        await reply.json(
            200,
            {
                "id": "score-1",
                "object": "list",
                "created": 1,
                "model": request["model"],
                "data": [{"index": 0, "object": "score", "score": 0.5}],
                "usage": {"prompt_tokens": 4, "total_tokens": 4},
            },
        )

    async def classify(self, request, reply):
        await reply.json(
            200,
            {
                "id": "classify-1",
                "object": "list",
                "created": 1,
                "model": request["model"],
                "usage": {"prompt_tokens": 2, "total_tokens": 2},
                "data": [{"index": 0, "label": "a", "probs": [0.75, 0.25], "num_classes": 2}],
            },
        )

    async def pooling(self, request, reply):
        await reply.json(
            200,
            {
                "id": "pool-1",
                "object": "list",
                "created": 1,
                "model": request["model"],
                "data": [{"index": 0, "object": "pooling", "data": [[0.1, 0.2]]}],
                "usage": {"prompt_tokens": 2, "total_tokens": 2},
            },
        )

    async def tokenize(self, request, reply):
        require("prompt" in request or "messages" in request, "no prompt")
        await reply.json(
            200, {"count": 3, "max_model_len": 4096, "tokens": [1, 2, 3], "token_strs": None}
        )

    async def detokenize(self, request, reply):
        await reply.json(200, {"prompt": " ".join(f"w{t}" for t in request["tokens"])})

    async def moderations(self, request, reply):
        names = [
            "harassment",
            "harassment/threatening",
            "hate",
            "hate/threatening",
            "illicit",
            "illicit/violent",
            "self-harm",
            "self-harm/instructions",
            "self-harm/intent",
            "sexual",
            "sexual/minors",
            "violence",
            "violence/graphic",
        ]
        result = {
            "flagged": False,
            "categories": dict.fromkeys(names, False),
            "category_scores": dict.fromkeys(names, 0.0),
            "category_applied_input_types": {name: ["text"] for name in names},
        }
        await reply.json(200, {"id": "modr-1", "model": request["model"], "results": [result]})

    async def images(self, request, reply):
        image = base64.b64encode(b"\x89PNG fake").decode()
        await reply.json(200, {"created": 1, "data": [{"b64_json": image}]})

    async def transcriptions(self, request, reply):
        require(request.get("file"), "no file")
        form = request.get("response_format", "json")
        text = f"heard {len(request['file'])} bytes"
        if form == "text":
            return await reply.raw(200, "text/plain; charset=utf-8", text.encode())
        if request.get("stream") in ("true", "True", "1"):
            await reply.start_stream()
            for word in text.split():
                choice = {
                    "delta": {"content": word + " "},
                    "finish_reason": None,
                    "stop_reason": None,
                }
                await reply.event(
                    {
                        "id": "trsc-1",
                        "object": "transcription.chunk",
                        "created": 1,
                        "model": request["model"],
                        "choices": [choice],
                    }
                )
            choice = {"delta": {"content": ""}, "finish_reason": "stop", "stop_reason": None}
            await reply.event(
                {
                    "id": "trsc-1",
                    "object": "transcription.chunk",
                    "created": 1,
                    "model": request["model"],
                    "choices": [choice],
                }
            )
            return await reply.end_stream()
        await reply.json(200, {"text": text, "usage": {"type": "duration", "seconds": 1}})

    async def speech(self, request, reply):
        require("input" in request, "no input")
        await reply.raw(200, "audio/wav", b"RIFF" + bytes(2000))

    async def models(self, request, reply):
        model = {
            "id": "scripted",
            "object": "model",
            "created": 1,
            "owned_by": "vllm",
            "root": "scripted",
            "parent": None,
            "max_model_len": 200_000,
            "permission": [],
        }
        await reply.json(200, {"object": "list", "data": [model]})

    async def health(self, request, reply):
        await reply.raw(200, "text/plain", b"")

    async def seen(self, request, reply):
        await reply.json(200, self.requests[-200:])

    ROUTES = {
        "/v1/chat/completions": chat,
        "/v1/completions": completions,
        "/v1/embeddings": embeddings,
        "/v1/rerank": rerank,
        "/v1/score": score,
        "/classify": classify,
        "/pooling": pooling,
        "/tokenize": tokenize,
        "/detokenize": detokenize,
        "/v1/moderations": moderations,
        "/v1/images/generations": images,
        "/v1/images/edits": images,
        "/v1/images/variations": images,
        "/v1/audio/transcriptions": transcriptions,
        "/v1/audio/translations": transcriptions,
        "/v1/audio/speech": speech,
    }
    GET = {"/v1/models": models, "/health": health, "/seen": seen}


class Reply:
    """Writes one response."""

    def __init__(self, writer):
        self.writer = writer
        self.is_open = True

    async def raw(self, status, content_type, body):
        head = [f"HTTP/1.1 {status} X", f"content-type: {content_type}"]
        head += [f"content-length: {len(body)}", "", ""]
        # In one packet with the body, as engines do it.
        self.writer.write("\r\n".join(head).encode() + body)
        await self.writer.drain()

    async def json(self, status, value):
        await self.raw(status, "application/json", json.dumps(value).encode())

    async def error(self, status, message):
        kind = "BadRequestError" if status < 500 else "InternalServerError"
        await self.json(
            status, {"error": {"message": message, "type": kind, "param": None, "code": status}}
        )

    async def start_stream(self):
        self.writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    async def chunk(self, data):
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self.writer.drain()

    async def event(self, value):
        await self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    async def end_stream(self):
        await self.chunk(b"data: [DONE]\n\n")
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def cut(self):
        self.is_open = False
        self.writer.close()


def read_form(content_type, body):
    boundary = re.search(r'boundary="?([^";]+)"?', content_type)[1].encode()
    form = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)[1].decode()
        data = data.removesuffix(b"\r\n")
        form[name] = data if b"filename=" in head else data.decode()
    return form


async def read_request(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")
    method, path, _ = lines[0].split(" ", 2)
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    raw = dict(
        (line.split(": ", 1)[0].lower(), line.split(": ", 1)[1])
        for line in lines[1:]
        if ": " in line
    )
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return method, path.split("?")[0], raw, body


async def serve_one(engine, method, path, headers, body, reply):
    routes = engine.GET if method == "GET" else engine.ROUTES
    if path not in routes:
        return await reply.json(404, {"detail": "Not Found"})
    try:
        content_type = headers.get("content-type", "")
        if content_type.startswith("multipart/"):
            request = read_form(content_type, body)
        else:
            request = json.loads(body) if body else {}
        if method == "POST":
            kept = {k: v for k, v in request.items() if not isinstance(v, bytes)}
            engine.requests.append({"path": path, "headers": headers, "body": kept})
        await routes[path](engine, request, reply)
    except (ConnectionError, asyncio.IncompleteReadError):
        raise
    except Exception as error:  # a request of another form than expected is invalid, too
        await reply.error(400, f"{type(error).__name__}: {error}")


async def connection(engine, reader, writer):
    try:
        while True:
            method, path, headers, body = await read_request(reader)
            reply = Reply(writer)
            await serve_one(engine, method, path, headers, body, reply)
            if not reply.is_open:
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(port_file):
    engine = Engine()
    server = await asyncio.start_server(
        lambda r, w: connection(engine, r, w), "127.0.0.1", 0, limit=1 << 24
    )
    with open(port_file, "w") as file:
        file.write(str(server.sockets[0].getsockname()[1]))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
