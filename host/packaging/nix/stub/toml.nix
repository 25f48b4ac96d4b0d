# `formats.toml`: the type of its values, and their text.
{ lib }:
let
  inherit (builtins) all attrNames concatStringsSep filter isAttrs isList map match toJSON;

  key = name: if match "[A-Za-z0-9_-]+" name != null then name else toJSON name;
  isTables = value: isList value && value != [ ] && all isAttrs value;
  isTable = value: isAttrs value || isTables value;

  # Without tables. JSON's strings, numbers and booleans are TOML's.
  inline = value:
    if isList value then "[${concatStringsSep ", " (map inline value)}]" else toJSON value;

  table = path: set:
    let
      line = name: "${key name} = ${inline set.${name}}\n";
      below = name:
        let
          value = set.${name};
          inner = path ++ [ (key name) ];
          header = concatStringsSep "." inner;
        in
        if isAttrs value then "\n[${header}]\n" + table inner value
        else concatStringsSep "" (map (one: "\n[[${header}]]\n" + table inner one) value);
      names = attrNames set;
    in
    concatStringsSep "" (
      map line (filter (name: !isTable set.${name}) names)
      ++ map below (filter (name: isTable set.${name}) names)
    );
in
rec {
  type = with lib.types; oneOf [ bool int float str (attrsOf type) (listOf type) ] // {
    name = "TOML value";
  };
  render = table [ ];
}
