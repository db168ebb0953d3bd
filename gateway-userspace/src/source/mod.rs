//! Where wants come from. Each source reads its own language, and hands over a snapshot or every fault in it.

pub mod certificate;
pub mod file;
mod filter;
mod sources;
pub mod summary;
pub mod text;
mod tls;
pub mod wanted;
pub mod watch;

#[cfg(test)]
mod tests;
