//! Judges a soak: what the sidecars of a wave did since its activation.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::fleet::Counters;

/// What is measured during a soak, and when it fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// The measures; each must pass.
    #[serde(default = "default_measures", rename = "measure")]
    pub measures: Vec<Measure>,
    /// How many messages the wave must have encrypted by the end of the soak. With fewer, the
    /// rollout pauses and asks.
    #[serde(default = "default_samples")]
    pub minimum_samples: u64,
    /// How many rounds may be inconclusive in a row, because a sidecar of the wave doesn't answer,
    /// before the rollout pauses and asks.
    #[serde(default = "default_inconclusive")]
    pub inconclusive_limit: u32,
}

/// One measure and its limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measure {
    /// What is counted.
    pub of: Counted,
    /// The largest share of messages that may fail, from 0 to 1.
    #[serde(default)]
    pub max_share: f64,
    /// Only report it; never fail.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a measure counts, from the sidecars' own counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counted {
    /// Ciphertexts that could not be authenticated: damaged, or encrypted under another key.
    FailedDecrypts,
    /// Messages under versions that a sidecar doesn't have.
    UnavailableVersions,
    /// Requests to encrypt that no version or lease allowed.
    RefusedEncrypts,
    /// Messages under disabled versions.
    DisabledVersions,
}

impl Counted {
    /// The stable codes that count.
    fn codes(self) -> &'static [&'static str] {
        match self {
            Self::FailedDecrypts => &["decryption_failed"],
            Self::UnavailableVersions => &["key_version_unavailable"],
            Self::RefusedEncrypts => &["no_primary", "lease_expired", "key_lost"],
            Self::DisabledVersions => &["key_version_disabled", "key_version_destroyed"],
        }
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FailedDecrypts => "failed decrypts",
            Self::UnavailableVersions => "unavailable versions",
            Self::RefusedEncrypts => "refused encrypts",
            Self::DisabledVersions => "uses of disabled versions",
        })
    }
}

/// The result of one round of a soak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "reason")]
pub enum Verdict {
    /// Nothing speaks against the version.
    Pass,
    /// A measure is over its limit.
    Fail(String),
    /// Nothing can be said.
    Inconclusive(String),
}

fn default_measures() -> Vec<Measure> {
    [
        Counted::FailedDecrypts,
        Counted::UnavailableVersions,
        Counted::RefusedEncrypts,
        Counted::DisabledVersions,
    ]
    .map(|of| Measure {
        of,
        max_share: 0.0,
        dry_run: false,
    })
    .into()
}

fn default_samples() -> u64 {
    1
}

fn default_inconclusive() -> u32 {
    5
}

impl Default for Analysis {
    fn default() -> Self {
        Self {
            measures: default_measures(),
            minimum_samples: default_samples(),
            inconclusive_limit: default_inconclusive(),
        }
    }
}

impl Analysis {
    /// Returns every contradiction in the settings.
    pub(super) fn problems(&self) -> Vec<String> {
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        let mut problems: Vec<String> = self
            .measures
            .iter()
            .filter(|measure| !is_share(measure.max_share))
            .map(|measure| format!("max_share of {} must be between 0 and 1", measure.of))
            .collect();
        if self.measures.is_empty() {
            problems.push("an analysis without a measure can't fail; remove the soak".into());
        }
        problems
    }

    /// Judges what the sidecars of a wave counted since its activation. Whether there were enough
    /// messages is decided at the end.
    pub fn judge(&self, counted: &Counters) -> Verdict {
        let over = self.over(counted, false);
        if over.is_empty() {
            Verdict::Pass
        } else {
            Verdict::Fail(over.join(", "))
        }
    }

    /// Returns the measures over their limit, of those that only report or the others.
    fn over(&self, counted: &Counters, dry_run: bool) -> Vec<String> {
        let failures: u64 = counted.failed.values().sum();
        let total = counted.encrypted + counted.decrypted + failures;
        let measures = self.measures.iter();
        measures
            .filter(|measure| measure.dry_run == dry_run)
            .filter_map(|measure| {
                let failed = counted.failed_with(measure.of.codes());
                // `total` is not 0 if `failed` isn't.
                let is_over = failed > 0 && failed as f64 / total as f64 > measure.max_share;
                is_over.then(|| format!("{}: {failed} of {total} messages", measure.of))
            })
            .collect()
    }

    /// Returns the measures over their limit that only report.
    pub(super) fn dry_runs(&self, counted: &Counters) -> Vec<String> {
        self.over(counted, true)
    }

    /// Judges a soak that is over.
    pub fn conclude(&self, counted: &Counters) -> Verdict {
        let verdict = self.judge(counted);
        // Decrypts may be of the old version.
        let samples = counted.encrypted;
        if verdict == Verdict::Pass && samples < self.minimum_samples {
            return Verdict::Inconclusive(format!(
                "{samples} messages were encrypted, fewer than the {} that a verdict needs",
                self.minimum_samples
            ));
        }
        verdict
    }
}
