//! What a test does when it lacks the privilege it needs: it fails where everything is expected to run, else it says
//! that it was skipped.

/// Set to `all` where every test must run.
pub const TESTS: &str = "SLUICE_TESTS";

/// Whether this process may load kernel programs. Prints that the test is skipped when it may not.
///
/// # Panics
///
/// When it may not, and `SLUICE_TESTS` is `all`.
#[must_use]
pub fn require(what: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(!is_all(), "{what} needs root: run the tests as root, or unset {TESTS}");
    eprintln!("skipped: needs root: {what}");
    false
}

/// Whether every test must run here.
#[must_use]
pub fn is_all() -> bool {
    std::env::var(TESTS).is_ok_and(|value| value == "all")
}

/// Set to `emulated` in the machines of the kernel matrix, which are slow, and have every kind of link and two cards.
pub const MACHINE: &str = "SLUICE_MACHINE";

/// Whether this is such a machine.
#[must_use]
pub fn is_emulated() -> bool {
    std::env::var(MACHINE).is_ok_and(|value| value == "emulated")
}
