//! The direction of imports: each layer uses only what stands below it.

use std::{collections::BTreeSet, fs, path::Path};

/// From the top down; modules of one line may use each other only if they are one module.
const LAYERS: [&[&str]; 12] = [
    &["cli"],
    &["app"],
    &["lifecycle"],
    &["admin", "in_place", "exec"],
    &["serve", "scan", "client"],
    &["render"],
    &["refresh", "secrets"],
    &["schedule"],
    &["keks"],
    &["policy", "audit", "backend"],
    &["keyring"],
    &["crypto"],
];
const LEAVES: [&str; 6] = ["config", "telemetry", "template", "clock", "wire", "files"];

#[test]
fn modules_use_only_what_stands_below_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut modules = BTreeSet::new();
    for file in rust_files(&source) {
        let inside = file.strip_prefix(&source).unwrap();
        let module = inside
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned();
        if ["main", "lib"].contains(&module.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        // Test modules may look around.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for used in uses(text) {
            if used != module && !allowed(&module, &used) {
                wrong.push(format!("{} uses crate::{used}", inside.display()));
            }
        }
        modules.insert(module);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let known: BTreeSet<String> = LAYERS
        .iter()
        .flat_map(|layer| layer.iter())
        .chain(&LEAVES)
        .map(|name| (*name).to_owned())
        .collect();
    assert_eq!(modules, known, "every module has its layer");
}

fn allowed(module: &str, used: &str) -> bool {
    let level = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    match (level(module), level(used)) {
        (Some(above), Some(below)) => above < below,
        (Some(_), None) => true,
        // The telemetry is set up from the config, which reads templates, which know nobody.
        (None, None) => [
            ("telemetry", "config"),
            ("config", "template"),
            ("config", "files"),
        ]
        .contains(&(module, used)),
        (None, Some(_)) => false,
    }
}

/// The modules after `crate::`, also in a nested list.
fn uses(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, rest) in text
        .match_indices("crate::")
        .map(|(at, _)| text.split_at(at + "crate::".len()))
    {
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut at_start = true;
            let mut name = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => at_start = true,
                    c if depth == 0 && at_start && (c.is_alphanumeric() || c == '_') => {
                        name.push(c)
                    }
                    c if depth == 0 && at_start && !name.is_empty() && !c.is_whitespace() => {
                        at_start = false
                    }
                    _ => {}
                }
                if !at_start && !name.is_empty() {
                    found.insert(std::mem::take(&mut name));
                }
            }
            if !name.is_empty() {
                found.insert(name);
            }
        } else {
            found.insert(
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    found
}

fn rust_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn the_reader_of_imports_sees_nested_lists() {
    let text = "use crate::{\n    config::{A, B},\n    keyring::C,\n    policy,\n};\nfn f() { crate::crypto::g() }";
    let expected = ["config", "crypto", "keyring", "policy"].map(String::from);
    assert_eq!(uses(text), BTreeSet::from(expected));
}
