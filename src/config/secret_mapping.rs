use std::path::PathBuf;

use super::{CachePolicy, Secret};
use crate::model::{NamePattern, SecretSource};

/// A `[[secret]]` with a wildcard: the `*` in the name replaces the `*` in the source.
#[derive(Debug, Clone, PartialEq)]
pub struct SecretMapping {
    pub(super) name: NamePattern,
    pub(super) source: String,
    /// Relative paths in `source` are resolved against this folder.
    pub(super) folder: PathBuf,
    pub(super) allow: Vec<NamePattern>,
    pub(super) cache: CachePolicy,
}

impl SecretMapping {
    pub(super) fn name(&self) -> &NamePattern {
        &self.name
    }

    /// Returns the path of the source files, with the `*`. Returns `None` for other sources.
    pub(super) fn files(&self) -> Option<PathBuf> {
        let source: SecretSource = self.source.parse().ok()?;
        match source.anchored(&self.folder) {
            SecretSource::File(path) => Some(path),
            _ => None,
        }
    }

    /// Returns the secret of a name that the mapping covers and allows.
    pub(super) fn secret(&self, name: &str) -> Option<Secret> {
        let matched = self.name.matched(name)?;
        // A leading dot could leave the folder (`..`) or name a file that its owner hid.
        let is_plain = !matched.starts_with('.');
        if !is_plain || !self.allow.iter().any(|allowed| allowed.covers(name)) {
            return None;
        }
        let source: SecretSource = self.source.replace('*', matched).parse().ok()?;
        Some(Secret {
            name: name.parse().ok()?,
            source: source.anchored(&self.folder),
            required: false,
            cache: self.cache.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_returns_only_what_its_list_allows() {
        let patterns = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().expect("pattern"))
                .collect()
        };
        let mapping = SecretMapping {
            name: "team-*".parse().expect("pattern"),
            source: "file:secrets/*".into(),
            folder: "/etc".into(),
            allow: patterns(&["team-a", "team-b-*", "team-.*"]),
            cache: CachePolicy::default(),
        };
        let source = |name: &str| mapping.secret(name).map(|secret| secret.source.to_string());
        assert_eq!(source("team-a").as_deref(), Some("file:/etc/secrets/a"));
        assert_eq!(source("team-b-x").as_deref(), Some("file:/etc/secrets/b-x"));
        for refused in ["team-c", "team-..", "team-..data", "team-", "a"] {
            assert_eq!(source(refused), None, "{refused}");
        }
    }
}
