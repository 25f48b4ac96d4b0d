# The NixOS module services.pointsman. The unit is host/packaging/pointsman.service; only what
# depends on options is replaced.
{ config, lib, pkgs, ... }:
let
  cfg = config.services.pointsman;
  unit = import ./unit.nix { inherit lib; };
  program = "${cfg.package}/bin/pointsman";
  configPath = "/etc/pointsman/pointsman.toml";

  # TOML has no null: options that are not set are left out.
  prune = value:
    if builtins.isAttrs value then
      lib.mapAttrs (_: prune) (lib.filterAttrs (_: inner: inner != null) value)
    else if builtins.isList value then
      map prune value
    else
      value;
  named = values: prune (lib.mapAttrsToList (name: value: { inherit name; } // value) values);
  file = (pkgs.formats.toml { }).generate "pointsman.toml" cfg.settings;

  # Keys of the unit by which the service is confined.
  isHardening = name: builtins.any (prefix: lib.hasPrefix prefix name) [
    "AmbientCapabilities"
    "CapabilityBoundingSet"
    "Device"
    "LockPersonality"
    "NoNewPrivileges"
    "Private"
    "Protect"
    "Restrict"
    "SystemCall"
  ];
  # NixOS expects a text for keys with one value.
  shipped = lib.mapAttrs
    (_: values: if builtins.length values == 1 then lib.head values else values)
    unit.Service;
  confined = shipped // {
    DevicePolicy = "closed";
    DeviceAllow = cfg.devices;
  };
  service =
    if cfg.hardening then confined
    else lib.filterAttrs (name: _: !isHardening name) shipped;

  units = { B = 1; KiB = 1024; MiB = 1048576; GiB = 1073741824; TiB = 1099511627776; };
  bytes = text:
    let parts = builtins.match "([0-9]+) *(B|KiB|MiB|GiB|TiB)" text;
    in lib.toInt (builtins.elemAt parts 0) * units.${builtins.elemAt parts 1};
  inherit (config.boot.kernelPackages) kernel;
  isApu = cfg.gpuMemory.ttmSizeGiB != null;
  isOnGpu = group: lib.hasPrefix "gpu" (if group.pool == null then "none" else group.pool);
  gpuBudget = lib.foldl' (sum: group: sum + bytes group.memory) 0
    (builtins.filter isOnGpu (builtins.attrValues cfg.groups));
  port = builtins.match ".*:([0-9]+)" cfg.listen;
  isLoopback = builtins.match "(127\\.|\\[::1]|localhost:|unix:).*" cfg.listen != null;

  checkLane = name: lane:
    let
      inherit (lane) engine;
      option = "services.pointsman.lanes.${name}";
      group = cfg.groups.${lane.group} or null;
      required = {
        vllm = engine.model != null || engine.command != null;
        llama-cpp = engine.model != null || engine.command != null;
        command = engine.command != null;
        external = engine.url != null;
      };
      key = { vllm = "model"; llama-cpp = "model"; command = "command"; external = "url"; };
    in
    [
      {
        assertion = required.${engine.driver};
        message = "${option}.engine: missing `${key.${engine.driver}}`, which driver "
          + "\"${engine.driver}\" requires";
      }
      {
        assertion = lane.group == null || group != null;
        message = "${option}.group: unknown group \"${toString lane.group}\"; "
          + "add services.pointsman.groups.${toString lane.group}";
      }
      {
        assertion = lane.group == null || lane.memory == null || group == null
          || bytes lane.memory <= bytes group.memory;
        message = "${option}.memory: ${toString lane.memory} exceeds the memory of group "
          + "\"${toString lane.group}\"";
      }
    ];
in
{
  imports = [ ./options.nix ];

  config = lib.mkIf cfg.enable {
    assertions = lib.concatLists (lib.mapAttrsToList checkLane cfg.lanes) ++ [
      {
        assertion = cfg.settings.lanes != [ ];
        message = "services.pointsman.lanes: no lanes defined";
      }
      {
        assertion = !isApu || gpuBudget <= cfg.gpuMemory.ttmSizeGiB * units.GiB;
        message = "services.pointsman.groups: the groups of the pool \"gpu\" exceed "
          + "gpuMemory.ttmSizeGiB";
      }
      {
        assertion = !cfg.openFirewall || (port != null && !isLoopback);
        message = "services.pointsman.openFirewall: \"${cfg.listen}\" is not reachable from other "
          + "machines; set services.pointsman.listen to an address such as \"0.0.0.0:8000\"";
      }
      {
        assertion = cfg.environmentFile == null
          || !lib.hasPrefix builtins.storeDir cfg.environmentFile;
        message = "services.pointsman.environmentFile: files in the Nix store can be read by all "
          + "users; write the path as a string";
      }
    ];

    warnings =
      lib.optional (cfg.environment ? HSA_OVERRIDE_GFX_VERSION) ''
        services.pointsman.environment: HSA_OVERRIDE_GFX_VERSION crashes the GPU if it is not of
        that version. gfx1151 is supported without it.
      ''
      ++ lib.optional (isApu && lib.versionOlder kernel.version "6.18.4") ''
        services.pointsman: ROCm crashes on gfx1151 with Linux before 6.18.4; set
        boot.kernelPackages = pkgs.linuxPackages_latest.
      '';

    services.pointsman.settings = {
      server.listen = lib.mkDefault cfg.listen;
      state.dir = lib.mkDefault "/var/lib/pointsman/state";
      policies = {
        dir = lib.mkDefault cfg.policiesDir;
        chain = cfg.policies;
      };
      groups = named cfg.groups;
      lanes = named cfg.lanes;
    };

    environment.etc."pointsman/pointsman.toml".source = file;
    # `pointsman top`, `pointsman explain` and so on.
    environment.systemPackages = [ cfg.package ];

    systemd.services.pointsman = {
      description = lib.head unit.Unit.Description;
      documentation = unit.Unit.Documentation;
      wants = unit.Unit.Wants;
      after = unit.Unit.After;
      wantedBy = unit.Install.WantedBy;
      unitConfig =
        builtins.removeAttrs unit.Unit [ "Description" "Documentation" "Wants" "After" ];
      reloadTriggers = [ file ];
      reloadIfChanged = cfg.upgradeInPlace;
      inherit (cfg) environment path;
      serviceConfig = builtins.removeAttrs service [ "EnvironmentFile" ] // {
        ExecStart = "${program} serve ${configPath}";
        ExecReload = "${program} upgrade --config ${configPath} --program ${program}";
        User = cfg.user;
        Group = cfg.group;
        SupplementaryGroups = cfg.supplementaryGroups;
      } // lib.optionalAttrs (cfg.environmentFile != null) {
        EnvironmentFile = cfg.environmentFile;
      };
    };

    users.users = lib.optionalAttrs (cfg.user == "pointsman") {
      pointsman = {
        isSystemUser = true;
        inherit (cfg) group;
      };
    };
    users.groups = lib.optionalAttrs (cfg.group == "pointsman") { pointsman = { }; };

    networking.firewall.allowedTCPPorts =
      lib.optional (cfg.openFirewall && port != null) (lib.toInt (lib.head port));

    # In pages of 4 KiB. amdgpu.gttsize is deprecated.
    boot.kernelParams =
      lib.optional isApu "ttm.pages_limit=${toString (cfg.gpuMemory.ttmSizeGiB * 262144)}";
  };
}
