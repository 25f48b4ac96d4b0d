# A Strix Halo (Ryzen AI MAX, gfx1151) with 128 GiB, three vLLM lanes that take turns, and a
# llama.cpp lane on the CPU.
{ pkgs, ... }:
let
  vllm = folder: {
    driver = "vllm";
    model = "/models/vllm/${folder}";
    # An APU has no UUID.
    device = "0";
    offline = true;
    shutdown-timeout = "10s";
  };
in
{
  # Replace this line by the hardware of the machine.
  boot.isContainer = true;
  system.stateVersion = "26.05";

  boot.kernelPackages = pkgs.linuxPackages_latest;

  services.pointsman = {
    enable = true;
    # The port on which the containers before were published.
    listen = "0.0.0.0:11434";
    openFirewall = true;
    path = [ pkgs.pkgsRocm.vllm pkgs.llama-cpp ];
    gpuMemory.ttmSizeGiB = 64;
    # For POINTSMAN_KEY: without a key, everyone on the network could use the models.
    environmentFile = "/etc/pointsman/environment";

    settings = {
      keys = [ { tenant = "cortex"; env = "POINTSMAN_KEY"; } ];
      # A load takes 30 to 60 seconds, the first one minutes.
      queue.max-wait = "5m";
    };

    policies = [
      {
        name = "cortex";
        on-error = "default";
        config.aliases."Qwen2.5-Coder-32B-Instruct" = "coder";
      }
    ];

    groups.gpu0 = { memory = "48GiB"; pool = "gpu"; };

    lanes.orchestrator = {
      models = [ "orchestrator" "auto" "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B" ];
      max-context = 32768;
      slots = 8;
      group = "gpu0";
      memory = "33GiB";
      load = "at-start";
      engine = vllm "orchestrator/awq" // { kv-cache-memory = "12GiB"; };
    };
    lanes.coder = {
      models = [ "coder" "auto" "Qwen/Qwen2.5-Coder-32B-Instruct" ];
      max-context = 32768;
      slots = 8;
      group = "gpu0";
      memory = "33GiB";
      engine = vllm "coder/awq" // { kv-cache-memory = "12GiB"; };
    };
    lanes.fast_rag = {
      models = [ "fast_rag" "auto" "meta-llama/Llama-3.2-11B-Vision-Instruct" ];
      max-context = 32768;
      slots = 8;
      group = "gpu0";
      memory = "15GiB";
      unload-after = "30m";
      engine = vllm "fast_rag/awq" // { kv-cache-memory = "4GiB"; };
    };
    lanes.governance = {
      max-context = 8192;
      slots = 2;
      engine = {
        driver = "llama-cpp";
        model = "/models/governance.gguf";
        gpu-layers = 0;
      };
    };
  };
}
