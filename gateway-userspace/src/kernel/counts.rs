//! What the kernel programs counted, in the words of the configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use gateway_common::{
    addr::Addr,
    cookie::SynCookie,
    counter::{Class, Count, EndpointCount, Hook, Reason, ServiceCount},
    event::{Event, EventCount},
    flow::ServiceFlowCount,
    health::EndpointHealth,
    map::{self, MapDef as _},
    source::RefusedSource,
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    clock, image,
    kernel::{Error, Kernel},
    limits,
};

/// Counters of one read.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// By hook and reason; those that are zero are left out.
    pub reasons: Vec<(Hook, Reason, Count)>,
    /// By listener name of the service.
    pub services: Vec<(String, ServiceCount)>,
    /// Dropped packets by listener name of the service and by reason; those that are zero are left out.
    pub drops: Vec<(String, &'static str, u64)>,
    /// By listener name and address of the endpoint.
    pub endpoints: Vec<OfEndpoint>,
    /// Entries of the flow table, and flows that lost theirs, by listener name of the service.
    pub flows: Vec<(String, ServiceFlowCount)>,
    /// Flows that the table has room for.
    pub flow_room: u64,
    /// By listener name, of those that may answer with cookies.
    pub cookies: Vec<(String, Cookies)>,
    /// What was told of single packets, by reason; those of which nothing was are left out.
    pub events: Vec<(Reason, EventCount)>,
    /// Networks that are listed as sources, and for how many there is room.
    pub networks: [u64; 2],
    /// Sockets and endpoints that are remembered, and for how many there is room; none where nobody is given endpoints.
    pub socket_pairs: Option<[u64; 2]>,
}

/// Counters of an endpoint of a listener.
#[derive(Clone, Debug)]
pub struct OfEndpoint {
    /// Name of the listener.
    pub listener: String,
    /// Address of the endpoint.
    pub addr: SocketAddr,
    /// Packets and flows.
    pub count: EndpointCount,
    /// Signals of its health.
    pub health: EndpointHealth,
    /// Flows in the flow table.
    pub flows: u64,
}

/// SYN cookies of a service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cookies {
    /// Whether SYNs are answered so at present.
    pub is_armed: bool,
    /// Cookies that were sent.
    pub sent: u64,
}

/// Services, and rows of endpoints, that are read before others may have the kernel: a tenth of a millisecond.
pub const AT_ONCE: usize = 64;

impl Counters {
    /// Reads all counters that concern the present image, in portions: whoever writes the maps waits for one of them at most.
    /// An endpoint that leaves meanwhile keeps its row for long enough.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(kernel: &Mutex<Kernel>) -> Result<Self, Error> {
        let (mut counters, image) = {
            let kernel = kernel.lock();
            (kernel.totals()?, kernel.writer.image())
        };
        for services in image.services.chunks(AT_ONCE) {
            let kernel = kernel.lock();
            for service in services {
                kernel.read_service(service, &mut counters)?;
            }
            MutexGuard::unlock_fair(kernel);
        }
        for service in &image.services {
            for rows in service.endpoints.chunks(AT_ONCE) {
                let kernel = kernel.lock();
                for row in rows {
                    counters.endpoints.push(kernel.read_endpoint(service, row)?);
                }
                MutexGuard::unlock_fair(kernel);
            }
        }
        Ok(counters)
    }
}

impl Kernel {
    /// What concerns no service.
    fn totals(&self) -> Result<Counters, Error> {
        let maps = self.writer.maps();
        let [flow_buckets, _] = maps.flow_buckets();
        let flow_room = u64::from(flow_buckets) * 2;
        let listed = u64::try_from(self.written().networks.len()).unwrap_or(u64::MAX);
        let networks = [listed, u64::from(map::SourceNetworks::CAPACITY)];
        let socket_pairs = self.socket_pairs()?;
        let mut counters = Counters { flow_room, networks, socket_pairs, ..Counters::default() };
        for hook in Hook::ALL {
            let counts = maps.reasons(hook)?;
            for reason in Reason::ALL {
                let number = usize::try_from(reason.number()).unwrap_or(0);
                let count = counts.get(number).copied().unwrap_or_default();
                if count.packets > 0 {
                    counters.reasons.push((hook, *reason, count));
                }
            }
        }
        for reason in
            Reason::ALL.iter().filter(|reason| matches!(reason.class(), Class::Dropped | Class::Answered))
        {
            let count = maps.event_count(*reason)?;
            if (count.told | count.limited | count.lost) != 0 {
                counters.events.push((*reason, count));
            }
        }
        Ok(counters)
    }

    fn read_service(&self, service: &image::Service, counters: &mut Counters) -> Result<(), Error> {
        let maps = self.writer.maps();
        let listener = service.listener.to_string();
        counters.flows.push((listener.clone(), maps.service_flows(service.id)));
        let count = maps.service_count(service.id)?;
        if count.dropped != 0 {
            let drops = maps.service_drops(service.id)?.into_iter();
            counters.drops.extend(drops.map(|(reason, packets)| (listener.clone(), reason, packets)));
        }
        if service.cookie_rate.is_some() {
            counters.cookies.push((listener.clone(), self.cookies(service.id)?));
        }
        counters.services.push((listener, count));
        Ok(())
    }

    fn read_endpoint(&self, service: &image::Service, row: &image::Row) -> Result<OfEndpoint, Error> {
        let maps = self.writer.maps();
        Ok(OfEndpoint {
            listener: service.listener.to_string(),
            addr: row.endpoint.addr(),
            count: maps.endpoint_count(row.row)?,
            health: maps.endpoint_health(row.row)?,
            flows: maps.endpoint_flows(row.row),
        })
    }
}

impl Kernel {
    /// Packets that went to an endpoint row, and packets that came back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn endpoint_packets(&self, row: u32) -> Result<(u64, u64), Error> {
        let count = self.writer.maps().endpoint_count(row)?;
        Ok((count.packets, count.reply_packets))
    }

    /// Numbers of services that the flow table has entries of, whether or not there is such a service.
    pub fn with_flows(&self) -> BTreeSet<u32> {
        (0..self.capacity().services).filter(|id| self.flows(*id) != 0).collect()
    }

    /// Entries that a service holds in the flow table, by its number.
    pub fn flows(&self, service: u32) -> u64 {
        self.writer.maps().service_flows(service).entries
    }

    /// Flows that are recorded with an endpoint, by its row.
    pub fn endpoint_flows(&self, row: u32) -> u64 {
        self.writer.maps().endpoint_flows(row)
    }

    /// SYN cookies of a service, by its number.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cookies(&self, service: u32) -> Result<Cookies, Error> {
        let row = self.writer.maps().syn_cookie(service)?;
        let now = SynCookie::moment(clock::monotonic_ns());
        Ok(Cookies { is_armed: SynCookie::is_armed(row.armed, now), sent: row.sent })
    }

    /// The listener and the endpoint that an event speaks of, as far as they are known and still there.
    pub fn names(&self, event: &Event) -> (Option<String>, Option<SocketAddr>) {
        let known = event.known();
        let services = &self.writer.image().services;
        let service = services.iter().find(|service| known.service && service.id == event.service);
        let rows = service.map_or(&[][..], |service| &service.endpoints);
        let row = rows.iter().find(|row| known.endpoint && row.row == event.endpoint);
        (service.map(|service| service.listener.to_string()), row.map(|row| row.endpoint.addr()))
    }

    /// The sources whose packets were refused most, those with the most first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn refused_sources(&self) -> Result<Vec<RefusedSource>, Error> {
        let mut by_site: BTreeMap<Addr, RefusedSource> = BTreeMap::new();
        for one in self.writer.maps().refused_sources()? {
            by_site.entry(one.site).and_modify(|sum| *sum = sum.and(&one)).or_insert(one);
        }
        let mut sources: Vec<RefusedSource> = by_site.into_values().collect();
        sources.sort_by_key(|one| std::cmp::Reverse(one.packets));
        sources.truncate(limits::REFUSED_SOURCES);
        Ok(sources)
    }
}
