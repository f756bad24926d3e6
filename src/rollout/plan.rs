//! A plan: the steps of one rollout, in order, with everything that they depend on.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    assess::Assessment,
    order::{Base, Requester},
    strategy::{AfterActivation, BackUp, OnFailure, Pause, Soak, Strategy, Until, WaveSteps},
};
use crate::{
    crypto::{KeyringId, fingerprint},
    keyring::{Base64, Document, WaveSelector},
    model::{KekUri, KeyringName, Span, Wave},
};

/// Separates the digest of a plan from that of other documents.
const DOMAIN: &[u8] = b"sidekey plan v1\0";

/// How long an emergency waits for sidecars to receive the version.
const EMERGENCY_DISTRIBUTION: Span = Span::from_secs(60);

/// What a rollout is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "intent", deny_unknown_fields)]
pub enum Intent {
    /// A new version replaces the primary.
    Rotate,
    /// A version that exists and was never activated replaces the primary.
    Adopt {
        /// The version.
        version: u32,
    },
    /// A new version replaces one that others may know, everywhere at once.
    ReplaceCompromised {
        /// The compromised version.
        version: u32,
    },
}

/// The steps of one rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The keyring.
    pub keyring: KeyringName,
    /// Its id.
    pub keyring_id: KeyringId,
    /// The manifest that it was made for.
    pub base: Base,
    /// What it is for.
    pub intent: Intent,
    /// Who runs it.
    pub requester: Requester,
    /// SHA-256 of the start order that it follows, if a signer runs it for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Base64>,
    /// When it was made.
    pub created_at: Timestamp,
    /// The primary of each wave before the rollout.
    pub former: Vec<FormerPrimary>,
    /// The version that the rollout replaces.
    pub replaced: NamedVersion,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The strategy that it follows.
    pub strategy: Strategy,
}

/// The primary of a wave before a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FormerPrimary {
    /// The wave.
    pub wave: WaveSelector,
    /// Its primary.
    pub version: u32,
}

/// A version, with the succession key that tells it from one of the same number on another branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedVersion {
    /// The version.
    pub version: u32,
    /// Its succession key.
    pub key: Base64,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do", deny_unknown_fields)]
pub enum Step {
    /// Make and verify a backup.
    BackUp {
        /// Where, and for whom.
        to: BackUp,
    },
    /// Create the version.
    Generate {
        /// Its KEKs; empty for those of the newest version.
        keks: Vec<KekUri>,
    },
    /// Use a version that exists.
    Adopt {
        /// The version.
        version: u32,
    },
    /// Wait until every sidecar has the version.
    Distribute {
        /// The time limit.
        within: Span,
    },
    /// Let every sidecar prove that it has the key.
    Prove {
        /// The time limit.
        within: Span,
    },
    /// Make the version the primary of a wave, and wait until its sidecars encrypt with it.
    Activate {
        /// The wave.
        wave: WaveSelector,
        /// The time limit.
        within: Span,
    },
    /// Watch a wave.
    Soak {
        /// The wave.
        wave: Wave,
        /// For how long, and what is measured.
        soak: Soak,
    },
    /// Wait for a person or a time.
    Pause {
        /// What for.
        until: Until,
    },
    /// Activate the version for every wave and flag the compromised one, in one generation.
    Replace {
        /// The compromised version.
        compromised: u32,
        /// How long sidecars may take to encrypt with the new version.
        within: Span,
    },
    /// Wait until the old version is out of use.
    Observe {
        /// The time limit, if there is one.
        within: Option<Span>,
    },
    /// Disable the old version.
    Disable {
        /// Whether it needs approvals.
        approval: bool,
    },
    /// Wait until the old version may be destroyed.
    Wait,
    /// Destroy the old version.
    Destroy {
        /// Whether it needs approvals.
        approval: bool,
    },
    /// Remove the rollout's mark from the manifest.
    Finish,
}

impl Step {
    /// Describes the step in a few words.
    pub fn describe(&self) -> String {
        match self {
            Self::BackUp { to } => format!("back up to {}", to.folder),
            Self::Generate { .. } => "generate a version".into(),
            Self::Adopt { version } => format!("adopt version {version}"),
            Self::Distribute { within } => format!("distribute, within {within}"),
            Self::Prove { within } => format!("prove, within {within}"),
            Self::Activate { wave, within } => match wave {
                WaveSelector::One(wave) => format!("activate wave {wave}, within {within}"),
                WaveSelector::Every => format!("activate every other wave, within {within}"),
            },
            Self::Soak { wave, soak } => format!("soak wave {wave} for {}", soak.time),
            Self::Pause { until } => match until {
                Until::Promoted => "pause until promoted".into(),
                Until::Approval => "pause until approved".into(),
                Until::Time(time) => format!("pause until {time}"),
            },
            Self::Replace { compromised, .. } => {
                format!("activate everywhere and flag version {compromised} as compromised")
            }
            Self::Observe { .. } => "observe until the old version is out of use".into(),
            Self::Disable { approval } => with_approval("disable the old version", *approval),
            Self::Wait => "wait until the old version may be destroyed".into(),
            Self::Destroy { approval } => with_approval("destroy the old version", *approval),
            Self::Finish => "finish".into(),
        }
    }

    /// Returns how long the step takes at least.
    pub fn minimum(&self) -> Span {
        match self {
            Self::Soak { soak, .. } => soak.time,
            _ => Span::from_secs(0),
        }
    }
}

fn with_approval(text: &str, approval: bool) -> String {
    if approval {
        format!("{text}, once approved")
    } else {
        text.into()
    }
}

impl Plan {
    /// Plans a rollout. The assessment has no blockers.
    pub fn new(
        document: &Document,
        assessment: &Assessment,
        strategy: Strategy,
        intent: Intent,
        requester: Requester,
        now: Timestamp,
    ) -> Self {
        let manifest = document.manifest();
        let steps = match &intent {
            Intent::ReplaceCompromised { version } => emergency(&strategy, *version),
            _ => ordinary(&strategy, &intent, &assessment.waves),
        };
        let replaced = match &intent {
            Intent::ReplaceCompromised { version } => *version,
            _ => assessment.former.values().copied().max().unwrap_or(0),
        };
        let key = manifest.version(replaced).map(|found| found.key.clone());
        let former = assessment.former.iter();
        Self {
            keyring: manifest.name.clone(),
            keyring_id: manifest.id,
            base: Base {
                generation: manifest.generation,
                sha256: Base64(document.digest().to_vec()),
            },
            intent,
            requester,
            order: None,
            created_at: now,
            former: former
                .map(|(wave, version)| FormerPrimary {
                    wave: wave.clone(),
                    version: *version,
                })
                .collect(),
            replaced: NamedVersion {
                version: replaced,
                key: key.unwrap_or(Base64(Vec::new())),
            },
            steps,
            strategy,
        }
    }

    /// Returns the SHA-256 of the plan's canonical form (RFC 8785), which the manifest carries
    /// while the rollout is active.
    pub fn digest(&self) -> [u8; 32] {
        let mut bytes = DOMAIN.to_vec();
        match serde_json_canonicalizer::to_vec(self) {
            Ok(canonical) => bytes.extend(canonical),
            Err(error) => unreachable!("a plan has only strings and finite numbers: {error}"),
        }
        fingerprint(&bytes)
    }

    /// Returns the primary of each wave before the rollout.
    pub fn former_primaries(&self) -> BTreeMap<WaveSelector, u32> {
        let former = self.former.iter();
        former
            .map(|former| (former.wave.clone(), former.version))
            .collect()
    }

    /// Returns whether a failure after the first activation gives every wave its former primary.
    pub fn rolls_back(&self) -> bool {
        self.strategy.on_failure == OnFailure::Rollback && self.can_roll_back()
    }

    /// Returns whether there is a way back: never to a compromised version.
    pub fn can_roll_back(&self) -> bool {
        !matches!(self.intent, Intent::ReplaceCompromised { .. })
    }
}

fn ordinary(strategy: &Strategy, intent: &Intent, waves: &BTreeMap<Wave, usize>) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(to) = &strategy.backup {
        steps.push(Step::BackUp { to: to.clone() });
    }
    steps.push(match intent {
        Intent::Adopt { version } => Step::Adopt { version: *version },
        _ => Step::Generate {
            keks: strategy.generate.keks.clone(),
        },
    });
    steps.push(Step::Distribute {
        within: strategy.distribute.within,
    });
    steps.push(Step::Prove {
        within: strategy.prove.within,
    });
    for WaveSteps {
        name,
        within,
        soak,
        pause,
    } in planned_waves(strategy, waves)
    {
        steps.push(Step::Activate {
            wave: WaveSelector::One(name.clone()),
            within,
        });
        steps.extend(soak.map(|soak| Step::Soak { wave: name, soak }));
        steps.extend(pause.map(|Pause { until }| Step::Pause { until }));
    }
    // Waves without a sidecar now have a primary, too: the old one could never be retired.
    steps.push(Step::Activate {
        wave: WaveSelector::Every,
        within: strategy.each_wave.within,
    });
    if let Some(observe) = &strategy.observe {
        steps.push(Step::Observe {
            within: observe.within,
        });
    }
    if let Some(disable) = &strategy.disable {
        steps.push(Step::Disable {
            approval: disable.approval,
        });
    }
    if let Some(destroy) = &strategy.destroy {
        steps.push(Step::Wait);
        steps.push(Step::Destroy {
            approval: destroy.approval,
        });
    }
    steps.push(Step::Finish);
    steps
}

/// Rotates, then replaces the compromised version everywhere at once.
fn emergency(strategy: &Strategy, compromised: u32) -> Vec<Step> {
    vec![
        Step::Generate {
            keks: strategy.generate.keks.clone(),
        },
        Step::Distribute {
            within: strategy.distribute.within.min(EMERGENCY_DISTRIBUTION),
        },
        Step::Replace {
            compromised,
            within: strategy.each_wave.within,
        },
        Step::Finish,
    ]
}

/// Returns the strategy's waves or, if it names none, the fleet's: the one with the fewest sidecars
/// first.
fn planned_waves(strategy: &Strategy, waves: &BTreeMap<Wave, usize>) -> Vec<WaveSteps> {
    if !strategy.waves.is_empty() {
        return strategy.waves.clone();
    }
    let mut sizes: Vec<(usize, &Wave)> = waves.iter().map(|(wave, size)| (*size, wave)).collect();
    sizes.sort();
    let AfterActivation {
        within,
        soak,
        pause,
    } = &strategy.each_wave;
    sizes
        .into_iter()
        .map(|(_, name)| WaveSteps {
            name: name.clone(),
            within: *within,
            soak: soak.clone(),
            pause: pause.clone(),
        })
        .collect()
}
