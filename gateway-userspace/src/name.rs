//! Names of wanted things, each in a type of its own, so that a route cannot be looked up as a service.

use std::{fmt, sync::Arc};

macro_rules! names {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
            pub struct $name(Arc<str>);

            impl $name {
                /// Takes any text; whoever reads it from outside has checked it.
                pub fn new(text: &str) -> Self {
                    Self(Arc::from(text))
                }

                /// The text.
                pub fn as_str(&self) -> &str {
                    &self.0
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(&self.0)
                }
            }
        )+
    };
}

names! {
    /// Name of a listener: an address we accept on.
    ListenerName,
    /// Name of a route: matches and what follows.
    RouteName,
    /// Name of a service: a group of endpoints.
    ServiceName,
}
