//! Which manifest may follow which (I13, I14).
//!
//! A reader trusts the versions of the manifest that it already has, its base. A successor must
//! descend from the base, and every trusted version must give its word for it: with a signature or,
//! once the version is destroyed, with the words of the heirs that its testament names. All of this
//! needs public keys only, so it is decided before any KEK is asked.

use std::collections::BTreeSet;

use super::{
    Activation, Document, Manifest, Rejection, State,
    authentication::{Chain, verify_signatures, verify_words},
};
use crate::model::{Anchor, KeyringName, SignerKey};

/// What the configuration requires of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectations {
    /// The keyring's name.
    pub name: KeyringName,
    /// The lowest accepted generation.
    pub min_generation: u64,
    /// One of these must have signed it, unless there are none.
    pub trusted_signers: Vec<SignerKey>,
    /// A version that a reader without a base trusts.
    pub anchor: Option<Anchor>,
    /// Versions that may be destroyed without a testament.
    pub accept_lost: Vec<u32>,
}

impl Expectations {
    /// Expects only the name.
    pub fn of(name: &KeyringName) -> Self {
        Self {
            name: name.clone(),
            min_generation: 0,
            trusted_signers: Vec::new(),
            anchor: None,
            accept_lost: Vec::new(),
        }
    }
}

/// How an accepted manifest relates to the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// The same generation with the same content.
    Unchanged,
    /// A newer generation, or the first.
    Newer,
    /// A newer generation that only compromised versions vouch for, because the base has no other.
    Exposed,
}

/// Decides whether a reader whose base is `base` may take `candidate`.
///
/// # Errors
/// [`Rejection`]: the first check that failed, in the order of SUCCESSION (identity, generation,
/// signers, descent, words).
pub fn examine(
    base: Option<&Document>,
    candidate: &Document,
    expect: &Expectations,
) -> Result<Succession, Rejection> {
    check_identity(base, candidate, expect)?;
    let is_unchanged = match base {
        Some(base) => is_same_generation(base, candidate)?,
        None => false,
    };
    verify_signatures(candidate, &expect.trusted_signers)?;
    if let Some(base) = base
        && !is_unchanged
    {
        descends(base, candidate)?;
    }
    // Words aren't covered bytes, so the same generation may carry others.
    if base.is_none_or(|base| base.bytes() != candidate.bytes()) {
        verify_words(candidate)?;
    }
    if is_unchanged {
        return Ok(Succession::Unchanged);
    }
    match (base, &expect.anchor) {
        (Some(base), _) => Trust::in_manifest(base.manifest()).extends_to(candidate, expect),
        (None, Some(anchor)) => Trust::in_anchor(anchor).extends_to(candidate, expect),
        (None, None) => Ok(Succession::Newer),
    }
}

fn check_identity(
    base: Option<&Document>,
    candidate: &Document,
    expect: &Expectations,
) -> Result<(), Rejection> {
    let found = candidate.manifest();
    let known = base.map(|base| base.manifest().id);
    if found.name != expect.name || known.is_some_and(|id| id != found.id) {
        let id = known.map(|id| format!(" ({id})")).unwrap_or_default();
        return Err(Rejection::OtherKeyring {
            expected: format!("{}{id}", expect.name),
            found: found.name.clone(),
            found_id: found.id,
        });
    }
    if found.generation < expect.min_generation {
        return Err(Rejection::WentBack {
            found: found.generation,
            least: expect.min_generation,
        });
    }
    Ok(())
}

/// Returns whether the candidate is the base's own generation, or `false` if it is a later one.
fn is_same_generation(base: &Document, candidate: &Document) -> Result<bool, Rejection> {
    let (held, found) = (base.manifest().generation, candidate.manifest().generation);
    if found == held {
        return if base.canonical() == candidate.canonical() {
            Ok(true)
        } else {
            Err(Rejection::Forked(found))
        };
    }
    if found > held {
        return Ok(false);
    }
    Err(if lists(base.manifest(), candidate) {
        Rejection::Behind { found, held }
    } else {
        Rejection::WentBack { found, least: held }
    })
}

/// Returns whether the lineage of `manifest` has `ancestor`.
fn lists(manifest: &Manifest, ancestor: &Document) -> bool {
    let (generation, digest) = (ancestor.manifest().generation, ancestor.digest());
    manifest
        .lineage
        .iter()
        .any(|listed| listed.generation == generation && listed.sha256.0 == digest)
}

/// Checks that `candidate` keeps what `base` decided (I14).
///
/// # Errors
/// [`Rejection`], with the code `diverged` or `too_far_behind`.
pub(super) fn descends(base: &Document, candidate: &Document) -> Result<(), Rejection> {
    let (before, after) = (base.manifest(), candidate.manifest());
    keeps_versions(before, after)?;
    let reaches_back = after
        .lineage
        .last()
        .is_some_and(|oldest| oldest.generation <= before.generation);
    if reaches_back && !lists(after, base) {
        return Err(Rejection::NotDescended {
            generation: after.generation,
            held: before.generation,
        });
    }
    keeps_activations(before, after)
}

fn keeps_versions(before: &Manifest, after: &Manifest) -> Result<(), Rejection> {
    if let Some(trimmed) = &after.trimmed {
        let known = Chain::of(before);
        let commits = known.at(trimmed.through);
        if commits.is_some_and(|link| trimmed.l.0 != link) {
            return Err(Rejection::KeyReplaced(trimmed.through));
        }
    }
    for version in &before.versions {
        let number = version.version;
        let Some(now) = after.version(number) else {
            if number >= after.first_version() {
                return Err(Rejection::Vanished(number));
            }
            if version.state != State::Destroyed {
                return Err(Rejection::TooFarBehind(number));
            }
            continue;
        };
        if now.check != version.check || now.key != version.key {
            return Err(Rejection::KeyReplaced(number));
        }
        if version.state == State::Destroyed && now.state != State::Destroyed {
            return Err(Rejection::Resurrected(number));
        }
        if version.state == State::Destroyed && now.testament != version.testament {
            return Err(Rejection::TestamentChanged(number));
        }
        if version.compromised && !now.compromised {
            return Err(Rejection::FlagCleared(number));
        }
    }
    Ok(())
}

/// The base's activations, without those of versions destroyed since, are a subsequence of the
/// candidate's; what the candidate adds names no version that the base flags as compromised.
fn keeps_activations(before: &Manifest, after: &Manifest) -> Result<(), Rejection> {
    let is_gone = |version: u32| {
        after
            .version(version)
            .is_none_or(|version| version.state == State::Destroyed)
    };
    let counts = |activation: &&Activation| !is_gone(activation.version);
    let mut kept = before.activations.iter().filter(counts).peekable();
    for activation in after.activations.iter().filter(counts) {
        if kept.next_if(|kept| kept.is_same(activation)).is_some() {
            continue;
        }
        let is_flagged = before
            .version(activation.version)
            .is_some_and(|version| version.compromised);
        if is_flagged {
            return Err(Rejection::CompromisedActivated(activation.version));
        }
    }
    match kept.next() {
        Some(missing) => Err(Rejection::ActivationRemoved(missing.version)),
        None => Ok(()),
    }
}

/// Returns whether `ancestor` is in the lineage of `document` or is the same generation.
pub fn descends_from(document: &Document, ancestor: &Document) -> bool {
    document.canonical() == ancestor.canonical() || lists(document.manifest(), ancestor)
}

/// Returns whether holders of the keys wrote `candidate`, for someone who trusts `base`: it is an
/// ancestor, or every version that the base trusts and that the candidate can know vouches for it.
/// It may be newer, older, or on another branch.
pub fn is_vouched_for(base: &Document, candidate: &Document, accept_lost: &[u32]) -> bool {
    let (known, found) = (base.manifest(), candidate.manifest());
    let expect = Expectations {
        accept_lost: accept_lost.to_vec(),
        ..Expectations::of(&known.name)
    };
    let has_same_keys = known.versions.iter().all(|version| {
        found
            .version(version.version)
            .is_none_or(|other| other.check == version.check && other.key == version.key)
    });
    let vouches = || {
        let mut trust = Trust {
            is_branch: true,
            ..Trust::in_manifest(known)
        };
        trust
            .versions
            .retain(|version| *version <= found.newest_version());
        trust.extends_to(candidate, &expect).is_ok()
    };
    (known.id, &known.name) == (found.id, &found.name)
        && has_same_keys
        && verify_words(candidate).is_ok()
        && (descends_from(base, candidate) || vouches())
}

/// The versions that a reader trusts to vouch for a successor.
struct Trust<'a> {
    base: Option<&'a Manifest>,
    anchor: Option<&'a Anchor>,
    versions: BTreeSet<u32>,
    /// The candidate may be on another branch, so its generations don't compare with the base's.
    is_branch: bool,
}

impl<'a> Trust<'a> {
    fn in_manifest(base: &'a Manifest) -> Self {
        Self {
            base: Some(base),
            anchor: None,
            versions: base.live().map(|version| version.version).collect(),
            is_branch: false,
        }
    }

    fn in_anchor(anchor: &'a Anchor) -> Self {
        Self {
            base: None,
            anchor: Some(anchor),
            versions: BTreeSet::from([anchor.version]),
            is_branch: false,
        }
    }

    /// Checks that every trusted version gives its word for `candidate` or leaves that to its
    /// heirs, who are trusted in turn (I13). The signatures themselves have been verified.
    fn extends_to(
        mut self,
        candidate: &Document,
        expect: &Expectations,
    ) -> Result<Succession, Rejection> {
        let manifest = candidate.manifest();
        let mut open: Vec<u32> = self.versions.iter().copied().collect();
        let (mut words, mut words_of_compromised) = (0, 0);
        let mut lost = Vec::new();
        while let Some(number) = open.pop() {
            let version = manifest
                .version(number)
                .ok_or_else(|| self.missing(number, manifest))?;
            if self
                .anchor
                .is_some_and(|anchor| anchor.version == number && anchor.key != *version.key.0)
            {
                return Err(Rejection::KeyReplaced(number));
            }
            if version.state != State::Destroyed {
                if self.flags(number) {
                    words_of_compromised += 1;
                } else {
                    words += 1;
                }
                continue;
            }
            let Some(testament) = &version.testament else {
                lost.push(number);
                continue;
            };
            if self.decided_before(number, testament.generation) {
                return Err(Rejection::TestamentChanged(number));
            }
            for heir in &testament.heirs {
                if self.versions.insert(*heir) {
                    open.push(*heir);
                }
            }
        }
        if words == 0 && (words_of_compromised == 0 || self.has_unflagged()) {
            return Err(Rejection::NotVouched);
        }
        // One of `trusted_signers` has signed if there are any.
        lost.retain(|version| !expect.accept_lost.contains(version));
        if !lost.is_empty() && expect.trusted_signers.is_empty() {
            lost.sort_unstable();
            return Err(Rejection::LostVersion(lost));
        }
        Ok(if words == 0 {
            Succession::Exposed
        } else {
            Succession::Newer
        })
    }

    fn missing(&self, version: u32, manifest: &Manifest) -> Rejection {
        match self.anchor {
            _ if version >= manifest.first_version() => Rejection::Vanished(version),
            Some(anchor) if anchor.version == version => Rejection::AnchorTrimmed(version),
            _ => Rejection::TooFarBehind(version),
        }
    }

    fn flags(&self, version: u32) -> bool {
        self.base
            .and_then(|base| base.version(version))
            .is_some_and(|version| version.compromised)
    }

    /// Whether the base has a version that is neither destroyed nor compromised.
    fn has_unflagged(&self) -> bool {
        self.base
            .is_some_and(|base| base.live().any(|version| !version.compromised))
    }

    /// Whether a testament of `generation` would have to be in the base, which knows the version as
    /// not destroyed.
    fn decided_before(&self, version: u32, generation: u64) -> bool {
        !self.is_branch
            && self.base.is_some_and(|base| {
                base.version(version).is_some() && generation <= base.generation
            })
    }
}
