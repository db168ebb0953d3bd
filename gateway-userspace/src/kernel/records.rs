//! Records of a build for debugging (`cargo xtask build-ebpf --log`): each dropped packet says where and why. Other
//! builds have no such map, and nothing runs.

use std::{fmt, time::Duration};

use aya::Ebpf;
use aya_log::EbpfLogger;

/// The map that aya-log's macros write to.
const MAP: &str = "AYA_LOGS";

/// Between two looks. The buffer holds thousands of records.
const PAUSE: Duration = Duration::from_millis(50);

/// Where the records arrive. The kernel drops what does not fit, so nobody waits for the reader.
pub struct Records(EbpfLogger<&'static dyn log::Log>);

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Records")
    }
}

impl Records {
    /// Those of a loaded object; none when it was built without.
    pub(super) fn take(object: &mut Ebpf) -> Option<Self> {
        object.map(MAP)?;
        EbpfLogger::init(object)
            .inspect_err(|error| tracing::warn!(%error, "the kernel programs' records cannot be read"))
            .ok()
            .map(Self)
    }

    /// Logs them as they come, and never ends.
    pub async fn log(mut self) {
        tracing::info!("a build for debugging: each dropped packet is logged");
        let mut turns = tokio::time::interval(PAUSE);
        loop {
            turns.tick().await;
            self.0.flush();
        }
    }
}
