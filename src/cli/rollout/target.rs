//! Which keyring, which fleet, and where the rollout's journal is.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use serde_json::{Map, Value};

use crate::{
    cli::{
        output::CliError,
        target::{AccessArgs, TrustArgs, signing_key},
    },
    clock::Clock,
    fleet::Fleet,
    model::{KeyringName, Location, SignerKey},
    rollout::Requester,
    runner::{Journal, Runner},
    signer::Signer,
};

/// How many sidecars' clocks are compared with this machine's before each change.
const CLOCKS: usize = 5;

/// A keyring and its fleet.
#[derive(Debug, Clone, Args)]
pub(super) struct FleetTarget {
    /// The keyring: its name in the fleet file, or the location of its manifest.
    pub(super) keyring: String,
    /// File that lists the sidecars, and the keyrings by name.
    #[arg(long, value_name = "FILE", env = "SIDEKEY_FLEET")]
    pub(super) fleet: PathBuf,
    /// Keep the rollout's state at this location instead of beside the manifest.
    #[arg(long, value_name = "LOCATION", value_parser = Location::from_str)]
    pub(super) journal: Option<Location>,
}

impl FleetTarget {
    pub(super) fn load(&self) -> Result<(Fleet, Location), CliError> {
        let fleet = Fleet::load(&self.fleet)?;
        let named = self
            .keyring
            .parse::<KeyringName>()
            .ok()
            .and_then(|name| fleet.keyring(&name).cloned());
        let location = match named {
            Some(location) => location,
            None if self.keyring.contains(['/', ':']) => {
                self.keyring.parse().map_err(CliError::failed)?
            }
            None => {
                return Err(CliError::usage(format!(
                    "{} lists no keyring {}; add a [[keyring]] with its location, or give the \
                     location itself",
                    self.fleet.display(),
                    self.keyring
                )));
            }
        };
        Ok((fleet, location))
    }
}

/// A keyring whose rollout a command changes.
#[derive(Debug, Args)]
pub(in crate::cli) struct Target {
    #[command(flatten)]
    pub(super) on: FleetTarget,
    /// The requester's Ed25519 key (PKCS#8 PEM), which doesn't approve; by default the --sign-key.
    #[arg(long, value_name = "FILE")]
    pub(super) requester_key: Option<PathBuf>,
    #[command(flatten)]
    pub(super) access: AccessArgs,
    #[command(flatten)]
    pub(super) trust: Box<TrustArgs>,
}

/// What a command works with.
pub(super) struct Opened {
    pub(super) runner: Runner,
    pub(super) requester: Requester,
}

impl Target {
    pub(super) fn open(self) -> Result<Opened, CliError> {
        let (fleet, location) = self.on.load()?;
        let backends = self.access.backends()?;
        let journal = Journal::new(&location, self.on.journal, &backends).map_err(failed)?;
        let key = match &self.requester_key {
            Some(file) => Some(SignerKey(signing_key(file)?.public_key())),
            None => self.access.signer()?,
        };
        let clocks = fleet.sample(CLOCKS);
        let admin = self.access.admin_of_fleet(location, *self.trust, clocks)?;
        let signer = Signer::new(admin, fleet)?;
        let host = host();
        let requester = Requester {
            name: format!("{}@{host}", user()),
            key,
        };
        Ok(Opened {
            runner: Runner::new(signer, journal, &host, Clock::system()),
            requester,
        })
    }

    /// What the audit log says before the command runs.
    pub(super) fn details(&self) -> Map<String, Value> {
        Map::from_iter([
            ("keyring".to_owned(), self.on.keyring.as_str().into()),
            (
                "fleet".to_owned(),
                self.on.fleet.display().to_string().into(),
            ),
        ])
    }
}

pub(super) fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::failed(error)
}

fn host() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// The name of the user who runs the command, or their number.
fn user() -> String {
    let uid = rustix::process::getuid().as_raw();
    uzers::get_user_by_uid(uid)
        .map(|user| user.name().to_string_lossy().into_owned())
        .unwrap_or_else(|| uid.to_string())
}
