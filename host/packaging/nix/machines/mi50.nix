# A desktop with an MI50 (gfx906, 32 GiB), which vLLM does not support, and a second GPU: Ollama on
# the MI50.
{ pkgs, ... }:
{
  # Replace this line by the hardware of the machine.
  boot.isContainer = true;
  system.stateVersion = "26.05";

  services.pointsman = {
    enable = true;
    # Ollama's port: its clients need no change. Replaces services.ollama.
    listen = "127.0.0.1:11434";
    path = [ pkgs.ollama-rocm ];

    groups.mi50 = { memory = "30GiB"; };

    lanes.qwen-coder = {
      models = [ "qwen-coder" "auto" "qwen2.5-coder:32b" ];
      engine-model = "qwen2.5-coder:32b";
      max-context = 16384;
      slots = 2;
      group = "mi50";
      memory = "28GiB";
      load = "at-start";
      engine = {
        driver = "command";
        command = [ "ollama" "serve" ];
        ready = "/api/version";
        env = {
          OLLAMA_HOST = "127.0.0.1:{port}";
          OLLAMA_MODELS = "/var/lib/pointsman/ollama";
          OLLAMA_NUM_PARALLEL = "2";
          OLLAMA_CONTEXT_LENGTH = "16384";
          # The MI50 by its UUID: numbers change when a GPU is added.
          ROCR_VISIBLE_DEVICES = "GPU-0e54792172da5eeb";
        };
      };
    };
  };
}
