//! The copy of a manifest on disk: what a sidecar starts from while the location is down, and below which it never goes back.

use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;
use tracing::warn;

use super::{
    Trigger,
    task::{Refresher, parse},
};
use crate::{backend::LocalCopy, config, keyring::KeyTable};

/// How far the copy's stamp may lag behind the last confirmation.
const STAMP_EVERY: SignedDuration = SignedDuration::from_secs(60);

/// What is known of the copy.
pub(super) struct Copy {
    file: LocalCopy,
    /// What it holds, and as confirmed when.
    held: Option<(Bytes, Timestamp)>,
    has_warned: bool,
}

impl Copy {
    pub(super) fn new(keyring: &config::Keyring, settings: &config::Refresh) -> Option<Self> {
        let folder = settings.cache_dir.as_ref()?;
        Some(Self {
            file: LocalCopy::new(folder, &keyring.name),
            held: None,
            has_warned: false,
        })
    }
}

impl Refresher {
    /// Puts the copy in force, before the location is read for the first time. Whatever comes of it, no older generation is taken
    /// from the location.
    pub(super) async fn recall(&mut self) {
        let Some(copy) = &mut self.copy else { return };
        let limit = self.shared.settings.read_timeout;
        let loaded = match timeout(limit, copy.file.load(self.shared.settings.manifest_bytes)).await
        {
            Ok(Ok(None)) => return,
            Ok(Ok(Some((bytes, confirmed)))) => parse(bytes)
                .await
                .map(|document| (document, confirmed))
                .map_err(|failure| failure.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!(
                "{}: reading it took longer than {limit:?}",
                copy.file.path().display()
            )),
        };
        let examined = loaded.and_then(|(document, confirmed)| {
            KeyTable::examine(None, &document, &self.expectations)
                .map_err(|error| error.to_string())?;
            // A clock that was ahead must not lengthen the lease.
            Ok((document, confirmed.min(self.shared.clock.now())))
        });
        match examined {
            Ok((document, confirmed)) => {
                copy.held = Some((document.bytes().clone(), confirmed));
                self.expectations.min_generation = self
                    .expectations
                    .min_generation
                    .max(document.manifest().generation);
                let result = self
                    .take_up(Arc::new(document), confirmed, Trigger::Copy)
                    .await;
                self.conclude(Trigger::Copy, result);
            }
            Err(reason) => {
                warn!(
                    keyring = %self.keyring.name(), file = %copy.file.path().display(),
                    "the copy of the manifest is not used: {reason}"
                );
            }
        }
    }

    /// Keeps what is in force, and when it was last confirmed.
    pub(super) async fn keep_copy(&mut self) {
        let Some(copy) = &mut self.copy else { return };
        let Some(snapshot) = self.keyring.snapshot().clone() else {
            return;
        };
        let bytes = snapshot.table.document().bytes();
        let confirmed = self.keyring.confirmed_at().unwrap_or(Timestamp::UNIX_EPOCH);
        let saved = match &copy.held {
            Some((held, stamped)) if held == bytes => {
                if confirmed.duration_since(*stamped) < STAMP_EVERY {
                    return;
                }
                timeout(
                    self.shared.settings.read_timeout,
                    copy.file.confirm(confirmed),
                )
                .await
            }
            _ => {
                timeout(
                    self.shared.settings.read_timeout,
                    copy.file.save(bytes.clone(), confirmed),
                )
                .await
            }
        };
        let failure = match saved {
            Ok(Ok(())) => {
                copy.held = Some((bytes.clone(), confirmed));
                copy.has_warned = false;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("{}: writing takes too long", copy.file.path().display()),
        };
        if !std::mem::replace(&mut copy.has_warned, true) {
            warn!(keyring = %self.keyring.name(), "a restart while the location is down would fail: {failure}");
        }
    }
}
