//! Measures what a packet and what a request cost, side by side with what Sluice is compared with.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a command line, and a report for a person"
)]

use std::process::ExitCode;

use gateway_tests::bench::{self, Bench, Format, Options, forward};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // The bare forwarder is this program in another role, so that it can be measured as a process of its own.
    if let ["forward", rest @ ..] = words.as_slice() {
        return exit(forward::main(rest));
    }
    match bench::parse(&words) {
        Ok((benches, options)) => exit(all(&benches, options)),
        Err(error) => {
            eprintln!("sluice-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn all(benches: &[Bench], options: Options) -> anyhow::Result<()> {
    for bench in benches {
        let report = bench::run(*bench, options)?;
        match options.format {
            Format::Markdown => println!("{}", report.markdown()),
            Format::Json => println!("{}", report.json()?),
        }
    }
    Ok(())
}

fn exit(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
