//! A path on its way to its one form.
#![no_main]

use gateway_tests::requests;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| requests::path(data));
