//! What the programs counted of clients' attempts to connect to endpoints: their rows, and the counts of each.

use std::{collections::HashMap, sync::Arc};

use crate::{
    endpoint::{Attempts, EndpointId},
    image::Image,
    kernel::{Error, Kernel},
    name::ServiceName,
};

/// A row of an endpoint, and which of the endpoints that it has held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Row {
    idx: u32,
    generation: u32,
}

/// Rows of endpoints, as of an image, of the services that somebody wants to know about.
#[derive(Debug, Default)]
pub struct Rows {
    image: Arc<Image>,
    version: u64,
    by_endpoint: HashMap<EndpointId, Vec<Row>>,
}

impl Rows {
    /// Learns them anew when there is another image, or another `version` of what is wanted.
    pub fn learn(&mut self, image: Arc<Image>, version: u64, is_wanted: impl Fn(&ServiceName) -> bool) {
        if Arc::ptr_eq(&self.image, &image) && self.version == version {
            return;
        }
        self.by_endpoint.clear();
        let rows = image.services.iter().flat_map(|service| &service.endpoints);
        for row in rows.filter(|row| is_wanted(&row.endpoint.id().service)) {
            let rows = self.by_endpoint.entry(row.endpoint.id().clone()).or_default();
            rows.push(Row { idx: row.row, generation: row.generation });
        }
        self.image = image;
        self.version = version;
    }

    /// Those of an endpoint.
    pub fn of(&self, endpoint: &EndpointId) -> &[Row] {
        self.by_endpoint.get(endpoint).map(Vec::as_slice).unwrap_or_default()
    }
}

impl Kernel {
    /// What the maps should hold.
    pub fn image(&self) -> Arc<Image> {
        self.writer.image()
    }

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
