"""Sends random requests to all routes of `host/docs/openapi.json`, for a bounded time.

    python random_requests.py --pointsman PROGRAM [--seconds N] [--seed N]

Every response must be one that the documentation allows: an error has the body of its API and a
status and code of the table in `host/docs/errors.md`; a 5xx names a cause in the engine; and the
host neither panics nor ends. Needs the package schemathesis.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter

import hypothesis
import schemathesis
from schemathesis.generation import GenerationMode

from deployment import CONFIG, HERE, KEY, Deployment

DOCS = HERE.parent.parent / "host/docs"
CONFIG_WITH_RIGHTS = CONFIG.replace('env = "TEST_KEY"', 'env = "TEST_KEY"\nengine-admin = true')


def codes():
    """Returns the statuses of all codes, from the table of the documentation."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", (DOCS / "errors.md").read_text(), re.M)
    return {code: int(status) for code, status in rows}


def is_engine_failure(code):
    return code.startswith("engine_") or code == "not_supported"


def error_of(api, body):
    """Returns true if a body is an error in the form of an API."""
    try:
        value = json.loads(body)
    except ValueError:
        return False
    if api == "anthropic":
        return value.get("type") == "error" and {"type", "message"} <= set(value["error"])
    if api == "ollama":
        return isinstance(value.get("error"), str)
    return isinstance(value.get("error"), dict) and "message" in value["error"]


def problem(api, method, response, known):
    """Returns what is wrong with a response."""
    status, code = response.status_code, response.headers.get("x-pointsman-code", [None])[0]
    if status < 400:
        return None
    if code is not None and known.get(code) != status and not is_engine_failure(code):
        return f"code {code} with status {status}"
    if status >= 500 and not (code and is_engine_failure(code)):
        return f"status {status} with code {code}"
    # What an engine says below /upstream is passed on as it is.
    is_engines = api == "host" and code is None
    if method != "HEAD" and not is_engines and not error_of(api, response.content):
        return f"status {status}: not an error of {api}: {response.content[:200]!r}"
    return None


def run_operation(operation, deployment, known, seed, end, counts):
    """Sends random requests for one operation until `end`, and returns what was wrong."""
    found, api = [], operation.definition.raw["x-api"]
    label = f"{operation.method.upper()} {operation.path}"

    def send(case):
        if time.monotonic() > end or found:
            return
        headers = {"authorization": f"Bearer {KEY}"}
        if isinstance(case.body, dict) and "model" in case.body and counts["sent"] % 4:
            case.body["model"] = "scripted"
        if "lane" in (case.path_parameters or {}) and counts["sent"] % 4:
            case.path_parameters["lane"] = "scripted"
        response = case.call(base_url=deployment.url, headers=headers, timeout=20)
        counts["sent"] += 1
        counts[response.status_code // 100] += 1
        if wrong := problem(api, operation.method.upper(), response, known):
            found.append(f"{label}: {wrong}\n{case.as_curl_command()[:2000]}")

    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        settings = hypothesis.settings(
            max_examples=100_000,
            database=None,
            deadline=None,
            derandomize=False,
            phases=[hypothesis.Phase.generate],
            print_blob=False,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        try:
            strategy = operation.as_strategy(generation_mode=mode)
            start, budget = time.monotonic(), max(0.0, (end - time.monotonic()) / 2)
            limit = start + budget if mode is GenerationMode.POSITIVE else end
            run = hypothesis.given(strategy)(lambda case: bounded(send, case, limit))
            hypothesis.seed(seed)(settings(run))()
        except Enough:
            continue
        except hypothesis.errors.Unsatisfiable:
            continue
    return found


class Enough(Exception):
    """The time of an operation is over."""


def bounded(send, case, limit):
    if time.monotonic() > limit:
        raise Enough
    send(case)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pointsman", required=True)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    schema = schemathesis.openapi.from_path(DOCS / "openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    operations = [operation for operation in operations if options.only in operation.path]
    known, counts, found = codes(), Counter(), []
    with Deployment(options.pointsman, CONFIG_WITH_RIGHTS) as deployment:
        last = time.monotonic() + options.seconds
        for i, operation in enumerate(operations):
            # What a route without parameters leaves of its time is for the others.
            now = time.monotonic()
            end = now + (last - now) / (len(operations) - i)
            found += run_operation(operation, deployment, known, options.seed, end, counts)
        found += deployment.problems()
    statuses = ", ".join(f"{counts[kind]} with {kind}xx" for kind in range(2, 6))
    print(f"{counts['sent']} requests on {len(operations)} operations: {statuses}")
    for line in found:
        print("wrong:", line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
