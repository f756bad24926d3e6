//! The sidecar's side of a joined fleet: one outbound connection to a hub, on the control plane.
//!
//! The hub asks by events, and the sidecar reports what it used, signed by a key of its process.
//! Nothing that the sidecar serves depends on it (I7). What a hub sends is bounded in size and
//! time, and costs no more than the connection.

mod connection;
mod credentials;
mod failure;
mod parts;
mod report;
mod report_times;
mod state;
mod task;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

pub use self::parts::Parts;
use self::{credentials::Credentials, report::Reporter, state::State, task::Member};
use crate::{
    clock::Clock, config, crypto::RandomnessUnavailable, refresh::Keyring, telemetry::Registry,
    wire::status::HubStatus,
};

pub use self::state::describe_metrics;

/// How long the last report may take.
const FINAL_LIMIT: Duration = Duration::from_secs(2);

/// The files with which the sidecar joins its hub can't be used.
#[derive(Debug, thiserror::Error)]
#[error("hub: {0}")]
pub struct HubError(String);

/// The hub that a sidecar joins. Clones are the same hub.
#[derive(Clone)]
pub struct Hub {
    settings: Arc<config::Hub>,
    credentials: Arc<Credentials>,
    state: Arc<State>,
}

impl Hub {
    /// Reads the files with which the sidecar joins.
    ///
    /// # Errors
    /// One of them can't be used.
    pub async fn load(
        settings: &config::Hub,
        registry: &Registry,
        clock: &Clock,
    ) -> Result<Self, HubError> {
        let credentials = Arc::new(Credentials::new(settings));
        let checked = credentials.check().await;
        checked.map_err(|failure| HubError(failure.message))?;
        Ok(Self {
            settings: Arc::new(settings.clone()),
            credentials,
            state: Arc::new(State::new(&settings.url, registry, clock)),
        })
    }

    /// What `/status` says of it.
    pub fn status(&self) -> HubStatus {
        self.state.status()
    }

    /// Joins, on the current runtime, and stays joined until the membership ends.
    ///
    /// # Errors
    /// [`RandomnessUnavailable`]
    pub fn join(&self, parts: Parts) -> Result<Membership, RandomnessUnavailable> {
        let news = Arc::new(Notify::new());
        let watches = parts.keyrings.iter().map(|keyring| {
            let watch = watch(Arc::clone(keyring), Arc::clone(&news));
            AbortOnDropHandle::new(tokio::spawn(watch))
        });
        let watches = watches.collect();
        let (end, ended) = oneshot::channel();
        let member = Member::new(self, Reporter::new(&self.settings, &parts)?, parts, news);
        Ok(Membership {
            end,
            _task: AbortOnDropHandle::new(tokio::spawn(member.run(ended))),
            _watches: watches,
        })
    }
}

/// Being joined to a hub. Dropping it ends it at once, and the hub gets no last report.
pub struct Membership {
    /// Requests the last report. The answer says that it was sent, or given up.
    end: oneshot::Sender<oneshot::Sender<()>>,
    _task: AbortOnDropHandle<()>,
    _watches: Vec<AbortOnDropHandle<()>>,
}

impl Membership {
    /// Tells the hub that the process ends. No version may be used any more. Takes two seconds at
    /// most.
    pub async fn end(self) {
        let (done, is_done) = oneshot::channel();
        if self.end.send(done).is_ok() {
            // The report is not worth waiting for any longer.
            let _ = timeout(FINAL_LIMIT, is_done).await;
        }
    }
}

/// Notifies `news` of each new generation and each refused use of a version.
async fn watch(keyring: Arc<Keyring>, news: Arc<Notify>) {
    let mut generations = keyring.generations();
    loop {
        tokio::select! {
            changed = generations.changed() => if changed.is_err() {
                return;
            },
            () = keyring.refused() => {}
        }
        news.notify_one();
    }
}
