//! x
/// x
pub fn main(_o: &[&str]) -> anyhow::Result<()> {
    anyhow::bail!("x")
}
