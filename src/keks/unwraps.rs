//! Concurrent unwraps of several versions of one keyring.

use std::{collections::BTreeSet, sync::Arc};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Keks;
use crate::{
    crypto::{KeyringId, VersionKeys},
    keyring::{NotUnwrapped, Version},
    model::KekScope,
};

/// The unwraps in progress. Dropping it cancels them.
#[derive(Default)]
pub(crate) struct UnwrapTasks {
    tasks: JoinSet<(u32, Result<VersionKeys, NotUnwrapped>)>,
    in_progress: BTreeSet<u32>,
}

impl UnwrapTasks {
    /// Starts to unwrap a version, unless that is already in progress. No KEK is asked any more
    /// once `withdrawn` is cancelled.
    pub(crate) fn start(
        &mut self,
        keks: &Arc<Keks>,
        keyring: KeyringId,
        version: &Version,
        scope: &Arc<KekScope>,
        withdrawn: &CancellationToken,
    ) {
        if !self.in_progress.insert(version.version) {
            return;
        }
        let (keks, scope, version) = (Arc::clone(keks), Arc::clone(scope), version.clone());
        let withdrawn = withdrawn.clone();
        self.tasks.spawn(async move {
            let unwrap = keks.unwrap(keyring, &version, &scope);
            let unwrapped = withdrawn.run_until_cancelled(unwrap).await;
            let changed = || NotUnwrapped::because("the config changed meanwhile; asking again");
            let keys = unwrapped.unwrap_or_else(|| Err(changed())).and_then(|dek| {
                VersionKeys::derive(&dek).map_err(|error| {
                    NotUnwrapped::because(format!("can't allocate memory for keys: {error}"))
                })
            });
            (version.version, keys)
        });
    }

    /// Returns the next version's result, or `None` when nothing is in progress. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<(u32, Result<VersionKeys, NotUnwrapped>)> {
        match self.tasks.join_next().await? {
            Ok((version, result)) => {
                self.in_progress.remove(&version);
                Some((version, result))
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Tasks are cancelled only by the runtime's shutdown, which also drops this future.
                Err(_) => std::future::pending().await,
            },
        }
    }

    pub(crate) fn is_in_progress(&self, version: u32) -> bool {
        self.in_progress.contains(&version)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.in_progress.is_empty()
    }
}
