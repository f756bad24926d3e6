//! Where a file is rendered to: never two files to one path, and never over a secret's source.

use std::path::{Component, Path, PathBuf};

use super::Targets;
use crate::{
    config::{
        Secrets,
        reader::{Parsed, Value},
    },
    files::temporary_beside,
    model::SecretSource,
};

pub(super) fn target(
    value: &Value<'_>,
    secrets: Option<&Secrets>,
    targets: &mut Targets,
) -> Parsed<PathBuf> {
    let file: PathBuf = value
        .path()?
        .components()
        .filter(|component| *component != Component::CurDir)
        .collect();
    if file.file_name().is_none() || value.text()?.ends_with('/') {
        return Err(value.problem("is a directory; expected a file"));
    }
    let real = real(&file);
    let is_same = |other: &Path| {
        *other == real || *other == temporary_beside(&real) || temporary_beside(other) == real
    };
    if let Some((_, line)) = targets.iter().find(|(other, _)| is_same(other)) {
        return Err(value.problem(format_args!(
            "{} is already written by the [[render]] on line {line}",
            file.display()
        )));
    }
    if let Some(name) = secrets.and_then(|secrets| sourced_by(secrets, &file, &real)) {
        return Err(value.problem(format_args!(
            "{} is the source of the secret {name}",
            file.display()
        )));
    }
    targets.push((real, value.line()));
    Ok(file)
}

/// Returns the name of a secret whose source is, or contains, `file`.
fn sourced_by(secrets: &Secrets, file: &Path, real: &Path) -> Option<String> {
    let named = secrets.named.iter().find(|secret| match &secret.source {
        SecretSource::File(source) => is_in(file, real, source),
        _ => false,
    });
    let mapped = || {
        secrets.mappings.iter().find(|mapping| {
            mapping
                .files()
                .is_some_and(|source| is_in(file, real, &source))
        })
    };
    named
        .map(|secret| secret.name.to_string())
        .or_else(|| mapped().map(|mapping| mapping.name().to_string()))
}

/// Returns whether a file is a secret's source, or in the folder that is its source. Writing it
/// would then change what it is rendered from. A `*` in `source` matches a part of one name.
fn is_in(file: &Path, real_file: &Path, source: &Path) -> bool {
    let begins_with = |file: &Path, source: &Path| {
        let mut components = file.components();
        source.components().all(|wanted| {
            components
                .next()
                .is_some_and(|component| matches(wanted, component))
        })
    };
    let is_in = |source: &Path| begins_with(file, source) || begins_with(real_file, source);
    let link_target = source.canonicalize().ok();
    is_in(&normal(source)) || is_in(&real(source)) || link_target.is_some_and(|end| is_in(&end))
}

fn matches(wanted: Component<'_>, component: Component<'_>) -> bool {
    let (wanted, component) = (
        wanted.as_os_str().as_encoded_bytes(),
        component.as_os_str().as_encoded_bytes(),
    );
    match memchr::memchr(b'*', wanted) {
        None => wanted == component,
        Some(star) => {
            let (before, after) = (&wanted[..star], &wanted[star + 1..]);
            component.len() >= before.len() + after.len()
                && component.starts_with(before)
                && component.ends_with(after)
        }
    }
}

/// Returns a path without `.` and `..`, without following links.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            _ => normal.push(component),
        }
    }
    normal
}

/// Returns a path with the links of its folder followed, if the folder exists.
pub(super) fn real(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => normal(path),
    }
}
