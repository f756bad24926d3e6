//! Rounds and figures: what every benchmark prints, one line per figure.

#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    reason = "each benchmark uses its part"
)]

/// The median of the rounds, with the least and the greatest.
#[derive(Clone, Copy)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        Self {
            least: rounds[0],
            median: rounds[rounds.len() / 2],
            most: rounds[rounds.len() - 1],
        }
    }
}

pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
    None,
}

/// `NAME VALUE goal <= X ok`, or `… short`, with the rounds' spread behind.
pub fn report(name: &str, unit: &str, spread: Spread, goal: &Goal) {
    let Spread {
        least,
        median,
        most,
    } = spread;
    let verdict = |met: bool| if met { "ok" } else { "short" };
    let goal = match goal {
        Goal::AtMost(limit) => format!("goal <= {limit} {}", verdict(median <= *limit)),
        Goal::AtLeast(limit) => format!("goal >= {limit} {}", verdict(median >= *limit)),
        Goal::None => "no goal".into(),
    };
    println!("{name} {median:.3}{unit} {goal} (rounds {least:.3} to {most:.3})");
}

/// Whether `cargo test` runs this: then one short round shows that it works.
pub fn is_test() -> bool {
    std::env::args().any(|argument| argument == "--test") || cfg!(debug_assertions)
}
