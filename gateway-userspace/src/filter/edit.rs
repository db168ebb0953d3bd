//! Changes of header fields.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Changes of one head; no name occurs twice.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Edits {
    /// These have this value alone.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// These have this value besides others.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// These are absent.
    pub remove: Vec<HeaderName>,
}

impl Edits {
    /// Changes a head.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }

    /// Every name that is changed.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.set.iter().chain(&self.add).map(|(name, _)| name).chain(&self.remove)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_set_added_and_removed_in_all_their_values() {
        let name = HeaderName::from_static;
        let value = HeaderValue::from_static;
        let mut headers = HeaderMap::new();
        for (field, text) in
            [("x-set", "1"), ("x-set", "2"), ("x-add", "1"), ("x-gone", "1"), ("x-gone", "2"), ("x", "y")]
        {
            headers.append(name(field), value(text));
        }
        let edits = Edits {
            set: vec![(name("x-set"), value("3")), (name("x-new"), value("4"))],
            add: vec![(name("x-add"), value("2")), (name("x-more"), value("5"))],
            remove: vec![name("x-gone"), name("x-never")],
        };
        edits.apply(&mut headers);
        let all = |field: &'static str| {
            headers.get_all(name(field)).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!((all("x-set"), all("x-new")), (vec!["3"], vec!["4"]));
        assert_eq!((all("x-add"), all("x-more")), (vec!["1", "2"], vec!["5"]));
        assert_eq!((all("x-gone"), all("x")), (vec![], vec!["y"]));
    }
}
