//! What the writer asks of maps: the kernel's, or memory's in a test.

use std::collections::BTreeMap;

use gateway_common::{
    endpoint::Endpoint,
    service::{Service, ServiceKey},
    settings::Settings,
    slot::Slot,
};

use crate::kernel::Error;

/// What stands in the maps. Rows and words that are zero are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// `SERVICES`.
    pub services: BTreeMap<ServiceKey, Service>,
    /// The current half of the slots of each service.
    pub slots: BTreeMap<ServiceKey, Vec<Slot>>,
    /// `ENDPOINTS`.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// `FILTER`.
    pub filter: BTreeMap<u32, u64>,
}

/// The maps that the writer fills.
pub trait Maps {
    /// Everything that stands in the maps.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    fn observe(&self) -> Result<Observed, Error>;
    /// The row of `SETTINGS`.
    ///
    /// # Errors
    /// When the kernel refuses to read.
    fn settings(&self) -> Result<Settings, Error>;
    /// Writes the row of `SETTINGS`.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn put_settings(&mut self, settings: &Settings) -> Result<(), Error>;
    /// Writes a service: one system call, atomic for packets.
    ///
    /// # Errors
    /// When the kernel refuses: the map is full.
    fn put_service(&mut self, key: &ServiceKey, service: &Service) -> Result<(), Error>;
    /// Removes a service; one that is not there is as good.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn delete_service(&mut self, key: &ServiceKey) -> Result<(), Error>;
    /// Writes an endpoint row.
    ///
    /// # Errors
    /// When the row is beyond the map.
    fn put_endpoint(&mut self, row: u32, endpoint: &Endpoint) -> Result<(), Error>;
    /// Begins the counts of a service anew: its number was another's.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn clear_service_count(&mut self, id: u32) -> Result<(), Error>;
    /// Begins the counts of an endpoint row anew: it was another's.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn clear_endpoint_count(&mut self, row: u32) -> Result<(), Error>;
    /// Writes 64 bits of the filter.
    ///
    /// # Errors
    /// When the word is beyond the map.
    fn put_filter(&mut self, word: u32, bits: u64) -> Result<(), Error>;
    /// Writes a half of a service's slots that no service value calls current.
    ///
    /// # Errors
    /// When the half is beyond the map.
    fn put_slots(&mut self, key: &ServiceKey, first_chunk: u32, slots: &[Slot]) -> Result<(), Error>;
}
