# vLLM by itself, configured by environment variables: scripts, and an image with them and the host.
#
# `engine` is a package with bin/vllm. Build it for the GPU of one machine, or take your own:
# `pointsmanVllm.override { engine = …; }`.
{ lib
, buildEnv
, curl
, dockerTools
, pkgsRocm
, pointsman
, writeShellApplication
, engine ? pkgsRocm.vllm
}:
let
  server = writeShellApplication {
    name = "vllm-server";
    runtimeInputs = [ engine ];
    text = builtins.readFile ./vllm-server.sh;
  };

  health = writeShellApplication {
    name = "vllm-health";
    runtimeInputs = [ curl ];
    text = builtins.readFile ./vllm-health.sh;
  };

  # The user of the image. GPUs are opened with the numeric groups of the machine (`--group-add`).
  id = toString 1000;
  user = dockerTools.fakeNss.override {
    extraPasswdLines = [ "vllm:x:${id}:${id}:vLLM:/cache:/bin/sh" ];
    extraGroupLines = [ "vllm:x:${id}:" ];
  };
  seconds = count: count * 1000000000;
in
{
  inherit server health;

  tools = buildEnv {
    name = "vllm-tools";
    paths = [ server health engine ];
  };

  # A script that writes the image to its standard output: no image is kept in the Nix store.
  container = dockerTools.streamLayeredImage {
    name = "pointsman-vllm";
    tag = pointsman.version;
    created = "1970-01-01T00:00:01Z";
    contents = [
      server
      health
      pointsman
      user
      dockerTools.binSh
      dockerTools.caCertificates
    ];
    fakeRootCommands = ''
      mkdir -p tmp cache models
      chmod 1777 tmp
      chown ${id}:${id} cache
      chmod 0700 cache
    '';
    config = {
      Entrypoint = [ "/bin/vllm-server" ];
      User = "${id}:${id}";
      WorkingDir = "/cache";
      ExposedPorts."8000/tcp" = { };
      Volumes."/cache" = { };
      Env = [
        "HOME=/cache"
        "HF_HOME=/cache/huggingface"
        "VLLM_CACHE_ROOT=/cache/vllm"
        "VLLM_HOST=0.0.0.0"
        "VLLM_NO_USAGE_STATS=1"
        "SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt"
      ];
      Healthcheck = {
        Test = [ "CMD" "/bin/vllm-health" ];
        Interval = seconds 30;
        Timeout = seconds 10;
        # Loading a model takes minutes, and a first start compiles kernels.
        StartPeriod = seconds 900;
        Retries = 3;
      };
      Labels = {
        "org.opencontainers.image.title" = "pointsman-vllm";
        "org.opencontainers.image.version" = pointsman.version;
        "org.opencontainers.image.licenses" = "Apache-2.0";
      };
    };
  };
}
