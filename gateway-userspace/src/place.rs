//! Places: where in its source a wanted thing stands, so that a fault found later can still name it.

/// A position that only the source which handed it out can read, such as a node of a YAML document.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Place(u32);

impl Place {
    /// The position numbered `index` by its source.
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// The number its source gave it.
    pub const fn index(self) -> u32 {
        self.0
    }
}

/// A value and where it was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it was written.
    pub place: Place,
}

impl<T> Located<T> {
    /// The same place with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Located<U> {
        Located { value: f(self.value), place: self.place }
    }
}
