//! An abstract model of succession (I13, I14), small enough to search exhaustively: honest
//! histories and readers that lag, forgeries with leaked keys, and stores that are put back to an
//! older generation. A key is a number, and a word is knowledge of that number. There is one wave,
//! and every waiting time may be over.
//!
//! Each search finds the fault in rules from which one condition was removed, so that it would find
//! one in the rules themselves. The rules are those of the product: a sample of everything that was
//! searched is turned into documents and compared with what [`examine`](super::super::examine)
//! says.

mod conformance;
mod searches;

use std::collections::{BTreeSet, HashMap};

/// A data key. Zero is the attacker's own.
type Key = u32;
const ATTACKERS: Key = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum State {
    Enabled,
    Disabled,
    Destroyed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Testament {
    generation: u64,
    /// The keys of versions 1 to the newest.
    keys: Vec<Key>,
    heirs: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Version {
    key: Key,
    state: State,
    compromised: bool,
    testament: Option<Testament>,
    /// The KEK that wraps it.
    kek: u8,
}

/// What a manifest says: everything but the words for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Content {
    generation: u64,
    versions: Vec<Version>,
    activations: Vec<u32>,
    /// Newest first: the generation, and the number of the content.
    lineage: Vec<(u64, usize)>,
}

impl Content {
    fn first() -> Self {
        Self {
            generation: 1,
            versions: vec![Version {
                key: 1,
                state: State::Enabled,
                compromised: false,
                testament: None,
                kek: 0,
            }],
            activations: vec![1],
            lineage: Vec::new(),
        }
    }

    fn version(&self, number: u32) -> Option<&Version> {
        self.versions
            .get(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    fn primary(&self) -> u32 {
        *self.activations.last().expect("a keyring has a primary")
    }

    fn primary_key(&self) -> Key {
        self.version(self.primary()).expect("listed").key
    }

    fn keys(&self) -> Vec<Key> {
        self.versions.iter().map(|version| version.key).collect()
    }

    fn live(&self) -> impl Iterator<Item = (u32, &Version)> {
        (1..)
            .zip(&self.versions)
            .filter(|(_, version)| version.state != State::Destroyed)
    }

    /// The keys of the versions that live and are not compromised.
    fn unflagged(&self) -> BTreeSet<Key> {
        self.live()
            .filter(|(_, version)| !version.compromised)
            .map(|(_, version)| version.key)
            .collect()
    }

    /// The words that an honest operator gives, who unwraps every version.
    fn words(&self) -> BTreeSet<Key> {
        self.live().map(|(_, version)| version.key).collect()
    }

    fn flags(&self, number: u32) -> bool {
        self.version(number)
            .is_some_and(|version| version.compromised)
    }
}

/// A condition that is removed from the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    /// Every version with a word counts as heir.
    HeirsOff,
    /// Only enabled versions are asked for their word.
    OnlyEnabledAsked,
    /// A destroyed version needs no testament.
    NoOwnWord,
    NoLineage,
    NoActivations,
    NoFlags,
}

/// Every content that was seen, by number.
#[derive(Default)]
struct Contents {
    all: Vec<Content>,
    numbers: HashMap<Content, usize>,
}

impl Contents {
    fn number(&mut self, content: Content) -> usize {
        if let Some(number) = self.numbers.get(&content) {
            return *number;
        }
        let number = self.all.len();
        self.all.push(content.clone());
        self.numbers.insert(content, number);
        number
    }

    fn at(&self, number: usize) -> &Content {
        &self.all[number]
    }

    /// Every change that an honest operator may make, who sees only the content `current`.
    fn changes(&mut self, current: usize, max_versions: usize) -> Vec<usize> {
        let before = self.at(current).clone();
        let next = {
            let mut lineage = vec![(before.generation, current)];
            lineage.extend(&before.lineage);
            Content {
                generation: before.generation + 1,
                lineage,
                ..before.clone()
            }
        };
        // Touch.
        let mut changes = vec![next.clone()];
        if before.versions.len() < max_versions {
            let mut rotated = next.clone();
            // Operators who don't know of each other make different keys.
            let key = Key::try_from(2 + current * 8 + before.versions.len()).expect("small");
            let kek = before.versions.last().map_or(0, |version| version.kek);
            rotated.versions.push(Version {
                key,
                state: State::Enabled,
                compromised: false,
                testament: None,
                kek,
            });
            changes.push(rotated);
        }
        for (number, version) in (1..).zip(&before.versions) {
            let is_primary = number == before.primary();
            let mut change = |change: &dyn Fn(&mut Content, &mut Version)| {
                let mut content = next.clone();
                let mut version = version.clone();
                change(&mut content, &mut version);
                content.versions[number as usize - 1] = version;
                changes.push(content);
            };
            if version.state == State::Enabled && !is_primary {
                if !version.compromised {
                    change(&|content, _| content.activations.push(number));
                }
                change(&|_, version| version.state = State::Disabled);
            }
            if version.state == State::Disabled {
                change(&|_, version| version.state = State::Enabled);
                if !version.compromised {
                    // A rollback to it.
                    change(&|content, version| {
                        version.state = State::Enabled;
                        content.activations.push(number);
                    });
                }
                let heirs: Vec<u32> = before
                    .live()
                    .filter(|(heir, version)| *heir != number && !version.compromised)
                    .map(|(heir, _)| heir)
                    .collect();
                if !heirs.is_empty() {
                    change(&|content, version| {
                        version.state = State::Destroyed;
                        version.testament = Some(Testament {
                            generation: content.generation,
                            keys: before.keys(),
                            heirs: heirs.clone(),
                        });
                    });
                }
            }
            if version.state != State::Destroyed {
                if !version.compromised {
                    change(&|_, version| version.compromised = true);
                    let replaces = |other: &(u32, &Version)| {
                        other.0 != number && other.1.state == State::Enabled && !other.1.compromised
                    };
                    for (successor, _) in before.live().filter(replaces) {
                        change(&|content, version| {
                            version.compromised = true;
                            content.activations.push(successor);
                        });
                    }
                }
                if version.kek == 0 {
                    change(&|_, version| version.kek = 1);
                }
            }
        }
        changes
            .into_iter()
            .map(|content| self.number(content))
            .collect()
    }

    /// Returns whether a reader whose base is `base` takes `candidate`, for which `words` were
    /// given.
    fn accepts(
        &self,
        base: usize,
        candidate: &Content,
        words: &BTreeSet<Key>,
        mutation: &[Mutation],
    ) -> bool {
        let known = self.at(base);
        if candidate.generation <= known.generation {
            return candidate == known;
        }
        self.descends(base, candidate, mutation)
            && are_given(candidate, words, mutation)
            && trusts(known, candidate, mutation)
    }

    fn descends(&self, base: usize, candidate: &Content, mutation: &[Mutation]) -> bool {
        let known = self.at(base);
        let keeps = |(number, version): (u32, &Version)| {
            candidate.version(number).is_some_and(|now| {
                let stays_destroyed = version.state != State::Destroyed
                    || (now.state == State::Destroyed && now.testament == version.testament);
                let stays_flagged = mutation.contains(&Mutation::NoFlags)
                    || !version.compromised
                    || now.compromised;
                now.key == version.key && stays_destroyed && stays_flagged
            })
        };
        let reaches_back = candidate
            .lineage
            .last()
            .is_some_and(|(oldest, _)| *oldest <= known.generation);
        let is_listed = candidate.lineage.contains(&(known.generation, base));
        (1..).zip(&known.versions).all(keeps)
            && (mutation.contains(&Mutation::NoLineage) || !reaches_back || is_listed)
            && keeps_activations(known, candidate, mutation)
    }
}

fn keeps_activations(known: &Content, candidate: &Content, mutation: &[Mutation]) -> bool {
    let counts = |version: &&u32| {
        candidate
            .version(**version)
            .is_some_and(|version| version.state != State::Destroyed)
    };
    let mut kept = known.activations.iter().filter(counts).peekable();
    for version in candidate.activations.iter().filter(counts) {
        if kept.next_if_eq(&version).is_none()
            && known.flags(*version)
            && !mutation.contains(&Mutation::NoFlags)
        {
            return false;
        }
    }
    mutation.contains(&Mutation::NoActivations) || kept.next().is_none()
}

/// Whether every word that is asked for was given, and every testament fits.
fn are_given(candidate: &Content, words: &BTreeSet<Key>, mutation: &[Mutation]) -> bool {
    let keys = candidate.keys();
    candidate
        .versions
        .iter()
        .all(|version| match version.state {
            State::Destroyed => version
                .testament
                .as_ref()
                .is_none_or(|testament| keys.starts_with(&testament.keys)),
            State::Disabled if mutation.contains(&Mutation::OnlyEnabledAsked) => true,
            State::Disabled | State::Enabled => words.contains(&version.key),
        })
}

fn trusts(known: &Content, candidate: &Content, mutation: &[Mutation]) -> bool {
    let is_asked = |version: &Version| {
        version.state == State::Enabled || !mutation.contains(&Mutation::OnlyEnabledAsked)
    };
    let mut trusted: BTreeSet<u32> = known
        .live()
        .filter(|(_, version)| is_asked(version))
        .map(|(number, _)| number)
        .collect();
    let mut open: Vec<u32> = trusted.iter().copied().collect();
    let (mut vouching, mut vouching_flagged) = (false, false);
    while let Some(number) = open.pop() {
        let Some(version) = candidate.version(number) else {
            return false;
        };
        if version.state != State::Destroyed {
            if known.flags(number) {
                vouching_flagged = true;
            } else {
                vouching = true;
            }
            continue;
        }
        if mutation.contains(&Mutation::NoOwnWord) {
            continue;
        }
        let Some(testament) = &version.testament else {
            return false;
        };
        let is_known = known.version(number).is_some();
        if testament.heirs.is_empty()
            || testament.generation > candidate.generation
            || (is_known && testament.generation <= known.generation)
        {
            return false;
        }
        let heirs = if mutation.contains(&Mutation::HeirsOff) {
            candidate.live().map(|(number, _)| number).collect()
        } else {
            testament.heirs.clone()
        };
        open.extend(heirs.into_iter().filter(|heir| trusted.insert(*heir)));
    }
    vouching || (vouching_flagged && known.unflagged().is_empty())
}
