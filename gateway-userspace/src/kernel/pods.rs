//! Interfaces of local pods: the node's side of a veth, whose packets are balanced at TC whatever the others have.

use crate::kernel::{AttachMode, Error, Kernel};

/// Why XDP is not tried.
const WHY: &str = "a pod is behind it";

impl Kernel {
    /// Attaches to the interface of a pod.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_pod(&mut self, interface: &str) -> Result<(), Error> {
        self.attacher.attach(interface, AttachMode::Tc, Some(WHY)).map(drop)
    }

    /// Whether programs sit on this very interface, as they should on that of a pod.
    pub fn is_pod_attached(&self, interface: &str, index: u32) -> bool {
        let attachment = self.attacher.attached().get(interface);
        attachment.is_some_and(|attachment| {
            attachment.interface == index && attachment.avoided.as_deref() == Some(WHY)
        })
    }
}
