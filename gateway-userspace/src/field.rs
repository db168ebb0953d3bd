//! Names of header fields that an application may take for other ones.
//!
//! CGI, WSGI and their like hand fields on as variables, in whose names a hyphen becomes an underscore: there, `x_real_ip` is
//! `x-real-ip`. A client that may send the first says the second, whatever is done here about what it says.

use http::{HeaderMap, HeaderName};

/// What becomes of fields with an underscore in their names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Underscores {
    /// The request is refused.
    Reject,
    /// They go no further.
    Drop,
    /// They are fields like others.
    Allow,
}

/// A request has a field that it must not have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Underscored;

impl Underscores {
    /// What holds where nothing is configured.
    pub const DEFAULT: Self = Self::Reject;

    /// Judges the fields of a request; how many names of them went.
    pub fn apply(self, headers: &mut HeaderMap) -> Result<usize, Underscored> {
        // Nearly every request has none, and then nothing is gathered.
        if self == Self::Allow || !headers.keys().any(has_underscore) {
            return Ok(0);
        }
        if self == Self::Reject {
            return Err(Underscored);
        }
        let names: Vec<HeaderName> = headers.keys().filter(|name| has_underscore(name)).cloned().collect();
        for name in &names {
            headers.remove(name);
        }
        Ok(names.len())
    }
}

fn has_underscore(name: &HeaderName) -> bool {
    name.as_str().as_bytes().contains(&b'_')
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn names(rule: Underscores, names: &[&'static str]) -> Result<(usize, Vec<String>), Underscored> {
        let mut headers = HeaderMap::new();
        for name in names {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("a_b"));
        }
        let n_gone = rule.apply(&mut headers)?;
        let mut left: Vec<String> = headers.keys().map(ToString::to_string).collect();
        left.sort();
        Ok((n_gone, left))
    }

    #[test]
    fn fields_without_an_underscore_in_their_names_are_left_alone() {
        for rule in [Underscores::Reject, Underscores::Drop, Underscores::Allow] {
            let same = Ok((0, vec!["host".to_owned(), "x-real-ip".to_owned()]));
            assert_eq!(names(rule, &["host", "x-real-ip"]), same, "{rule:?}");
        }
    }

    #[test]
    fn fields_with_one_are_refused_go_or_stay() {
        let all = ["host", "_", "x_a", "x_a", "x-b_"];
        assert_eq!(names(Underscores::Reject, &all), Err(Underscored));
        assert_eq!(names(Underscores::Drop, &all), Ok((3, vec!["host".to_owned()])));
        let kept = ["_", "host", "x-b_", "x_a"].map(str::to_owned).to_vec();
        assert_eq!(names(Underscores::Allow, &all), Ok((0, kept)));
    }
}
