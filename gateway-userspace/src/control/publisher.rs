//! The publisher: what live endpoints become is in the kernel's maps at once, whatever the control loop waits for.
//!
//! It goes on in the same task as the loop, wherever the loop waits: for netlink above all, where a look at routes takes
//! as long as there are many. So nothing comes between steps of the loop that wait for nothing.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    control::{SETTLE, kernel_side::error_chain},
    endpoint::Changes,
    kernel::Kernel,
};

/// Takes changes of live endpoints to the maps, where there is a kernel side. Why this fails is told to the loop, which
/// tries again.
pub(super) async fn publish(
    changes: Arc<Changes>,
    kernel: Option<Arc<Mutex<Kernel>>>,
    refusals: mpsc::Sender<String>,
) {
    loop {
        changes.wait().await;
        let touched = changes.take();
        let Some(kernel) = &kernel else { continue };
        let published = kernel.lock().publish(&touched);
        if let Err(error) = published {
            // Full, the loop has not heard of the one before: that is as good.
            drop(refusals.try_send(error_chain(&error)));
        }
        tokio::time::sleep(SETTLE).await;
    }
}
