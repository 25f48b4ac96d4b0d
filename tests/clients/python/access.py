"""Keys and tokens: the official packages raise the errors that belong to refused credentials."""

import json
import os
import time

from harness import MODEL, check, feature, main, raises, url

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
USER = [{"role": "user", "content": "hello"}]
LINGERING = [{"role": "user", "content": "hello <<linger 3>>"}]


def credential(name):
    return json.loads(os.environ["CREDENTIALS"])[name]


def openai_client(name, **more):
    import openai

    more = {"max_retries": 0, **more}
    return openai.OpenAI(base_url=f"{url()}/v1", api_key=credential(name), **more)


def anthropic_client(name, **more):
    import anthropic

    more = {"max_retries": 0, **more}
    return anthropic.Anthropic(base_url=url(), auth_token=credential(name), **more)


def chat(client, **more):
    return client.chat.completions.create(**{"model": MODEL, "messages": USER, **more})


def message(client, **more):
    body = {"model": MODEL, "max_tokens": 100, "messages": USER, **more}
    return client.messages.create(**body)


def host_code(error):
    return error.response.headers["x-pointsman-code"]


def refusals(client, ask, library):
    """Returns the codes of tokens that are refused; each raises the error that belongs to it."""
    kinds = {
        "foreign": library.AuthenticationError,
        "expired": library.AuthenticationError,
        "stray": library.PermissionDeniedError,
    }
    errors = {name: raises(kind, lambda: ask(client(name))) for name, kind in kinds.items()}
    return [host_code(errors[name]) for name in kinds]


CODES = ["invalid_token", "token_expired", "token_not_allowed"]


@feature("openai Python", "access, token", CHAT)
def openai_token():
    check(chat(openai_client("valid")).choices[0].message.content == "echo: hello")


@feature("openai Python", "access, refused tokens", CHAT)
def openai_refused():
    import openai

    codes = refusals(openai_client, chat, openai)
    check(codes == CODES, codes)


@feature("anthropic Python", "access, token", MESSAGES)
def anthropic_token():
    check(message(anthropic_client("valid")).content[0].text == "echo: hello")


@feature("anthropic Python", "access, refused tokens", MESSAGES)
def anthropic_refused():
    import anthropic

    codes = refusals(anthropic_client, message, anthropic)
    check(codes == CODES, codes)


def limits(client, ask, library, headers):
    """Uses a key with two requests per minute until it is limited."""
    error = raises(library.RateLimitError, lambda: [ask(client("paced")) for _ in range(3)])
    sent = error.response.headers
    check(host_code(error) == "rate_limit_exceeded", error)
    check(1 <= int(sent["retry-after"]) <= 61, sent)
    for name, value in headers.items():
        check(sent[name] == value, name, sent)


def retries(client, ask, raw, library):
    """Uses a key for one request at a time, while another one is in flight."""
    # It is in flight once its response has begun.
    slow = ask(client("single"), messages=LINGERING, stream=True)
    limited = raises(library.RateLimitError, lambda: ask(client("single")))
    after, begun = int(limited.response.headers["retry-after"]), time.monotonic()
    response = raw(client("single", max_retries=8))
    check(response.retries_taken > 0, response.retries_taken)
    check(time.monotonic() - begun >= after, after)
    check(list(slow), "the stream has no event")


def refused_keys(client, ask, library):
    """Returns the codes of keys that are refused."""
    past = raises(library.AuthenticationError, lambda: ask(client("past")))
    narrow = raises(library.PermissionDeniedError, lambda: ask(client("narrow")))
    return [host_code(past), host_code(narrow)]


KEY_CODES = ["api_key_expired", "model_not_allowed"]


@feature("openai Python", "access, refused keys", CHAT)
def openai_keys():
    import openai

    codes = refused_keys(openai_client, chat, openai)
    check(codes == KEY_CODES, codes)


@feature("openai Python", "access, rate limit", CHAT)
def openai_limits():
    import openai

    limits(openai_client, chat, openai, {"x-ratelimit-limit-requests": "2"})


@feature("openai Python", "access, retries after a limit", CHAT)
def openai_retries():
    import openai

    def raw(client):
        create = client.chat.completions.with_raw_response.create
        return create(model=MODEL, messages=USER)

    retries(openai_client, chat, raw, openai)


@feature("anthropic Python", "access, refused keys", MESSAGES)
def anthropic_keys():
    import anthropic

    codes = refused_keys(anthropic_client, message, anthropic)
    check(codes == KEY_CODES, codes)


@feature("anthropic Python", "access, rate limit", MESSAGES)
def anthropic_limits():
    import anthropic

    limits(anthropic_client, message, anthropic, {"anthropic-ratelimit-requests-limit": "2"})


@feature("anthropic Python", "access, retries after a limit", MESSAGES)
def anthropic_retries():
    import anthropic

    def raw(client):
        create = client.messages.with_raw_response.create
        return create(model=MODEL, max_tokens=100, messages=USER)

    retries(anthropic_client, message, raw, anthropic)


main()
