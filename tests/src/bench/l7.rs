//! x
/// x
pub fn run(_o: super::Options) -> anyhow::Result<crate::report::Report> {
    anyhow::bail!("x")
}
