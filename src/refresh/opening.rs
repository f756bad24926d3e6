//! Opening the versions that a manifest brought, many at once.

use std::{collections::BTreeSet, sync::Arc};

use tokio::task::JoinSet;

use super::Keks;
use crate::{
    crypto::{KeyringId, VersionKeys},
    keyring::{Opened, Version},
    model::KekScope,
};

impl Keks {
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
}

/// Unwraps that are under way; dropping it ends them.
#[derive(Default)]
pub(super) struct Opening {
    tasks: JoinSet<(u32, Result<VersionKeys, String>)>,
    under_way: BTreeSet<u32>,
}

impl Opening {
    /// Begins to open a version, unless that is under way.
    pub(super) fn start(
        &mut self,
        keks: &Arc<Keks>,
        keyring: KeyringId,
        version: &Version,
        scope: &Arc<KekScope>,
    ) {
        if !self.under_way.insert(version.version) {
            return;
        }
        let (keks, scope, version) = (Arc::clone(keks), Arc::clone(scope), version.clone());
        self.tasks.spawn(async move {
            let opened = keks.unwrap(keyring, &version, &scope).await;
            let keys = opened.and_then(|dek| {
                VersionKeys::derive(&dek)
                    .map_err(|error| format!("no memory for its keys: {error}"))
            });
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
