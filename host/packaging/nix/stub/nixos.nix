# The options of NixOS that the module sets or reads, and the text of units.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  texts = option (types.listOf types.str) [ ];
  value = types.oneOf [ types.bool types.int types.str (types.listOf types.str) ];

  service = types.submodule {
    options = {
      description = option types.str "";
      documentation = texts;
      wants = texts;
      after = texts;
      wantedBy = texts;
      reloadTriggers = option (types.listOf types.package) [ ];
      reloadIfChanged = option types.bool false;
      environment = option (types.attrsOf types.str) { };
      path = option (types.listOf types.package) [ ];
      unitConfig = option (types.attrsOf value) { };
      serviceConfig = option (types.attrsOf value) { };
    };
  };

  toLines = name: value:
    if builtins.isList value then builtins.concatStringsSep "" (map (toLines name) value)
    else if builtins.isBool value then "${name}=${lib.boolToString value}\n"
    else "${name}=${toString value}\n";
  section = name: set:
    "[${name}]\n" + builtins.concatStringsSep "" (lib.mapAttrsToList toLines set);
  words = builtins.concatStringsSep " ";
  render = unit: section "Unit" (unit.unitConfig // {
    Description = unit.description;
    Documentation = unit.documentation;
    Wants = words unit.wants;
    After = words unit.after;
    X-Reload-Triggers = words (map toString unit.reloadTriggers);
  } // lib.optionalAttrs unit.reloadIfChanged {
    X-ReloadIfChanged = true;
  }) + "\n" + section "Service" {
    Environment = lib.mapAttrsToList (name: value: "\"${name}=${value}\"") (unit.environment // {
      PATH = builtins.concatStringsSep ":" (map (package: "${package}/bin") unit.path);
    });
  } + builtins.concatStringsSep "" (lib.mapAttrsToList toLines unit.serviceConfig)
    + "\n" + section "Install" { WantedBy = words unit.wantedBy; };

  failed = builtins.filter (check: !check.assertion) config.assertions;
in
{
  options = {
    assertions = option (types.listOf types.raw) [ ];
    warnings = texts;
    boot.isContainer = option types.bool false;
    boot.kernelPackages = option types.raw pkgs.linuxPackages_latest;
    boot.kernelParams = texts;
    environment.etc = option (types.attrsOf (types.submodule {
      options.source = mkOption { type = types.package; };
    })) { };
    environment.systemPackages = option (types.listOf types.package) [ ];
    networking.firewall.allowedTCPPorts = option (types.listOf types.int) [ ];
    system.stateVersion = option types.str "";
    system.build.toplevel = mkOption { type = types.package; };
    systemd.services = option (types.attrsOf service) { };
    systemd.units = option (types.attrsOf types.raw) { };
    users.groups = option (types.attrsOf types.raw) { };
    users.users = option (types.attrsOf (types.submodule {
      options.isSystemUser = option types.bool false;
      options.group = mkOption { type = types.str; };
    })) { };
  };

  config = {
    systemd.units = builtins.listToAttrs (lib.mapAttrsToList
      (name: unit: { name = "${name}.service"; value.text = render unit; })
      config.systemd.services);
    system.build.toplevel =
      if failed == [ ] then
        pkgs.writeText "nixos" (builtins.toJSON [
          (lib.mapAttrs (_: unit: unit.text) config.systemd.units)
          (lib.mapAttrs (_: file: file.source.text) config.environment.etc)
          config.environment.systemPackages
          config.boot.kernelParams
          config.networking.firewall.allowedTCPPorts
          config.users.users
        ]) // { warnings = words config.warnings; }
      else
        throw "Failed assertions: ${words (map (one: one.message) failed)}";
  };
}
