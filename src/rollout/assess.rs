//! Assesses a keyring and its fleet before anything is changed: what would stop a rollout, and what
//! a person should know.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    fleet::{FleetView, SidecarView},
    plan::Intent,
    strategy::Strategy,
};
use crate::{
    encoding::to_hex,
    keyring::{
        CLOCK_TOLERANCE, Class, Document, Manifest, PrimaryPeriod, State, WaveSelector, primaries,
        primary_at, primary_period, scheduled,
    },
    model::Wave,
};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whether it stops the rollout.
    pub level: Level,
    /// A stable code (docs/rollout.md).
    pub code: String,
    /// What was found, on what, and what to do.
    pub message: String,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The rollout can't start.
    Blocker,
    /// A person should know.
    Warning,
    /// Nothing is wrong.
    Note,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocker => "blocker",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// The state of a keyring and its fleet before a rollout.
#[derive(Debug, Clone)]
pub struct Assessment {
    /// What was found, the most serious first.
    pub findings: Vec<Finding>,
    /// The primary of each wave.
    pub former: BTreeMap<WaveSelector, u32>,
    /// How many sidecars each wave has.
    pub waves: BTreeMap<Wave, usize>,
}

impl Assessment {
    /// Returns what stops the rollout.
    pub fn blockers(&self) -> impl Iterator<Item = &Finding> {
        let findings = self.findings.iter();
        findings.filter(|finding| finding.level == Level::Blocker)
    }
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, code: &str, message: String) {
        self.0.push(Finding {
            level,
            code: code.into(),
            message,
        });
    }
}

/// Assesses a keyring, whose manifest `document` is trusted, and the answers of its sidecars.
pub fn assess(
    document: &Document,
    fleet: &FleetView,
    strategy: &Strategy,
    intent: &Intent,
    now: Timestamp,
) -> Assessment {
    let manifest = document.manifest();
    let mut findings = Findings(Vec::new());
    let is_emergency = matches!(intent, Intent::ReplaceCompromised { .. });
    assess_versions(manifest, intent, now, &mut findings);
    if !is_emergency {
        assess_unfinished_work(manifest, intent, now, &mut findings);
    }
    assess_backup(manifest, strategy, &mut findings);
    assess_spread(manifest, fleet, (strategy, intent), &mut findings);
    let obstacle = if is_emergency {
        Level::Warning
    } else {
        Level::Blocker
    };
    for (name, sidecar) in &fleet.sidecars {
        let level = if strategy.max_unavailable.contains(name) {
            Level::Warning
        } else {
            obstacle
        };
        let level = (level, is_emergency);
        assess_sidecar(name, sidecar, manifest, now, level, &mut findings);
    }
    if fleet.sidecars.is_empty() {
        let message = "there is no sidecar, so nothing could show that the version arrived; list \
                       them in the fleet file";
        findings.add(obstacle, "no_sidecars", message.into());
    }
    let waves = fleet.waves();
    if !is_emergency {
        assess_waves(&waves, strategy, &mut findings);
        assess_retirement(manifest, strategy, now, &mut findings);
    }
    let mut former: BTreeMap<WaveSelector, u32> = primaries(&manifest.activations, now)
        .into_iter()
        .filter_map(|(wave, primary)| Some((wave, primary?)))
        .collect();
    let planned = strategy.waves.iter().map(|steps| &steps.name);
    for wave in planned.chain(waves.keys()) {
        if let Some(primary) = primary_at(&manifest.activations, now, wave) {
            former.insert(WaveSelector::One(wave.clone()), primary);
        }
    }
    findings.0.sort_by_key(|finding| finding.level);
    Assessment {
        findings: findings.0,
        former,
        waves,
    }
}

fn assess_versions(manifest: &Manifest, intent: &Intent, now: Timestamp, findings: &mut Findings) {
    let Some(newest) = manifest.versions.last() else {
        return;
    };
    let due = newest
        .created_at
        .checked_add(manifest.policy.rotate_every.0);
    let due = due.unwrap_or(Timestamp::MAX);
    let message = format!(
        "version {} was created at {}; rotate_every is {}",
        newest.version, newest.created_at, manifest.policy.rotate_every
    );
    if due <= now {
        findings.add(Level::Note, "rotation_due", message);
    } else {
        findings.add(Level::Note, "rotation_not_due", message);
    }
    if let Intent::ReplaceCompromised { version } = intent
        && manifest
            .version(*version)
            .is_none_or(|found| found.state == State::Destroyed)
    {
        findings.add(
            Level::Blocker,
            "no_such_version",
            format!("version {version} doesn't exist or is destroyed"),
        );
    }
    if let Intent::Adopt { version } = intent {
        let is_usable = manifest
            .version(*version)
            .is_some_and(|found| found.state == State::Enabled && !found.compromised)
            && primary_period(&manifest.activations, *version, now) == PrimaryPeriod::Never;
        if !is_usable {
            findings.add(
                Level::Blocker,
                "not_adoptable",
                format!("version {version} can't be adopted: it isn't pending"),
            );
        }
    }
}

fn assess_unfinished_work(
    manifest: &Manifest,
    intent: &Intent,
    now: Timestamp,
    findings: &mut Findings,
) {
    if let Some(mark) = &manifest.rollout {
        findings.add(
            Level::Blocker,
            "rollout_active",
            format!(
                "rollout {} is active, at step {}; follow it with `rollout status`, or end it with \
                 `rollout abort` or `rollout rollback`",
                mark.id, mark.step
            ),
        );
    }
    for version in &manifest.versions {
        let is_pending = version.state == State::Enabled
            && !version.compromised
            && primary_period(&manifest.activations, version.version, now) == PrimaryPeriod::Never;
        let is_adopted = matches!(intent, Intent::Adopt { version: adopted }
            if *adopted == version.version);
        if is_pending && !is_adopted {
            findings.add(
                Level::Blocker,
                "pending_version",
                format!(
                    "version {0} was created at {1} and never activated; use it (--adopt {0}), or \
                     disable it (`keyring disable --version {0}`)",
                    version.version, version.created_at
                ),
            );
        }
    }
    for activation in scheduled(&manifest.activations, now) {
        findings.add(
            Level::Blocker,
            "scheduled_activation",
            format!(
                "version {} becomes the primary of wave {} at {}; wait for that, or activate the \
                 present primary again",
                activation.version, activation.wave, activation.at
            ),
        );
    }
    let present: BTreeMap<WaveSelector, u32> = primaries(&manifest.activations, now)
        .into_iter()
        .filter_map(|(wave, primary)| Some((wave, primary?)))
        .collect();
    let mut versions: Vec<u32> = present.values().copied().collect();
    versions.sort_unstable();
    versions.dedup();
    if let [oldest, .., newest] = versions[..] {
        let waves: Vec<String> = present
            .iter()
            .map(|(wave, version)| format!("{version} in {wave}"))
            .collect();
        findings.add(
            Level::Blocker,
            "mixed_primaries",
            format!(
                "waves have different primaries ({}), so an earlier rotation is half done; finish \
                 it (`keyring activate --version {newest}`) or revert it (`keyring activate \
                 --version {oldest}`)",
                waves.join(", ")
            ),
        );
    }
}

/// What would stop the old version's retirement, weeks later.
fn assess_retirement(
    manifest: &Manifest,
    strategy: &Strategy,
    now: Timestamp,
    findings: &mut Findings,
) {
    let present = primaries(&manifest.activations, now);
    let old: Vec<u32> = present.iter().filter_map(|(_, primary)| *primary).collect();
    let is_backed_up = |version: &u32| {
        let backup = manifest.last_backup.as_ref();
        backup.is_some_and(|backup| backup.newest_version >= *version)
    };
    if strategy.destroy.is_some() && strategy.backup.is_none() && !old.iter().all(is_backed_up) {
        let message = "the strategy destroys the old version, and no verified backup has it; make \
                       one (`keyring backup`), or add [backup]";
        findings.add(Level::Blocker, "destroy_needs_backup", message.into());
    }
    let class = manifest.policy.class;
    if strategy.observe.is_some() && class != Class::Live {
        let message = format!(
            "the strategy observes whether the old version is used, and the class of the keyring \
             is {class}: that it isn't used shows nothing; retire it by hand"
        );
        findings.add(Level::Blocker, "no_use_evidence", message);
    }
}

/// Says at what rate KEKs will be asked. A window that outlasts the step would fail it by design.
fn assess_spread(
    manifest: &Manifest,
    fleet: &FleetView,
    (strategy, intent): (&Strategy, &Intent),
    findings: &mut Findings,
) {
    let Some(spread) = manifest.policy.spread.filter(|_| *intent == Intent::Rotate) else {
        return;
    };
    let within = strategy.distribute.within;
    if spread >= within {
        let message = format!(
            "sidecars unwrap a new version over {spread} (`spread` of the policy), and the step \
             `distribute` waits for {within}; raise distribute.within of the strategy, or shorten \
             the window (`keyring policy --spread`)"
        );
        return findings.add(Level::Blocker, "spread_too_long", message);
    }
    let count = fleet.sidecars.len();
    let rate = count as f64 / spread.0.as_secs_f64();
    let message = format!(
        "{count} sidecars unwrap the version over {spread}: {rate:.1} requests a second to its \
         KEKs, on average"
    );
    findings.add(Level::Note, "spread", message);
}

fn assess_backup(manifest: &Manifest, strategy: &Strategy, findings: &mut Findings) {
    let newest = manifest.newest_version();
    match &manifest.last_backup {
        _ if strategy.backup.is_some() => {}
        Some(backup) if backup.newest_version >= newest => {}
        Some(backup) => findings.add(
            Level::Warning,
            "backup_outdated",
            format!(
                "the last verified backup has the versions to {}, and the newest is {newest}; make \
                 one with `keyring backup`",
                backup.newest_version
            ),
        ),
        None => findings.add(
            Level::Warning,
            "backup_missing",
            "there is no verified backup; make one with `keyring backup`".into(),
        ),
    }
}

/// `obstacle` is the level of what keeps the sidecar from taking part.
fn assess_sidecar(
    name: &str,
    sidecar: &Result<SidecarView, String>,
    manifest: &Manifest,
    now: Timestamp,
    (obstacle, is_emergency): (Level, bool),
    findings: &mut Findings,
) {
    let sidecar = match sidecar {
        Ok(sidecar) => sidecar,
        Err(reason) => {
            let message = format!("{name} did not answer: {reason}");
            findings.add(obstacle, "sidecar_unreachable", message);
            return;
        }
    };
    if sidecar.keyring_id != to_hex(&manifest.id.0) {
        let message = format!(
            "{name} serves another keyring of this name, with the id {}",
            sidecar.keyring_id
        );
        findings.add(obstacle, "sidecar_of_another_keyring", message);
        return;
    }
    if sidecar.generation > manifest.generation {
        // A lag can be excused, and a location that went back can't.
        let level = if is_emergency {
            Level::Warning
        } else {
            Level::Blocker
        };
        let message = format!(
            "{name} serves generation {}, and the location has {}: it went back; see `keyring \
             recover`",
            sidecar.generation, manifest.generation
        );
        findings.add(level, "location_went_back", message);
    } else if sidecar.generation < manifest.generation {
        let reason = sidecar.last_error.as_deref();
        let message = format!(
            "{name} serves generation {}, not {}: {}",
            sidecar.generation,
            manifest.generation,
            reason.unwrap_or("it has not refreshed yet")
        );
        findings.add(obstacle, "sidecar_stale", message);
    }
    if sidecar.shares_name {
        let message = format!(
            "{name} shares its name with another live sidecar; give each one a `name` of its own \
             in its [hub] table"
        );
        findings.add(Level::Warning, "duplicate_name", message);
    }
    if !sidecar.ready {
        findings.add(
            obstacle,
            "sidecar_not_ready",
            format!("{name} is not ready"),
        );
    }
    if let Some(theirs) = sidecar.now
        && theirs.duration_since(now).abs() > CLOCK_TOLERANCE
    {
        let message = format!("the clock of {name} says {theirs}, and here it is {now}");
        findings.add(obstacle, "clock_differs", message);
    }
    for version in manifest
        .versions
        .iter()
        .filter(|version| version.state == State::Enabled)
    {
        let view = sidecar.versions.get(&version.version);
        if let Some(reason) = view.and_then(|view| view.unopened.as_ref()) {
            let message = format!("{name} can't unwrap version {}: {reason}", version.version);
            findings.add(Level::Warning, "version_unopened", message);
        }
    }
    for (kek, reason) in &sidecar.failing_keks {
        let message = format!("{name} can't use the KEK {kek}: {reason}");
        findings.add(Level::Warning, "kek_failing", message);
    }
}

fn assess_waves(waves: &BTreeMap<Wave, usize>, strategy: &Strategy, findings: &mut Findings) {
    for steps in &strategy.waves {
        if !waves.contains_key(&steps.name) {
            let message = format!(
                "no sidecar that answered is in wave {}, which the strategy names",
                steps.name
            );
            findings.add(Level::Blocker, "empty_wave", message);
        }
    }
    let is_planned = |wave: &&Wave| strategy.waves.iter().any(|steps| steps.name == **wave);
    if !strategy.waves.is_empty() {
        for wave in waves.keys().filter(|wave| !is_planned(wave)) {
            let message = format!(
                "the strategy doesn't name wave {wave}; its sidecars take over last, without a soak"
            );
            findings.add(Level::Warning, "wave_not_named", message);
        }
    }
}
