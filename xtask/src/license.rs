//! Whether a license expression, as manifests have it, can be met with the licenses that are allowed.

use std::collections::BTreeSet;

/// Judges an SPDX expression; what is not one is refused.
pub(crate) fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let mut license = License { rest: expression, allowed };
    let is_allowed = license.any();
    is_allowed && license.rest.trim().is_empty()
}

/// An SPDX expression that is read and judged at once; `/` is what older manifests write for `OR`.
struct License<'a> {
    rest: &'a str,
    allowed: &'a BTreeSet<String>,
}

impl License<'_> {
    fn any(&mut self) -> bool {
        let mut is_allowed = self.all();
        while self.takes("OR") || self.takes("/") {
            is_allowed |= self.all();
        }
        is_allowed
    }

    fn all(&mut self) -> bool {
        let mut is_allowed = self.one();
        while self.takes("AND") {
            is_allowed &= self.one();
        }
        is_allowed
    }

    fn one(&mut self) -> bool {
        if self.takes("(") {
            let is_allowed = self.any();
            return self.takes(")") && is_allowed;
        }
        let mut name = self.name();
        if self.takes("WITH") {
            name = format!("{name} WITH {}", self.name());
        }
        self.allowed.contains(&name)
    }

    fn takes(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.trim_start().strip_prefix(token) else { return false };
        let is_word = token.starts_with(|c: char| c.is_ascii_alphabetic());
        if is_word && rest.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return false;
        }
        self.rest = rest;
        true
    }

    fn name(&mut self) -> String {
        let text = self.rest.trim_start();
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"-.+".contains(c)).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        self.rest = rest;
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_license(text: &str, expected: bool) {
        let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
        assert_eq!(is_allowed(text, &allowed), expected, "{text}");
    }

    #[test]
    fn one_of_several_licenses_is_enough() {
        check_license("MIT", true);
        check_license("GPL-2.0-only OR MIT", true);
        check_license("GPL-2.0-only/MIT", true);
        check_license("GPL-2.0-only OR BSL-1.0", false);
        check_license("", false);
    }

    #[test]
    fn all_of_joined_licenses_are_needed() {
        check_license("MIT AND ISC", true);
        check_license("MIT AND GPL-2.0-only", false);
        check_license("GPL-2.0-only AND MIT OR ISC", true);
        check_license("MIT AND (GPL-2.0-only OR ISC)", true);
        check_license("(MIT OR ISC) AND GPL-2.0-only", false);
    }

    #[test]
    fn exceptions_belong_to_their_license() {
        check_license("Apache-2.0 WITH LLVM-exception", true);
        check_license("Apache-2.0", false);
        check_license("MIT WITH Classpath-exception-2.0", false);
    }
}
