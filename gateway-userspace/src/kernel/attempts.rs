//! What the programs counted of clients' attempts to connect to endpoints: their rows, and the counts of each.

use std::{collections::HashMap, sync::Arc};

use crate::{
    endpoint::{Attempts, EndpointId},
    image::Image,
    kernel::{Error, Kernel},
};

/// A row of an endpoint, and which of the endpoints that it has held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Row {
    idx: u32,
    generation: u32,
}

/// Rows of endpoints, as of an image.
#[derive(Debug, Default)]
pub struct Rows {
    image: Arc<Image>,
    by_endpoint: HashMap<EndpointId, Vec<Row>>,
}

impl Rows {
    /// Learns them anew when there is another image.
    pub fn learn(&mut self, kernel: &parking_lot::Mutex<Kernel>) {
        let image = kernel.lock().writer.image();
        if Arc::ptr_eq(&self.image, &image) {
            return;
        }
        self.by_endpoint.clear();
        for row in image.services.iter().flat_map(|service| &service.endpoints) {
            let rows = self.by_endpoint.entry(row.endpoint.id().clone()).or_default();
            rows.push(Row { idx: row.row, generation: row.generation });
        }
        self.image = image;
    }

    /// Those of an endpoint.
    pub fn of(&self, endpoint: &EndpointId) -> &[Row] {
        self.by_endpoint.get(endpoint).map(Vec::as_slice).unwrap_or_default()
    }
}

impl Kernel {
    /// Attempts of clients to connect to an endpoint row: each SYN is one, also one that is sent again because nothing
    /// came back to the one before, which then failed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attempts(&self, row: Row) -> Result<Attempts, Error> {
        let maps = self.writer.maps();
        let (count, health) = (maps.endpoint_count(row.idx)?, maps.endpoint_health(row.idx)?);
        Ok(Attempts {
            tried: count.new_flows.saturating_add(health.syn_retransmits),
            failed: health.refused.saturating_add(health.syn_retransmits),
        })
    }
}

#[cfg(test)]
impl Row {
    pub(crate) const fn new(idx: u32, generation: u32) -> Self {
        Self { idx, generation }
    }
}
