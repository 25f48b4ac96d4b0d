# The host, its built-in policies, manual pages and completions.
{ lib, rustPlatform, installShellFiles, commit ? "unknown" }:
let
  root = ../../..;
  workspace = (builtins.fromTOML (builtins.readFile (root + "/Cargo.toml"))).workspace.package;
in
rustPlatform.buildRustPackage {
  pname = "pointsman";
  inherit (workspace) version;

  # Not the documentation and the examples: a change of them needs no build.
  src = lib.fileset.toSource {
    inherit root;
    fileset = lib.fileset.unions (map (name: root + "/${name}") [
      "Cargo.lock"
      "Cargo.toml"
      "LICENSE"
      "host"
      "plugins"
      "policies"
      "tests"
      "wit"
    ]);
  };
  cargoLock.lockFile = root + "/Cargo.lock";
  # What `pointsman --version` prints.
  env.POINTSMAN_COMMIT = commit;
  cargoBuildFlags = [ "--package" "pointsman" "--features" "pointsman/scale" ];
  # The tests start engines, browsers and containers. Continuous integration runs them.
  doCheck = false;

  nativeBuildInputs = [ installShellFiles ];
  postInstall = ''
    mkdir -p $out/share/pointsman $out/share/man/man1
    cp -r policies $out/share/pointsman/
    $out/bin/pointsman man $out/share/man/man1
    installShellCompletion --cmd pointsman \
      --bash <($out/bin/pointsman completions bash) \
      --fish <($out/bin/pointsman completions fish) \
      --zsh <($out/bin/pointsman completions zsh)
  '';

  meta = {
    description = "WebAssembly-plugin policy router for language models";
    license = lib.licenses.asl20;
    mainProgram = "pointsman";
    platforms = [ "x86_64-linux" ];
  };
}
