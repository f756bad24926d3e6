//! Destroying a version: removes its wraps and keeps a tombstone with its testament.

use jiff::Timestamp;

use super::{
    BackupRecord, Base64, CLOCK_TOLERANCE, Document, FleetEvidence, Manifest, Policy,
    PrimaryPeriod, Refusal, SidecarReport, Sighting, State, Testament, Version, WaveSelector,
    consistency::NEWEST_HEIRS,
    lifecycle::{activate, after, before, find, open, require, successor},
    primaries, primary_period,
};
use crate::model::{KeyringName, Span};

/// Versions that no KEK will ever unwrap again, as an operator declares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss<'a> {
    /// Their numbers.
    pub versions: &'a [u32],
    /// The phrase that declares the loss.
    pub confirm: Option<&'a str>,
    /// The version that replaces them as primary, for every wave and immediately.
    pub successor: Option<u32>,
}

/// Returns the phrase that replaces a verified backup.
pub fn backup_phrase(keyring: &KeyringName, version: u32) -> String {
    format!("there is no backup of version {version} of {keyring}")
}

/// Returns the phrase that declares the KEKs of versions lost.
pub fn lost_phrase(keyring: &KeyringName, versions: &[u32]) -> String {
    format!("every KEK of {} of {keyring} is lost", listed(versions))
}

/// Returns the phrase that declares the KEKs of versions lost although one of them may only be
/// unavailable. It is stronger than [`lost_phrase`] and accepted in its place.
pub fn doubted_loss_phrase(keyring: &KeyringName, versions: &[u32]) -> String {
    format!(
        "no KEK of {} of {keyring} will ever come back",
        listed(versions)
    )
}

fn listed(versions: &[u32]) -> String {
    match versions {
        [one] => format!("version {one}"),
        many => {
            let many: Vec<String> = many.iter().map(u32::to_string).collect();
            format!("versions {}", many.join(", "))
        }
    }
}

/// Destroys a version. What was encrypted under it is lost. The testament that names its heirs is
/// still unsigned; [`authenticate`](super::authenticate) signs it with the version's own key.
///
/// `confirm` is the phrase that replaces a verified backup; it is ignored if there is one. `seen`
/// is when the version's state was first seen: waiting times count from the later of that and the
/// stamp, and from `now` if it wasn't seen before (I15).
///
/// # Errors
/// [`Refusal`] unless the version is disabled, all waiting times are over (I5, I11), another version
/// can speak for it (I13), and a verified backup holds it or the operator confirmed that none does.
pub fn destroy(
    current: &Document,
    version: u32,
    confirm: Option<&str>,
    seen: Sighting,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    let period = primary_period(&next.activations, version, now);
    let target = find(&mut next, version)?;
    if period == PrimaryPeriod::CurrentOrScheduled {
        return Err(Refusal::IsPrimary(version));
    }
    require_waiting_times(&current.manifest().policy, target, period, seen, now)?;
    let phrase = backup_phrase(&current.manifest().name, version);
    if backup_of(current.manifest(), version).is_none() && confirm != Some(phrase.as_str()) {
        return Err(Refusal::NotConfirmed { version, phrase });
    }
    let testament = testament(&next, version, now)?;
    bury(find(&mut next, version)?, Some(testament), now);
    Ok(next)
}

/// Destroys versions that no KEK can unwrap any more. Waiting would not help, and no one can sign a
/// testament: sidecars that hold one of them ask for `accept_lost` (I13).
///
/// # Errors
/// [`Refusal`] if the operator didn't confirm the loss, or if a version is a primary and there is
/// no successor.
pub fn declare_lost(
    current: &Document,
    loss: Loss<'_>,
    now: Timestamp,
) -> Result<Manifest, Refusal> {
    let mut next = successor(current, now);
    if let Some(successor) = loss.successor {
        // In the same generation: no one can unwrap the lost version, so no one could give its word
        // for a generation in between.
        let activated = activate(current, successor, WaveSelector::Every, None, now)?;
        next.activations = activated.activations;
    }
    for version in loss.versions {
        let period = primary_period(&next.activations, *version, now);
        let target = find(&mut next, *version)?;
        if period == PrimaryPeriod::CurrentOrScheduled {
            return Err(Refusal::LostPrimary(*version));
        }
        if target.state == State::Destroyed {
            return Err(Refusal::WrongState {
                version: *version,
                state: State::Destroyed,
                needed: "it can't be destroyed again",
            });
        }
        bury(target, None, now);
    }
    require_declaration(current.manifest(), loss)?;
    Ok(next)
}

fn bury(version: &mut Version, testament: Option<Testament>, now: Timestamp) {
    version.state = State::Destroyed;
    version.state_changed_at = now;
    version.wraps.clear();
    version.testament = testament;
    version.kept = version.kept.once_destroyed();
}

fn backup_of(manifest: &Manifest, version: u32) -> Option<&BackupRecord> {
    manifest
        .last_backup
        .as_ref()
        .filter(|backup| version <= backup.newest_version)
}

fn require_declaration(manifest: &Manifest, loss: Loss<'_>) -> Result<(), Refusal> {
    let phrase = lost_phrase(&manifest.name, loss.versions);
    let accepted = [
        phrase.as_str(),
        &doubted_loss_phrase(&manifest.name, loss.versions),
    ];
    if loss
        .confirm
        .is_some_and(|confirm| accepted.contains(&confirm))
    {
        return Ok(());
    }
    let backed_up = loss
        .versions
        .iter()
        .find_map(|version| Some((*version, backup_of(manifest, *version)?)));
    Err(match (backed_up, loss.versions.first()) {
        (Some((version, backup)), _) => Refusal::NotLostWithBackup {
            version,
            verified_at: backup.verified_at,
            sha256: backup.sha256_hex(),
            phrase,
        },
        (None, version) => Refusal::NotConfirmed {
            version: version.copied().unwrap_or_default(),
            phrase,
        },
    })
}

/// Names the heirs of a version: the newest other versions that live and are not compromised, and
/// the primary of every wave.
fn testament(next: &Manifest, version: u32, now: Timestamp) -> Result<Testament, Refusal> {
    let eligible = |heir: &&Version| heir.version != version && !heir.compromised;
    let enabled = |heir: &Version| heir.state == State::Enabled;
    if !next.live().filter(eligible).any(enabled) {
        return Err(Refusal::NoHeir(version));
    }
    let primaries: Vec<Option<u32>> = primaries(&next.activations, now)
        .into_iter()
        .map(|(_, primary)| primary)
        .collect();
    let eligible: Vec<&Version> = next.live().filter(eligible).collect();
    let older = eligible.len().saturating_sub(NEWEST_HEIRS);
    let heirs = eligible
        .iter()
        .enumerate()
        .filter(|(index, heir)| *index >= older || primaries.contains(&Some(heir.version)))
        .map(|(_, heir)| heir.version)
        .collect();
    Ok(Testament {
        generation: next.generation,
        newest: next.newest_version(),
        heirs,
        signature: Base64(Vec::new()),
    })
}

/// Returns when a disabled version may be destroyed at the earliest, by the manifest's stamps.
/// [`destroy`] counts from the first sightings if those are later. None if the version isn't
/// disabled.
pub fn destroyable_from(manifest: &Manifest, version: u32, now: Timestamp) -> Option<Timestamp> {
    let target = manifest
        .version(version)
        .filter(|target| target.state == State::Disabled)?;
    let period = primary_period(&manifest.activations, version, now);
    let stamps = Sighting {
        disabled: Some(Timestamp::MIN),
        superseded: Some(Timestamp::MIN),
        end: None,
    };
    let waits = waits(&manifest.policy, target, period, stamps, now);
    waits.iter().map(Wait::end).max()
}

/// Refuses to destroy a disabled version that was asked for within the time that it must be
/// disabled before: every refused request begins that time again.
///
/// # Errors
/// [`Refusal::StillAskedFor`] names who asked for it, and who can't be asked.
pub fn require_unasked(
    manifest: &Manifest,
    version: u32,
    evidence: &FleetEvidence,
    now: Timestamp,
) -> Result<(), Refusal> {
    let Some(found) = manifest.version(version) else {
        return Ok(());
    };
    let wait = manifest.policy.destroy_after_of(found);
    let since = before(now, wait);
    let objection = |report: &SidecarReport| {
        let name = &report.sidecar;
        match &report.usage {
            Err(reason) => Some(format!("{name} did not answer ({reason})")),
            Ok(usage) if usage.open > 0 => Some(format!("{name} {}", open(usage.open))),
            Ok(usage) => {
                let asked = usage.last_refused.filter(|asked| *asked > since)?;
                let until = after(asked, wait);
                Some(format!(
                    "{name} was asked for it at {asked}, so that its wait ends at {until}"
                ))
            }
        }
    };
    let FleetEvidence { reports, ledger } = evidence;
    let in_ledger = ledger.iter().flat_map(|ledger| ledger.missing.clone());
    let missing: Vec<String> = reports
        .iter()
        .filter_map(objection)
        .chain(in_ledger)
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Refusal::StillAskedFor { version, missing })
    }
}

fn require_waiting_times(
    policy: &Policy,
    target: &Version,
    period: PrimaryPeriod,
    seen: Sighting,
    now: Timestamp,
) -> Result<(), Refusal> {
    require(
        target,
        State::Disabled,
        "only a disabled version can be destroyed (`keyring disable`)",
    )?;
    let waits = waits(policy, target, period, seen, now);
    // Of several that end together, the first is the simplest.
    let last = waits.iter().rev().max_by_key(|wait| wait.end());
    match last.filter(|last| last.end() > now) {
        None => Ok(()),
        Some(last) => Err(Refusal::TooEarly {
            version: target.version,
            from: last.end(),
            why: last.why(),
        }),
    }
}

/// Returns what must pass before a disabled version is destroyed: the time in which someone may
/// still miss it, and the leases of sidecars that are cut off.
fn waits(
    policy: &Policy,
    target: &Version,
    period: PrimaryPeriod,
    seen: Sighting,
    now: Timestamp,
) -> Vec<Wait> {
    let destroy_after = policy.destroy_after_of(target);
    let lease = policy.encrypt_lease_of(target);
    let disabled = Since::later(target.state_changed_at, seen.disabled, now);
    let mut waits = vec![Wait {
        since: disabled,
        length: destroy_after,
        reason: format!("destroy_after ({destroy_after}) must pass after it was disabled"),
    }];
    // A sidecar encrypts only with what it knows as activated.
    if let PrimaryPeriod::Ended(end) = period {
        let cut_off = "a disconnected sidecar may encrypt with it";
        waits.push(Wait {
            since: disabled,
            length: lease,
            reason: format!(
                "{cut_off} while no KEK unwraps the primary, until encrypt_lease ({lease}) ends \
                 after it was disabled"
            ),
        });
        waits.push(Wait {
            since: Since::later(end, seen.superseded, now),
            length: lease,
            reason: format!(
                "{cut_off} until encrypt_lease ({lease}) ends after another version superseded it"
            ),
        });
    }
    waits
}

/// A waiting time before a version is destroyed.
struct Wait {
    since: Since,
    length: Span,
    reason: String,
}

impl Wait {
    fn end(&self) -> Timestamp {
        after(self.since.time, self.length)
    }

    fn why(&self) -> String {
        let Self { since, reason, .. } = self;
        if !since.was_seen_late {
            return reason.clone();
        }
        format!(
            "{reason}; that was first seen here at {}, after it was written: name sidecars that \
             saw it earlier with --sidecar URL",
            since.time
        )
    }
}

/// The start of a waiting time.
#[derive(Clone, Copy)]
struct Since {
    time: Timestamp,
    /// The stamp is earlier, by more than clocks may differ.
    was_seen_late: bool,
}

impl Since {
    /// The later of a stamp and the time at which the state was first seen: now, if never before.
    fn later(stamp: Timestamp, seen: Option<Timestamp>, now: Timestamp) -> Self {
        let seen = seen.unwrap_or(now);
        Self {
            time: stamp.max(seen),
            was_seen_late: seen.duration_since(stamp) > CLOCK_TOLERANCE,
        }
    }
}
