//! The sidecars that a command asks: it dials those that are listed by URL, in a fleet file or in
//! DNS, and asks a hub for those that have joined it. All of them are asked at once, up to a bound,
//! and one that doesn't answer is part of the result.

mod client;
mod connect;
mod discovery;
mod hub;
pub mod inventory;
mod member;
mod parallel;
mod request;
mod rollouts;

use std::{path::Path, time::Duration};

use self::request::Target;
use crate::{
    config::{self, FleetFile, FleetKeyring, FleetSidecar, LoadError},
    model::{KeyringName, Location, OpsUrl},
};

pub use self::{
    client::{FleetClient, NoManifest},
    connect::OpsTls,
    discovery::Discovery,
    hub::Hub,
    member::Member,
    rollouts::HubRollouts,
};

/// The number of sidecars that are asked at once.
const CONCURRENT: usize = 256;
/// The time limit for a connection to a sidecar.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit for a request to a sidecar, its connection included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The sidecars to ask.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// Keyrings and where their manifests are.
    pub keyrings: Vec<FleetKeyring>,
    /// The sidecars that are known; their names are unique.
    pub sidecars: Vec<Sidecar>,
    /// The names under which DNS has others, each time they are asked.
    pub discover: Vec<Discovery>,
    /// TLS settings for `https://` URLs.
    pub tls: OpsTls,
    /// The hub that others have joined.
    pub hub: Option<Hub>,
}

impl Fleet {
    /// Reads a fleet file.
    ///
    /// # Errors
    /// The file can't be read, or is invalid: with every problem and its line.
    pub fn load(file: &Path) -> Result<Self, LoadError> {
        config::load_fleet(file).map(Self::from)
    }

    /// Returns a fleet of the sidecars with these URLs, each counted once.
    pub fn of(urls: impl IntoIterator<Item = OpsUrl>, tls: OpsTls) -> Self {
        let mut sidecars: Vec<Sidecar> = Vec::new();
        for sidecar in urls.into_iter().map(Sidecar::at) {
            if sidecars.iter().all(|known| known.url != sidecar.url) {
                sidecars.push(sidecar);
            }
        }
        Self {
            sidecars,
            tls,
            ..Self::default()
        }
    }

    /// Returns a fleet of a few of the sidecars that are dialled.
    #[must_use]
    pub fn sample(&self, count: usize) -> Self {
        let mut sample = self.clone();
        sample.sidecars.truncate(count);
        if !sample.sidecars.is_empty() {
            sample.discover.clear();
        }
        sample.hub = None;
        sample
    }

    /// Returns whether there is no sidecar to ask.
    pub fn is_empty(&self) -> bool {
        self.sidecars.is_empty() && self.discover.is_empty() && self.hub.is_none()
    }

    /// Returns where the keyring `name` is, if the fleet file says so.
    pub fn keyring(&self, name: &KeyringName) -> Option<&Location> {
        let found = self.keyrings.iter().find(|keyring| keyring.name == *name);
        found.map(|keyring| &keyring.location)
    }

    fn needs_tls(&self) -> bool {
        self.sidecars.iter().any(|sidecar| sidecar.url.is_tls())
            || self.discover.iter().any(|discovery| discovery.is_tls)
    }
}

impl From<FleetFile> for Fleet {
    fn from(file: FleetFile) -> Self {
        Self {
            keyrings: file.keyrings,
            sidecars: file.sidecars.into_iter().map(Sidecar::from).collect(),
            discover: file.discover.into_iter().map(Discovery::from).collect(),
            tls: file.tls.into(),
            hub: file.hub.map(Hub::from),
        }
    }
}

/// A sidecar to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// What results call it: unique within a fleet.
    pub name: String,
    /// The URL of its ops listener.
    pub url: OpsUrl,
    /// The workload that it serves, if that is known.
    pub workload: Option<String>,
    /// The name that DNS has its address under, if it was found there.
    found_as: Option<String>,
}

impl Sidecar {
    /// The sidecar at `url`, which is its name as well.
    pub fn at(url: OpsUrl) -> Self {
        Self {
            name: url.to_string(),
            url,
            workload: None,
            found_as: None,
        }
    }

    /// Where requests to it go.
    fn target(&self) -> Target<'_> {
        Target {
            url: &self.url,
            host: self.found_as.as_deref().unwrap_or(self.url.host()),
            token: None,
        }
    }
}

impl From<FleetSidecar> for Sidecar {
    fn from(listed: FleetSidecar) -> Self {
        let sidecar = Self::at(listed.url);
        Self {
            name: listed.name.unwrap_or(sidecar.name),
            workload: listed.workload,
            ..sidecar
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> OpsUrl {
        text.parse().expect("a URL")
    }

    #[test]
    fn a_sidecar_that_is_named_twice_counts_once() {
        let urls = ["http://a", "http://b", "http://a/"].map(url);
        let fleet = Fleet::of(urls, OpsTls::default());
        let names: Vec<&str> = fleet
            .sidecars
            .iter()
            .map(|sidecar| sidecar.name.as_str())
            .collect();
        assert_eq!(names, ["http://a", "http://b"]);
        assert!(!fleet.is_empty());
        assert!(Fleet::default().is_empty());
    }

    #[test]
    fn a_fleet_file_names_sidecars_and_keyrings() {
        let text = "[[keyring]]\nname = \"orders\"\nlocation = \"orders.json\"\n\
                    [[sidecar]]\nurl = \"http://a\"\nname = \"first\"\nworkload = \"shop\"\n\
                    [[sidecar]]\nurl = \"https://b\"\n";
        let file = config::parse_fleet(Path::new("/fleet.toml"), text).expect("valid");
        let fleet = Fleet::from(file);
        let [first, second] = &fleet.sidecars[..] else {
            panic!("two sidecars")
        };
        assert_eq!(
            (first.name.as_str(), first.workload.as_deref()),
            ("first", Some("shop"))
        );
        assert_eq!(
            (second.name.as_str(), second.workload.as_deref()),
            ("https://b", None)
        );
        let location = fleet.keyring(&"orders".parse().expect("a name"));
        assert_eq!(location, Some(&Location::File("/orders.json".into())));
        assert_eq!(fleet.keyring(&"other".parse().expect("a name")), None);
        assert!(fleet.needs_tls());
    }
}
