//! What differs between an image and the one before it, and which services refer to a live endpoint.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use gateway_common::service::ServiceKey;

use crate::{
    endpoint::Endpoint,
    image::{Image, Row, Service},
};

/// What differs between two images.
pub(super) struct Difference<'a> {
    /// Services of the new one that are not as they were, or were not there, by index.
    pub(super) changed: BTreeSet<usize>,
    /// What these were, with those that are gone.
    former: Vec<&'a Service>,
    /// The same keys in the same order: indices mean the same.
    is_in_place: bool,
    /// Addresses and ports lead to the same numbers.
    pub(super) leads_alike: bool,
    /// The same addresses are virtual ones, and packets are translated to the same endpoints.
    pub(super) sees_alike: bool,
}

impl<'a> Difference<'a> {
    /// Between an image and the next.
    pub(super) fn of(former: &'a Image, next: &Image) -> Self {
        let is_in_place = former.services.len() == next.services.len()
            && former.services.iter().zip(&next.services).all(|(former, next)| former.key == next.key);
        let mut difference = Self {
            changed: BTreeSet::new(),
            former: Vec::new(),
            is_in_place,
            leads_alike: is_in_place,
            sees_alike: is_in_place,
        };
        if is_in_place {
            for (idx, (former, next)) in former.services.iter().zip(&next.services).enumerate() {
                difference.compare(former, idx, next);
            }
        } else {
            difference.find(former, next);
        }
        difference
    }

    fn compare(&mut self, former: &'a Arc<Service>, idx: usize, next: &Arc<Service>) {
        if Arc::ptr_eq(former, next) || former == next {
            return;
        }
        let same_endpoint = |(former, next): (&Row, &Row)| Arc::ptr_eq(&former.endpoint, &next.endpoint);
        self.leads_alike &= (former.id, &former.ports) == (next.id, &next.ports);
        self.sees_alike &= former.mode == next.mode
            && former.endpoints.len() == next.endpoints.len()
            && former.endpoints.iter().zip(&next.endpoints).all(same_endpoint);
        self.changed.insert(idx);
        self.former.push(former);
    }

    /// Where services came or went, each is looked up.
    fn find(&mut self, former: &'a Image, next: &Image) {
        let mut left: HashMap<ServiceKey, &Arc<Service>> =
            former.services.iter().map(|service| (service.key, service)).collect();
        for (idx, next) in next.services.iter().enumerate() {
            match left.remove(&next.key) {
                Some(former) => self.compare(former, idx, next),
                None => {
                    self.changed.insert(idx);
                }
            }
        }
        self.former.extend(left.into_values().map(Arc::as_ref));
    }

    /// Rows that nobody has any more: each row is one service's.
    pub(super) fn released(&self, image: &Image) -> BTreeSet<u32> {
        let changed = self.changed.iter().filter_map(|idx| image.services.get(*idx));
        let kept: HashSet<u32> = changed.flat_map(|service| rows(service)).collect();
        self.former.iter().flat_map(|service| rows(service)).filter(|row| !kept.contains(row)).collect()
    }

    /// Brings users of the former image to the next one.
    pub(super) fn lead(&self, users: &mut Users, image: &Image) {
        if !self.is_in_place {
            *users = Users::of(image);
            return;
        }
        for (idx, former) in self.changed.iter().zip(&self.former) {
            users.remove(*idx, former);
        }
        for idx in &self.changed {
            if let Some(service) = image.services.get(*idx) {
                users.add(*idx, service);
            }
        }
    }
}

fn rows(service: &Service) -> impl Iterator<Item = u32> {
    service.endpoints.iter().map(|row| row.row)
}

/// Services of an image that refer to a live endpoint, by the address of its handle, which the image keeps.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Users(HashMap<usize, Vec<usize>>);

impl Users {
    /// Those of an image.
    pub(super) fn of(image: &Image) -> Self {
        let mut users = Self::default();
        for (idx, service) in image.services.iter().enumerate() {
            users.add(idx, service);
        }
        users
    }

    /// Indices of the services that refer to an endpoint.
    pub(super) fn of_endpoint(&self, endpoint: &Arc<Endpoint>) -> impl Iterator<Item = usize> {
        self.0.get(&handle(endpoint)).into_iter().flatten().copied()
    }

    fn add(&mut self, idx: usize, service: &Service) {
        for row in &service.endpoints {
            self.0.entry(handle(&row.endpoint)).or_default().push(idx);
        }
    }

    fn remove(&mut self, idx: usize, service: &Service) {
        for row in &service.endpoints {
            let handle = handle(&row.endpoint);
            let Some(users) = self.0.get_mut(&handle) else { continue };
            users.retain(|user| *user != idx);
            if users.is_empty() {
                self.0.remove(&handle);
            }
        }
    }
}

/// What tells two live endpoints apart as long as both are held.
fn handle(endpoint: &Arc<Endpoint>) -> usize {
    Arc::as_ptr(endpoint).addr()
}
