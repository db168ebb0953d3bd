//! The packet pipeline of Sluice, as a library.
//!
//! Everything that decides what becomes of a packet is here, generic over the traits in [`env`]: the kernel programs
//! run it over helpers and maps, the host runs the same code over memory. Order of one packet on ingress:
//! [`packet`] (parse and prefilter), [`ingress`] (reply or service), [`balance`] (flow, slot, endpoint), [`port`]
//! (translation), [`rewrite`], [`count`]. What is rare goes on in [`rare`].
#![no_std]
#![forbid(unsafe_code)]

pub mod answer;
pub mod arrival;
pub mod balance;
pub mod checksum;
pub mod cookie;
pub mod count;
pub mod env;
pub mod event;
pub mod guard;
pub mod health;
pub mod index;
pub mod ingress;
pub mod outcome;
pub mod packet;
mod ports;
pub mod probe;
pub mod proxy;
pub mod rare;
pub mod receive;
pub mod record;
pub mod reply;
pub mod rewrite;
pub mod select;
pub mod socket;
mod standby;
pub mod steer;
pub mod table;
pub mod track;
pub mod tunnel;
pub mod verdict;
pub mod way;

/// A value on the stack whose alignment suits eight-byte accesses: the verifier refuses unaligned ones there.
#[repr(align(8))]
#[derive(Clone, Copy, Debug)]
pub struct Aligned<T>(
    /// The value.
    pub T,
);
