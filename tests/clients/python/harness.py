"""Collects the features of client libraries, and runs them.

A script registers functions with `@feature`, and ends with `main()`. It is called as
`python SCRIPT URL KEY`, or with `--list`, which prints the features without running them. Each
feature is one line of JSON on the standard output.
"""

import asyncio
import inspect
import json
import os
import sys
import traceback

FEATURES = []
MODEL = "scripted"
# A small PNG.
IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
    "RU5ErkJggg=="
)


def feature(client, name, endpoint):
    """Registers a function as a feature of a client that uses an endpoint of the host."""

    def register(function):
        FEATURES.append((client, name, endpoint, function))
        return function

    return register


def url():
    return sys.argv[1]


def key():
    return sys.argv[2]


def check(condition, *context):
    """Fails the feature unless the condition holds."""
    if not condition:
        raise AssertionError(" ".join(repr(value)[:300] for value in context))


def raises(kinds, call):
    """Returns the error that the call raises, which must be of exactly this class."""
    try:
        call()
    except kinds as error:
        check(type(error) is kinds, type(error), error)
        return error
    raise AssertionError(f"{kinds.__name__} was not raised")


def describe(error):
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    return " ".join(str(part) for part in (type(error).__name__, status, str(error)[:200]) if part)


def run(function):
    if inspect.iscoroutinefunction(function):
        asyncio.run(asyncio.wait_for(function(), 60))
    else:
        function()


def main():
    only = os.environ.get("ONLY_FEATURE", "")
    for client, name, endpoint, function in FEATURES:
        row = {"client": client, "feature": name, "endpoint": endpoint}
        if sys.argv[1:] != ["--list"]:
            if only not in name:
                continue
            try:
                run(function)
                row["error"] = None
            except Exception as error:  # whatever a library raises is the result
                row["error"] = describe(error)
                traceback.print_exc()
        print(json.dumps(row), flush=True)
