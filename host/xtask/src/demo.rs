pub(crate) fn demo(_root: &std::path::Path, _port: Option<u16>) -> anyhow::Result<()> { Ok(()) }
