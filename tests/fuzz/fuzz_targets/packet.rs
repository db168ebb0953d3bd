//! One frame at any hook: parsing, and everything that follows from it.
#![no_main]

use gateway_tests::oracle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| oracle::packet(data));
