//! Datagrams that the agent received and that got no further, by what became of them.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::metrics::names::BindLabels;

/// Counts lost datagrams by address.
#[derive(Clone, Debug, Default)]
pub struct Datagrams(Family<LossLabels, Counter>);

impl Datagrams {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "datagrams_lost",
            "Datagrams that the agent forwards and that got no further, those aside that a bound or the guard refused",
            self.0.clone(),
        );
    }

    /// Where those of one address are counted.
    pub fn at(&self, bind: &BindLabels) -> Losses {
        let counter = |reason| (reason, self.0.get_or_create(&LossLabels::new(bind, reason)).clone());
        Losses(Loss::ALL.map(counter))
    }

    /// Forgets an address, so that labels never outnumber what is configured.
    pub(super) fn forget(&self, bind: &BindLabels) {
        // Connections to the same address and port have nothing here.
        if bind.protocol == "udp" {
            for reason in Loss::ALL {
                self.0.remove(&LossLabels::new(bind, reason));
            }
        }
    }
}

/// Where datagrams of one address are counted.
#[derive(Clone, Debug)]
pub struct Losses([(Loss, Counter); Loss::ALL.len()]);

impl Losses {
    /// Counts one.
    pub fn count(&self, loss: Loss) {
        if let Some((_, counter)) = self.0.iter().find(|(reason, _)| *reason == loss) {
            counter.inc();
        }
    }
}

/// Why a datagram got no further; the closed set behind the label `reason`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Loss {
    /// No endpoint may receive it.
    NoEndpoint,
    /// No socket towards the endpoint could be had.
    NoSocket,
    /// The buffer towards the endpoint is full.
    BufferFull,
    /// The kernel did not send it to the endpoint.
    Unsent,
    /// Word came back that it did not arrive at the endpoint.
    Refused,
    /// An answer could not be sent to the client.
    AnswerUnsent,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::NoEndpoint, Self::NoSocket, Self::BufferFull, Self::Unsent, Self::Refused, Self::AnswerUnsent];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::NoSocket => "no_socket",
            Self::BufferFull => "buffer_full",
            Self::Unsent => "unsent",
            Self::Refused => "refused",
            Self::AnswerUnsent => "answer_unsent",
        }
    }
}

/// Labels of lost datagrams.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct LossLabels {
    /// Virtual address and port.
    address: String,
    /// Why.
    reason: &'static str,
}

impl LossLabels {
    fn new(bind: &BindLabels, reason: Loss) -> Self {
        Self { address: bind.address.clone(), reason: reason.as_str() }
    }
}
