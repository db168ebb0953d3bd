//! The whole pipeline with its state: packets, answers, changes and time, one after the other.
#![no_main]

use gateway_tests::oracle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| oracle::story(data));
