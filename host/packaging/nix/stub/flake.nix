{
  description = "As much of nixpkgs as the flake of Pointsman uses, to evaluate it without network";

  outputs = { self }:
    let
      lib = import ./lib.nix;
      pkgs = import ./pkgs.nix { inherit lib; };
    in
    {
      lib = lib // {
        nixosSystem = { system, modules }: lib.evalModules {
          modules = [ ./nixos.nix ] ++ modules;
          specialArgs = { pkgs = pkgs.extend (final: prev: { inherit system; }); };
        };
      };
      legacyPackages.x86_64-linux = pkgs;
    };
}
