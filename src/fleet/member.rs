use super::{Sidecar, discovery::Found};

/// What a result is about: a sidecar, or what none could be found for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What the fleet calls it.
    pub name: String,
    /// The URL of its ops listener. None if it has joined a hub, or wasn't found.
    pub url: Option<String>,
    /// The workload that it serves, if that is known.
    pub workload: Option<String>,
    /// Whether it has joined a hub, whose ledger counts its uses.
    pub is_joined: bool,
    /// Whether another live sidecar has the same name.
    pub shares_name: bool,
}

impl Member {
    /// A name without a URL.
    pub(super) fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: None,
            workload: None,
            is_joined: false,
            shares_name: false,
        }
    }
}

impl From<Found> for Member {
    fn from(found: Found) -> Self {
        match found {
            Ok(Sidecar {
                name,
                url,
                workload,
                ..
            }) => Self {
                name,
                url: Some(url.to_string()),
                workload,
                is_joined: false,
                shares_name: false,
            },
            Err((name, _)) => Self::named(name),
        }
    }
}
