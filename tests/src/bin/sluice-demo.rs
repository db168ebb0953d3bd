//! Shows what Sluice does, with real packets and real clients, in network namespaces; fails when anything is not as it
//! says.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a command line, and a report for a person"
)]

use std::process::ExitCode;

use gateway_tests::{demo, origin};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["origin", name] => origin::serve(name).map(|()| true),
        [] => demo::run(false),
        ["--keep"] => demo::run(true),
        _ => {
            eprintln!("usage: sluice-demo [--keep]");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sluice-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
