//! Which virtual addresses are to be found on which links, for whoever looks.

use std::{collections::BTreeMap, net::IpAddr};

use crate::kernel::Kernel;

/// Addresses by the name of the interface that has them.
pub(super) type Announced = BTreeMap<String, Vec<IpAddr>>;

impl Kernel {
    /// Notes what stands on the interfaces.
    pub fn set_announced(&mut self, announced: BTreeMap<String, Vec<IpAddr>>) {
        self.announced = announced;
    }

    /// What stands on the interfaces.
    pub const fn announced(&self) -> &BTreeMap<String, Vec<IpAddr>> {
        &self.announced
    }
}
