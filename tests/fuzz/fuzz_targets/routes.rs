//! Routes, and requests that look for theirs.
#![no_main]

use gateway_tests::requests;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| requests::routes(data));
