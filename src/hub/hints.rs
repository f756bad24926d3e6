//! Hints: what the sidecars were last told of each keyring, so that those that connect later, or
//! were told nothing, are told as well.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
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

/// By how much a hint may be ahead of what connected sidecars report. Each change of a manifest
/// adds one.
const FARTHEST: u64 = 1000;

/// The last hint of each keyring, without its manifest: those who connect later read it from its
/// location.
#[derive(Default)]
pub(super) struct Hints {
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    /// Counts the hints.
    number: u64,
    hints: BTreeMap<KeyringName, (u64, Hint)>,
}

impl Hints {
    /// Sends a hint to every sidecar that may serve the keyring and isn't known to have the
    /// generation. Returns the names of those that have reported.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if the generation is far beyond what sidecars report.
    pub(super) fn send(&self, streams: &Streams, hint: Hint) -> Result<Vec<String>, Problem> {
        let all = streams.all();
        let highest = all.iter().filter_map(|live| live.generation(&hint.keyring));
        if let Some(highest) = highest.max()
            && hint.generation > highest.saturating_add(FARTHEST)
        {
            let detail = format!(
                "the sidecars of keyring {} have generation {highest} at most, so {} is wrong",
                hint.keyring, hint.generation
            );
            return Err(Problem::new(Code::InvalidRequest, detail));
        }
        let event = StreamEvent::Hint(hint.clone());
        let number = self.remember(&hint);
        let mut sent = Vec::new();
        let Some(event) = text(&event) else {
            return Ok(sent);
        };
        for live in all {
            if live.is_behind(&hint) {
                live.tell(&hint.keyring, number);
                if streams.send(&live, event.clone()) {
                    sent.extend(live.name());
                }
            }
        }
        sent.sort();
        Ok(sent)
    }

    /// The last one counts: the generation of an earlier one may have been wrong. Without room, the
    /// hint of the keyring that was named least recently is forgotten.
    fn remember(&self, hint: &Hint) -> u64 {
        let mut last = self.lock();
        last.number += 1;
        let number = last.number;
        if last.hints.len() >= MAX_KEYRINGS && !last.hints.contains_key(&hint.keyring) {
            let oldest = last.hints.iter().min_by_key(|(_, (number, _))| *number);
            if let Some(oldest) = oldest.map(|(keyring, _)| keyring.clone()) {
                last.hints.remove(&oldest);
            }
        }
        let hint = Hint {
            manifest: None,
            ..hint.clone()
        };
        last.hints.insert(hint.keyring.clone(), (number, hint));
        number
    }

    /// Tells a sidecar once what its report shows it doesn't know.
    pub(super) fn catch_up(&self, streams: &Streams, report: &Report) {
        let Some(live) = streams.of(&report.instance) else {
            return;
        };
        for usage in &report.usage {
            if let Some((number, hint)) = self.of(&usage.name)
                && live.is_behind(&hint)
                && live.tell(&hint.keyring, number)
                && let Some(event) = text(&StreamEvent::Hint(hint))
            {
                streams.send(&live, event);
            }
        }
    }

    fn of(&self, keyring: &KeyringName) -> Option<(u64, Hint)> {
        self.lock().hints.get(keyring).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hint_of_a_keyring_counts_and_the_oldest_keyring_gives_way() {
        let hints = Hints::default();
        let hint = |keyring: &str, generation| Hint {
            keyring: keyring.parse().expect("a name"),
            generation,
            manifest: Some("text".into()),
        };
        let of = |keyring: &str| hints.of(&keyring.parse().expect("a name"));
        hints.remember(&hint("demo", u64::MAX));
        hints.remember(&hint("demo", 3));
        let (number, last) = of("demo").expect("remembered");
        assert_eq!((number, last.generation, last.manifest), (2, 3, None));
        for keyring in 0..MAX_KEYRINGS {
            hints.remember(&hint(&format!("k{keyring}"), 1));
        }
        assert!(of("demo").is_none() && of("k0").is_some());
    }
}
