//! Keeps an agent busy for a long time, while its configuration changes and its endpoints die and return; fails when a
//! request fails, or when anything is left behind.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a command line, and a report for a person"
)]

use std::{process::ExitCode, time::Duration};

use gateway_tests::soak;

/// A number and its unit: `90s`, `2m`, `1h`.
fn time(word: &str) -> Option<Duration> {
    let (number, unit) = word.split_at_checked(word.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return None,
    };
    Some(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?))
        .filter(|time| *time >= soak::SHORTEST)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let wanted = match words.as_slice() {
        [] => Some(Duration::from_hours(1)),
        ["--time", word] => time(word),
        _ => None,
    };
    let Some(wanted) = wanted else {
        eprintln!("usage: sluice-soak [--time 1h], at least {:?}", soak::SHORTEST);
        return ExitCode::from(2);
    };
    match soak::run(wanted) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sluice-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}
