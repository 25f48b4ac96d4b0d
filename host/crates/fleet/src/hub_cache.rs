//! Models in the cache of the Hugging Face Hub: where vLLM keeps what it has downloaded.

use std::path::{Path, PathBuf};

use pointsman_files::read_regular_text;

/// Maximum size of the file that names the current snapshot in bytes.
const MAX_REF: u64 = 1024;

/// Returns the folder of a model such as `Qwen/Qwen2.5-7B` in the cache of the hub: in `folder` if
/// the engine has one of its own, else where the variables say. `None` if it is not there. The
/// files of a snapshot are links.
pub fn hub_snapshot(
    model: &str,
    folder: Option<&Path>,
    variable: impl Fn(&str) -> Option<PathBuf>,
) -> Option<PathBuf> {
    let (owner, name) = model.split_once('/')?;
    let is_name = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    if !is_name(owner) || !is_name(name) {
        return None;
    }
    let home = || variable("HOME").map(|home| home.join(".cache"));
    let caches = || variable("XDG_CACHE_HOME").or_else(home);
    let all = || variable("HF_HOME").or_else(|| Some(caches()?.join("huggingface")));
    let hub = || variable("HF_HUB_CACHE").or_else(|| Some(all()?.join("hub")));
    let root = folder.map(Path::to_owned).or_else(hub)?;
    let model = root.join(format!("models--{owner}--{name}"));
    let hash = read_regular_text(&model.join("refs/main"), MAX_REF).ok()?;
    let hash = hash.trim();
    // It becomes a part of a path.
    let is_hash = !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let snapshot = is_hash.then(|| model.join("snapshots").join(hash))?;
    snapshot.is_dir().then_some(snapshot)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn snapshots_are_found_where_the_variables_say() {
        let root = tempfile::tempdir().unwrap();
        let add = |hub: &str, hash: &str| {
            let model = root.path().join(hub).join("models--Qwen--Qwen2.5-7B");
            fs::create_dir_all(model.join("refs")).unwrap();
            fs::create_dir_all(model.join("snapshots/0123abcd")).unwrap();
            fs::write(model.join("refs/main"), hash).unwrap();
            model.join("snapshots/0123abcd")
        };
        let found = |model: &str, folder: Option<&str>, name: &str, value: &str| {
            let folder = folder.map(|folder| root.path().join(folder));
            hub_snapshot(model, folder.as_deref(), |asked| {
                (asked == name).then(|| root.path().join(value))
            })
        };
        let model = "Qwen/Qwen2.5-7B";
        for (hub, name, value) in [
            ("a", "HF_HUB_CACHE", "a"),
            ("b/hub", "HF_HOME", "b"),
            ("c/huggingface/hub", "XDG_CACHE_HOME", "c"),
            ("d/.cache/huggingface/hub", "HOME", "d"),
        ] {
            let expected = add(hub, "0123abcd\n");
            assert_eq!(found(model, None, name, value), Some(expected), "{name}");
        }
        assert!(found(model, Some("a"), "", "").is_some());
        for other in ["Qwen/other", "Qwen", "/abs/path", "./Qwen2.5-7B", "a/b/c", "Qwen/.."] {
            assert_eq!(found(other, Some("a"), "", ""), None, "{other}");
        }
        for hash in ["../../x", "", "ffff"] {
            add("a", hash);
            assert_eq!(found(model, Some("a"), "", ""), None, "{hash}");
        }
    }
}
