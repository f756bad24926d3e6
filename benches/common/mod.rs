//! Statistics over rounds, and the output format of every benchmark: one line per result.

#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    reason = "each benchmark uses a part"
)]

/// Median, minimum and maximum over the rounds.
#[derive(Clone, Copy)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        Self {
            min: rounds[0],
            median: rounds[rounds.len() / 2],
            max: rounds[rounds.len() - 1],
        }
    }
}

pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
    None,
}

/// Prints `NAME VALUE goal <= X ok` or `… missed`, followed by the range of the rounds.
pub fn report(name: &str, unit: &str, spread: Spread, goal: &Goal) {
    let Spread { min, median, max } = spread;
    let verdict = |met: bool| if met { "ok" } else { "missed" };
    let goal = match goal {
        Goal::AtMost(limit) => format!("goal <= {limit} {}", verdict(median <= *limit)),
        Goal::AtLeast(limit) => format!("goal >= {limit} {}", verdict(median >= *limit)),
        Goal::None => "no goal".into(),
    };
    println!("{name} {median:.3}{unit} {goal} (rounds {min:.3} to {max:.3})");
}

/// Whether this is a test run, in which one short round only checks that the benchmark works.
pub fn is_test() -> bool {
    std::env::args().any(|argument| argument == "--test") || cfg!(debug_assertions)
}
