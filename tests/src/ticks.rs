//! The clock of the kernel programs, as a test sees it.

use anyhow::{Context as _, Result};
use gateway_common::flow::Tick;

/// The present, in ticks of so many timer interrupts as the shift says.
///
/// # Errors
/// When the kernel does not tell: `/proc/timer_list` is root's.
pub fn now(shift: u8) -> Result<Tick> {
    let path = "/proc/timer_list";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let jiffies = text.lines().find_map(|line| line.strip_prefix("jiffies: ")?.trim().parse().ok());
    Ok(Tick::from_jiffies(jiffies.with_context(|| format!("{path} has no line of jiffies"))?, shift))
}
