{
  description = "Pointsman, a WebAssembly-plugin policy router for language models";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  # What the flake has is in host/packaging/nix; how it is used, in host/docs/install/nix.md.
  outputs = { self, nixpkgs }: import ./host/packaging/nix { inherit self nixpkgs; };
}
