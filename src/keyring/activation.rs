//! Who encrypts now: a pure function of the activation list, the time and the wave.

use std::{collections::BTreeSet, fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::model::{Malformed, Wave};

/// The waves that an activation speaks to: one by name, or every one, written `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum WaveSelector {
    /// `*`
    Every,
    /// A wave by its name.
    One(Wave),
}

impl WaveSelector {
    /// Whether a sidecar of `wave` listens to this; `None` is a wave that no activation names.
    fn covers(&self, wave: Option<&Wave>) -> bool {
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

/// One decision: from `at` on, `version` encrypts for `wave`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// The version that takes over.
    pub version: u32,
    /// For whom.
    pub wave: WaveSelector,
    /// When.
    pub at: Timestamp,
}

/// The version that encrypts for `wave` at `now`: the last activation in the list that is due and speaks to the wave. List order,
/// not `at`, decides between two that are both due, so that the later decision wins.
pub fn primary_at(activations: &[Activation], now: Timestamp, wave: &Wave) -> Option<u32> {
    primary_for(activations, now, Some(wave))
}

fn primary_for(activations: &[Activation], now: Timestamp, wave: Option<&Wave>) -> Option<u32> {
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

/// The version that encrypts now for every wave that the list names, and last for any other (`*`).
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

/// The activations that are not due yet and that no later decision has called off for all their waves.
pub fn scheduled(activations: &[Activation], now: Timestamp) -> impl Iterator<Item = &Activation> {
    let waves: BTreeSet<Option<&Wave>> = activations
        .iter()
        .map(|activation| activation.wave.name())
        .chain([None])
        .collect();
    activations.iter().filter(move |activation| {
        let decides = |wave: &Option<&Wave>| {
            deciding(activations, activation.at, *wave)
                .is_some_and(|found| std::ptr::eq(found, *activation))
        };
        activation.at > now && waves.iter().any(decides)
    })
}

/// When a version was, is or will be some wave's primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reign {
    /// No wave ever encrypted with it, none will.
    Never,
    /// It was some wave's primary for the last time until then, at the latest.
    Ended(Timestamp),
    /// It is a wave's primary, or an activation will make it one.
    CurrentOrScheduled,
}

/// The reign of `version` as seen at `now`, over every wave that the list names and any other.
///
/// An activation reigns from its own time until the earliest time of those behind it in the list that speak to the same wave. One that
/// such a later decision overtook before it was due still counts as ended then: a sidecar that hasn't heard of the decision may
/// follow it, and nobody writes an activation with a time in the past, so it last confirmed its manifest no later than that.
pub fn reign(activations: &[Activation], version: u32, now: Timestamp) -> Reign {
    let waves: BTreeSet<Option<&Wave>> = activations
        .iter()
        .map(|activation| activation.wave.name())
        .chain([None])
        .collect();
    let mut last_end = None;
    for wave in waves {
        let mut superseded: Option<Timestamp> = None;
        for activation in activations
            .iter()
            .rev()
            .filter(|activation| activation.wave.covers(wave))
        {
            if activation.version == version {
                match superseded {
                    Some(end) if end <= now || end <= activation.at => {
                        last_end = last_end.max(Some(end))
                    }
                    _ => return Reign::CurrentOrScheduled,
                }
            }
            superseded =
                Some(superseded.map_or(activation.at, |earliest| earliest.min(activation.at)));
        }
    }
    last_end.map_or(Reign::Never, Reign::Ended)
}

/// Every version that is some wave's primary at `now` or will become it: [`reign`] for all at once.
pub(super) fn reigning(activations: &[Activation], now: Timestamp) -> BTreeSet<u32> {
    let waves: BTreeSet<Option<&Wave>> = activations
        .iter()
        .map(|activation| activation.wave.name())
        .chain([None])
        .collect();
    let mut found = BTreeSet::new();
    for wave in waves {
        let mut superseded: Option<Timestamp> = None;
        for activation in activations
            .iter()
            .rev()
            .filter(|activation| activation.wave.covers(wave))
        {
            if superseded.is_none_or(|end| end > now && end > activation.at) {
                found.insert(activation.version);
            }
            superseded =
                Some(superseded.map_or(activation.at, |earliest| earliest.min(activation.at)));
        }
    }
    found
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
        }
    }

    fn wave(name: &str) -> Wave {
        name.parse().expect("wave")
    }

    #[test]
    fn takes_over_wave_by_wave_and_everywhere_at_an_instant() {
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
    fn a_reign_ends_when_the_last_wave_moves_on() {
        let list = [
            activation(1, "*", 0),
            activation(2, "canary", 10),
            activation(2, "*", 30),
        ];
        assert_eq!(reign(&list, 1, at(20)), Reign::CurrentOrScheduled);
        assert_eq!(reign(&list, 1, at(40)), Reign::Ended(at(30)));
        assert_eq!(reign(&list, 2, at(5)), Reign::CurrentOrScheduled);
        assert_eq!(reign(&list, 3, at(5)), Reign::Never);
        let cancelled = [
            activation(1, "*", 0),
            activation(2, "*", 100),
            activation(1, "*", 50),
        ];
        assert_eq!(reign(&cancelled, 2, at(60)), Reign::Ended(at(50)));
        assert_eq!(reigning(&cancelled, at(60)), BTreeSet::from([1]));
        assert_eq!(reigning(&list, at(20)), BTreeSet::from([1, 2]));
        assert_eq!(
            scheduled(&cancelled, at(60)).count(),
            0,
            "a later decision called it off"
        );
        assert_eq!(
            scheduled(&list, at(5)).collect::<Vec<_>>(),
            [&list[1], &list[2]]
        );
    }

    #[test]
    fn an_activation_overtaken_at_its_own_instant_has_still_reigned() {
        // Both were written within one tick of the clock; whoever read the first of them encrypted with version 1.
        let list = [activation(1, "*", 10), activation(2, "*", 10)];
        assert_eq!(reign(&list, 1, at(10)), Reign::Ended(at(10)));
    }
}
