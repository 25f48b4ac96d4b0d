# The outputs of flake.nix.
{ self, nixpkgs }:
let
  # The host is tested on x86-64 only, and nixpkgs has ROCm for nothing else.
  system = "x86_64-linux";
  pkgs = nixpkgs.legacyPackages.${system}.extend self.overlays.default;
  vllm = pkgs.pointsmanVllm;
  machine = file: nixpkgs.lib.nixosSystem {
    inherit system;
    modules = [ self.nixosModules.default file ];
  };
in
{
  overlays.default = final: prev: {
    pointsman = final.callPackage ./pointsman.nix {
      # A tree with changes has none.
      commit = self.rev or "unknown";
    };
    pointsmanVllm = final.callPackage ./vllm.nix { };
  };

  packages.${system} = {
    default = pkgs.pointsman;
    inherit (pkgs) pointsman;
    vllm-server = vllm.server;
    vllm-health = vllm.health;
    vllm-container = vllm.container;
    vllm-tools = vllm.tools;
  };

  devShells.${system} = import ./shells.nix { inherit pkgs; };

  nixosModules.default = { lib, ... }: {
    imports = [ ./module.nix ];
    services.pointsman.package = lib.mkDefault self.packages.${system}.pointsman;
  };

  # The examples of the documentation. `nix flake check` evaluates them.
  nixosConfigurations = {
    strix-halo = machine ./machines/strix-halo.nix;
    mi50 = machine ./machines/mi50.nix;
  };

  # Without engines, which take hours to build. A build of a script includes shellcheck.
  checks.${system} = {
    inherit (pkgs) pointsman;
    vllm-health = vllm.health;
    vllm-server = (vllm.override { engine = pkgs.emptyDirectory; }).server;
  };
}
