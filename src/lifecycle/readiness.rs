use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    keyring::Slot,
    refresh::Keyring,
    render::{Render, Renders},
    secrets::{Secret, Secrets},
};

/// Whether the sidecar may get traffic: once every keyring has been able to encrypt and every required secret and rendered file was there, until draining begins. A refresh that fails later
/// doesn't change it, for what is in memory goes on serving (I7).
pub struct Readiness {
    keyrings: Vec<Arc<Keyring>>,
    required: Vec<Arc<Secret>>,
    files: Vec<Arc<Render>>,
    was_ready: AtomicBool,
    draining: CancellationToken,
    clock: Clock,
}

impl Readiness {
    /// Not ready yet.
    pub fn new(
        keyrings: Vec<Arc<Keyring>>,
        secrets: &Secrets,
        renders: &Renders,
        draining: CancellationToken,
        clock: Clock,
    ) -> Self {
        let required = secrets
            .all()
            .into_iter()
            .filter(|secret| secret.settings().required)
            .collect();
        let files = renders
            .all()
            .iter()
            .filter(|render| render.settings().required)
            .cloned()
            .collect();
        Self {
            keyrings,
            required,
            files,
            was_ready: AtomicBool::new(false),
            draining,
            clock,
        }
    }

    /// What is awaited, a line each; empty when ready.
    pub fn pending(&self) -> Vec<String> {
        if self.draining.is_cancelled() {
            return vec!["draining: no new requests, please".into()];
        }
        if self.was_ready.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let keyrings = self
            .keyrings
            .iter()
            .filter_map(|keyring| self.reason(keyring));
        let secrets = self.required.iter().filter_map(|secret| missing(secret));
        let files = self.files.iter().filter_map(|file| unwritten(file));
        let pending: Vec<String> = keyrings.chain(secrets).chain(files).collect();
        if pending.is_empty() {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        pending
    }

    /// Resolves when all is ready.
    pub async fn reached(&self) {
        for keyring in &self.keyrings {
            let mut generations = keyring.generations();
            // The keyring lives as long as this, so the channel doesn't close.
            while self.reason(keyring).is_some() && generations.changed().await.is_ok() {}
        }
        for secret in &self.required {
            let mut attempts = secret.reads();
            while missing(secret).is_some() && attempts.changed().await.is_ok() {}
        }
        for file in &self.files {
            let mut attempts = file.attempts();
            while unwritten(file).is_some() && attempts.changed().await.is_ok() {}
        }
        // From here on it stays ready, whether or not anybody asks.
        self.was_ready.store(true, Ordering::Relaxed);
    }

    fn reason(&self, keyring: &Keyring) -> Option<String> {
        let name = keyring.name();
        let snapshot = keyring.snapshot();
        let Some(table) = snapshot.as_ref().map(|snapshot| &snapshot.table) else {
            let failure = keyring.status().failure.map_or_else(
                || "its manifest is being read".into(),
                |(_, failure)| failure.message,
            );
            return Some(format!("keyring {name}: {failure}"));
        };
        let now = self.clock.now();
        if table.has_open_primary(now) {
            return None;
        }
        let why = match table
            .primary(now)
            .and_then(|primary| Some((primary, table.slot(primary)?)))
        {
            Some((primary, Slot::Unopened(reason))) => {
                format!("its primary, version {primary}, is not open: {reason}")
            }
            _ => format!("no version is activated for wave {} yet", table.wave()),
        };
        Some(format!("keyring {name}: {why}"))
    }
}

fn missing(secret: &Secret) -> Option<String> {
    let standing = secret.status();
    if standing.current.is_some() {
        return None;
    }
    let why = standing
        .failure
        .map_or_else(|| "it is being read".into(), |(_, error)| error.to_string());
    Some(format!("secret {}: {why}", secret.name()))
}

fn unwritten(render: &Render) -> Option<String> {
    let status = render.status();
    if status.content.is_some() {
        return None;
    }
    let why = status.failure.map_or_else(
        || "it is being rendered".into(),
        |(_, failure)| failure.message,
    );
    Some(format!("file {}: {why}", render.settings().file.display()))
}
