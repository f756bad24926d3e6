//! What the sidecars say, as the rollout sees it.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{keyring::WaveSelector, model::Wave};

/// The answers of all sidecars to one round of questions, by the sidecar's name.
#[derive(Debug, Clone, Default)]
pub struct FleetView {
    /// Each sidecar, or why it did not answer.
    pub sidecars: BTreeMap<String, Result<SidecarView, String>>,
}

/// What one sidecar says about the keyring.
#[derive(Debug, Clone)]
pub struct SidecarView {
    /// A random id of the process. Counters start again when it changes.
    pub instance: String,
    /// Whether it has joined a hub, whose ledger counts its uses.
    pub is_joined: bool,
    /// Whether another live sidecar has the same name, so that this one has that of its instance.
    pub shares_name: bool,
    /// The wave that the keyring is served for.
    pub wave: Wave,
    /// Whether the sidecar is ready.
    pub ready: bool,
    /// The time on its clock.
    pub now: Option<Timestamp>,
    /// The id of its keyring of this name, in hexadecimal digits.
    pub keyring_id: String,
    /// The generation that it serves.
    pub generation: u64,
    /// The version that it encrypts with.
    pub encrypting: Option<u32>,
    /// Since when it counts uses.
    pub observed_since: Timestamp,
    /// When it stops encrypting unless it can confirm its manifest.
    pub encrypt_until: Timestamp,
    /// Why its last refresh failed.
    pub last_error: Option<String>,
    /// KEKs that fail, each with the reason.
    pub failing_keks: BTreeMap<String, String>,
    /// The versions that it knows.
    pub versions: BTreeMap<u32, VersionView>,
    /// What it did since it started.
    pub counters: Counters,
}

/// A version on one sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VersionView {
    /// Why it isn't unwrapped.
    pub unopened: Option<String>,
    /// Whether that is because it waits for its turn.
    pub waits: bool,
    /// When it was last used.
    pub last_used: Option<Timestamp>,
    /// How many requests use it at present, and may go on to.
    pub open: u64,
    /// When a request was last refused because it is disabled.
    pub last_refused: Option<Timestamp>,
}

/// Messages since the start of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// Messages encrypted.
    pub encrypted: u64,
    /// Messages decrypted.
    pub decrypted: u64,
    /// Messages that failed, by stable code (docs/errors.md).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, u64>,
}

impl Counters {
    /// Returns what was added since `earlier`, a count of the same process.
    pub fn since(&self, earlier: &Self) -> Self {
        let failed = self.failed.iter().map(|(code, count)| {
            let before = earlier.failed.get(code).copied().unwrap_or_default();
            (code.clone(), count.saturating_sub(before))
        });
        Self {
            encrypted: self.encrypted.saturating_sub(earlier.encrypted),
            decrypted: self.decrypted.saturating_sub(earlier.decrypted),
            failed: failed.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Adds the counts of another process.
    pub fn add(&mut self, other: &Self) {
        self.encrypted += other.encrypted;
        self.decrypted += other.decrypted;
        for (code, count) in &other.failed {
            *self.failed.entry(code.clone()).or_default() += count;
        }
    }

    /// Returns how many messages failed with one of `codes`.
    pub fn failed_with(&self, codes: &[&str]) -> u64 {
        let counts = self.failed.iter();
        counts
            .filter(|(code, _)| codes.contains(&code.as_str()))
            .map(|(_, count)| count)
            .sum()
    }
}

impl FleetView {
    /// Returns the sidecars that answered.
    pub fn answering(&self) -> impl Iterator<Item = (&String, &SidecarView)> {
        let answers = self.sidecars.iter();
        answers.filter_map(|(name, view)| Some((name, view.as_ref().ok()?)))
    }

    /// Returns the sidecars of a wave that answered.
    pub fn of<'a>(&'a self, wave: &'a WaveSelector) -> impl Iterator<Item = &'a SidecarView> {
        let sidecars = self.answering().map(|(_, sidecar)| sidecar);
        sidecars.filter(move |sidecar| match wave {
            WaveSelector::Every => true,
            WaveSelector::One(wave) => sidecar.wave == *wave,
        })
    }

    /// Returns how many sidecars each wave has.
    pub fn waves(&self) -> BTreeMap<Wave, usize> {
        let mut waves = BTreeMap::new();
        for (_, sidecar) in self.answering() {
            *waves.entry(sidecar.wave.clone()).or_default() += 1;
        }
        waves
    }
}
