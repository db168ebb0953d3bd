//! The kernel programs and the host build of the same pipeline.
use gateway_tests::{kernel_run::Kernel, privilege};

#[test]
fn loads() {
    if !privilege::require("loading") {
        return;
    }
    match Kernel::load() {
        Ok(_) => {}
        Err(e) => {
            let s = format!("{e:?}");
            let n = s.len();
            panic!("{}\n....\n{}", &s[..2000.min(n)], &s[n.saturating_sub(6000)..])
        }
    }
}
