//! The part of filling and reading the kernel's maps that concerns endpoints' health and their flows, and sweeping.

use anyhow::{Context as _, Result};
use aya::{TestRun as _, TestRunOptions, programs::Xdp};
use gateway_common::{
    aside::{SWEEP, Swept},
    flow::{FlowCount, ServiceFlowCount},
    health::EndpointHealth,
    map::{self, MapDef as _},
};

use crate::{
    kernel_run::{Kernel, ROWS, clear, rows, sums},
    tables::{Tables, raw},
};

const FLOW_COUNT: usize = size_of::<FlowCount>();
const SERVICE_FLOW_COUNT: usize = size_of::<ServiceFlowCount>();
const HEALTH: usize = size_of::<EndpointHealth>();

impl Kernel {
    pub(crate) fn fill_health(&mut self, tables: &Tables) -> Result<()> {
        let mut flows = self.array::<FLOW_COUNT>(map::EndpointFlows::NAME)?;
        for row in 0..ROWS {
            let entries = tables.endpoint_flows.get(&row).copied().unwrap_or_default();
            flows.set(row, raw(&FlowCount { entries }), 0)?;
        }
        let mut counts = self.array::<SERVICE_FLOW_COUNT>(map::ServiceFlows::NAME)?;
        for id in 0..ROWS {
            let entries = tables.service_flows.get(&id).copied().unwrap_or_default();
            let evicted = tables.service_evictions.get(&id).copied().unwrap_or_default();
            counts.set(id, raw(&ServiceFlowCount { entries, evicted }), 0)?;
        }
        clear(self.counts::<HEALTH>(map::EndpointHealths::NAME)?, ROWS)
    }

    pub(crate) fn read_health(&mut self, tables: &mut Tables) -> Result<()> {
        let flows = rows::<FLOW_COUNT, FlowCount>(&self.array(map::EndpointFlows::NAME)?, ROWS)?;
        tables.endpoint_flows = flows.into_iter().map(|(row, count)| (row, count.entries)).collect();
        let counts =
            rows::<SERVICE_FLOW_COUNT, ServiceFlowCount>(&self.array(map::ServiceFlows::NAME)?, ROWS)?;
        let of = |what: fn(&ServiceFlowCount) -> u64| {
            counts.iter().map(|(id, count)| (*id, what(count))).filter(|(_, n)| *n != 0).collect()
        };
        (tables.service_flows, tables.service_evictions) =
            (of(|count| count.entries), of(|count| count.evicted));
        tables.endpoint_health = self.health()?;
        for health in tables.endpoint_health.values_mut() {
            // Times are the kernel's own.
            (health.handshakes, health.handshake_us) = (0, 0);
        }
        tables.endpoint_health.retain(|_, health| *health != EndpointHealth::default());
        Ok(())
    }

    /// Signals by endpoint row that are not zero.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a read.
    pub fn health(&mut self) -> Result<std::collections::BTreeMap<u32, EndpointHealth>> {
        let health = self.counts::<HEALTH>(map::EndpointHealths::NAME)?;
        sums(&health, ROWS, |sum: &mut EndpointHealth, one: EndpointHealth| *sum = sum.and(&one))
    }

    /// Sweeps buckets of a table, as the agent does; how many entries or places were freed.
    ///
    /// # Errors
    ///
    /// When the kernel cannot run the program.
    pub fn sweep(&mut self, what: Swept, first: u32, count: u32) -> Result<u32> {
        let mut input = vec![0; 14];
        input.extend(first.to_ne_bytes());
        input.extend(count.to_ne_bytes());
        input.extend(what.number().to_ne_bytes());
        let program = self.object().program_mut(SWEEP).context("no program that sweeps")?;
        let options = TestRunOptions { data_in: Some(&input), ..TestRunOptions::default() };
        Ok(<&mut Xdp>::try_from(program)?.test_run(options)?.return_value)
    }
}
