//! What makes a parsed manifest consistent in itself, before any signature or key is looked at.

use std::collections::BTreeSet;

use super::{
    ENDED_ROLLOUTS, Manifest, State, Testament, Version, WaveSelector,
    activation::current_or_scheduled, manifest::FORMAT,
};
use crate::{crypto::RolloutId, model::KekUri};

/// How many ancestors a manifest lists at most.
pub const LINEAGE: usize = 64;
/// The newest versions that a testament may name as heirs, besides the primaries.
pub(super) const NEWEST_HEIRS: usize = 16;
/// The largest integer that RFC 8785 numbers (IEEE 754 doubles) represent exactly.
pub(super) const MAX_GENERATION: u64 = (1 << 53) - 1;
pub(super) const MAX_WRAPS: usize = 16;
pub(super) const MAX_VERSIONS: usize = 10_000;
pub(super) const MAX_ACTIVATIONS: usize = 20_000;
pub(super) const MAX_WAVES: usize = 256;
const MAX_SIGNATURES: usize = 64;
/// The newest versions and one primary for each wave and for `*`.
const MAX_HEIRS: usize = NEWEST_HEIRS + MAX_WAVES + 1;

/// Returns every contradiction between the members of a manifest.
pub(super) fn problems(manifest: &Manifest) -> Vec<String> {
    // Before any computation whose cost grows with them: anyone may have written this manifest.
    let waves: BTreeSet<&WaveSelector> = manifest
        .activations
        .iter()
        .map(|activation| &activation.wave)
        .collect();
    if manifest.versions.len() > MAX_VERSIONS
        || manifest.activations.len() > MAX_ACTIVATIONS
        || waves.len() > MAX_WAVES
        || manifest.authentication.signatures.len() > MAX_SIGNATURES
    {
        return vec![format!(
            "more than {MAX_VERSIONS} versions, {MAX_ACTIVATIONS} activations, {MAX_WAVES} waves \
             or {MAX_SIGNATURES} signatures"
        )];
    }
    let mut problems = Vec::new();
    if manifest.format != FORMAT {
        problems.push(format!(
            "format is {:?}, but this build supports only {FORMAT:?}",
            manifest.format
        ));
    }
    if !(1..=MAX_GENERATION).contains(&manifest.generation) {
        problems.push(format!(
            "generation {} is not between 1 and 2^53-1",
            manifest.generation
        ));
    }
    if manifest.policy.encrypt_lease.0.is_zero() {
        problems.push("policy.encrypt_lease is zero, so nothing could encrypt".into());
    }
    if manifest
        .policy
        .spread
        .is_some_and(|window| window.0.is_zero())
    {
        problems.push("policy.spread is zero: leave it out".into());
    }
    version_problems(manifest, &mut problems);
    activation_problems(manifest, &mut problems);
    lineage_problems(manifest, &mut problems);
    backup_problem(manifest, &mut problems);
    rollout_problem(manifest, &mut problems);
    authentication_problems(manifest, &mut problems);
    problems
}

fn version_problems(manifest: &Manifest, problems: &mut Vec<String>) {
    if manifest.versions.is_empty() {
        problems.push("there are no versions".into());
    }
    if let Some(trimmed) = &manifest.trimmed
        && (trimmed.through == 0 || trimmed.l.0.len() != 32)
    {
        problems.push("trimmed has no version or not 32 bytes".into());
    }
    for (expected, version) in (manifest.first_version()..).zip(&manifest.versions) {
        if version.version != expected {
            problems.push(format!(
                "found version {} instead of version {expected}: versions count up, each once",
                version.version
            ));
            // Every later one would differ, too.
            return;
        }
        problems
            .extend(own_problems(version).map(|problem| format!("version {expected}: {problem}")));
        let is_needed = version.kept.exceeds(&manifest.policy)
            && (version.state != State::Destroyed || version.kept == version.kept.once_destroyed());
        if !is_needed {
            problems.push(format!(
                "version {expected}: it keeps a period or a class that the policy exceeds, or that \
                 a destroyed version doesn't wait for"
            ));
        }
        if let Some(testament) = &version.testament
            && !is_possible(testament, version, manifest)
        {
            problems.push(format!(
                "version {expected}: its testament names an impossible generation, version or heir"
            ));
        }
    }
}

fn own_problems(version: &Version) -> impl Iterator<Item = &'static str> {
    let keks: BTreeSet<&KekUri> = version.wraps.iter().map(|wrap| &wrap.kek).collect();
    let is_destroyed = version.state == State::Destroyed;
    let found = [
        (
            version.check.0.len() != 32,
            "its check value is not 32 bytes long",
        ),
        (
            version.key.0.len() != 32,
            "its succession key is not 32 bytes long",
        ),
        (
            is_destroyed && !version.wraps.is_empty(),
            "it is destroyed but has wraps",
        ),
        (!is_destroyed && version.wraps.is_empty(), "it has no wrap"),
        (
            !is_destroyed && version.testament.is_some(),
            "it has a testament but is not destroyed",
        ),
        (version.wraps.len() > MAX_WRAPS, "it has more than 16 wraps"),
        (
            keks.len() != version.wraps.len(),
            "it has two wraps by one KEK",
        ),
    ];
    found
        .into_iter()
        .filter_map(|(wrong, problem)| wrong.then_some(problem))
}

fn is_possible(testament: &Testament, version: &Version, manifest: &Manifest) -> bool {
    let heirs = &testament.heirs;
    (2..=manifest.generation).contains(&testament.generation)
        && (version.version..=manifest.newest_version()).contains(&testament.newest)
        && (1..=MAX_HEIRS).contains(&heirs.len())
        && heirs.is_sorted_by(|one, next| one < next)
        && heirs
            .iter()
            .all(|heir| (1..=testament.newest).contains(heir) && *heir != version.version)
        && testament.signature.0.len() == 64
}

fn activation_problems(manifest: &Manifest, problems: &mut Vec<String>) {
    for activation in &manifest.activations {
        if manifest.version(activation.version).is_none() {
            problems.push(format!(
                "an activation names version {}, which doesn't exist",
                activation.version
            ));
        }
        if activation
            .generation
            .is_some_and(|decided| !(1..=manifest.generation).contains(&decided))
        {
            problems.push(format!(
                "the activation of version {} at {} was decided in a generation that isn't yet",
                activation.version, activation.at
            ));
        }
    }
    let primaries = current_or_scheduled(&manifest.activations, manifest.updated_at);
    let suspended = manifest
        .versions
        .iter()
        .filter(|version| version.state != State::Enabled);
    for version in suspended {
        if primaries.contains(&version.version) {
            problems.push(format!(
                "version {} is {}, but is or becomes a wave's primary",
                version.version, version.state
            ));
        }
    }
}

fn lineage_problems(manifest: &Manifest, problems: &mut Vec<String>) {
    let lineage = &manifest.lineage;
    let is_valid = lineage.is_empty() == (manifest.generation == 1)
        && lineage.len() <= LINEAGE
        && lineage.is_sorted_by(|newer, older| newer.generation >= older.generation)
        && lineage.iter().all(|ancestor| {
            (1..manifest.generation).contains(&ancestor.generation) && ancestor.sha256.0.len() == 32
        });
    if !is_valid {
        problems.push(format!(
            "lineage must list up to {LINEAGE} earlier generations, newest first, each with 32 \
             bytes"
        ));
    }
}

fn backup_problem(manifest: &Manifest, problems: &mut Vec<String>) {
    let Some(backup) = &manifest.last_backup else {
        return;
    };
    let is_valid = backup.sha256.0.len() == 32
        && (1..manifest.generation).contains(&backup.generation)
        && (1..=manifest.newest_version()).contains(&backup.newest_version);
    if !is_valid {
        problems.push("last_backup has an invalid SHA-256, generation or version".into());
    }
}

fn rollout_problem(manifest: &Manifest, problems: &mut Vec<String>) {
    let (active, ended) = (&manifest.rollout, &manifest.ended_rollouts);
    if active
        .as_ref()
        .is_some_and(|mark| mark.plan.0.len() != 32 || mark.attempt == 0)
    {
        problems.push("rollout has a plan that is not 32 bytes, or an attempt of 0".into());
    }
    let all = ended.iter().chain(active.as_ref().map(|mark| &mark.id));
    let distinct: BTreeSet<&RolloutId> = all.clone().collect();
    if ended.len() > ENDED_ROLLOUTS || distinct.len() != all.count() {
        problems.push(format!(
            "ended_rollouts lists more than {ENDED_ROLLOUTS}, one twice, or the active one"
        ));
    }
}

fn authentication_problems(manifest: &Manifest, problems: &mut Vec<String>) {
    let words = &manifest.authentication.words;
    let live: BTreeSet<u32> = manifest.live().map(|version| version.version).collect();
    let given: BTreeSet<u32> = words.iter().map(|word| word.version).collect();
    if live != given || given.len() != words.len() {
        let problem = "authentication.words must have exactly one entry for every version that is \
                       not destroyed";
        problems.push(problem.into());
    }
    if words.iter().any(|word| word.signature.0.len() != 64) {
        problems.push("a word is not 64 bytes long".into());
    }
    let signatures = &manifest.authentication.signatures;
    if signatures
        .iter()
        .any(|signature| signature.signature.0.len() != 64)
    {
        problems.push("a signature is not 64 bytes long".into());
    }
}
