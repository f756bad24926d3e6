use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    keyring::Slot,
    refresh::Keyring,
    render::{Render, Renders},
    secrets::{Secret, Secrets},
};

/// Reports whether the sidecar may receive traffic.
///
/// It is ready once every keyring can encrypt and every required secret and rendered file is
/// present, and stays ready until it drains. A refresh that fails later doesn't change that,
/// because the sidecar keeps serving from memory (I7).
pub struct Readiness {
    keyrings: Vec<Arc<Keyring>>,
    secrets: Arc<Secrets>,
    renders: Arc<Renders>,
    /// Changes with what there is to wait for.
    reconsidered: watch::Sender<()>,
    was_ready: AtomicBool,
    draining: CancellationToken,
    clock: Clock,
}

impl Readiness {
    /// Watches `keyrings`, and those of `secrets` and `renders` that are required.
    pub fn new(
        keyrings: Vec<Arc<Keyring>>,
        secrets: Arc<Secrets>,
        renders: Arc<Renders>,
        draining: CancellationToken,
        clock: Clock,
    ) -> Self {
        Self {
            keyrings,
            secrets,
            renders,
            reconsidered: watch::Sender::new(()),
            was_ready: AtomicBool::new(false),
            draining,
            clock,
        }
    }

    /// Looks again at which secrets and files there are, and which of them are required. A sidecar
    /// that was ready stays so.
    pub fn reconsider(&self) {
        self.reconsidered.send_replace(());
    }

    fn required_secrets(&self) -> Vec<Arc<Secret>> {
        let mut secrets = self.secrets.all();
        secrets.retain(|secret| secret.is_required());
        secrets
    }

    fn required_files(&self) -> Vec<Arc<Render>> {
        let renders = self.renders.all();
        let required = renders.iter().filter(|render| render.settings().required);
        required.cloned().collect()
    }

    /// Returns what is pending, one line each. It is empty once the sidecar is ready.
    pub fn pending(&self) -> Vec<String> {
        if self.draining.is_cancelled() {
            return vec!["draining: new requests are not accepted".into()];
        }
        if self.was_ready.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let keyrings = self
            .keyrings
            .iter()
            .filter_map(|keyring| self.pending_keyring(keyring));
        let (secrets, files) = (self.required_secrets(), self.required_files());
        let secrets = secrets.iter().filter_map(|secret| pending_secret(secret));
        let files = files.iter().filter_map(|file| pending_file(file));
        let pending: Vec<String> = keyrings.chain(secrets).chain(files).collect();
        if pending.is_empty() {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        pending
    }

    /// Resolves once nothing is pending.
    pub async fn reached(&self) {
        let mut reconsidered = self.reconsidered.subscribe();
        loop {
            tokio::select! {
                () = self.everything() => break,
                // The sender lives as long as `self`, so this isn't an error.
                _ = reconsidered.changed() => {}
            }
        }
        // From now on it stays ready, even if no one has called `pending` yet.
        self.was_ready.store(true, Ordering::Relaxed);
    }

    async fn everything(&self) {
        for keyring in &self.keyrings {
            let mut generations = keyring.generations();
            // The keyring lives as long as `self`, so the channel doesn't close.
            while self.pending_keyring(keyring).is_some() && generations.changed().await.is_ok() {}
        }
        for secret in &self.required_secrets() {
            let mut attempts = secret.reads();
            while pending_secret(secret).is_some() && attempts.changed().await.is_ok() {}
        }
        for file in &self.required_files() {
            let mut attempts = file.attempts();
            while pending_file(file).is_some() && attempts.changed().await.is_ok() {}
        }
    }

    fn pending_keyring(&self, keyring: &Keyring) -> Option<String> {
        let name = keyring.name();
        let snapshot = keyring.snapshot();
        let Some(table) = snapshot.as_ref().map(|snapshot| &snapshot.table) else {
            let failure = keyring.status().failure.map_or_else(
                || "waiting for its manifest".into(),
                |(_, failure)| failure.message,
            );
            return Some(format!("keyring {name}: {failure}"));
        };
        let now = self.clock.now();
        if table.has_unwrapped_primary(now) {
            return None;
        }
        let why = match table
            .primary(now)
            .and_then(|primary| Some((primary, table.slot(primary)?)))
        {
            Some((primary, Slot::NotUnwrapped(reason))) => {
                format!("its primary, version {primary}, is not unwrapped: {reason}")
            }
            _ => format!("no version is activated for wave {} yet", table.wave()),
        };
        Some(format!("keyring {name}: {why}"))
    }
}

fn pending_secret(secret: &Secret) -> Option<String> {
    let standing = secret.status();
    if standing.current.is_some() {
        return None;
    }
    let why = standing.failure.map_or_else(
        || "waiting for its value".into(),
        |(_, error)| error.to_string(),
    );
    Some(format!("secret {}: {why}", secret.name()))
}

fn pending_file(render: &Render) -> Option<String> {
    let status = render.status();
    if status.content.is_some() {
        return None;
    }
    let why = status.failure.map_or_else(
        || "waiting to be rendered".into(),
        |(_, failure)| failure.message,
    );
    Some(format!("file {}: {why}", render.settings().file.display()))
}
