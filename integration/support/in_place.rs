//! A tree of files that `sidekey rewrap --in-place` rewrites.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sidekey::{
    crypto::{from_text, peek},
    scan::Search,
};

use super::{
    files::texts,
    harness::{Client, Sidecar, World},
};

pub struct Setting {
    pub world: World,
    pub sidecar: Sidecar,
    pub client: Client,
    pub tree: PathBuf,
}

impl Setting {
    pub async fn new() -> Self {
        Self::with_config("").await
    }

    pub async fn with_config(config: &str) -> Self {
        let world = World::with_demo();
        let sidecar = world.start_with("one", config, &["demo"]);
        let client = sidecar.client().await;
        let tree = world.path("tree");
        fs::create_dir(&tree).unwrap();
        Self {
            world,
            sidecar,
            client,
            tree,
        }
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        path
    }

    pub async fn texts(&mut self, plaintexts: &[&str], aad: &str) -> Vec<String> {
        let plaintexts: Vec<String> = plaintexts.iter().map(|text| (*text).to_owned()).collect();
        texts(&mut self.client, "demo", &plaintexts, aad).await
    }

    /// Makes version 2 the primary.
    pub fn rotate(&self) {
        self.world.keyring("rotate", "demo", &["--activate", "now"]);
        self.sidecar.wait_generation(3);
    }

    pub fn arguments<'a>(&'a self, paths: &[&'a Path], more: &[&'a str]) -> Vec<&'a str> {
        let fixed = [
            "rewrap",
            "--keyring",
            "demo",
            "--socket",
            self.sidecar.socket.to_str().unwrap(),
            "--output",
            "json",
        ];
        let paths = paths.iter().map(|path| path.to_str().unwrap());
        fixed
            .into_iter()
            .chain(more.iter().copied())
            .chain(["--in-place"])
            .chain(paths)
            .collect()
    }

    pub fn rewrap(&self, more: &[&str]) -> (Output, Value) {
        let output = self.world.run(&self.arguments(&[&self.tree], more));
        let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output, value)
    }

    pub fn rewrap_all(&self) -> Value {
        let (output, value) = self.rewrap(&[]);
        assert!(output.status.success(), "{output:?}");
        value
    }

    /// Returns a file's contents with each ciphertext replaced by its version and plaintext.
    pub async fn opened(&mut self, path: &Path, aad: &str) -> String {
        let contents = fs::read(path).unwrap();
        let tokens = tokens(&contents);
        let items = tokens
            .iter()
            .map(|(_, token)| json!({ "ciphertext": token, "aad": STANDARD.encode(aad) }));
        let items: Vec<Value> = items.collect();
        let mut opened = Vec::new();
        for part in items.chunks(100) {
            let answer = self
                .client
                .json("decrypt", json!({ "batch": part }))
                .await
                .ok()
                .json();
            opened.extend(answer["batch"].as_array().unwrap().clone());
        }
        let mut text = String::new();
        let mut copied = 0;
        for ((at, token), result) in tokens.iter().zip(opened) {
            text.push_str(std::str::from_utf8(&contents[copied..*at]).unwrap());
            let plaintext = STANDARD
                .decode(
                    result["plaintext"]
                        .as_str()
                        .unwrap_or_else(|| panic!("{result}")),
                )
                .unwrap();
            text.push_str(&format!(
                "<{}:{}>",
                result["key_version"],
                String::from_utf8(plaintext).unwrap()
            ));
            copied = at + token.len();
        }
        text + std::str::from_utf8(&contents[copied..]).unwrap()
    }
}

/// Returns the text forms and their positions.
pub fn tokens(contents: &[u8]) -> Vec<(usize, String)> {
    let mut tokens = Vec::new();
    Search::new([]).unwrap().look(contents, 0, true, |at, _| {
        let is_digit = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let len = 4 + contents[at + 4..].iter().take_while(is_digit).count();
        tokens.push((
            at,
            String::from_utf8(contents[at..at + len].to_vec()).unwrap(),
        ));
    });
    tokens
}

pub fn versions(contents: &[u8]) -> BTreeMap<u32, usize> {
    let mut versions = BTreeMap::new();
    for (_, token) in tokens(contents) {
        *versions
            .entry(peek(&from_text(&token).unwrap()).unwrap().version)
            .or_default() += 1;
    }
    versions
}

pub fn temporary_files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with(".sidekey-rewrap-")
        })
        .count()
}
