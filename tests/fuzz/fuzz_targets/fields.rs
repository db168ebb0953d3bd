//! Fields of a request and of a response on their way to the other side.
#![no_main]

use gateway_tests::requests;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| requests::fields(data));
