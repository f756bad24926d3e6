use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Malformed;

/// A duration in the form that people write: `30d`, `12h`, `1m 30s`.
///
/// It has a type of its own because settings, flags and manifests share its text form, and because
/// it is bounded: no sum of a time and a span overflows a timestamp.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

/// A century.
const LONGEST: Duration = Span::from_days(36_525).0;

impl Span {
    /// Returns a span of `seconds`.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Returns a span of `days` of 24 hours.
    pub const fn from_days(days: u64) -> Self {
        Self::from_secs(days * 24 * 60 * 60)
    }
}

impl FromStr for Span {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        humantime::parse_duration(text)
            .ok()
            .filter(|duration| *duration <= LONGEST)
            .map(Self)
            .ok_or_else(|| {
                Malformed::new("expected a duration such as `30s`, `12h` or `30d`, at most 36525d")
            })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        // humantime would turn 90 days into months, but policies are agreed in days.
        if self.0.subsec_nanos() == 0 && seconds >= 86_400 && seconds.is_multiple_of(86_400) {
            write!(f, "{}d", seconds / 86_400)
        } else {
            fmt::Display::fmt(&humantime::format_duration(self.0), f)
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_they_are_written() {
        for text in ["30d", "12h", "1m 30s", "100ms", "0s", "36525d"] {
            assert_eq!(text.parse::<Span>().expect(text).to_string(), text);
        }
        assert_eq!(Span::from_days(90).to_string(), "90d", "not 3 months");
    }

    #[test]
    fn a_span_has_a_unit_and_is_bounded() {
        for text in ["", "30", "-1s", "1 fortnight", "36526d"] {
            text.parse::<Span>().expect_err(text);
        }
    }
}
