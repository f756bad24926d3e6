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
    crypto::SigningKey,
    fleet::{Fleet, HubRollouts},
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
    journal: Option<Location>,
    /// Let the signer of the fleet file's hub run the rollout; the hub keeps its state.
    ///
    /// The default for a keyring that the fleet file doesn't list, if it has a hub.
    #[arg(long, conflicts_with = "journal")]
    via_hub: bool,
}

/// A keyring whose rollouts a signer runs.
pub(super) struct ViaHub {
    pub(super) keyring: KeyringName,
    pub(super) fleet: Fleet,
    pub(super) hub: HubRollouts,
}

impl ViaHub {
    /// The journal that the hub keeps.
    pub(super) fn journal(&self) -> Journal {
        Journal::at(self.hub.name(), self.hub.journal(&self.keyring))
    }
}

impl FleetTarget {
    fn load(&self) -> Result<(Fleet, Location), CliError> {
        let fleet = Fleet::load(&self.fleet)?;
        match self.location(&fleet)? {
            Some(location) => Ok((fleet, location)),
            None => Err(CliError::usage(format!(
                "{} lists no keyring {} and no hub; add a [[keyring]] with its location, or give \
                 the location itself",
                self.fleet.display(),
                self.keyring
            ))),
        }
    }

    /// The location of the manifest, if it is known.
    fn location(&self, fleet: &Fleet) -> Result<Option<Location>, CliError> {
        let name = self.keyring.parse::<KeyringName>().ok();
        let listed = name.and_then(|name| fleet.keyring(&name).cloned());
        match listed {
            None if self.keyring.contains(['/', ':']) => {
                Ok(Some(self.keyring.parse().map_err(CliError::failed)?))
            }
            listed => Ok(listed),
        }
    }

    /// Returns the hub, if a signer runs the keyring's rollouts.
    pub(super) fn via_hub(&self) -> Result<Option<ViaHub>, CliError> {
        let fleet = Fleet::load(&self.fleet)?;
        let is_known = self.location(&fleet)?.is_some();
        let hub = match (&fleet.hub, self.via_hub) {
            (Some(hub), true) => hub,
            (Some(hub), false) if !is_known && self.journal.is_none() => hub,
            (None, true) => {
                return Err(CliError::usage(format!(
                    "{} has no [hub]",
                    self.fleet.display()
                )));
            }
            _ => return Ok(None),
        };
        let keyring = self
            .keyring
            .parse()
            .map_err(|error| CliError::usage(format!("a hub knows keyrings by name: {error}")))?;
        let hub = HubRollouts::new(hub).map_err(CliError::failed)?;
        Ok(Some(ViaHub {
            keyring,
            hub,
            fleet,
        }))
    }

    /// Returns the journal of the keyring's rollouts.
    pub(super) fn journal(&self, access: &AccessArgs) -> Result<Journal, CliError> {
        if let Some(via) = self.via_hub()? {
            return Ok(via.journal());
        }
        let (_, location) = self.load()?;
        let backends = access.backends()?;
        Journal::new(&location, self.journal.clone(), &backends).map_err(failed)
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
        let requester = Requester {
            name: person(),
            key,
        };
        Ok(Opened {
            runner: Runner::new(signer, journal, &host(), Clock::system()),
            requester,
        })
    }

    /// The requester's key, which a signer requires.
    pub(super) fn key_of_requester(&self) -> Result<SigningKey, CliError> {
        let key = match &self.requester_key {
            Some(file) => Some(signing_key(file)?),
            None => self.access.sign_key()?,
        };
        key.ok_or_else(|| {
            CliError::usage(
                "a signer takes signed requests alone: name the requester's key with \
                 --requester-key",
            )
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

/// Who runs the command.
pub(super) fn person() -> String {
    format!("{}@{}", user(), host())
}

/// The name of the user who runs the command, or their number.
fn user() -> String {
    let uid = rustix::process::getuid().as_raw();
    uzers::get_user_by_uid(uid)
        .map(|user| user.name().to_string_lossy().into_owned())
        .unwrap_or_else(|| uid.to_string())
}
