//! The benchmarks: what they share, and the command line of `sluice-bench`.

pub mod balancers;
pub mod client;
pub mod forward;
pub mod frames;
pub mod l4;
pub mod l7;
pub mod load;
pub mod node;
pub mod proxy;
pub mod publish;
pub mod rivals;
pub mod routes;
pub mod subject;
pub mod tables;
pub mod traffic;

use anyhow::{Result, bail};

use crate::report::Report;

/// How to run a benchmark, and what to print.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Options {
    /// How often each subject is measured.
    pub n_rounds: u32,
    /// Short rounds, to see that everything works; the figures mean little.
    pub is_quick: bool,
    /// The only case to measure, counted from one; all without it. For layer 7.
    pub case: Option<usize>,
    /// What to print.
    pub format: Format,
}

/// What to print.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// Tables for a person and for the documents.
    Markdown,
    /// The whole report.
    Json,
}

/// Which benchmark.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bench {
    /// Kernel time of a packet.
    L4,
    /// Processor time of a request.
    L7,
    /// Processor time of a connection through a node.
    Node,
    /// Time to find a route.
    Routes,
    /// Time of a change until the kernel's maps say so.
    Publish,
}

/// How `sluice-bench` is called.
pub const USAGE: &str =
    "usage: sluice-bench [l4|node|l7|routes|publish] [--rounds N] [--case N] [--quick] [--json]";

/// Most rounds that anybody may ask for.
const MOST_ROUNDS: u32 = 1_000;

/// Reads the command line; without a name, all benchmarks run.
///
/// # Errors
/// When it makes no sense.
pub fn parse(words: &[&str]) -> Result<(Vec<Bench>, Options)> {
    let mut benches = Vec::new();
    let mut n_rounds = None;
    let mut options = Options { n_rounds: 0, is_quick: false, case: None, format: Format::Markdown };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "l4" => benches.push(Bench::L4),
            "node" => benches.push(Bench::Node),
            "l7" => benches.push(Bench::L7),
            "routes" => benches.push(Bench::Routes),
            "publish" => benches.push(Bench::Publish),
            "--quick" => options.is_quick = true,
            "--json" => options.format = Format::Json,
            "--case" => {
                let n = words.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
                let Some(n) = n else { bail!("--case takes a number from 1; {USAGE}") };
                options.case = Some(n);
            }
            "--rounds" => {
                let n = words.next().and_then(|n| n.parse().ok()).filter(|n| (1..=MOST_ROUNDS).contains(n));
                let Some(n) = n else { bail!("--rounds takes a number from 1 to {MOST_ROUNDS}; {USAGE}") };
                n_rounds = Some(n);
            }
            _ => bail!("{word:?} is unknown; {USAGE}"),
        }
    }
    if benches.is_empty() {
        benches = vec![Bench::L4, Bench::Node, Bench::L7, Bench::Routes, Bench::Publish];
    }
    options.n_rounds = n_rounds.unwrap_or(if options.is_quick { 2 } else { 11 });
    Ok((benches, options))
}

/// Runs one benchmark.
///
/// # Errors
/// When something it needs is missing, or when a subject did not do its job: then its time means nothing.
pub fn run(bench: Bench, options: Options) -> Result<Report> {
    match bench {
        Bench::L4 => l4::run(options),
        Bench::Node => node::run(options),
        Bench::L7 => l7::run(options),
        Bench::Routes => routes::run(options),
        Bench::Publish => publish::run(options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_says_what_runs() {
        let (benches, options) = parse(&["l4", "--rounds", "3", "--json"]).expect("it makes sense");
        assert_eq!(benches, [Bench::L4]);
        assert_eq!(options, Options { n_rounds: 3, is_quick: false, case: None, format: Format::Json });
        assert_eq!(parse(&["l7", "--case", "2"]).expect("it makes sense").1.case, Some(2));
        assert_eq!(
            parse(&[]).expect("it makes sense").0,
            [Bench::L4, Bench::Node, Bench::L7, Bench::Routes, Bench::Publish]
        );
        assert_eq!(parse(&["--quick"]).expect("it makes sense").1.n_rounds, 2);
    }

    #[test]
    fn a_command_line_without_sense_is_refused() {
        for words in [&["l5"][..], &["--rounds"], &["--rounds", "0"], &["--rounds", "many"], &["--case", "0"]]
        {
            let error = parse(words).expect_err("it makes no sense").to_string();
            assert!(error.contains("usage: sluice-bench"), "{error}");
        }
    }
}
