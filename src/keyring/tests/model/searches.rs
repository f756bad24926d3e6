//! The searches. Their sizes are those at which every mutation is caught.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::*;

/// A candidate with the words given for it, and the base of the reader that is shown it.
pub(super) struct Shown {
    pub(super) base: usize,
    pub(super) candidate: Content,
    pub(super) words: BTreeSet<Key>,
}

/// Every honest history of `length` generations, as numbers of contents.
pub(super) fn histories(
    contents: &mut Contents,
    length: usize,
    max_versions: usize,
) -> Vec<Vec<usize>> {
    let first = contents.number(Content::first());
    let mut all = vec![vec![first]];
    let mut longest = all.clone();
    for _ in 1..length {
        let mut longer = Vec::new();
        for history in longest {
            let last = *history.last().expect("not empty");
            for next in contents.changes(last, max_versions) {
                longer.push([history.as_slice(), &[next]].concat());
            }
        }
        all.extend(longer.iter().cloned());
        longest = longer;
    }
    all
}

/// Every pair of an honest reader and a later generation of the same history.
pub(super) fn lagging(contents: &mut Contents, length: usize, max_versions: usize) -> Vec<Shown> {
    let mut seen = HashSet::new();
    let mut shown = Vec::new();
    for history in histories(contents, length, max_versions) {
        let newest = *history.last().expect("not empty");
        for base in &history[..history.len() - 1] {
            if seen.insert((*base, newest)) {
                let candidate = contents.at(newest).clone();
                shown.push(Shown {
                    base: *base,
                    words: candidate.words(),
                    candidate,
                });
            }
        }
    }
    shown
}

/// Every forgery for every reader that should withstand it, by someone who knows up to `leaks` keys
/// that are not the newest primary's.
pub(super) fn forgeries(
    contents: &mut Contents,
    length: usize,
    max_versions: usize,
    leaks: usize,
) -> Vec<Shown> {
    let mut seen = HashSet::new();
    let mut shown = Vec::new();
    for history in histories(contents, length, max_versions - 1) {
        let public: Vec<&Content> = history.iter().map(|number| contents.at(*number)).collect();
        let head = public[public.len() - 1];
        let keys: Vec<Key> = head
            .keys()
            .into_iter()
            .filter(|key| *key != head.primary_key())
            .collect();
        for leaked in subsets(&keys, leaks) {
            for (index, base) in history.iter().enumerate() {
                // Who knows all that vouch for a genuine generation leads its readers.
                if public[index..]
                    .iter()
                    .any(|later| later.unflagged().is_subset(&leaked))
                {
                    continue;
                }
                let testaments: Vec<_> = head
                    .versions
                    .iter()
                    .map(|version| version.testament.clone())
                    .collect();
                if !seen.insert((*base, testaments, head.keys(), leaked.clone())) {
                    continue;
                }
                let mut words = leaked.clone();
                words.insert(ATTACKERS);
                for candidate in forged(*base, &public, &words, max_versions, contents) {
                    shown.push(Shown {
                        base: *base,
                        candidate,
                        words: words.clone(),
                    });
                }
            }
        }
    }
    shown
}

fn subsets(keys: &[Key], most: usize) -> Vec<BTreeSet<Key>> {
    let mut subsets = vec![BTreeSet::new()];
    for key in keys {
        let more: Vec<BTreeSet<Key>> = subsets
            .iter()
            .filter(|subset| subset.len() < most)
            .map(|subset| {
                let mut larger = subset.clone();
                larger.insert(*key);
                larger
            })
            .collect();
        subsets.extend(more);
    }
    subsets
}

/// The candidates that someone can make of what is public and of the keys that they know.
fn forged(
    base: usize,
    public: &[&Content],
    known: &BTreeSet<Key>,
    max_versions: usize,
    contents: &Contents,
) -> Vec<Content> {
    let held = contents.at(base);
    let generation = public.last().expect("not empty").generation + 1;
    let mut candidates = vec![Vec::new()];
    let mut forged = Vec::new();
    for number in 1..=u32::try_from(max_versions).expect("small") {
        let choices = choices(number, held, public, known);
        candidates = candidates
            .iter()
            .flat_map(|versions: &Vec<Version>| {
                choices
                    .iter()
                    .map(|choice| [versions.as_slice(), std::slice::from_ref(choice)].concat())
            })
            .collect();
        if candidates[0].len() < held.versions.len() {
            continue;
        }
        for versions in &candidates {
            let versions = with_own_testaments(versions.clone(), generation, known);
            let targets = (1..)
                .zip(&versions)
                .filter(|(_, version)| {
                    version.state == State::Enabled && known.contains(&version.key)
                })
                .map(|(number, _)| number);
            for target in targets {
                forged.push(Content {
                    generation,
                    versions: versions.clone(),
                    activations: [held.activations.as_slice(), &[target]].concat(),
                    lineage: vec![(held.generation, base)],
                });
            }
        }
    }
    forged
}

/// What an attacker may put at the place of a version.
fn choices(
    number: u32,
    held: &Content,
    public: &[&Content],
    known: &BTreeSet<Key>,
) -> Vec<Version> {
    let listed = held.version(number);
    let published = || public.iter().filter_map(|content| content.version(number));
    let keys: BTreeSet<Key> = match listed {
        Some(version) => [version.key].into(),
        None => published()
            .map(|version| version.key)
            .chain([ATTACKERS])
            .collect(),
    };
    let mut choices: BTreeSet<Version> = listed.cloned().into_iter().collect();
    for key in keys {
        let version = |state, testament| Version {
            key,
            state,
            compromised: listed.is_some_and(|version| version.compromised),
            testament,
            kek: 0,
        };
        choices.insert(version(State::Enabled, None));
        choices.insert(version(State::Disabled, None));
        choices.insert(version(State::Destroyed, None));
        for copied in published().filter(|version| version.key == key) {
            choices.insert(version(State::Destroyed, copied.testament.clone()));
        }
        if known.contains(&key) {
            // Completed once the other versions are known.
            let own = Testament {
                generation: 0,
                keys: Vec::new(),
                heirs: Vec::new(),
            };
            choices.insert(version(State::Destroyed, Some(own)));
        }
    }
    choices.into_iter().collect()
}

/// Completes the testaments of versions whose keys the attacker knows: their heirs are the others.
fn with_own_testaments(
    mut versions: Vec<Version>,
    generation: u64,
    known: &BTreeSet<Key>,
) -> Vec<Version> {
    let keys: Vec<Key> = versions.iter().map(|version| version.key).collect();
    let heirs: Vec<u32> = (1..)
        .zip(&versions)
        .filter(|(_, version)| version.state != State::Destroyed && known.contains(&version.key))
        .map(|(number, _)| number)
        .collect();
    for version in &mut versions {
        if let Some(testament) = &mut version.testament
            && testament.keys.is_empty()
        {
            *testament = Testament {
                generation,
                keys: keys.clone(),
                heirs: heirs.clone(),
            };
        }
    }
    versions
}

/// What operators go by who find something in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operators {
    /// The last generation that one of them read or wrote.
    WithMemory,
    /// Only what they find.
    WithoutMemory,
}

/// What happens to a reader while someone puts older generations back twice and operators go on
/// from what they find, as far as `mutation` lets them. Ends early once it finds `sought`.
fn replays(
    operators: Operators,
    mutation: &[Mutation],
    sought: Option<&'static str>,
) -> BTreeSet<&'static str> {
    const LENGTH: u64 = 5;
    const VERSIONS: usize = 2;
    /// More than there are with a memory.
    const STATES: usize = 300_000;
    /// Deeper, without removals of KEKs.
    const DEEP_STATES: usize = 1_000_000;

    let mut contents = Contents::default();
    let mut first = Content::first();
    let mut most = STATES;
    if sought == Some(TO_KNOWN) {
        first.versions[0].kek = 1;
        most = DEEP_STATES;
    }
    let first = contents.number(first);
    let mut faults = BTreeSet::new();
    let start = Replay {
        store: first,
        ever: BTreeSet::from([first]),
        base: first,
        memory: first,
        put_back: 0,
    };
    let mut seen = HashSet::from([start.clone()]);
    let mut open = VecDeque::from([start]);
    while let Some(replay) = open.pop_front()
        && seen.len() < most
        && !sought.is_some_and(|sought| faults.contains(sought))
    {
        let mut next = Vec::new();
        let found = contents.at(replay.store).clone();
        let words = found.words();
        if replay.store != replay.base && contents.accepts(replay.base, &found, &words, mutation) {
            faults.extend(fault(&contents, &replay));
            next.push(Replay {
                base: replay.store,
                ..replay.clone()
            });
        }
        let goes_on = operators == Operators::WithoutMemory
            || contents.accepts(replay.memory, &found, &words, mutation);
        if goes_on && found.generation < LENGTH {
            for written in contents.changes(replay.store, VERSIONS) {
                let mut after = Replay {
                    store: written,
                    ..replay.clone()
                };
                after.ever.insert(written);
                if operators == Operators::WithMemory {
                    after.memory = written;
                }
                next.push(after);
            }
        }
        if replay.put_back < 2 {
            let older = replay
                .ever
                .iter()
                .filter(|older| contents.at(**older).generation < found.generation);
            next.extend(older.map(|older| Replay {
                store: *older,
                put_back: replay.put_back + 1,
                ..replay.clone()
            }));
        }
        open.extend(next.into_iter().filter(|state| seen.insert(state.clone())));
    }
    assert!(
        operators == Operators::WithoutMemory || open.is_empty(),
        "searched only {} states",
        seen.len()
    );
    faults
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Replay {
    store: usize,
    /// Everything that was written.
    ever: BTreeSet<usize>,
    /// The reader's.
    base: usize,
    /// The operators'.
    memory: usize,
    /// How often the store was put back.
    put_back: u32,
}

const TO_KNOWN: &str = "it returns to a version that it knows as compromised";
const TO_KEK: &str = "it returns to a KEK that was removed";
const TO_BRANCH: &str = "it goes on to a compromised primary by a branch";

/// Names what is wrong with a reader that takes what is in the store.
fn fault(contents: &Contents, replay: &Replay) -> Option<&'static str> {
    let (held, taken) = (contents.at(replay.base), contents.at(replay.store));
    let (old, new) = (held.primary(), taken.primary());
    if old != new && held.flags(new) {
        return Some(TO_KNOWN);
    }
    let returns_to_kek = (1..).zip(&held.versions).any(|(number, version)| {
        let is_back = |now: &Version| now.state != State::Destroyed && now.kek == 0;
        version.kek == 1 && taken.version(number).is_some_and(is_back)
    });
    if returns_to_kek {
        return Some(TO_KEK);
    }
    let is_flagged = replay.ever.iter().any(|number| {
        let flags = |version: &Version| version.compromised && version.key == taken.primary_key();
        contents.at(*number).versions.iter().any(flags)
    });
    // Who lags takes a genuine ancestor of the newest generation: the lease bounds that.
    let newest = replay
        .ever
        .iter()
        .map(|number| contents.at(*number))
        .max_by_key(|content| content.generation)?;
    let is_ancestor = newest.lineage.contains(&(taken.generation, replay.store));
    let is_news = old != new && !taken.flags(new) && is_flagged && !is_ancestor;
    is_news.then_some(TO_BRANCH)
}

fn accepted(contents: &Contents, shown: &[Shown], mutation: &[Mutation]) -> usize {
    let accepts =
        |shown: &&Shown| contents.accepts(shown.base, &shown.candidate, &shown.words, mutation);
    shown.iter().filter(accepts).count()
}

#[test]
fn no_reader_of_an_honest_history_gets_stuck() {
    let mut contents = Contents::default();
    let shown = lagging(&mut contents, 6, 3);
    assert!(shown.len() > 10_000, "{} pairs", shown.len());
    assert_eq!(accepted(&contents, &shown, &[]), shown.len());
}

#[test]
fn no_forgery_is_accepted_and_every_mutation_lets_one_pass() {
    let mut contents = Contents::default();
    let shown = forgeries(&mut contents, 5, 3, 2);
    assert!(shown.len() > 20_000, "{} forgeries", shown.len());
    assert_eq!(accepted(&contents, &shown, &[]), 0);
    for mutation in [
        Mutation::HeirsOff,
        Mutation::OnlyEnabledAsked,
        Mutation::NoOwnWord,
    ] {
        assert_ne!(accepted(&contents, &shown, &[mutation]), 0, "{mutation:?}");
    }
}

#[test]
fn no_replay_leads_back_and_every_mutation_lets_one() {
    let none = BTreeSet::new();
    assert_eq!(replays(Operators::WithMemory, &[], None), none);
    // Why commands have a memory: a branch that they write reaches readers that lag.
    for (mutation, fault) in [
        (&[][..], TO_BRANCH),
        (&[Mutation::NoLineage], TO_KEK),
        (&[Mutation::NoLineage, Mutation::NoFlags], TO_KNOWN),
        (&[Mutation::NoLineage, Mutation::NoActivations], TO_KNOWN),
    ] {
        let faults = replays(Operators::WithoutMemory, mutation, Some(fault));
        assert!(faults.contains(fault), "{mutation:?}: {faults:?}");
    }
}
