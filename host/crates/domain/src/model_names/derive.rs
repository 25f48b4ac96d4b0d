//! The names that follow from the model of an engine.

/// Returns the names by which clients may know a model that an engine reads: as it is `written` in
/// the configuration, which is a name on a hub, a folder or a file; its `absolute` path, if it may
/// be one; and the last part of it, without `.gguf`. A folder of the Hugging Face cache also has
/// the name of its model on the hub.
pub fn derived_names(written: &str, absolute: Option<&str>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        if !matches!(name, "" | "." | "..") && names.iter().all(|known| known != name) {
            names.push(name.to_owned());
        }
    };
    let written = without_trailing_slashes(written.trim());
    add(written);
    absolute.into_iter().for_each(|path| add(without_trailing_slashes(path)));
    if let Some(hub) = hub_name(written) {
        add(&hub);
        add(last_part(&hub));
    }
    let last = last_part(written);
    add(last);
    add(without_gguf(last));
    // llama.cpp's `-hf org/name:Q4_K_M`.
    if let Some((model, _quantization)) =
        written.rsplit_once(':').filter(|_| !is_local_path(written))
    {
        add(model);
        add(last_part(model));
    }
    names
}

/// Returns true if a model is a path on this machine rather than a name on a hub.
pub fn is_local_path(model: &str) -> bool {
    model.starts_with(['/', '.', '~'])
        || model.matches('/').count() > 1
        || has_extension(model, ".gguf")
}

/// Returns a model as others may see it: its name on a hub, or the last part of its path.
pub fn public_name(model: &str) -> &str {
    let model = without_trailing_slashes(model);
    if is_local_path(model) { last_part(model) } else { model }
}

/// Returns a name without the organisation or provider in front of it; `None` if it has none.
pub(super) fn without_organisation(name: &str) -> Option<&str> {
    let (organisation, model) = name.split_once('/')?;
    (!organisation.is_empty() && !model.is_empty()).then_some(model)
}

/// Returns the folder that a path of a model's weights stands for; `None` if it is not such a path.
pub(super) fn model_folder(name: &str) -> Option<&str> {
    let path = without_trailing_slashes(name);
    let folder = match path.rsplit_once('/') {
        Some((folder, file)) if has_extension(file, ".safetensors") => {
            without_trailing_slashes(folder)
        }
        _ => path,
    };
    (folder.len() < name.len() && !folder.is_empty()).then_some(folder)
}

fn without_trailing_slashes(path: &str) -> &str {
    path.trim_end_matches('/')
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn has_extension(name: &str, extension: &str) -> bool {
    let start = name.len().checked_sub(extension.len());
    start.and_then(|start| name.get(start..)).is_some_and(|end| end.eq_ignore_ascii_case(extension))
}

/// Returns the name of a GGUF file without its extension and the number of its part.
fn without_gguf(file: &str) -> &str {
    if !has_extension(file, ".gguf") {
        return file;
    }
    let stem = &file[..file.len() - ".gguf".len()];
    // `name-00001-of-00003.gguf`
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let whole = stem.rsplit_once("-of-").filter(|(_, parts)| is_number(parts));
    let name = whole.and_then(|(rest, _)| rest.rsplit_once('-'));
    name.filter(|(_, part)| is_number(part)).map_or(stem, |(name, _)| name)
}

/// Returns `org/name` for a path below `models--org--name` of the Hugging Face cache.
fn hub_name(path: &str) -> Option<String> {
    let folder = path.split('/').find_map(|part| part.strip_prefix("models--"))?;
    Some(folder.replacen("--", "/", 1))
}
