//! Hints: what the sidecars were last told of each keyring, so that those that connect later, or
//! were told nothing, are told as well.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::streams::{Streams, text};
use crate::{
    http::problem::Problem,
    model::KeyringName,
    wire::{
        Code,
        hub::{Hint, Report, StreamEvent},
    },
};

/// The most keyrings that are remembered. Operators name them.
const MAX_KEYRINGS: usize = 10_000;

/// The newest hint of each keyring, without its manifest: those who connect later read it from its
/// location.
#[derive(Default)]
pub(super) struct Hints {
    newest: Mutex<BTreeMap<KeyringName, Hint>>,
}

impl Hints {
    /// Sends a hint to every sidecar that may serve the keyring and isn't known to have the
    /// generation. Returns the names of those that have reported.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if too many keyrings were named.
    pub(super) fn send(&self, streams: &Streams, hint: Hint) -> Result<Vec<String>, Problem> {
        let event = StreamEvent::Hint(hint.clone());
        self.remember(&hint)?;
        let mut sent = Vec::new();
        let Some(event) = text(&event) else {
            return Ok(sent);
        };
        for live in streams.all() {
            if live.is_behind(&hint) {
                live.tell(&hint);
                if streams.send(&live, event.clone()) {
                    sent.extend(live.name());
                }
            }
        }
        sent.sort();
        Ok(sent)
    }

    fn remember(&self, hint: &Hint) -> Result<(), Problem> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        match newest.get(&hint.keyring) {
            Some(former) if former.generation > hint.generation => return Ok(()),
            None if newest.len() >= MAX_KEYRINGS => {
                let detail = format!("hints have named {MAX_KEYRINGS} keyrings since the start");
                return Err(Problem::new(Code::Overloaded, detail));
            }
            _ => {}
        }
        let hint = Hint {
            manifest: None,
            ..hint.clone()
        };
        newest.insert(hint.keyring.clone(), hint);
        Ok(())
    }

    /// Tells a sidecar once what its report shows it doesn't know.
    pub(super) fn catch_up(&self, streams: &Streams, report: &Report) {
        let Some(live) = streams.of(&report.instance) else {
            return;
        };
        for usage in &report.usage {
            if let Some(hint) = self.of(&usage.name)
                && live.is_behind(&hint)
                && live.tell(&hint)
                && let Some(event) = text(&StreamEvent::Hint(hint))
            {
                streams.send(&live, event);
            }
        }
    }

    fn of(&self, keyring: &KeyringName) -> Option<Hint> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.get(keyring).cloned()
    }
}
