pub(crate) fn test(_root: &std::path::Path) -> anyhow::Result<()> { Ok(()) }
