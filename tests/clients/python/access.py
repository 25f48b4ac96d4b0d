"""Keys and tokens: the official packages raise the errors that belong to refused credentials."""

import json
import os

from harness import MODEL, check, feature, main, raises, url

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
USER = [{"role": "user", "content": "hello"}]


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


main()
