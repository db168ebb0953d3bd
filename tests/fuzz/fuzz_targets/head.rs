//! The head of a request of HTTP/1, however it arrives.
#![no_main]

use gateway_tests::requests;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| requests::head(data));
