//! The changes that an operator can make. Each takes the active manifest and returns the next one,
//! or a refusal. To authenticate the result, the caller has unwrapped every version that isn't
//! destroyed.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    Activation, Ancestor, Authentication, Base64, Document, Kept, LINEAGE, Manifest, Policy,
    PrimaryPeriod, Refusal, State, Version, WaveSelector, Wrap, primaries, primary_period,
    rollout::end_active_rollout, scheduled,
};
use crate::{
    crypto::KeyringId,
    model::{KeyringName, Span},
};

/// A wrapped data key that becomes a version.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// One wrap per KEK.
    pub wraps: Vec<Wrap>,
    /// Its check value.
    pub check: [u8; 32],
    /// The public half of its succession key.
    pub key: [u8; 32],
}

/// Creates a keyring. Version 1 is the primary of every wave from the start.
pub fn init(
    name: KeyringName,
    id: KeyringId,
    policy: Policy,
    new: NewVersion,
    now: Timestamp,
) -> Manifest {
    let mut manifest = Manifest::empty(name, id, policy, now);
    push_version(&mut manifest, new, now);
    manifest.activations.push(Activation {
        version: 1,
        wave: WaveSelector::Every,
        at: now,
        generation: Some(1),
    });
    manifest.generation = 1;
    manifest
}

/// Adds a version, which stays pending until an activation names it (I1).
pub fn rotate(current: &Document, new: NewVersion, now: Timestamp) -> Manifest {
    let mut next = successor(current, now);
    push_version(&mut next, new, now);
    next
}

/// Makes an enabled version the primary of `wave` from `at` on, or from now if that is `None`. To
/// roll back, activate the previous version.
///
/// # Errors
/// [`Refusal`] if the version isn't enabled or is compromised, or if `at` is in the past.
pub fn activate(
    current: &Document,
    version: u32,
    wave: WaveSelector,
    at: Option<Timestamp>,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    let target = find(&mut next, version)?;
    require(
        target,
        State::Enabled,
        "only an enabled version can become primary (`keyring enable`)",
    )?;
    if target.compromised {
        return Err(Refusal::Compromised(version));
    }
    let at = at.unwrap_or(now);
    if at < now {
        return Err(Refusal::InThePast { at });
    }
    let generation = Some(next.generation);
    next.activations.push(Activation {
        version,
        wave,
        at,
        generation,
    });
    Ok(next)
}

/// The evidence that a version is unused.
#[derive(Debug, Clone)]
pub enum Evidence {
    /// What the fleet says.
    Fleet(FleetEvidence),
    /// None: the operator decides, and states this reason.
    Override(String),
}

/// What a fleet says about one version.
#[derive(Debug, Clone, Default)]
pub struct FleetEvidence {
    /// The reports of every sidecar that was asked.
    pub reports: Vec<SidecarReport>,
    /// What a hub's ledger says of those that joined it; None without a hub.
    pub ledger: Option<LedgerEvidence>,
}

/// What the usage ledger of a hub says about one version.
#[derive(Debug, Clone)]
pub struct LedgerEvidence {
    /// The generation of the manifest that was asked about.
    pub generation: u64,
    /// What is missing, one line each; empty if the version is out of use. The ledger takes the
    /// class into account.
    pub missing: Vec<String>,
    /// The workloads that still ask for the version although it is disabled.
    pub asking: Vec<String>,
}

impl From<Vec<SidecarReport>> for FleetEvidence {
    fn from(reports: Vec<SidecarReport>) -> Self {
        Self {
            reports,
            ledger: None,
        }
    }
}

/// One sidecar's report on one version.
#[derive(Debug, Clone)]
pub struct SidecarReport {
    /// The sidecar as the operator named it.
    pub sidecar: String,
    /// Its use of the version, or why it did not respond.
    pub usage: Result<VersionUse, String>,
}

/// A sidecar's use of a version.
#[derive(Debug, Clone)]
pub struct VersionUse {
    /// The generation that the sidecar serves.
    pub generation: u64,
    /// When it started to count; uses before are unknown.
    pub observed_since: Timestamp,
    /// The last use since then.
    pub last_used: Option<Timestamp>,
    /// The requests that use it at present, and may go on to.
    pub open: u64,
    /// The last request since then that was refused because the version is disabled.
    pub last_refused: Option<Timestamp>,
}

/// Suspends a version: requests to decrypt with it are refused until it is enabled again.
///
/// # Errors
/// [`Refusal`] if the version is a primary, or without evidence (I5). For a class other than
/// [`Class::Live`](super::Class::Live) the reports of sidecars are none, but a ledger knows of
/// statements that are.
pub fn disable(
    current: &Document,
    version: u32,
    evidence: &Evidence,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    let target = find(&mut next, version)?;
    require(
        target,
        State::Enabled,
        "only an enabled version can be disabled",
    )?;
    if primary_period(&current.manifest().activations, version, now)
        == PrimaryPeriod::CurrentOrScheduled
    {
        return Err(Refusal::IsPrimary(version));
    }
    if let Evidence::Fleet(evidence) = evidence {
        let policy = &current.manifest().policy;
        let class = policy.class_of(target);
        if let Some(demanded) = class.demands()
            && evidence.ledger.is_none()
        {
            return Err(Refusal::UseIsNoEvidence {
                version,
                class,
                demanded,
            });
        }
        let quiet = policy.quiet_period_of(target);
        let missing = missing_evidence(evidence, current.manifest().generation, quiet, now);
        if !missing.is_empty() {
            return Err(Refusal::EvidenceMissing { version, missing });
        }
    }
    target.state = State::Disabled;
    target.state_changed_at = now;
    Ok(next)
}

fn missing_evidence(
    evidence: &FleetEvidence,
    generation: u64,
    quiet: Span,
    now: Timestamp,
) -> Vec<String> {
    let FleetEvidence { reports, ledger } = evidence;
    if reports.is_empty() && ledger.is_none() {
        return vec![
            "no sidecar was asked: name every live one with --sidecar URL, or decide without \
             evidence with --override REASON"
                .into(),
        ];
    }
    let quiet_since = before(now, quiet);
    let objection = |usage: &VersionUse| {
        if usage.generation != generation {
            Some(format!(
                "serves generation {}, not {generation}",
                usage.generation
            ))
        } else if usage.open > 0 {
            Some(open(usage.open))
        } else if let Some(used) = usage.last_used.filter(|used| *used > quiet_since) {
            Some(format!(
                "used it at {used}, within the quiet period of {quiet}"
            ))
        } else if let Some(asked) = usage.last_refused.filter(|asked| *asked > quiet_since) {
            Some(format!(
                "asked for it at {asked}, when it was disabled, within the quiet period of {quiet}"
            ))
        } else if usage.observed_since > quiet_since {
            Some(format!(
                "has been counting only since {}, less than the quiet period of {quiet}",
                usage.observed_since
            ))
        } else {
            None
        }
    };
    let in_reports = reports.iter().filter_map(|report| {
        let objection = match &report.usage {
            Ok(usage) => objection(usage)?,
            Err(reason) => format!("did not answer ({reason})"),
        };
        Some(format!("{} {objection}", report.sidecar))
    });
    let in_ledger = ledger.iter().flat_map(|ledger| {
        let is_outdated = ledger.generation != generation;
        let outdated = format!(
            "the hub's ledger was asked about generation {}, and it is {generation} now",
            ledger.generation
        );
        let outdated = is_outdated.then_some(outdated);
        ledger.missing.iter().cloned().chain(outdated)
    });
    in_reports.chain(in_ledger).collect()
}

/// Lets a disabled version decrypt again.
///
/// # Errors
/// [`Refusal`] if the version isn't disabled.
pub fn enable(current: &Document, version: u32, now: Timestamp) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    let target = find(&mut next, version)?;
    require(
        target,
        State::Disabled,
        "only a disabled version can be enabled",
    )?;
    target.state = State::Enabled;
    target.state_changed_at = now;
    Ok(next)
}

/// Marks a version as compromised. It still decrypts, but can't be activated again: wherever it was
/// scheduled, the present primary stays. A rollout ends, because its plan is out of date.
///
/// # Errors
/// [`Refusal`] if there is no such version.
pub fn compromise(current: &Document, version: u32, now: Timestamp) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    find(&mut next, version)?.compromised = true;
    let scheduled: Vec<WaveSelector> = scheduled(&next.activations, now)
        .filter(|activation| activation.version == version)
        .map(|activation| activation.wave.clone())
        .collect();
    reactivate_primaries(&mut next, &scheduled, now);
    end_active_rollout(&mut next);
    Ok(next)
}

/// Activates the primaries of `now` again for the waves that `selectors` cover, which overrides
/// what was scheduled for them.
fn reactivate_primaries(next: &mut Manifest, selectors: &[WaveSelector], now: Timestamp) {
    let is_affected = |wave: &WaveSelector| {
        selectors
            .iter()
            .any(|selector| *selector == WaveSelector::Every || selector == wave)
    };
    let present = primaries(&next.activations, now)
        .into_iter()
        .filter(|(wave, _)| is_affected(wave))
        .filter_map(|(wave, primary)| {
            Some(Activation {
                version: primary?,
                wave,
                at: now,
                generation: Some(next.generation),
            })
        })
        .filter(|activation| is_usable(next, activation.version))
        .collect();
    activate_all(next, present);
}

fn is_usable(manifest: &Manifest, version: u32) -> bool {
    manifest
        .version(version)
        .is_some_and(|version| version.state == State::Enabled && !version.compromised)
}

/// Appends activations, of which at most one is for `*`. That one comes first: it covers the named
/// waves, too.
pub(super) fn activate_all(next: &mut Manifest, mut activations: Vec<Activation>) {
    activations.sort_by_key(|activation| activation.wave != WaveSelector::Every);
    next.activations.extend(activations);
}

/// Repairs the times of `next`, the successor of a manifest whose writer's clock was ahead. Times
/// in the future become `now`, so waiting times start again, and the primaries of `current`'s own
/// time are activated now.
pub fn repair_times(current: &Manifest, mut next: Manifest, now: Timestamp) -> Manifest {
    for version in &mut next.versions {
        version.created_at = version.created_at.min(now);
        version.state_changed_at = version.state_changed_at.min(now);
    }
    let added = next.activations.len() > current.activations.len();
    if !added {
        let present = primaries(&next.activations, current.updated_at)
            .into_iter()
            .filter_map(|(wave, primary)| {
                Some(Activation {
                    version: primary?,
                    wave,
                    at: now,
                    generation: Some(next.generation),
                })
            })
            .filter(|activation| is_usable(&next, activation.version))
            .collect();
        activate_all(&mut next, present);
    }
    next
}

/// Replaces the wraps of versions. The keys stay the same, so no ciphertext changes.
///
/// # Errors
/// [`Refusal`] if a version is unknown or destroyed, or would be left without a wrap.
pub fn rewrap(
    current: &Document,
    wraps: BTreeMap<u32, Vec<Wrap>>,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    for (version, wraps) in wraps {
        let target = find(&mut next, version)?;
        if target.state == State::Destroyed {
            return Err(Refusal::WrongState {
                version,
                state: State::Destroyed,
                needed: "its key no longer exists",
            });
        }
        if wraps.is_empty() {
            return Err(Refusal::LastWrap(version));
        }
        target.wraps = wraps;
    }
    Ok(next)
}

/// Returns a new generation without other changes, which renews the encrypt lease where a copy of
/// the manifest is read (I11).
pub fn touch(current: &Document, now: Timestamp) -> Manifest {
    successor(current, now)
}

/// Returns the next generation, still without authentication. Readers order generations by number,
/// so its stamp is the present time, whatever the last one was.
pub(super) fn successor(current: &Document, now: Timestamp) -> Manifest {
    let mut next = current.manifest().clone();
    let ancestor = Ancestor {
        generation: next.generation,
        sha256: Base64(current.digest().to_vec()),
    };
    next.lineage.insert(0, ancestor);
    limit_lineage(&mut next.lineage);
    next.generation += 1;
    next.updated_at = now;
    next.authentication = Authentication::default();
    next
}

/// Drops the oldest ancestors beyond [`LINEAGE`]. A generation that two branches have stays or goes
/// as a whole: a reader that finds one of them would miss the other.
pub(super) fn limit_lineage(lineage: &mut Vec<Ancestor>) {
    if let Some(first_dropped) = lineage.get(LINEAGE).map(|ancestor| ancestor.generation) {
        lineage.truncate(LINEAGE);
        lineage.retain(|ancestor| ancestor.generation > first_dropped);
    }
}

fn push_version(manifest: &mut Manifest, new: NewVersion, now: Timestamp) {
    let number = manifest.newest_version() + 1;
    manifest.versions.push(Version {
        version: number,
        state: State::Enabled,
        compromised: false,
        created_at: now,
        state_changed_at: now,
        wraps: new.wraps,
        check: Base64(new.check.to_vec()),
        key: Base64(new.key.to_vec()),
        testament: None,
        kept: Kept::default(),
    });
}

pub(super) fn find(manifest: &mut Manifest, version: u32) -> Result<&mut Version, Refusal> {
    let (first, last) = (manifest.first_version(), manifest.newest_version());
    let missing = Refusal::NoSuchVersion {
        keyring: manifest.name.clone(),
        version,
        first,
        last,
    };
    manifest
        .versions
        .iter_mut()
        .find(|candidate| candidate.version == version)
        .ok_or(missing)
}

pub(super) fn require(
    version: &Version,
    state: State,
    needed: &'static str,
) -> Result<(), Refusal> {
    if version.state == state {
        Ok(())
    } else {
        Err(Refusal::WrongState {
            version: version.version,
            state: version.state,
            needed,
        })
    }
}

/// Says that a sidecar uses a version at present.
pub(super) fn open(count: u64) -> String {
    format!("has {count} requests in progress that use it, such as a stream")
}

pub(super) fn after(time: Timestamp, span: Span) -> Timestamp {
    time.checked_add(span.0).unwrap_or(Timestamp::MAX)
}

pub(super) fn before(time: Timestamp, span: Span) -> Timestamp {
    time.checked_sub(span.0).unwrap_or(Timestamp::MIN)
}
