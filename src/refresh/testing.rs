//! A keyring without a refresh task, for tests that take the task's place.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Keyring, Shared, Snapshot, keyring::Request};
use crate::{
    backend,
    clock::Clock,
    config::{self, Confirm},
    crypto::InstanceId,
    keks::Keks,
    keyring::KeyTable,
    model::{KekScope, Location, Wave},
    telemetry::Registry,
};

pub(crate) struct ManualKeyring {
    pub(crate) keyring: Arc<Keyring>,
    requests: mpsc::Receiver<Request>,
}

impl ManualKeyring {
    pub(crate) fn new(name: &str, wave: &Wave, clock: &Clock) -> Self {
        let registry = Arc::new(Registry::default());
        let backends = backend::configured(&Default::default());
        let settings = config::Refresh::default();
        let shared = Shared {
            keks: Arc::new(Keks::new(
                Arc::clone(&backends),
                &settings,
                clock.clone(),
                Arc::clone(&registry),
            )),
            settings,
            wave: wave.clone(),
            clock: clock.clone(),
            registry,
            backends,
            audit: Default::default(),
            instance: InstanceId([7; 16]),
            shutdown: CancellationToken::new(),
        };
        let settings = config::Keyring {
            name: name.parse().expect("name"),
            location: Location::File("unused".into()),
            keks: KekScope::Any,
            confirm: Confirm::Read,
            min_generation: 0,
            trusted_signers: Vec::new(),
            anchor: None,
            accept_lost: Vec::new(),
            wave: None,
        };
        let (keyring, requests) = Keyring::new(&settings, &shared);
        Self { keyring, requests }
    }

    /// Activates a table whose manifest was read at `read_at`.
    pub(crate) fn activate(&self, table: KeyTable, read_at: Timestamp) {
        let former = self.keyring.snapshot().clone();
        self.keyring.confirm(&table, read_at);
        let snapshot = Snapshot::new(table, former.as_deref(), read_at);
        self.keyring.publish(snapshot);
    }

    /// Takes the next refresh request, runs `refresh` in response, and returns the version that the
    /// request is for.
    pub(crate) async fn answer(&mut self, refresh: impl FnOnce(&Self)) -> u32 {
        // With a paused clock, a request that never comes fails at once.
        let request = timeout(Duration::from_secs(60), self.requests.recv());
        let request = request.await.ok().flatten().expect("a request");
        let waiter = request.waiter.expect("someone waits");
        refresh(self);
        waiter.done.send(()).expect("someone waits");
        waiter.version
    }

    pub(crate) fn has_requests(&mut self) -> bool {
        self.requests.try_recv().is_ok()
    }
}
