//! What runs where: the pipeline's environment over the helpers of each hook.
//!
//! A packet meets `xdp_balance` first, where it is attached; what it passes goes up to `tc_ingress`, where that is
//! attached instead; a connection for the agent then meets `sk_lookup`. Packets that leave meet `tc_egress`, except
//! those that XDP sent. Before all packets of a process of this node there are its calls: the hooks of its socket
//! (`connect4` and its neighbors) see them where a control group has them.

/// In a build for debugging, tells the agent about a packet that ends here. Other builds have nothing of it.
macro_rules! log_drop {
    ($ctx:expr, $hook:expr, $verdict:expr) => {
        $crate::hook::log_drop!($ctx, $hook, $verdict, unless false);
    };
    // Programs for rare packets have no room for words beside what they do.
    ($ctx:expr, $hook:expr, $verdict:expr, unless $is_rare:expr) => {
        #[cfg(feature = "log")]
        if !$is_rare && let gateway_ebpf::verdict::Verdict::Drop(reason) = $verdict {
            $crate::hook::tell($ctx, $hook.name(), $crate::hook::apart::forgotten(reason.number()));
        }
    };
}
pub(crate) use log_drop;

/// The words, in a frame of their own: programs that call others have little left of the stack.
#[cfg(feature = "log")]
#[inline(never)]
fn tell<C: aya_ebpf::EbpfContext>(ctx: &C, hook: &str, reason: u32) {
    aya_log_ebpf::info!(ctx, "{} dropped a packet: reason {}", hook, reason);
}

pub(crate) mod apart;
pub(crate) mod aside;
pub(crate) mod cookie;
mod fib;
pub(crate) mod sk_lookup;
pub(crate) mod socket;
pub(crate) mod tc;
pub(crate) mod word;
pub(crate) mod xdp;
