//! Keyrings that ciphertexts can be attributed to, by the tag in their headers.

use std::{path::Path, str::FromStr};

use serde::Serialize;

use crate::{
    admin::{Admin, Signing},
    backend,
    cli::{
        client::Connection,
        output::{CliError, path_for_display},
    },
    clock::Clock,
    config,
    crypto::KeyringId,
    model::{KeyringName, Location},
};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Known {
    pub(super) name: KeyringName,
    pub(super) id: KeyringId,
    #[serde(skip)]
    pub(super) versions: Vec<u32>,
}

impl Known {
    /// The highest version that ever existed: numbers start at 1 and are never reused.
    fn newest(&self) -> u32 {
        self.versions.iter().copied().max().unwrap_or_default()
    }
}

/// Loads the keyrings named on the command line: stored, in a config file, or in a sidecar.
pub(super) async fn load(
    locations: &[Location],
    config: Option<&Path>,
    socket: Option<&Path>,
) -> Result<Vec<Known>, CliError> {
    let mut locations = locations.to_vec();
    let mut settings = config::Backends::default();
    if let Some(file) = config {
        let config = config::load(file)?;
        locations.extend(config.keyrings.into_iter().map(|keyring| keyring.location));
        settings = config.backends;
    }
    let backends = backend::configured(&settings);
    let mut known = Vec::new();
    for location in locations {
        let document = Admin::new(location, Signing::NoKey, &backends, Clock::system())?
            .read()
            .await?;
        let manifest = document.manifest();
        let versions = manifest
            .versions
            .iter()
            .map(|version| version.version)
            .collect();
        known.push(Known {
            name: manifest.name.clone(),
            id: manifest.id,
            versions,
        });
    }
    if let Some(socket) = socket {
        known.extend(from_sidecar(socket).await?);
    }
    known.sort();
    known.dedup_by(|a, b| (&a.name, a.id) == (&b.name, b.id));
    Ok(known)
}

async fn from_sidecar(socket: &Path) -> Result<Vec<Known>, CliError> {
    let response = Connection::to(socket.to_owned()).keyrings().await?;
    let unexpected = || {
        let socket = path_for_display(socket);
        CliError::failed(format!("{socket}: unexpected response from the sidecar"))
    };
    let keyrings = response["keyrings"].as_array().ok_or_else(unexpected)?;
    keyrings
        .iter()
        .map(|keyring| {
            let member = |name: &str| keyring[name].as_str().ok_or_else(unexpected);
            let versions = keyring["versions"].as_array().ok_or_else(unexpected)?;
            Ok(Known {
                name: member("name")?.parse().map_err(|_| unexpected())?,
                id: member("id")?.parse().map_err(|_| unexpected())?,
                versions: versions
                    .iter()
                    .filter_map(|version| version["version"].as_u64()?.try_into().ok())
                    .collect(),
            })
        })
        .collect()
}

/// A version that must not be found, of one keyring or of any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VersionFilter {
    keyring: Option<KeyringName>,
    version: u32,
}

impl FromStr for VersionFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (keyring, version) = match text.rsplit_once(':') {
            Some((keyring, version)) => (
                Some(keyring.parse().map_err(|error| format!("{error}"))?),
                version,
            ),
            None => (None, text),
        };
        let version = version.parse().ok().filter(|version| *version > 0);
        Ok(Self {
            keyring,
            version: version.ok_or("expected a version such as `3` or `orders:3`")?,
        })
    }
}

impl VersionFilter {
    /// Rejects a filter that could never match: finding nothing would be no evidence.
    pub(super) fn check(&self, known: &[Known]) -> Result<(), CliError> {
        let version = self.version;
        let Some(name) = &self.keyring else {
            return if known.is_empty() {
                Err(CliError::usage(format!(
                    "--fail-if-version {version}: most ciphertext forms are found only for known \
                     keyrings; give --location, --config or --socket"
                )))
            } else {
                Ok(())
            };
        };
        let newest = known
            .iter()
            .filter(|known| known.name == *name)
            .map(Known::newest)
            .max();
        match newest {
            None => Err(CliError::usage(format!(
                "--fail-if-version: unknown keyring {name}; give --location, --config or --socket"
            ))),
            Some(newest) if version > newest => Err(CliError::usage(format!(
                "--fail-if-version {name}:{version}: the newest known version of {name} is {newest}"
            ))),
            Some(_) => Ok(()),
        }
    }

    pub(super) fn matches(&self, known: &[Known], tag: [u8; 4], version: u32) -> bool {
        let is_keyring = match &self.keyring {
            None => true,
            Some(name) => known
                .iter()
                .any(|known| known.id.tag() == tag && known.name == *name),
        };
        self.version == version && is_keyring
    }
}

/// The names of the keyrings with a tag; almost always one.
pub(super) fn name(known: &[Known], tag: [u8; 4]) -> Option<String> {
    let names: Vec<&str> = known
        .iter()
        .filter(|known| known.id.tag() == tag)
        .map(|known| known.name.as_str())
        .collect();
    (!names.is_empty()).then(|| names.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_versions_with_and_without_a_keyring() {
        let filter = |keyring: Option<&str>, version| VersionFilter {
            keyring: keyring.map(|name| name.parse().expect("name")),
            version,
        };
        assert_eq!("3".parse(), Ok(filter(None, 3)));
        assert_eq!("orders:12".parse(), Ok(filter(Some("orders"), 12)));
        for wrong in [
            "", "0", "orders", "orders:", ":1", "orders:0", "1:orders", "-1",
        ] {
            assert!(wrong.parse::<VersionFilter>().is_err(), "{wrong}");
        }
    }
}
