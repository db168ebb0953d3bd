//! The first message of TLS, however it arrives.
#![no_main]

use gateway_tests::requests;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| requests::hello(data));
