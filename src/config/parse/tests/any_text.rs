//! Parsing any text returns settings or problems, and never panics.

use proptest::{collection, prelude::*, sample};

use super::*;

const TEXT_KEYS: [&str; 6] = [
    "wave",
    "listen.mode",
    "ops.listen",
    "limits.body",
    "timeouts.idle",
    "log.level",
];

/// Lines of valid files, so that random text gets past the TOML parser.
fn almost_toml() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        sample::select(FULL.lines().collect::<Vec<_>>()).prop_map(str::to_owned),
        ("[a-z_.\"]{1,12}", "[-a-z0-9\"'\\[\\]{}=,.:_+]{0,12}")
            .prop_map(|(key, value)| format!("{key} = {value}")),
        (
            sample::select(FULL.lines().collect::<Vec<_>>()),
            any::<sample::Index>(),
            any::<char>()
        )
            .prop_map(|(line, at, c)| {
                let mut chars: Vec<char> = line.chars().collect();
                chars.insert(at.index(chars.len() + 1), c);
                chars.into_iter().collect()
            }),
    ];
    collection::vec(line, 0..40).prop_map(|lines| lines.join("\n"))
}

fn check_answer(text: &str) {
    let Err(problems) = parse(Path::new("c.toml"), text) else {
        return;
    };
    assert!(!problems.items.is_empty());
    assert!(problems.items.is_sorted_by_key(|problem| problem.line));
    assert!(
        problems
            .items
            .iter()
            .all(|problem| (1..=text.matches('\n').count() + 1).contains(&problem.line))
    );
    assert_eq!(
        problems.to_string().split('\n').count(),
        problems.items.len(),
        "one line each"
    );
}

proptest! {
    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        check_answer(&text);
    }

    #[test]
    fn almost_any_toml_is_answered(text in almost_toml()) {
        check_answer(&text);
    }

    #[test]
    fn any_level_is_answered(value in r"[ ,=\[\]{}a-f\u{a42}*\\(.|]{0,24}") {
        check_answer(&format!("log.level = '{value}'"));
    }

    #[test]
    fn any_text_of_a_setting_is_answered(
        key in sample::select(&TEXT_KEYS[..]),
        value in any::<String>(),
    ) {
        let value = value.replace(|c: char| c.is_control() || c == '\'', "");
        check_answer(&format!("{key} = '{value}'"));
    }
}
