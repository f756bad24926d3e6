//! A signer that works for others: it takes start orders from a hub, checks each one itself, and
//! runs their rollouts. It trusts neither the hub nor what that keeps for it.

mod desk;
mod gate;
mod intake;
mod opened;
mod taken;
mod teller;

use std::collections::BTreeMap;

use futures_util::future::{join, join_all};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{desk::Desk, opened::Keyring};
use crate::{
    audit::{self, AuditError, Sink},
    backend,
    clock::Clock,
    config::{self, SignerFile},
    fleet::{Fleet, HubRollouts},
    model::KeyringName,
};

/// How many orders for a keyring wait here. The others wait in the hub.
const WAITING: usize = 16;

/// A signer can't start.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// A keyring can't be used.
    #[error("keyring {name}: {reason}")]
    Keyring {
        /// The keyring.
        name: KeyringName,
        /// The reason.
        reason: String,
    },
    /// The hub or a sidecar can't be reached with these settings.
    #[error("{0}")]
    Hub(String),
    /// The audit log can't be used.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// A signer that is ready to run.
pub struct OrderSigner {
    hub: HubRollouts,
    keyrings: Vec<Keyring>,
}

impl OrderSigner {
    /// Reads every file that the settings name. Nothing is asked yet.
    ///
    /// # Errors
    /// [`SignerError`]
    pub fn new(settings: &SignerFile, clock: &Clock) -> Result<Self, SignerError> {
        let fleet = Fleet::from(settings.fleet.clone());
        let hub = match &fleet.hub {
            Some(hub) => HubRollouts::new(hub).map_err(SignerError::Hub)?,
            None => return Err(SignerError::Hub("[hub] is required".into())),
        };
        if let Some(settings) = &settings.audit {
            require_file(settings)?;
        }
        let backends = backend::configured(&settings.backends);
        let keyrings = settings
            .keyrings
            .iter()
            .map(|keyring| Keyring::open(keyring, settings, &fleet, &backends, &hub, clock));
        Ok(Self {
            keyrings: keyrings.collect::<Result<_, _>>()?,
            hub,
        })
    }

    /// Takes orders and runs their rollouts until `stop` is cancelled. Then each rollout stays
    /// where it is; the next signer goes on with it.
    pub async fn run(self, stop: CancellationToken) {
        let names: Vec<KeyringName> = self.keyrings.iter().map(|one| one.name.clone()).collect();
        let mut senders = BTreeMap::new();
        let desks = self.keyrings.into_iter().map(|keyring| {
            let (sender, orders) = mpsc::channel(WAITING);
            senders.insert(keyring.name.clone(), sender);
            Box::pin(Desk::new(keyring, self.hub.clone(), orders).run(stop.clone()))
        });
        let desks: Vec<_> = desks.collect();
        tracing::info!(
            hub = self.hub.name(),
            keyrings = names.len(),
            "waiting for orders"
        );
        let intake = intake::distribute(&self.hub, &names, &senders, &stop);
        join(intake, join_all(desks)).await;
    }
}

/// Standard output is for a sidecar's records: those of several rollouts would mix there.
fn require_file(settings: &config::Audit) -> Result<(), SignerError> {
    match audit::open(settings)? {
        Sink::File(_) => Ok(()),
        Sink::Stdout { .. } => Err(SignerError::Hub(
            "audit.stdout is for sidecars; give audit.file".into(),
        )),
    }
}
