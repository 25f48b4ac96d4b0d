"""Prints the services of a compose file as JSON, with its anchors and merges resolved.

    python services.py FILE
"""

import json
import sys

from ruamel.yaml import YAML

with open(sys.argv[1]) as file:
    print(json.dumps(YAML(typ="safe").load(file)["services"]))
