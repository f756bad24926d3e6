//! Import direction: a module uses only modules of the layers below its own.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Layers from top to bottom.
const LAYERS: [&[&str]; 17] = [
    &["cli"],
    &["app", "lifecycle"],
    &["api", "ops", "hub", "join"],
    &["http"],
    &["orders"],
    &["runner"],
    &["signer"],
    &["admin", "in_place", "exec", "scan", "client", "render"],
    &["session", "fleet"],
    &["refresh", "secrets", "schedule", "keks"],
    &["policy", "audit", "backend"],
    &["rollout"],
    &["ledger"],
    &["keyring"],
    &["crypto"],
    &["model", "wire"],
    &[
        "config",
        "template",
        "telemetry",
        "clock",
        "encoding",
        "files",
    ],
];

/// Uses within a layer. None is circular.
const BESIDE: [(&str, &str); 13] = [
    ("app", "lifecycle"),
    ("in_place", "client"),
    ("in_place", "scan"),
    ("audit", "backend"),
    ("exec", "client"),
    ("refresh", "schedule"),
    ("refresh", "keks"),
    ("secrets", "schedule"),
    ("wire", "model"),
    ("telemetry", "config"),
    ("telemetry", "files"),
    ("config", "template"),
    ("template", "encoding"),
];

/// Settings use the model's types, and `config` replaces files in the shared way.
const SETTINGS: [(&str, &str); 2] = [("config", "model"), ("config", "files")];

/// The lower layers that the server kit may use. It knows nothing about keys.
const HTTP: [&str; 10] = [
    "http",
    "clock",
    "config",
    "crypto::equal_in_constant_time",
    "crypto::fingerprint",
    "model",
    "policy::Caller",
    "telemetry",
    "wire",
    "files",
];

#[test]
fn modules_use_only_the_layers_below() {
    let mut wrong = Vec::new();
    let mut modules = BTreeSet::new();
    for (file, module, text) in sources() {
        for used in uses(&text) {
            let used = used.split("::").next().unwrap();
            if used != module && !is_allowed(&module, used) {
                wrong.push(format!("{file} uses crate::{used}"));
            }
        }
        modules.insert(module);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let known: BTreeSet<String> = LAYERS
        .iter()
        .flat_map(|layer| layer.iter())
        .map(|name| (*name).to_owned())
        .collect();
    assert_eq!(modules, known, "every module has a layer");
}

#[test]
fn the_server_kit_knows_no_key() {
    uses_only("http", &HTTP);
}

#[test]
fn a_hub_holds_no_key() {
    const HUB: [&str; 19] = [
        "hub",
        "http",
        "fleet",
        "ledger",
        "clock",
        "config",
        "crypto::equal_in_constant_time",
        "crypto::InstanceId",
        "crypto::KeyringId",
        "crypto::RolloutId",
        "crypto::fingerprint",
        "crypto::verify_signature",
        "encoding",
        "files",
        "keyring::Class",
        "model",
        "rollout",
        "telemetry",
        "wire",
    ];
    uses_only("hub", &HUB);
}

#[test]
fn the_state_machine_of_rollouts_is_pure() {
    const ROLLOUT: [&str; 6] = [
        "rollout", "ledger", "keyring", "crypto", "model", "encoding",
    ];
    uses_only("rollout", &ROLLOUT);
}

#[test]
fn the_ledger_is_pure() {
    const LEDGER: [&str; 6] = ["ledger", "keyring", "crypto", "model", "wire", "encoding"];
    uses_only("ledger", &LEDGER);
}

/// Each of `allowed` is a module, or what one has by that path.
fn uses_only(module: &str, allowed: &[&str]) {
    let is_allowed = |used: &str| {
        let is_part =
            |allowed: &&str| used == *allowed || used.starts_with(&format!("{allowed}::"));
        allowed.iter().any(is_part)
    };
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|(_, found, _)| found == module)
        .flat_map(|(file, _, text)| {
            uses(&text)
                .into_iter()
                .map(move |used| (file.clone(), used))
        })
        .filter(|(_, used)| !is_allowed(used))
        .map(|(file, used)| format!("{file} uses crate::{used}"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn is_allowed(module: &str, used: &str) -> bool {
    let level = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let (Some(above), Some(below)) = (level(module), level(used)) else {
        return false;
    };
    above < below || BESIDE.contains(&(module, used)) || SETTINGS.contains(&(module, used))
}

/// Returns every source file's path, module and text. Tests are left out: they may use anything.
fn sources() -> Vec<(String, String, String)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    for file in rust_files(&source) {
        let path = file.strip_prefix(&source).unwrap().to_str().unwrap();
        let mut names = path.trim_end_matches(".rs").split('/');
        let module = names.next().unwrap().to_owned();
        // What is in `bin` is as thin as `main.rs`.
        if ["main", "lib", "bin"].contains(&module.as_str())
            || names.any(|name| ["tests", "testing"].contains(&name))
        {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        sources.push((path.to_owned(), module, text.to_owned()));
    }
    sources
}

/// Returns the paths after `crate::`, including those in nested lists.
fn uses(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, start) in text.match_indices("crate::") {
        collect(&text[at + start.len()..], "", &mut found);
    }
    found
}

/// Adds the path or list at the start of `text`, and returns the rest.
fn collect<'t>(text: &'t str, prefix: &str, found: &mut BTreeSet<String>) -> &'t str {
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let left = rest.len();
            rest = collect(rest, prefix, found);
            if rest.len() == left {
                // `self`, a glob, or text that only looks like a list.
                let Some(next) = rest.find([',', '}']) else {
                    return "";
                };
                rest = &rest[next..];
            }
        }
    }
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let (name, rest) = text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()));
    if name.is_empty() {
        return text;
    }
    let path = if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}::{name}")
    };
    match rest.strip_prefix("::") {
        Some(next) if next.starts_with(|c| is_name(c) || c == '{') => collect(next, &path, found),
        _ => {
            found.insert(path);
            rest.find([',', '}', ';']).map_or("", |end| &rest[end..])
        }
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
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
fn nested_lists_of_imports_are_read() {
    let text = "use crate::{\n    config::{self, A, b::{C, D}},\n    keyring::E as F,\n    \
                policy,\n};\nfn f() { crate::crypto::g() }";
    let expected = [
        "config::self",
        "config::A",
        "config::b::C",
        "config::b::D",
        "crypto::g",
        "keyring::E",
        "policy",
    ];
    assert_eq!(uses(text), expected.map(String::from).into());
}
