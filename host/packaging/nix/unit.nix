# Reads host/packaging/pointsman.service: { Unit.Wants = [ "…" ]; Service.Type = [ "…" ]; … }. A
# key that occurs several times has several values.
{ lib }:
let
  isContent = line: line != "" && !lib.hasPrefix "#" line;
  add = state: line:
    let
      header = builtins.match "\\[([A-Za-z]+)]" line;
      pair = builtins.match "([A-Za-z]+)=(.*)" line;
      key = builtins.elemAt pair 0;
      value = builtins.elemAt pair 1;
      section = state.sections.${state.name} or { };
    in
    if header != null then
      state // { name = builtins.head header; }
    else if pair == null then
      throw "invalid line in a unit: ${line}"
    else
      state // {
        sections = state.sections // {
          ${state.name} = section // { ${key} = (section.${key} or [ ]) ++ [ value ]; };
        };
      };
  lines = builtins.filter isContent (lib.splitString "\n" (builtins.readFile ../pointsman.service));
in
(builtins.foldl' add { name = ""; sections = { }; } lines).sections
