//! What a rollout does: the optional steps and their limits. Their order is fixed, so a strategy
//! can't skip a proof or activate a version that is not distributed.

use serde::{Deserialize, Serialize};

use super::{analysis::Analysis, order::ApprovalRule};
use crate::model::{KekUri, Span, Wave};

/// The settings of a rollout, from a file or built in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strategy {
    /// Its name, for reports.
    pub name: String,
    /// How often sidecars are asked while the rollout waits for them.
    #[serde(default = "default_poll")]
    pub poll: Span,
    /// What happens when a step fails after the first activation.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Names of sidecars that may be unreachable or late.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub max_unavailable: Vec<String>,
    /// Whose approvals the steps need that ask for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<ApprovalRule>,
    /// The backup that is made and verified first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackUp>,
    /// How the new version is wrapped.
    #[serde(default)]
    pub generate: Generate,
    /// How long the new version may take to reach every sidecar.
    #[serde(default)]
    pub distribute: Within,
    /// How long sidecars may take to prove that they have the key.
    #[serde(default)]
    pub prove: Within,
    /// The waves, in order. Without any, those of the fleet, the one with the fewest sidecars
    /// first, each with the steps of `each_wave`.
    #[serde(default, rename = "wave", skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<WaveSteps>,
    /// The steps of each wave, if `wave` names none.
    #[serde(default)]
    pub each_wave: AfterActivation,
    /// Waits until the old version is out of use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observe: Option<Observe>,
    /// Disables the old version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable: Option<Retire>,
    /// Destroys the old version after the waiting times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroy: Option<Retire>,
}

/// What happens when a step fails after the first activation. Before it, there is nothing to roll
/// back, and the rollout halts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Every wave gets its former primary back.
    #[default]
    Rollback,
    /// The rollout halts and waits for a person.
    Halt,
}

/// A backup: a new file in `folder`, encrypted for the recipients and read back with an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackUp {
    /// The folder on the signer's machine.
    pub folder: String,
    /// A file of age recipients, one a line.
    pub recipients_file: String,
    /// A file of age identities, of which one can decrypt the backup.
    pub identity_file: String,
}

/// How the new version is wrapped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// The KEKs; without any, those of the newest version.
    #[serde(default, rename = "kek", skip_serializing_if = "Vec::is_empty")]
    pub keks: Vec<KekUri>,
}

/// A time limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Within {
    /// After this, the step fails.
    pub within: Span,
}

impl Default for Within {
    fn default() -> Self {
        Self {
            within: Span::from_secs(600),
        }
    }
}

/// One wave: the version becomes its primary, and then these steps follow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaveSteps {
    /// The wave.
    pub name: Wave,
    /// How long its sidecars may take to encrypt with the version.
    #[serde(default = "default_within")]
    pub within: Span,
    /// Watches the wave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak: Option<Soak>,
    /// Waits for a person or a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
}

/// What follows the activation of any wave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AfterActivation {
    /// How long the wave's sidecars may take to encrypt with the version.
    #[serde(default = "default_within")]
    pub within: Span,
    /// Watches the wave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak: Option<Soak>,
    /// Waits for a person or a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
}

impl Default for AfterActivation {
    fn default() -> Self {
        Self {
            within: default_within(),
            soak: None,
            pause: None,
        }
    }
}

/// Watches the sidecars of a wave for a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Soak {
    /// For how long.
    #[serde(rename = "for")]
    pub time: Span,
    /// What is measured, and when it fails.
    #[serde(default)]
    pub analysis: Analysis,
}

/// Waits for a person or a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// What it waits for.
    pub until: Until,
}

/// What a pause waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// `rollout promote` by the person who runs it.
    Promoted,
    /// The approvals of the strategy's rule.
    Approval,
    /// A time.
    Time(jiff::Timestamp),
}

/// Waits until no sidecar used the old version for the keyring's `quiet_period`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observe {
    /// After this, the rollout pauses and asks. Without it, it waits as long as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Span>,
}

/// Disables or destroys the old version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retire {
    /// Whether the step needs the approvals of the strategy's rule.
    #[serde(default)]
    pub approval: bool,
}

fn default_poll() -> Span {
    Span::from_secs(5)
}

fn default_within() -> Span {
    Within::default().within
}

impl Strategy {
    /// The names of the built-in strategies.
    pub const BUILT_IN: [&str; 3] = ["quick", "standard", "careful"];

    /// Returns a built-in strategy.
    pub fn built_in(name: &str) -> Option<Self> {
        let each_wave = |soak: Span, pause| AfterActivation {
            soak: Some(Soak {
                time: soak,
                analysis: Analysis::default(),
            }),
            pause,
            ..AfterActivation::default()
        };
        let plain = Self {
            name: name.into(),
            poll: default_poll(),
            on_failure: OnFailure::Rollback,
            max_unavailable: Vec::new(),
            approvals: None,
            backup: None,
            generate: Generate::default(),
            distribute: Within::default(),
            prove: Within::default(),
            waves: Vec::new(),
            each_wave: AfterActivation::default(),
            observe: None,
            disable: None,
            destroy: None,
        };
        match name {
            "quick" => Some(Self {
                poll: Span::from_secs(1),
                each_wave: each_wave(Span::from_secs(10), None),
                ..plain
            }),
            "standard" => Some(Self {
                each_wave: each_wave(Span::from_secs(3600), None),
                ..plain
            }),
            "careful" => Some(Self {
                each_wave: each_wave(
                    Span::from_days(1),
                    Some(Pause {
                        until: Until::Promoted,
                    }),
                ),
                observe: Some(Observe::default()),
                disable: Some(Retire::default()),
                ..plain
            }),
            _ => None,
        }
    }

    /// Reads a strategy from TOML.
    ///
    /// # Errors
    /// The first syntax error with its line, or every contradiction.
    pub fn from_toml(text: &str) -> Result<Self, Vec<String>> {
        let strategy: Self =
            toml::from_str(text).map_err(|error| vec![error.to_string().trim_end().into()])?;
        let problems = strategy.problems();
        if problems.is_empty() {
            Ok(strategy)
        } else {
            Err(problems)
        }
    }

    /// Returns every contradiction in the strategy.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.poll.0.is_zero() {
            problems.push("poll is zero; sidecars can't be asked all the time".into());
        }
        for (index, steps) in self.waves.iter().enumerate() {
            if self.waves[..index]
                .iter()
                .any(|other| other.name == steps.name)
            {
                problems.push(format!("wave {} is listed twice", steps.name));
            }
        }
        if !self.waves.is_empty() && self.each_wave != AfterActivation::default() {
            problems.push("each_wave applies only if no [[wave]] is listed; remove one".into());
        }
        if self.destroy.is_some() && self.disable.is_none() {
            problems.push("destroy needs [disable]: only a disabled version is destroyed".into());
        }
        if self.disable.is_some() && self.observe.is_none() {
            problems.push("disable needs [observe], which collects the evidence".into());
        }
        let asks = self.pauses().any(|pause| pause.until == Until::Approval)
            || [&self.disable, &self.destroy]
                .into_iter()
                .flatten()
                .any(|retire| retire.approval);
        match &self.approvals {
            None if asks => {
                problems.push("a step needs approvals, but [approvals] is missing".into())
            }
            Some(rule) => problems.extend(rule.problems()),
            None => {}
        }
        for soak in self.soaks() {
            problems.extend(soak.analysis.problems());
        }
        problems
    }

    fn pauses(&self) -> impl Iterator<Item = &Pause> {
        let named = self.waves.iter().filter_map(|steps| steps.pause.as_ref());
        named.chain(&self.each_wave.pause)
    }

    fn soaks(&self) -> impl Iterator<Item = &Soak> {
        let named = self.waves.iter().filter_map(|steps| steps.soak.as_ref());
        named.chain(&self.each_wave.soak)
    }
}
