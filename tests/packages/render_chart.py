"""Lints and renders the chart as Helm 4 does, without a cluster.

    python render_chart.py CHART [VALUES]

VALUES is a YAML file. Prints JSON: `lint` are warnings and errors, `files` are the rendered templates; or `error`, if
the values are refused.
"""

import json
import sys

import helm_python as helm

chart_dir = sys.argv[1]
values = helm.values_from_yaml(open(sys.argv[2]).read()) if len(sys.argv) > 2 else {}
report = helm.lint(chart_dir, values, strict=True)
# Severities: 1 is information, such as the recommendation of an icon.
findings = [message["error"] for message in report["messages"] if message["severity"] > 1]
result = {"lint": findings + report["errors"], "files": {}}
with helm.Chart.load(chart_dir) as chart:
    try:
        chart.validate_schema(values)
        rendered = chart.render(values, name="router", namespace="llm")
        result["files"] = {path.rsplit("/", 1)[-1]: text for path, text in rendered.items()}
    except helm.HelmError as error:
        result["error"] = str(error)
print(json.dumps(result))
