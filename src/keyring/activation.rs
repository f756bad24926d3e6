//! Which version is primary: a pure function of activations, time and wave.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::manifest::present;
use crate::model::{Malformed, Wave};

/// The waves of an activation: one by name, or every wave, written `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum WaveSelector {
    /// Every wave, `*`.
    Every,
    /// One wave.
    One(Wave),
}

impl WaveSelector {
    /// Returns whether this includes `wave`; `None` is a wave that no activation names.
    pub(super) fn covers(&self, wave: Option<&Wave>) -> bool {
        match self {
            Self::Every => true,
            Self::One(name) => Some(name) == wave,
        }
    }

    fn name(&self) -> Option<&Wave> {
        match self {
            Self::Every => None,
            Self::One(name) => Some(name),
        }
    }
}

impl fmt::Display for WaveSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every => f.write_str("*"),
            Self::One(wave) => wave.fmt(f),
        }
    }
}

impl Serialize for WaveSelector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WaveSelector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl FromStr for WaveSelector {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        match text {
            "*" => Ok(Self::Every),
            name => name.parse().map(Self::One),
        }
    }
}

/// A decision: from `at` on, `version` is the primary of `wave`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// The version that becomes primary.
    pub version: u32,
    /// The waves that it becomes primary for.
    pub wave: WaveSelector,
    /// When it becomes primary.
    pub at: Timestamp,
    /// The generation that decided it; None in manifests of older builds.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub generation: Option<u64>,
}

impl Activation {
    /// Returns whether both are the same decision. A merge of branches makes the decisions of one
    /// those of a later generation.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.version, &self.wave, self.at) == (other.version, &other.wave, other.at)
    }
}

/// Returns the primary of `wave` at `now`, which the last due activation of that wave in the list
/// names. Between two that are due, the order in the list decides rather than `at`: the later
/// decision wins.
pub fn primary_at(activations: &[Activation], now: Timestamp, wave: &Wave) -> Option<u32> {
    primary_for(activations, now, Some(wave))
}

/// Returns the primary of a named wave, or of any wave that no activation names.
pub(super) fn primary_for(
    activations: &[Activation],
    now: Timestamp,
    wave: Option<&Wave>,
) -> Option<u32> {
    deciding(activations, now, wave).map(|activation| activation.version)
}

fn deciding<'a>(
    activations: &'a [Activation],
    now: Timestamp,
    wave: Option<&Wave>,
) -> Option<&'a Activation> {
    activations
        .iter()
        .rev()
        .find(|activation| activation.at <= now && activation.wave.covers(wave))
}

/// Returns the primary of each named wave at `now` and, last, the primary of any other wave (`*`).
pub fn primaries(activations: &[Activation], now: Timestamp) -> Vec<(WaveSelector, Option<u32>)> {
    let named: BTreeSet<&Wave> = activations
        .iter()
        .filter_map(|activation| activation.wave.name())
        .collect();
    let of = |selector, wave| (selector, primary_for(activations, now, wave));
    named
        .into_iter()
        .map(|wave| of(WaveSelector::One(wave.clone()), Some(wave)))
        .chain([of(WaveSelector::Every, None)])
        .collect()
}

/// Returns the activations that are not yet due and that no later decision supersedes for all their
/// waves.
pub fn scheduled(activations: &[Activation], now: Timestamp) -> impl Iterator<Item = &Activation> {
    let waves = waves(activations);
    activations.iter().filter(move |activation| {
        let decides = |wave: &Option<&Wave>| {
            deciding(activations, activation.at, *wave)
                .is_some_and(|found| std::ptr::eq(found, *activation))
        };
        activation.at > now && waves.iter().any(decides)
    })
}

/// When a version is primary, over all waves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrimaryPeriod {
    /// It never was the primary of a wave, and isn't scheduled to become one.
    Never,
    /// It was the primary of a wave until this time at the latest.
    Ended(Timestamp),
    /// It is the primary of a wave, or is scheduled to become one.
    CurrentOrScheduled,
}

/// Returns when `version` is primary, as known at `now`, over every named wave and any other.
///
/// An activation lasts from its own time until the earliest time of the activations after it in the
/// list that include the same wave. One that was superseded before it was due counts as ended at
/// that time: a sidecar that hasn't received the later decision may follow it. No activation is
/// written with a time in the past, so such a sidecar last confirmed its manifest no later than
/// that.
pub fn primary_period(activations: &[Activation], version: u32, now: Timestamp) -> PrimaryPeriod {
    let mut last_end = None;
    for wave in waves(activations) {
        for (activation, superseded) in with_end(activations, wave) {
            if activation.version == version {
                match superseded {
                    Some(end) if has_ended(activation, end, now) => {
                        last_end = last_end.max(Some(end));
                    }
                    _ => return PrimaryPeriod::CurrentOrScheduled,
                }
            }
        }
    }
    last_end.map_or(PrimaryPeriod::Never, PrimaryPeriod::Ended)
}

/// Returns the first generation in which `version` is superseded in every wave for good, as known
/// at `now`: who serves that one or a later one never encrypts with it again. 0 if the version was
/// never activated. None if it isn't superseded, or the generation isn't known.
pub fn superseding_generation(
    activations: &[Activation],
    version: u32,
    now: Timestamp,
) -> Option<u64> {
    let mut last = 0;
    for wave in waves(activations) {
        let of_wave: Vec<&Activation> = activations
            .iter()
            .filter(|activation| activation.wave.covers(wave))
            .collect();
        for (index, activation) in of_wave.iter().enumerate() {
            if activation.version != version {
                continue;
            }
            // What comes later in the list wins, once it is due: now, or whenever the other one is.
            let due = activation.at.max(now);
            let later = of_wave[index + 1..].iter();
            let decided = later
                .filter(|later| later.version != version && later.at <= due)
                .filter_map(|later| later.generation)
                .min()?;
            last = last.max(decided);
        }
    }
    Some(last)
}

/// Returns every version whose [`PrimaryPeriod`] is current or scheduled at `now`.
pub(super) fn current_or_scheduled(activations: &[Activation], now: Timestamp) -> BTreeSet<u32> {
    waves(activations)
        .into_iter()
        .flat_map(|wave| with_end(activations, wave))
        .filter(|(activation, end)| !end.is_some_and(|end| has_ended(activation, end, now)))
        .map(|(activation, _)| activation.version)
        .collect()
}

/// Returns when each version that was ever activated stops being any wave's primary, according to
/// all that is decided; `None` if that is open.
pub(super) fn ends(activations: &[Activation]) -> BTreeMap<u32, Option<Timestamp>> {
    let mut ends = BTreeMap::new();
    for wave in waves(activations) {
        for (activation, end) in with_end(activations, wave) {
            let last = ends.entry(activation.version).or_insert(end);
            *last = last.zip(end).map(|(last, end)| last.max(end));
        }
    }
    ends
}

/// Every wave that an activation names, and `None` for any other.
fn waves(activations: &[Activation]) -> BTreeSet<Option<&Wave>> {
    activations
        .iter()
        .map(|activation| activation.wave.name())
        .chain([None])
        .collect()
}

/// The activations of a wave, last decision first, each with the time at which a later one ends it.
fn with_end<'a>(
    activations: &'a [Activation],
    wave: Option<&Wave>,
) -> impl Iterator<Item = (&'a Activation, Option<Timestamp>)> {
    let mut earliest: Option<Timestamp> = None;
    activations
        .iter()
        .rev()
        .filter(move |activation| activation.wave.covers(wave))
        .map(move |activation| {
            let end = earliest;
            earliest = Some(end.map_or(activation.at, |end| end.min(activation.at)));
            (activation, end)
        })
}

/// Whether an activation that ends at `end` is over at `now`, or never begins.
fn has_ended(activation: &Activation, end: Timestamp, now: Timestamp) -> bool {
    end <= now || end <= activation.at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn activation(version: u32, wave: &str, second: i64) -> Activation {
        let wave = if wave == "*" {
            WaveSelector::Every
        } else {
            WaveSelector::One(wave.parse().expect("wave"))
        };
        Activation {
            version,
            wave,
            at: at(second),
            generation: None,
        }
    }

    fn wave(name: &str) -> Wave {
        name.parse().expect("wave")
    }

    #[test]
    fn a_version_becomes_primary_per_wave_or_everywhere_at_once() {
        let list = [
            activation(1, "*", 0),
            activation(2, "canary", 10),
            activation(2, "*", 20),
        ];
        assert_eq!(primary_at(&list, at(-1), &wave("canary")), None);
        assert_eq!(primary_at(&list, at(10), &wave("canary")), Some(2));
        assert_eq!(primary_at(&list, at(19), &wave("critical")), Some(1));
        assert_eq!(primary_at(&list, at(20), &wave("critical")), Some(2));
    }

    #[test]
    fn a_later_decision_wins_over_a_later_time() {
        let list = [
            activation(1, "*", 0),
            activation(2, "*", 100),
            activation(1, "*", 50),
        ];
        assert_eq!(primary_at(&list, at(200), &wave("any")), Some(1));
    }

    #[test]
    fn a_primary_period_ends_when_the_last_wave_moves_on() {
        let list = [
            activation(1, "*", 0),
            activation(2, "canary", 10),
            activation(2, "*", 30),
        ];
        assert_eq!(
            primary_period(&list, 1, at(20)),
            PrimaryPeriod::CurrentOrScheduled
        );
        assert_eq!(
            primary_period(&list, 1, at(40)),
            PrimaryPeriod::Ended(at(30))
        );
        assert_eq!(
            primary_period(&list, 2, at(5)),
            PrimaryPeriod::CurrentOrScheduled
        );
        assert_eq!(primary_period(&list, 3, at(5)), PrimaryPeriod::Never);
        let cancelled = [
            activation(1, "*", 0),
            activation(2, "*", 100),
            activation(1, "*", 50),
        ];
        assert_eq!(
            primary_period(&cancelled, 2, at(60)),
            PrimaryPeriod::Ended(at(50))
        );
        assert_eq!(
            current_or_scheduled(&cancelled, at(60)),
            BTreeSet::from([1])
        );
        assert_eq!(current_or_scheduled(&list, at(20)), BTreeSet::from([1, 2]));
        assert_eq!(
            scheduled(&cancelled, at(60)).count(),
            0,
            "a later decision supersedes it"
        );
        assert_eq!(
            scheduled(&list, at(5)).collect::<Vec<_>>(),
            [&list[1], &list[2]]
        );
    }

    /// Activations that were decided in these generations.
    fn decided<const N: usize>(list: [(u64, Activation); N]) -> [Activation; N] {
        list.map(|(generation, activation)| Activation {
            generation: Some(generation),
            ..activation
        })
    }

    #[test]
    fn the_generation_that_superseded_a_version_is_that_of_the_last_wave() {
        let list = decided([
            (1, activation(1, "*", 0)),
            (3, activation(2, "canary", 10)),
            (4, activation(2, "*", 30)),
            (8, activation(3, "*", 40)),
        ]);
        let found = |list: &[Activation], now| superseding_generation(list, 1, at(now));
        assert_eq!(found(&list, 50), Some(4), "whatever came later");
        assert_eq!(found(&list[..2], 50), None, "still the primary");
        assert_eq!(found(&list[..3], 29), None, "not due yet");
        assert_eq!(superseding_generation(&list, 9, at(50)), Some(0));
        let back = decided([
            (1, activation(1, "*", 0)),
            (2, activation(2, "*", 10)),
            (3, activation(1, "*", 20)),
            (4, activation(2, "*", 30)),
            (5, activation(2, "canary", 35)),
        ]);
        assert_eq!(found(&back, 40), Some(4), "it came back in between");
        let mut unknown = back.clone();
        unknown[3].generation = None;
        assert_eq!(found(&unknown, 40), None, "canary alone is known");
    }

    #[test]
    fn a_schedule_that_was_cancelled_is_superseded_where_that_was_decided() {
        let list = decided([
            (1, activation(1, "*", 0)),
            (2, activation(2, "*", 100)),
            (3, activation(1, "*", 50)),
        ]);
        assert_eq!(superseding_generation(&list, 2, at(10)), Some(3));
    }

    #[test]
    fn an_activation_superseded_at_its_own_time_counts_as_ended() {
        // Both were written within one clock tick; a sidecar that read only the first encrypted
        // with version 1.
        let list = [activation(1, "*", 10), activation(2, "*", 10)];
        assert_eq!(
            primary_period(&list, 1, at(10)),
            PrimaryPeriod::Ended(at(10))
        );
    }

    #[test]
    fn primaries_are_those_of_each_named_wave_and_of_any_other() {
        let list = [
            activation(1, "*", 0),
            activation(2, "standard", 100),
            activation(2, "canary", 10),
        ];
        let at_time = |second| primaries(&list, at(second));
        let one = |name| WaveSelector::One(wave(name));
        assert_eq!(
            at_time(20),
            [
                (one("canary"), Some(2)),
                (one("standard"), Some(1)),
                (WaveSelector::Every, Some(1)),
            ]
        );
        assert_eq!(
            at_time(-1),
            [
                (one("canary"), None),
                (one("standard"), None),
                (WaveSelector::Every, None),
            ]
        );
    }

    #[test]
    fn an_activation_is_scheduled_until_its_time_for_any_wave_it_decides() {
        let list = [
            activation(1, "*", 0),
            activation(2, "*", 100),
            activation(1, "canary", 50),
            activation(3, "critical", 200),
            activation(2, "critical", 150),
        ];
        let versions = |second| {
            scheduled(&list, at(second))
                .map(|activation| (activation.version, activation.at))
                .collect::<Vec<_>>()
        };
        let (canary, every, critical) = ((1, at(50)), (2, at(100)), (2, at(150)));
        assert_eq!(versions(49), [every, canary, critical]);
        assert_eq!(versions(50), [every, critical]);
        assert_eq!(versions(100), [critical]);
        assert_eq!(versions(150), []);
    }

    #[test]
    fn an_activation_is_written_with_the_name_of_its_wave() {
        for (wave, json) in [
            (
                "*",
                r#"{"version":2,"wave":"*","at":"1970-01-01T00:00:10Z"}"#,
            ),
            (
                "canary",
                r#"{"version":2,"wave":"canary","at":"1970-01-01T00:00:10Z"}"#,
            ),
        ] {
            let activation = activation(2, wave, 10);
            assert_eq!(serde_json::to_string(&activation).expect("JSON"), json);
            assert_eq!(
                serde_json::from_str::<Activation>(json).expect("valid"),
                activation
            );
        }
    }
}
