//! The one result format of all benchmarks: values by case and subject, their medians over rounds, and their ratios to a
//! baseline of the same run; as JSON, as Markdown, and as text.

use std::fmt::Write as _;

use serde::Serialize;

/// What a value is about.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct What {
    /// What was done, such as `IPv4, 1,024 flows`.
    pub case: String,
    /// Who did it, such as `sluice`.
    pub subject: String,
    /// What was measured.
    pub metric: &'static str,
    /// In what.
    pub unit: &'static str,
}

/// All rounds of one value.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it is about.
    #[serde(flatten)]
    pub what: What,
    /// The value of each round, in the order of the rounds.
    pub rounds: Vec<f64>,
    /// Their median.
    pub median: f64,
    /// The value that a tenth of the rounds does not exceed.
    pub p10: f64,
    /// The value that one round in a hundred exceeds; with fewer rounds, little less than the largest.
    pub p99: f64,
    /// Whom the ratio compares with; none for the baseline itself.
    pub baseline: Option<String>,
    /// Median of the ratios to the baseline, taken round by round: what slows the machine down in one round slows both.
    pub ratio: Option<f64>,
}

/// The outcome of one benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which one.
    pub bench: &'static str,
    /// Where and how it was measured, a sentence each.
    pub conditions: Vec<String>,
    /// The values.
    pub figures: Vec<Figure>,
}

/// Collects the values of all rounds.
#[derive(Clone, Debug, Default)]
pub struct Series {
    values: Vec<(What, Vec<f64>)>,
}

impl Series {
    /// Adds the value of one more round.
    pub fn add(&mut self, what: What, value: f64) {
        match self.values.iter_mut().find(|(present, _)| *present == what) {
            Some((_, rounds)) => rounds.push(value),
            None => self.values.push((what, vec![value])),
        }
    }

    /// The figures, in the order in which they were first seen.
    pub fn figures(self, baseline: &str) -> Vec<Figure> {
        let figure = |(what, rounds): &(What, Vec<f64>)| {
            let is_rival = |other: &What| {
                other.subject == baseline && other.case == what.case && other.metric == what.metric
            };
            let base = self.values.iter().find(|(other, _)| what.subject != baseline && is_rival(other));
            let ratios = base.map(|(_, base)| {
                rounds
                    .iter()
                    .zip(base)
                    .filter(|(_, base)| **base > 0.0)
                    .map(|(value, base)| value / base)
                    .collect()
            });
            Figure {
                what: what.clone(),
                rounds: rounds.clone(),
                median: quantile(rounds, 50),
                p10: quantile(rounds, 10),
                p99: quantile(rounds, 99),
                baseline: base.map(|(other, _)| other.subject.clone()),
                ratio: ratios
                    .filter(|ratios: &Vec<f64>| !ratios.is_empty())
                    .map(|ratios| quantile(&ratios, 50)),
            }
        };
        self.values.iter().map(figure).collect()
    }
}

/// A quantile in percent, between the two nearest values; zero of nothing.
pub fn quantile(values: &[f64], percent: u32) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let scaled = last * usize::try_from(percent.min(100)).unwrap_or(100);
    let (below, rest) = (scaled / 100, scaled % 100);
    let fraction = f64::from(u8::try_from(rest).unwrap_or(0)) / 100.0;
    let low = sorted[below];
    let high = sorted[(below + 1).min(last)];
    low + (high - low) * fraction
}

impl Report {
    /// The whole report as one JSON document.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// Metrics, in the order in which they were first seen.
    fn metrics(&self) -> Vec<(&'static str, &'static str)> {
        let mut metrics: Vec<(&'static str, &'static str)> = Vec::new();
        for figure in &self.figures {
            let metric = (figure.what.metric, figure.what.unit);
            if !metrics.contains(&metric) {
                metrics.push(metric);
            }
        }
        metrics
    }

    /// Tables for the documents: one for each metric, a row for each case, a column for each subject.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for condition in &self.conditions {
            writeln!(text, "- {condition}").expect("a string takes everything");
        }
        for (metric, unit) in self.metrics() {
            let figures: Vec<&Figure> =
                self.figures.iter().filter(|figure| figure.what.metric == metric).collect();
            let subjects = firsts(figures.iter().map(|figure| figure.what.subject.as_str()));
            let cases = firsts(figures.iter().map(|figure| figure.what.case.as_str()));
            write!(text, "\n{metric}, in {unit}: median (10th to 99th percentile)")
                .expect("a string takes everything");
            if let Some(baseline) = figures.iter().find_map(|figure| figure.baseline.as_ref()) {
                write!(text, ", and ratio to {baseline}").expect("a string takes everything");
            }
            write!(
                text,
                "\n\n| case | {} |\n| --- |{}\n",
                subjects.join(" | "),
                " --- |".repeat(subjects.len())
            )
            .expect("a string takes everything");
            for case in cases {
                let cell = |subject: &&str| {
                    let found = figures
                        .iter()
                        .find(|figure| figure.what.case == case && figure.what.subject == *subject);
                    found.map_or_else(|| "-".to_owned(), |figure| figure.cell())
                };
                let cells: Vec<String> = subjects.iter().map(cell).collect();
                writeln!(text, "| {case} | {} |", cells.join(" | ")).expect("a string takes everything");
            }
        }
        text
    }
}

impl Figure {
    fn cell(&self) -> String {
        // Three digits at least: ratios are values, too.
        let digits = match self.median.abs() {
            small if small < 10.0 => 2,
            large if large < 1_000.0 => 1,
            _ => 0,
        };
        let ratio = self.ratio.map_or_else(String::new, |ratio| format!(", x{ratio:.2}"));
        format!("{:.digits$} ({:.digits$} to {:.digits$}){ratio}", self.median, self.p10, self.p99)
    }
}

/// Each once, in the order of first appearance.
fn firsts<'a>(words: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for word in words {
        if !seen.contains(&word) {
            seen.push(word);
        }
    }
    seen
}

/// What every report says about the machine.
pub fn machine() -> Vec<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, model)| model);
    let n = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![format!(
        "{n} processors ({model}), Linux {}; shared, so only ratios within one run count",
        kernel.trim()
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(subject: &str) -> What {
        What { case: "c".to_owned(), subject: subject.to_owned(), metric: "cost", unit: "ns" }
    }

    #[test]
    fn quantiles_lie_between_the_nearest_values() {
        assert!((quantile(&[3.0, 1.0, 2.0], 50) - 2.0).abs() < 1e-9);
        assert!((quantile(&[1.0, 2.0], 50) - 1.5).abs() < 1e-9);
        assert!((quantile(&[0.0, 10.0], 90) - 9.0).abs() < 1e-9);
        assert!(quantile(&[], 50).abs() < 1e-9);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut series = Series::default();
        for (ours, theirs) in [(10.0, 20.0), (30.0, 60.0), (50.0, 50.0)] {
            series.add(what("ours"), ours);
            series.add(what("theirs"), theirs);
        }
        let figures = series.figures("theirs");
        assert_eq!(figures[0].ratio, Some(0.5));
        assert_eq!(figures[0].baseline.as_deref(), Some("theirs"));
        assert_eq!(figures[1].ratio, None);
    }

    #[test]
    fn a_table_has_a_row_for_each_case_and_a_column_for_each_subject() {
        let mut series = Series::default();
        series.add(what("ours"), 10.0);
        series.add(what("theirs"), 20.0);
        series.add(What { case: "d".to_owned(), ..what("ours") }, 1.125);
        let report =
            Report { bench: "l4", conditions: vec!["quiet".to_owned()], figures: series.figures("theirs") };
        let text = report.markdown();
        assert!(text.contains("| case | ours | theirs |\n| --- | --- | --- |\n"), "{text}");
        assert!(text.contains("| c | 10.0 (10.0 to 10.0), x0.50 | 20.0 (20.0 to 20.0) |"), "{text}");
        assert!(text.contains("| d | 1.12 (1.12 to 1.12) | - |"), "{text}");
        assert!(report.json().expect("it is plain data").contains("\"ratio\": 0.5"));
    }
}
