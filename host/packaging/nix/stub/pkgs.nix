# Packages that are derivations without a build, which have the arguments of their functions as
# attributes. What is missing here is missing in nixpkgs, too, as far as the flake is concerned.
{ lib }:
let
  inherit (builtins) concatStringsSep isAttrs toJSON;

  derive = name: attributes:
    let
      result = derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; };
    in
    attributes // {
      inherit name;
      inherit (result) type drvPath outPath outputName system;
    };
  # What the arguments refer to has to exist.
  strict = name: attributes: builtins.seq (toJSON attributes) (derive name attributes);

  overridable = create: args: let result = create args; in
    if isAttrs result then result // { override = more: overridable create (args // more); }
    else result;

  toml = import ./toml.nix { inherit lib; };

  make = overlays: let
    names = [
      "bash" "cargo-nextest" "clippy" "curl" "emptyDirectory" "gdb" "installShellFiles" "jq"
      "llama-cpp" "ollama-rocm" "perf" "rust-analyzer" "rustfmt" "strace" "vllm"
    ];
    plain = builtins.listToAttrs (map (name: { inherit name; value = derive name { }; }) names);
    base = final: plain // {
      inherit lib;
      rocmPackages = lib.mapAttrs (name: _: derive name { }) {
        amdsmi = 0; clr = 0; rocm-smi = 0; rocminfo = 0;
      };
      pkgsRocm = { vllm = derive "vllm-rocm" { }; };
      linuxPackages_latest.kernel = derive "linux-7.0.2" { version = "7.0.2"; };

      callPackage = file: more: let function = import file; in overridable function
        (builtins.intersectAttrs (builtins.functionArgs function) final // more);
      extend = overlay: make (overlays ++ [ overlay ]);

      mkShell = args: strict args.name (args // { packages = map toString args.packages; });
      writeText = name: text: derive name { inherit text; };
      buildEnv = args: strict args.name (args // { paths = map toString args.paths; });
      rustPlatform.buildRustPackage = args: strict "${args.pname}-${args.version}" args;
      writeShellApplication = { name, text, runtimeInputs ? [ ] }: derive name {
        text = ''
          #!/usr/bin/env bash
          set -o errexit
          set -o nounset
          set -o pipefail

          export PATH="${concatStringsSep ":" (map (input: "${input}/bin") runtimeInputs)}:$PATH"

        '' + text;
      };
      dockerTools = {
        binSh = derive "bin-sh" { };
        caCertificates = derive "ca-certificates" { };
        fakeNss = overridable (args: strict "fake-nss" args) { };
        streamLayeredImage = args: strict "stream-${args.name}"
          (args // { contents = map toString args.contents; });
      };
      formats.toml = { }: {
        inherit (toml) type;
        generate = name: value: final.writeText name (toml.render value);
      };
    };
    pkgs = builtins.foldl' (prev: overlay: prev // overlay pkgs prev) (base pkgs) overlays;
  in pkgs;
in
make [ ]
