//! What runs where: the pipeline's environment over the helpers of each hook.
//!
//! A packet meets `xdp_balance` first, where it is attached; what it passes goes up to `tc_ingress`, where that is
//! attached instead; a connection for the agent then meets `sk_lookup`. Packets that leave meet `tc_egress`, except
//! those that XDP sent.

mod fib;
pub(crate) mod sk_lookup;
pub(crate) mod tc;
pub(crate) mod xdp;
