//! What a step still waits for: pure functions of the sidecars' answers.

use jiff::Timestamp;

use super::{
    fleet::{FleetView, SidecarView},
    machine::Observation,
    state::State,
};
use crate::{
    encoding::to_hex,
    keyring::{self, Class, WaveSelector},
};

/// Returns the sidecars that don't have the new version, each with the reason.
pub(super) fn for_version(state: &State, fleet: &FleetView) -> Vec<String> {
    if fleet.answering().next().is_none() {
        return vec!["no sidecar answered".into()];
    }
    missing(
        state,
        fleet,
        |_| true,
        |sidecar| lacks_version(state, sidecar),
    )
}

/// Returns what keeps a wave from being given the new version: sidecars of any wave that can't
/// decrypt what it would encrypt.
pub(super) fn before_activation(
    state: &State,
    fleet: &FleetView,
    wave: &WaveSelector,
) -> Vec<String> {
    let mut missing = for_version(state, fleet);
    if let WaveSelector::One(wave) = wave
        && !fleet.answering().any(|(_, sidecar)| sidecar.wave == *wave)
    {
        missing.push(format!("no sidecar of wave {wave} answered"));
    }
    missing
}

/// Returns the sidecars of a wave that don't encrypt with the new version.
pub(super) fn for_primary(state: &State, fleet: &FleetView, wave: &WaveSelector) -> Vec<String> {
    let expected = state.version.as_ref().map(|version| version.version);
    let is_in = |sidecar: &SidecarView| match wave {
        WaveSelector::Every => true,
        WaveSelector::One(wave) => sidecar.wave == *wave,
    };
    missing(state, fleet, is_in, |sidecar| {
        (sidecar.encrypting != expected).then(|| encrypts_with(sidecar))
    })
}

/// Returns the sidecars that don't encrypt with their wave's former primary.
pub(super) fn for_former_primaries(state: &State, fleet: &FleetView) -> Vec<String> {
    let former = state.plan.former_primaries();
    let expected = |sidecar: &SidecarView| {
        former
            .get(&WaveSelector::One(sidecar.wave.clone()))
            .or_else(|| former.get(&WaveSelector::Every))
            .copied()
    };
    missing(
        state,
        fleet,
        |_| true,
        |sidecar| (sidecar.encrypting != expected(sidecar)).then(|| encrypts_with(sidecar)),
    )
}

/// Returns why there is no evidence yet that the replaced version is out of use. No sidecar is
/// exempt: one that doesn't answer may use it.
pub(super) fn for_disuse(state: &State, observation: &Observation, now: Timestamp) -> Vec<String> {
    let manifest = match &observation.manifest {
        Ok(manifest) => manifest,
        Err(reason) => return vec![format!("the location can't be read: {reason}")],
    };
    let ledger = observation.ledger.as_ref();
    if observation.fleet.sidecars.is_empty() && ledger.is_none() {
        return vec!["there is no sidecar, so there is no evidence".into()];
    }
    let replaced = state.plan.replaced.version;
    let Some(version) = manifest.version(replaced) else {
        return vec![format!("version {replaced} is not listed")];
    };
    let class = manifest.policy.class_of(version);
    // A ledger takes the class into account.
    if class != Class::Live && ledger.is_none() {
        return vec![format!(
            "the class of version {replaced} is {class}, so that it isn't used is no evidence"
        )];
    }
    let quiet = manifest.policy.quiet_period_of(version);
    let quiet_since = now.checked_sub(quiet.0).unwrap_or(Timestamp::MIN);
    let objection = |sidecar: &SidecarView| {
        if let Some(reason) = lags(state, sidecar) {
            return Some(reason);
        }
        if sidecar.is_joined {
            let asked = ledger.is_some();
            return (!asked).then(|| "has joined a hub, whose ledger was not asked".into());
        }
        let last_used = sidecar
            .versions
            .get(&replaced)
            .and_then(|view| view.last_used);
        let version = sidecar.versions.get(&replaced);
        let asked = version.and_then(|view| view.last_refused);
        match (last_used, asked) {
            _ if version.is_some_and(|view| view.open > 0) => Some(format!(
                "has requests in progress that use version {replaced}"
            )),
            (Some(used), _) if used > quiet_since => Some(format!(
                "used version {replaced} at {used}, within the quiet period of {quiet}"
            )),
            (_, Some(asked)) if asked > quiet_since => Some(format!(
                "asked for version {replaced} at {asked}, within the quiet period of {quiet}"
            )),
            _ if sidecar.observed_since > quiet_since => Some(format!(
                "has been counting only since {}, less than the quiet period of {quiet}",
                sidecar.observed_since
            )),
            _ => None,
        }
    };
    let sidecars = observation.fleet.sidecars.iter();
    let present = sidecars.filter_map(|(name, view)| {
        let reason = match view {
            Ok(sidecar) => objection(sidecar)?,
            Err(reason) => format!("did not answer: {reason}"),
        };
        Some(format!("{name} {reason}"))
    });
    // One that is gone may have used it until its end.
    let gone = state.seen.iter().filter_map(|(name, last)| {
        let is_gone = !observation.fleet.sidecars.contains_key(name);
        (is_gone && *last > quiet_since)
            .then(|| format!("{name} was last seen at {last}, within the quiet period of {quiet}"))
    });
    let in_ledger = ledger.into_iter().flat_map(|ledger| ledger.missing.clone());
    present.chain(gone).chain(in_ledger).collect()
}

/// Returns when the replaced version may be destroyed at the earliest, by what the manifest says.
/// The signer decides, and refuses a version that isn't disabled. `None` if the manifest can't be
/// read.
pub(super) fn for_destruction(
    state: &State,
    observation: &Observation,
    now: Timestamp,
) -> Option<Timestamp> {
    let manifest = observation.manifest.as_ref().ok()?;
    let version = manifest.version(state.plan.replaced.version)?.version;
    let from = keyring::destroyable_from(manifest, version, now);
    Some(from.unwrap_or(manifest.updated_at))
}

/// What speaks against destroying the replaced version, which is disabled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// Who asked for it since it was disabled.
    pub(super) asking: Vec<String>,
    /// What has to end, or to pass, before it is destroyed.
    pub(super) missing: Vec<String>,
}

/// Returns who still asks for the replaced version. The signer decides.
pub(super) fn demand(state: &State, observation: &Observation, now: Timestamp) -> Demand {
    let mut demand = Demand::default();
    let replaced = state.plan.replaced.version;
    let manifest = observation.manifest.as_ref().ok();
    let Some((manifest, version)) = manifest
        .and_then(|manifest| Some((manifest, manifest.version(replaced)?)))
        .filter(|(_, version)| version.state == keyring::State::Disabled)
    else {
        return demand;
    };
    let wait = manifest.policy.destroy_after_of(version);
    let since = now.checked_sub(wait.0).unwrap_or(Timestamp::MIN);
    for (name, view) in &observation.fleet.sidecars {
        let view = match view {
            Ok(sidecar) if sidecar.is_joined => continue,
            Ok(sidecar) => sidecar.versions.get(&replaced),
            Err(reason) => {
                demand
                    .missing
                    .push(format!("{name} did not answer: {reason}"));
                continue;
            }
        };
        let Some(view) = view else { continue };
        if view.open > 0 {
            let reason = format!("{name} has requests in progress that use version {replaced}");
            demand.missing.push(reason);
        }
        let Some(asked) = view.last_refused.filter(|asked| *asked > since) else {
            continue;
        };
        demand.asking.push(name.clone());
        let reason = format!("{name} asked for version {replaced} at {asked}; the wait is {wait}");
        demand.missing.push(reason);
    }
    if let Some(ledger) = &observation.ledger {
        demand.asking.extend(ledger.asking.iter().cloned());
        demand.missing.extend(ledger.missing.iter().cloned());
    }
    demand
}

/// Returns the sidecars of interest to which `objection` has something to say, or that don't
/// answer. Those that the strategy exempts are left out.
fn missing(
    state: &State,
    fleet: &FleetView,
    is_of_interest: impl Fn(&SidecarView) -> bool,
    objection: impl Fn(&SidecarView) -> Option<String>,
) -> Vec<String> {
    let exempt = &state.plan.strategy.max_unavailable;
    let sidecars = fleet.sidecars.iter();
    sidecars
        .filter(|(name, _)| !exempt.contains(name))
        .filter_map(|(name, view)| {
            let reason = match view {
                Ok(sidecar) if is_of_interest(sidecar) => {
                    lags(state, sidecar).or_else(|| objection(sidecar))?
                }
                Ok(_) => return None,
                // Which wave it is in isn't known.
                Err(reason) => format!("did not answer: {reason}"),
            };
            Some(format!("{name} {reason}"))
        })
        .collect()
}

fn lags(state: &State, sidecar: &SidecarView) -> Option<String> {
    if sidecar.keyring_id != to_hex(&state.plan.keyring_id.0) {
        return Some("serves another keyring of this name".into());
    }
    if sidecar.generation >= state.generation {
        return None;
    }
    let lag = format!(
        "serves generation {}, not {}",
        sidecar.generation, state.generation
    );
    Some(match &sidecar.last_error {
        Some(reason) => format!("{lag}: {reason}"),
        None => lag,
    })
}

fn lacks_version(state: &State, sidecar: &SidecarView) -> Option<String> {
    let version = state.version.as_ref()?.version;
    match sidecar.versions.get(&version) {
        None => Some(format!("doesn't know version {version}")),
        Some(view) => {
            // An emergency waits for no turn: the activation ends it.
            let is_enough = view.waits && !state.plan.can_roll_back();
            let reason = view.unopened.as_ref().filter(|_| !is_enough)?;
            Some(format!("can't unwrap version {version}: {reason}"))
        }
    }
}

fn encrypts_with(sidecar: &SidecarView) -> String {
    match sidecar.encrypting {
        Some(version) => format!("encrypts with version {version}"),
        None => "encrypts with no version".into(),
    }
}
