# Functions of nixpkgs' `lib` with the meaning that they have there, and its module system: options
# have types that are checked, unknown options are errors, definitions are merged by priority.
let
  inherit (builtins)
    all any attrNames concatLists concatMap concatStringsSep elem filter foldl' head isAttrs isBool
    isFloat isFunction isInt isList isPath isString listToAttrs map mapAttrs match removeAttrs split
    stringLength substring;

  show = concatStringsSep ".";
  unique = foldl' (list: value: if elem value list then list else list ++ [ value ]) [ ];
  namesOf = sets: unique (concatMap attrNames sets);
  having = name: sets: map (set: set.${name}) (filter (set: set ? ${name}) sets);
  isKind = kind: value: isAttrs value && value._type or null == kind;

  # Moves mkIf and mkMerge around a set into the set: which names it has must not depend on the
  # condition, which may depend on other options.
  push = value:
    if isKind "if" value then
      map (mapAttrs (_: mkIf value.condition)) (push value.content)
    else if isKind "merge" value then
      concatMap push value.contents
    else
      [ value ];

  # The definitions in a value: [ { priority; value; } ].
  discharge = value:
    if isKind "if" value then
      (if value.condition then discharge value.content else [ ])
    else if isKind "merge" value then
      concatMap discharge value.contents
    else if isKind "override" value then
      map (inner: inner // { inherit (value) priority; }) (discharge value.content)
    else
      [ { priority = 100; inherit value; } ];

  # Merges definitions by a type. Returns a list with the value, which is empty without one.
  merge = type: path: raws:
    let
      found = concatMap discharge raws;
      lowest = foldl' (low: next: if next.priority < low then next.priority else low) 9999 found;
      values = map (one: one.value) (filter (one: one.priority == lowest) found);
      wrong = filter (value: !type.check value) values;
    in
    if found == [ ] then [ ]
    else if wrong != [ ] then
      throw "A definition for option `${show path}' is not of type `${type.name}'."
    else [ (type.merge path values) ];

  mergeEqual = path: values:
    if all (value: value == head values) values then head values
    else throw "The option `${show path}' has conflicting definition values.";

  evalOption = option: path: raws:
    let
      default = if option ? default then [ (mkOverride 1500 option.default) ] else [ ];
      result = merge option.type path (raws ++ default);
    in
    if result == [ ] then throw "The option `${show path}' is used but not defined."
    else head result;

  evalTree = options: freeform: path: raws:
    let
      sets = concatMap push raws;
      unknown = filter (name: !(options ? ${name})) (namesOf sets);
      rest = listToAttrs (map
        (name: { inherit name; value = mkMerge (having name sets); }) unknown);
      evalOne = name: option:
        if isKind "option" option then evalOption option (path ++ [ name ]) (having name sets)
        else evalTree option null (path ++ [ name ]) (having name sets);
      free =
        if unknown == [ ] then { }
        else if freeform == null then
          throw "The option `${show (path ++ [ (head unknown) ])}' does not exist."
        else head (merge freeform path [ rest ]);
    in
    free // mapAttrs evalOne options;

  evalModules = { modules, specialArgs ? { }, path ? [ ] }:
    let
      load = module:
        let content = if isPath module then import module else module;
        in if isFunction content then content args else content;
      collect = concatMap (module:
        let content = load module; in [ content ] ++ collect (content.imports or [ ]));
      normal = module:
        if module ? options || module ? config then
          { options = { }; config = { }; freeformType = null; } // module
        else
          {
            options = { };
            freeformType = module.freeformType or null;
            config = removeAttrs module [ "imports" "freeformType" ];
          };
      loaded = map normal (collect modules);
      join = sets: listToAttrs (map
        (name:
          let values = having name sets; in
          {
            inherit name;
            value = if isKind "option" (head values) then head values else join values;
          })
        (namesOf sets));
      options = join (map (module: module.options) loaded);
      freeforms = filter (type: type != null) (map (module: module.freeformType) loaded);
      freeform = if freeforms == [ ] then null else head freeforms;
      config = evalTree options freeform path (map (module: module.config) loaded);
      args = specialArgs // { inherit config lib options; };
    in
    {
      inherit config options;
      extendModules = more: evalModules {
        modules = modules ++ more.modules;
        inherit specialArgs path;
      };
    };

  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkMerge = contents: { _type = "merge"; inherit contents; };
  mkOverride = priority: content: { _type = "override"; inherit priority content; };

  scalar = name: check: { inherit name check; merge = mergeEqual; };
  types = {
    bool = scalar "boolean" isBool;
    int = scalar "signed integer" isInt;
    float = scalar "floating point number" isFloat;
    str = scalar "string" isString;
    ints.positive = scalar "positive integer" (value: isInt value && value > 0);
    ints.unsigned = scalar "unsigned integer" (value: isInt value && value >= 0);
    package = scalar "package" (value: isAttrs value && value.type or null == "derivation");
    raw = scalar "raw value" (_: true);
    strMatching = pattern: scalar "string matching ${pattern}" (value:
      isString value && match pattern value != null);
    enum = values: scalar "one of ${builtins.toJSON values}" (value: elem value values);
    nullOr = type: {
      name = "null or ${type.name}";
      check = value: value == null || type.check value;
      merge = path: values:
        if all (value: value == null) values then null else type.merge path values;
    };
    listOf = type: {
      name = "list of ${type.name}";
      check = isList;
      merge = path: values: concatMap (value: merge type path [ value ]) (concatLists values);
    };
    attrsOf = type: {
      name = "attribute set of ${type.name}";
      check = isAttrs;
      merge = path: values: listToAttrs (concatMap
        (name: map (value: { inherit name value; })
          (merge type (path ++ [ name ]) (having name (concatMap push values))))
        (namesOf (concatMap push values)));
    };
    oneOf = choices: {
      name = concatStringsSep " or " (map (type: type.name) choices);
      check = value: any (type: type.check value) choices;
      merge = path: values:
        (head (filter (type: all type.check values) choices)).merge path values;
    };
    submodule = module: {
      name = "submodule";
      check = isAttrs;
      merge = path: values: (evalModules {
        modules = [ module ] ++ map (config: { inherit config; }) values;
        inherit path;
      }).config;
    };
  };

  lib = {
    inherit concatLists concatMap elem evalModules filter foldl' head mapAttrs mkIf mkMerge types;
    mkOption = option: option // { _type = "option"; };
    mkEnableOption = name: lib.mkOption { type = types.bool; default = false; };
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    literalExpression = text: { inherit text; };
    literalMD = text: { inherit text; };

    filterAttrs = keep: set: removeAttrs set
      (filter (name: !keep name set.${name}) (attrNames set));
    mapAttrsToList = convert: set: map (name: convert name set.${name}) (attrNames set);
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    splitString = separator: text: filter isString (split separator text);
    boolToString = value: if value then "true" else "false";
    toInt = text: builtins.fromJSON text;
    versionOlder = left: right: builtins.compareVersions left right < 0;
    fileset = { toSource = { root, fileset }: root; unions = paths: paths; };
    licenses.asl20.spdxId = "Apache-2.0";
  };
in
lib
