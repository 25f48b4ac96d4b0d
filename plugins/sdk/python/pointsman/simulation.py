"""Golden cases and scenarios in the test suite of a policy, for pytest and unittest.

Runs the built component in the program `pointsman`, which is on the PATH or named by the environment
variable `POINTSMAN`. This module is for tests: a policy cannot import it.
"""

import json
import os
import subprocess
import warnings
from typing import Any, Dict, List, Mapping, Optional


def _program() -> str:
    return os.environ.get("POINTSMAN") or "pointsman"


def has_pointsman() -> bool:
    """Returns True if the program can be run, so that tests can be skipped where it cannot."""
    try:
        return subprocess.run([_program(), "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def run_tests(folder: str = ".") -> Dict[str, Any]:
    """Runs the golden cases and the scenarios of the policy in `folder`.

    Returns the report of `pointsman policy test --format json`.
    """
    return _run(["policy", "test", folder, "--format", "json"])


def simulate(
    scenario: str, set: Optional[Mapping[str, object]] = None, seeds: Optional[int] = None
) -> Dict[str, Any]:
    """Simulates a scenario. `set` overrides keys of the scenario.

    Returns the report of `pointsman simulate --json -`.
    """
    arguments = ["simulate", scenario, "--quiet", "--json", "-"]
    for key, value in (set or {}).items():
        arguments += ["--set", f"{key}={value}"]
    if seeds is not None:
        arguments += ["--seeds", str(seeds)]
    return _run(arguments)


def failures(report: Mapping[str, Any]) -> List[str]:
    """Describes each golden case and each objective of a report that failed. Empty if none has."""
    lines: List[str] = []
    for case in report.get("cases", []):
        for difference in case["differences"]:
            what, expected, got = (difference[key] for key in ("what", "expected", "got"))
            lines.append(f"{case['name']}: {what}: expected {expected}, got {got}")
    # A scenario has objectives; so has each variant of a simulation.
    for run in [*report.get("scenarios", []), *report.get("variants", [])]:
        name = run.get("title") or run.get("name")
        for objective in run["objectives"]:
            if not objective["met"]:
                text, mean = objective["objective"], objective["mean"]
                lines.append(f"{name}: {text}: not met, mean {mean}")
    return lines


def _run(arguments: List[str]) -> Dict[str, Any]:
    command = [_program(), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    failed = f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr}"
    # 1 is the status of cases that differ and of objectives that are not met.
    if done.returncode not in (0, 1):
        raise RuntimeError(failed)
    # What the simulator cannot represent.
    if done.stderr:
        warnings.warn(done.stderr.rstrip(), stacklevel=3)
    try:
        report: Dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise RuntimeError(failed + done.stdout) from error
    return report
