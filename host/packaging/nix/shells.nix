# Shells of `nix develop`.
{ pkgs }:
let
  vllm = pkgs.pointsmanVllm;
  runtime = [ pkgs.pointsman vllm.tools ];
in
{
  # To build and test the host.
  default = pkgs.mkShell {
    name = "pointsman";
    inputsFrom = [ pkgs.pointsman ];
    packages = [ pkgs.cargo-nextest pkgs.clippy pkgs.rustfmt pkgs.rust-analyzer ];
  };

  # To run vLLM and the host.
  vllm = pkgs.mkShell {
    name = "vllm";
    packages = runtime;
    VLLM_NO_USAGE_STATS = "1";
  };

  # The same, to find out why an engine fails.
  vllm-debug = pkgs.mkShell {
    name = "vllm-debug";
    packages = runtime ++ [
      pkgs.gdb
      pkgs.jq
      pkgs.perf
      pkgs.strace
      pkgs.rocmPackages.amdsmi
      pkgs.rocmPackages.rocm-smi
      pkgs.rocmPackages.rocminfo
    ];
    VLLM_NO_USAGE_STATS = "1";
    VLLM_LOGGING_LEVEL = "DEBUG";
  };
}
