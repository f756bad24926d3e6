//! Opening the versions that a manifest brought: unwraps, many at once, each within its time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use crate::{
    backend::{self, Kek, KekError, Pending},
    config::{KekScope, KekUri},
    crypto::{Dek, KeyringId, VersionKeys, WrapContext},
    keyring::{Base64, Opened, Version, Wrap},
};

/// How many unwraps one process has under way at once, so that a start with many versions doesn't flood a KMS.
const CONCURRENT_UNWRAPS: usize = 16;

/// The KEKs of a process: their clients, made once, and which of them failed last.
pub struct Keks {
    clients: Mutex<BTreeMap<KekUri, Arc<dyn Kek>>>,
    failing: Mutex<BTreeSet<KekUri>>,
    permits: Semaphore,
    time_limit: Duration,
}

impl Keks {
    /// `time_limit` holds for every single wrap and unwrap.
    pub fn new(time_limit: Duration) -> Self {
        Self { clients: Mutex::default(), failing: Mutex::default(), permits: Semaphore::new(CONCURRENT_UNWRAPS), time_limit }
    }

    fn client(&self, uri: &KekUri) -> Result<Arc<dyn Kek>, KekError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        match clients.get(uri) {
            Some(client) => Ok(Arc::clone(client)),
            None => {
                let client = backend::kek(uri)?;
                clients.insert(uri.clone(), Arc::clone(&client));
                Ok(client)
            }
        }
    }

    /// Opens versions of a keyring by KEKs within `scope`. Each either opens or says why not.
    pub async fn open<'v>(
        self: &Arc<Self>,
        keyring: KeyringId,
        versions: impl IntoIterator<Item = &'v Version>,
        scope: &Arc<KekScope>,
    ) -> Opened {
        let mut opening = Opening::default();
        for version in versions {
            opening.start(self, keyring, version, scope);
        }
        let mut opened = Opened::new();
        while let Some((version, result)) = opening.next().await {
            opened.insert(version, result);
        }
        opened
    }

    /// Wraps a data key under every one of `keks`, or fails.
    ///
    /// # Errors
    /// The first KEK that refused.
    pub async fn wrap(&self, keks: &[KekUri], dek: &Dek, context: WrapContext, now: Timestamp) -> Result<Vec<Wrap>, KekError> {
        let mut wraps = Vec::new();
        for kek in keks {
            let ciphertext = self.in_time(kek, self.client(kek)?.wrap(dek, context)).await?;
            wraps.push(Wrap { kek: kek.clone(), ciphertext: Base64(ciphertext), wrapped_at: now });
        }
        Ok(wraps)
    }

    async fn in_time<T>(&self, kek: &KekUri, answer: Pending<'_, Result<T, KekError>>) -> Result<T, KekError> {
        let late = || KekError(format!("{kek}: no answer within {:?} (`refresh.kek_timeout`)", self.time_limit));
        timeout(self.time_limit, answer).await.unwrap_or_else(|_| Err(late()))
    }

    /// Tries a version's wraps, those of KEKs that answered last time first; any one is enough.
    async fn unwrap(&self, keyring: KeyringId, version: &Version, scope: &KekScope) -> Result<Dek, String> {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A KEK that isn't ours isn't even asked: its owner knows what it opens.
        let (ours, foreign): (Vec<_>, Vec<_>) = version.wraps.iter().partition(|wrap| scope.covers(&wrap.kek));
        let (suspect, healthy): (Vec<_>, Vec<_>) = ours.into_iter().partition(|wrap| failing.contains(&wrap.kek));
        let context = WrapContext { keyring, version: version.version };
        let not_ours =
            |wrap: &Wrap| format!("{}: not one of the KEKs that may open this keyring (`keks` in the config)", wrap.kek);
        let mut reasons: Vec<String> = foreign.into_iter().map(not_ours).collect();
        for wrap in healthy.into_iter().chain(suspect) {
            let attempt = async {
                let _permit = self.permits.acquire().await;
                let client = self.client(&wrap.kek)?;
                self.in_time(&wrap.kek, client.unwrap(&wrap.ciphertext.0, context)).await
            };
            let result = attempt.await;
            let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(dek) => {
                    failing.remove(&wrap.kek);
                    if dek.matches_check(&keyring, version.version, &version.check.0) {
                        return Ok(dek);
                    }
                    reasons.push(format!("{}: gave another key than the manifest commits to", wrap.kek));
                }
                Err(KekError(reason)) => {
                    failing.insert(wrap.kek.clone());
                    reasons.push(reason);
                }
            }
        }
        Err(reasons.join("; "))
    }
}

/// Unwraps that are under way; dropping it ends them.
#[derive(Default)]
pub(super) struct Opening {
    tasks: JoinSet<(u32, Result<VersionKeys, String>)>,
    under_way: BTreeSet<u32>,
}

impl Opening {
    /// Begins to open a version, unless that is under way.
    pub(super) fn start(&mut self, keks: &Arc<Keks>, keyring: KeyringId, version: &Version, scope: &Arc<KekScope>) {
        if !self.under_way.insert(version.version) {
            return;
        }
        let (keks, scope, version) = (Arc::clone(keks), Arc::clone(scope), version.clone());
        self.tasks.spawn(async move {
            let opened = keks.unwrap(keyring, &version, &scope).await;
            let keys =
                opened.and_then(|dek| VersionKeys::derive(&dek).map_err(|error| format!("no memory for its keys: {error}")));
            (version.version, keys)
        });
    }

    /// The next version's result; `None` once nothing is under way. Loses nothing when it is dropped while it waits.
    pub(super) async fn next(&mut self) -> Option<(u32, Result<VersionKeys, String>)> {
        match self.tasks.join_next().await? {
            Ok((version, result)) => {
                self.under_way.remove(&version);
                Some((version, result))
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only a runtime that shuts down cancels them, and it drops this future next.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Whether a version is being opened.
    pub(super) fn is_under_way(&self, version: u32) -> bool {
        self.under_way.contains(&version)
    }

    /// Whether nothing is.
    pub(super) fn is_over(&self) -> bool {
        self.under_way.is_empty()
    }
}
