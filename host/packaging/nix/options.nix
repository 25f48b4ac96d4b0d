# The options of services.pointsman. Keys of the configuration have the names that they have in
# examples/pointsman.toml, which describes all of them; those without an option can be set, too.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.pointsman;
  toml = pkgs.formats.toml { };
  unit = import ./unit.nix { inherit lib; };

  # An option whose key is left out of the configuration unless it is set.
  optional = type: description: mkOption {
    type = types.nullOr type;
    default = null;
    inherit description;
  };
  size = types.strMatching "[0-9]+ *(B|KiB|MiB|GiB|TiB)";

  engine = types.submodule {
    freeformType = toml.type;
    options = {
      driver = mkOption {
        type = types.enum [ "vllm" "llama-cpp" "command" "external" ];
        description = "Kind of the engine: how it is started, and which settings it has.";
      };
      model = optional types.str "Model of vllm and llama-cpp: a path, or a name on the Hub.";
      program = optional (types.listOf types.str) "Command before the arguments of the driver.";
      command = optional (types.listOf types.str) "Complete command, in place of `program`.";
      url = optional types.str "Base URL of the API of an external engine.";
      env = optional (types.attrsOf types.str) "Environment variables of the engine.";
    };
  };

  lane = types.submodule {
    freeformType = toml.type;
    options = {
      models = optional (types.listOf types.str) "Model names that the lane serves.";
      labels = optional (types.attrsOf types.str) "Labels for policies.";
      slots = optional types.ints.positive "Number of requests that are served at a time.";
      max-context = optional types.ints.unsigned "Maximum sequence length in tokens.";
      group = optional types.str "Group whose memory the lane shares.";
      memory = optional size "Memory that the lane needs while it is loaded, such as \"33GiB\".";
      load = optional (types.enum [ "on-demand" "at-start" "always" ]) "When the lane is loaded.";
      engine = mkOption {
        type = engine;
        description = "The engine of the lane.";
      };
    };
  };

  group = types.submodule {
    freeformType = toml.type;
    options = {
      memory = mkOption {
        type = size;
        example = "48GiB";
        description = "Total memory of the loaded lanes of the group.";
      };
      pool = optional (types.strMatching "gpu|gpu:[0-9]+|system|none")
        "Where free memory is measured before a load.";
    };
  };

  policy = types.submodule {
    freeformType = toml.type;
    options.name = mkOption {
      type = types.str;
      description = "Name of the policy, and of its folder.";
    };
  };
in
{
  options.services.pointsman = {
    enable = lib.mkEnableOption "Pointsman, a policy router for language models";

    package = mkOption {
      type = types.package;
      description = "The package of the host.";
    };

    listen = mkOption {
      type = types.str;
      default = "127.0.0.1:8000";
      example = "0.0.0.0:11434";
      description = "Address for clients. Without keys, every client that reaches it is served.";
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to open the port of `listen` in the firewall.";
    };

    lanes = mkOption {
      type = types.attrsOf lane;
      default = { };
      description = "Lanes by name, in `[[lanes]]`. Their order is that of their names.";
    };

    groups = mkOption {
      type = types.attrsOf group;
      default = { };
      description = "Groups of lanes by name, in `[[groups]]`.";
    };

    policies = mkOption {
      type = types.listOf policy;
      default = [ ];
      example = [ { name = "cortex"; on-error = "default"; } ];
      description = "Chain of policies, in the order in which they are called.";
    };

    policiesDir = mkOption {
      type = types.str;
      default = "${cfg.package}/share/pointsman/policies";
      defaultText = lib.literalExpression "\"\${cfg.package}/share/pointsman/policies\"";
      description = ''
        Folder with a folder for each policy. The default has the built-in policies. A policy can
        be replaced while the host runs only in a folder outside of the Nix store.
      '';
    };

    settings = mkOption {
      type = types.submodule { freeformType = toml.type; };
      default = { };
      example = { queue.max-wait = "5m"; };
      description = "All other settings, as in examples/pointsman.toml.";
    };

    environmentFile = optional types.str ''
      File with the variables that the configuration names, such as secrets. systemd reads it as
      root, and it must not be in the Nix store, which all users can read.
    '';

    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      description = "Environment variables of the host. Engines inherit them.";
    };

    path = mkOption {
      type = types.listOf types.package;
      default = [ ];
      description = "Packages with the programs of engines, such as vllm and llama-server.";
    };

    user = mkOption {
      type = types.str;
      default = "pointsman";
      description = "User of the host and its engines. The default user is created.";
    };

    group = mkOption {
      type = types.str;
      default = "pointsman";
      description = "Group of the host and its engines. The default group is created.";
    };

    supplementaryGroups = mkOption {
      type = types.listOf types.str;
      default = [ "video" "render" ];
      description = "Further groups: those of the device files of GPUs.";
    };

    devices = mkOption {
      type = types.listOf types.str;
      default = unit.Service.DeviceAllow or [ "char-drm rw" "char-kfd rw" ];
      defaultText = lib.literalMD "those of host/packaging/pointsman.service";
      description = "Devices that engines may open, as in `DeviceAllow=`.";
    };

    hardening = mkOption {
      type = types.bool;
      default = true;
      description = "Whether the service is confined to what the host and known engines need.";
    };

    upgradeInPlace = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether a new package or configuration is taken up by `systemctl reload`, which ends no
        engine. Other changes of the unit, such as its groups, then need a restart by hand.
      '';
    };

    gpuMemory.ttmSizeGiB = optional types.ints.positive ''
      Size in GiB of the system memory that the GPU of an APU may use: the kernel's parameter
      ttm.pages_limit, which needs a restart of the machine. Set the reserved memory of the GPU to
      its minimum in the firmware. Leave it out for GPUs with memory of their own.
    '';
  };
}
